"""Object outlines in the format of COCO (Lin et al., ECCV 2014), made into label maps.

    ROOT/annotations/instances_train2017.json     what is learned from
    ROOT/annotations/instances_val2017.json       the test split, as COCO gives out no test labels
    ROOT/annotations/instances_test2017.json      if there is one: test, and val is then val
    ROOT/train2017/<file_name>                    or in images/train2017/, images/ or ROOT

The name decides: a list with the word val (valid, validation) or test in its name is that part, any
other is train (latest.json is). In place of annotations/instances_*.json there may be

    ROOT/annotations.json, or other JSON files in annotations/
    ROOT/{train,valid,test}/_annotations.coco.json    Roboflow, images beside them
    ROOT/{train,val,test}/annotations.json            or labels.json, annotations/*.json, ...;
                                                      images beside it, or in images/ or data/
    ROOT/annotations/{train,val,test}/*.json          a list each; ROOT/images/{train,val,test}/
    ROOT/result.json, labels.json, ...                Label Studio, FiftyOne

Lists in folders of parts are those parts, and val is then val. An image that is not where its
file_name says is sought by the last parts of that path. Images that no list names are left out.

A class is a category; its id is the category's rank by id. A category without annotations that is
the supercategory of others, or has the name of another, is left out; a single category is learned
against background. Polygons, and RLE plain or compressed, are drawn larger ones first, so that
small things stay visible; crowds (`iscrowd`) are drawn as their class. An annotation without an
area is not drawn, but noted; one of a category that the list does not have is void, and noted. A
pixel without an outline is void, unless a category is named background or `_background_`: then it
is of that class, except in the box of an annotation that has no outline. Categories whose names
stand for no class are void (see `name_lists`).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.base import Listing, with_pictures
from ccfnet_tf.datasets.find_images import FoundPictures, path_parts
from ccfnet_tf.datasets.name_lists import PARTS, part_named, void_notes, with_background
from ccfnet_tf.datasets.split_names import part_folders, part_of
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.coco_rle import read_runs, to_mask
from ccfnet_tf.io.images import image_size
from ccfnet_tf.io.json_files import (
    Record,
    is_there,
    path_text,
    picture_size,
    read_json,
    records,
    shown,
    text,
    whole,
)
from ccfnet_tf.io.polygons import area, draw, is_flat, is_outside, outline, points
from ccfnet_tf.labels import VOID, Sample

ROBOFLOW = "_annotations.coco.json"

_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_SHOWN = 8
_MOST_LISTS = 20  # JSON files beside each other that may be lists; more are one an image


class _Outline(NamedTuple):
    """What an annotation says: its place in the list, its category, its outline as `_packed`."""

    number: int
    category: int
    segmentation: Any


class _Region(NamedTuple):
    """What an annotation covers: polygons float64 [N, 2] each, or the runs of `rle`."""

    pixels: float
    class_id: int
    polygons: list[np.ndarray]
    runs: list[int]


@dataclass
class _Picture:
    """An entry of a list.

    Attributes:
        name: Of the sample.
        size: (H, W); `None` where the list states none.
        image: Its file, or why there is none.
        label: What messages call it.
        outlines: Its annotations that have an outline.
        boxes: Boxes float64 [4, 2] of those that have none.
    """

    name: str
    size: tuple[int, int] | None
    image: str | DataError
    label: str
    outlines: list[_Outline] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)


@dataclass
class _List:
    """A list as it was read.

    Attributes:
        path: Its file.
        categories: Category id -> name and supercategory.
        pictures: Its images.
        without_area: Numbers of the annotations that are not drawn.
        unknown: Number of an annotation -> its category, which the list does not have.
        strays: Numbers of the annotations whose image is not in the list.
        drawn: Categories of the others.
    """

    path: Path
    categories: dict[int, tuple[str, str]]
    pictures: list[_Picture] = field(default_factory=list)
    without_area: list[int] = field(default_factory=list)
    unknown: dict[int, int] = field(default_factory=dict)
    strays: list[int] = field(default_factory=list)
    drawn: set[int] = field(default_factory=set)


def signs(root: Path) -> str:
    """Returns the first list in `root`; empty where there is none."""
    try:
        return next((p.relative_to(root).as_posix() for p in _lists(root) if _looks_like(p)), "")
    except OSError:
        return ""  # what cannot be looked at shows no sign


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Reads the lists; no image is opened, and no outline is drawn yet.

    Raises:
        DataError: No list to learn from, two for one part, a list that is damaged, categories that
            differ between lists, no outline of a known category at all, or no category.
    """
    paths = _parts(root)
    found = FoundPictures(root)
    lists: dict[str, _List] = {}
    for part, path in paths.items():
        lists[part] = _read_list(path, _places(root, path, list(paths.values())), found)
        if lists[part].categories != lists["train"].categories:
            raise DataError(f"{path}: its categories are not those of {paths['train']}")
    names, roots = _class_names(lists, paths["train"])
    _refuse_without_outlines(lists)
    source = f"{paths['train']}: categories"
    taxonomy, by_name, background = with_background(list(names.values()), source)
    ids = {key: by_name[name] for key, name in names.items()}
    ids |= {key: VOID for each in lists.values() for key in each.unknown.values()}
    parts = {
        part: tuple(
            Sample(p.name, p.image, p.label) for p in each.pictures if isinstance(p.image, str)
        )
        for part, each in lists.items()
    }
    known = {picture.name: picture for each in lists.values() for picture in each.pictures}
    load_label = partial(_load_label, known, ids, background)
    return Listing(
        taxonomy,
        parts["train"],
        parts.get("val"),
        parts.get("test", ()),
        with_pictures(load_label),
        load_label,
        unpaired=tuple(p.image for p in known.values() if isinstance(p.image, DataError)),
        notes=(
            *roots,
            *void_notes(source, names.values()),
            *(note for each in lists.values() for note in _notes(each)),
        ),
    )


def _looks_like(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(65536)
    whole = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    items = b'"items"' in head or b'"item"' in head or b'"polygon"' in head
    foreign = b'"segments_info"' in head or (items and _KEYS[0] not in head)
    return whole and any(key in head for key in _KEYS) and not foreign


def _lists(root: Path) -> list[Path]:
    """Returns the lists of a set: its own, else those in the folders of its parts."""
    holders = (root, root / "annotations")
    folders = [f for holder in holders for fs in part_folders(holder).values() for f in fs]
    in_parts = [path for folder in folders for path in _lists_in(folder) or _top(folder)]
    return _lists_in(root) or in_parts or sorted(root.glob(f"*/{ROBOFLOW}")) or _top(root)


def _lists_in(folder: Path) -> list[Path]:
    """Returns what is a list by its name or its folder; of several sorts, the first."""
    others = _json_files(folder / "annotations")
    instances = [path for path in others if path.name.startswith("instances_")]
    single = (folder / "annotations.json", folder / ROBOFLOW)
    return instances or [path for path in single if path.is_file()][:1] or others


def _top(folder: Path) -> list[Path]:
    """Returns the JSON files in a folder that look like lists."""
    top = _json_files(folder)
    return [path for path in top if _looks_like(path)] if len(top) <= _MOST_LISTS else []


def _json_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.glob("*.json") if path.name[0] != ".")
    return [path for path in files if not path.name.startswith("panoptic_")]


def _parts(root: Path) -> dict[str, Path]:
    """Returns part -> its list, train first."""
    found: dict[str, Path] = {}
    lists = _lists(root)
    for path in lists:
        part = part_of(_folder(root, path)) or part_in(path)
        if part in found:
            raise DataError(
                f"{path}: {found[part]} is the list of the {part} split too: keep one of them"
            )
        found[part] = path
    if "train" not in found:
        there = ", ".join(path.relative_to(root).as_posix() for path in lists) or "nothing"
        panoptic = next(root.glob("**/panoptic_*.json"), None)
        if panoptic is not None and not lists:
            there = f"{panoptic.name}, which --data.format coco_panoptic reads"
        raise DataError(
            f"{root}: no list to learn from (found: {there}): expected "
            f"annotations/instances_train*.json, annotations.json, or a list in train/ (such as "
            f"{ROBOFLOW} or annotations.json)"
        )
    if "val" in found and "test" not in found and not _folder(root, found["val"]):
        found["test"] = found.pop("val")
    return {part: found[part] for part in PARTS if part in found}


def part_in(path: Path) -> str:
    """Returns the part that a list's name states; `train` where it states none."""
    words = re.findall(r"[^\W\d_]+", path.stem.lower())
    return next(
        (part_named(word) for word in words if part_named(word) in ("val", "test")), "train"
    )


class _Places(NamedTuple):
    """Where the images of a list are: its own folder's name, folders, and those of others."""

    own: str
    folders: list[Path]
    others: list[Path]


def _folder(root: Path, path: Path) -> str:
    """Returns the name of the part's folder that a list lies in; empty where it lies in none."""
    above = path.relative_to(root).parts[:-1]
    of_roboflow = above[0] if above and path.name == ROBOFLOW else ""
    return next((name for name in above if part_of(name)), of_roboflow)


def _places(root: Path, path: Path, paths: list[Path]) -> _Places:
    own = _own_folders(root, path)
    inside = [f"{own[0]}/images", f"{own[0]}/data"] if _folder(root, path) else []
    folders = [root / name for name in (*own, *inside, "images", "") if (root / name).is_dir()]
    others = [
        root / name
        for other in paths
        if other != path
        for name in _own_folders(root, other)
        if name not in own
    ]
    return _Places(own[0] if own and path.parent != root else "", folders, others)


def _own_folders(root: Path, path: Path) -> list[str]:
    """Returns the names of the folders that only one list's images are in."""
    if folder := _folder(root, path):
        return [folder, f"images/{folder}"]
    part = part_in(path)
    own = "" if path.parent == root else path.stem.removeprefix("instances_")
    names = (own, f"images/{own}" if own else "", part, f"images/{part}")
    return [name for name in dict.fromkeys(names) if name]


def _read_list(path: Path, places: _Places, found: FoundPictures) -> _List:
    """Reads a list; what its tree held beyond that is not kept."""
    tree = read_json(path)
    read = _List(path, read_categories(tree, path))
    pictures = _pictures(tree, path, places, found)
    read.pictures = list(pictures.values())
    for number, entry in enumerate(records(tree, "annotations", str(path))):
        where = f"{path}: 'annotations'[{number}]"
        key, category = whole(entry, "image_id", where), whole(entry, "category_id", where)
        if key not in pictures:
            read.strays.append(number)
            continue
        segmentation = _packed(entry.pop("segmentation", None), pictures[key].size)
        if segmentation is None:
            read.without_area.append(number)
            pictures[key].boxes += _box(entry.get("bbox"))
            continue
        if category in read.categories:
            read.drawn.add(category)
        else:
            read.unknown[number] = category
        pictures[key].outlines.append(_Outline(number, category, segmentation))
    return read


def read_categories(tree: Record, path: Path) -> dict[int, tuple[str, str]]:
    """Returns category id -> name and supercategory.

    Raises:
        DataError: No list of categories, one without id or name, or an id twice.
    """
    found: dict[int, tuple[str, str]] = {}
    for number, category in enumerate(records(tree, "categories", str(path))):
        where = f"{path}: 'categories'[{number}]"
        key, name = whole(category, "id", where), text(category, "name", where)
        if key in found:
            raise DataError(f"{where}: id {key}, {shown(name)}: the id is there already")
        above = category.get("supercategory")
        found[key] = name, above if isinstance(above, str) else ""
    return found


def _class_names(lists: Mapping[str, _List], path: Path) -> tuple[dict[int, str], list[str]]:
    """Returns category id -> name of those that are classes, and notes of those that are not."""
    left = dict(sorted(lists["train"].categories.items()))
    used = set().union(*(each.drawn for each in lists.values()))
    notes = []
    for key, (name, above) in list(left.items()):
        others = [other for other in left.items() if other[0] != key]
        twin = any(other == name for _, (other, _) in others)
        is_root = above in ("", "none", name) and any(top == name for _, (_, top) in others)
        if key not in used and (twin or is_root):
            del left[key]
            notes.append(f"{path}: category '{name}' (id {key}) holds others and is left out")
        elif twin and any(other == name for k, (other, _) in others if k in used):
            raise DataError(
                f"{path}: 'categories': id {key}, {shown(name)}: the name is there twice"
            )
    return {key: name for key, (name, _) in left.items()}, notes


def _refuse_without_outlines(lists: Mapping[str, _List]) -> None:
    """Refuses a set that has annotations, none of which can be drawn."""
    if any(each.drawn for each in lists.values()):
        return
    for each in lists.values():
        if each.unknown:
            raise DataError(f"{_unknown(each)}; nothing is left to learn from")
    without = [each for each in lists.values() if each.without_area]
    if without:
        count = sum(len(each.without_area) for each in without)
        raise DataError(
            f"{without[0].path}: none of the {count} annotations has an outline with an area; "
            "boxes alone label no pixels: export polygons or masks"
        )


def _notes(read: _List) -> Iterator[str]:
    """Yields what was left out of a list."""
    if read.unknown:
        yield f"{_unknown(read)}; their pixels are void"
    for numbers, what in (
        (
            read.without_area,
            "without an area (no outline, fewer than 3 points, or outside the image): not drawn",
        ),
        (read.strays, "of images that are not in the list: left out"),
    ):
        if numbers:
            yield f"{read.path}: {_counted(numbers, what)}"


def _counted(numbers: Sequence[int], what: str) -> str:
    named = ", ".join(f"'annotations'[{number}]" for number in numbers[:3])
    more = ", ..." if len(numbers) > 3 else ""
    plural = "annotation" if len(numbers) == 1 else "annotations"
    return f"{len(numbers)} {plural} {what} ({named}{more})"


def _unknown(read: _List) -> str:
    ids = sorted(set(read.unknown.values()))
    shown = ", ".join(map(str, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")
    known = f"{min(read.categories)}..{max(read.categories)}" if read.categories else "none"
    what = f"of category_id {shown}, where 'categories' has {len(read.categories)} ({known})"
    return f"{read.path}: {_counted(list(read.unknown), what)}: add the categories that are missing"


def _pictures(
    tree: Record, path: Path, places: _Places, found: FoundPictures
) -> dict[int, _Picture]:
    """Returns the images that a list names, by their id."""
    pictures: dict[int, _Picture] = {}
    names: set[str] = set()
    taken: dict[str, str] = {}
    for number, entry in enumerate(records(tree, "images", str(path))):
        where = f"{path}: 'images'[{number}]"
        key, named = whole(entry, "id", where), path_text(entry, "file_name", where)
        parts = path_parts(named)
        if not parts:
            raise DataError(f"{where}: file_name {shown(named)}: expected the path of an image")
        relative = PurePosixPath(*parts)
        name = relative.with_suffix("").as_posix()
        name = f"{places.own}/{name}" if places.own and parts[0] != places.own else name
        if key in pictures or name in names:
            raise DataError(f"{where}: id {key}, {shown(name)}: id or name is there already")
        names.add(name)
        label = f"{path}: image {key} ({shown(named)})"
        image = _find(places, relative, named, label, found)
        if isinstance(image, str) and image in taken:
            image = DataError(f"{label}: {image} is the image of {taken[image]} too: keep one")
        elif isinstance(image, str):
            taken[image] = f"image {key}"
        pictures[key] = _Picture(name, _size(entry, where), image, label)
    return pictures


def _size(entry: Record, where: str) -> tuple[int, int] | None:
    """Returns (H, W); Label Studio states none for images that it could not open."""
    if entry.get("height") is None and entry.get("width") is None:
        return None
    return picture_size(entry, "height", "width", where)


def _find(
    places: _Places, relative: PurePosixPath, named: str, label: str, found: FoundPictures
) -> str | DataError:
    """Returns the file; the folder that has it comes first from then on."""
    for index, folder in enumerate(places.folders):
        if is_there(folder / relative):
            places.folders.insert(0, places.folders.pop(index))
            return str(folder / relative)
    try:
        return str(found.find(named, label, places.others))
    except DataError as missing:
        return missing


def _packed(segmentation: Any, size: tuple[int, int] | None) -> Any:
    """Returns polygons as arrays of x, y, x, y, ..., which take a quarter of the memory.

    Those that cover nothing of the image, of (H, W), are left out; `None` where nothing is left.
    What is not a polygon stays as JSON held it: whatever reads the label says what is wrong.
    """
    if isinstance(segmentation, dict) and not segmentation.get("counts", segmentation):
        return None
    if not isinstance(segmentation, list):
        return segmentation
    flat = len(segmentation) > 1 and all(type(value) in (int, float) for value in segmentation)
    packed = [_pack(values, size) for values in ([segmentation] if flat else segmentation)]
    return [values for values in packed if values is not None] or None


def _pack(values: Any, size: tuple[int, int] | None) -> Any:
    """Returns a polygon as an array; `None` where it covers nothing of an image of (H, W)."""
    try:
        corners = points(values, "", least=0)
    except DataError:
        return values
    if len(corners) < 3 or is_flat(corners) or is_outside(corners, size):
        return None
    return array("d", values)


def _box(bbox: Any) -> list[np.ndarray]:
    """Returns the outline of a box [x, y, width, height]; nothing where there is none."""
    try:
        (left, top), (width, height) = points(bbox, "", least=2)[:2]
    except DataError:
        return []
    right, low = left + width, top + height
    return [np.array([[left, top], [right, top], [right, low], [left, low]])]


def _unpacked(values: Any, where: str) -> np.ndarray:
    return np.array(values).reshape(-1, 2) if isinstance(values, array) else outline(values, where)


def _load_label(
    pictures: Mapping[str, _Picture], ids: Mapping[int, int], background: int, sample: Sample
) -> np.ndarray:
    picture = pictures[sample.name]
    size = picture.size or image_size(sample.image)
    regions = [
        _region(told, ids, size, f"{picture.label}: 'annotations'[{told.number}]")
        for told in picture.outlines
    ]
    regions.sort(key=lambda region: -region.pixels)
    # What is in a box without an outline is known not to be all background.
    unknown = ((VOID, box) for box in picture.boxes)
    return draw(size, chain(unknown, _shapes(regions, size)), background, where=sample.label)


def _region(told: _Outline, ids: Mapping[int, int], size: tuple[int, int], where: str) -> _Region:
    segmentation, class_id = told.segmentation, ids[told.category]
    if isinstance(segmentation, list) and segmentation:
        polygons = [_unpacked(values, where) for values in segmentation]
        return _Region(sum(map(area, polygons)), class_id, polygons, [])
    if not isinstance(segmentation, dict):
        raise DataError(
            f"{where}: 'segmentation' is {shown(segmentation)}: expected polygons or RLE; boxes "
            "alone label no pixels"
        )
    stated = segmentation.get("size")
    if stated != list(size):
        found = shown(stated)
        if isinstance(stated, list) and len(stated) == 2:
            found = f"[{shown(stated[0])}, {shown(stated[1])}]"
        raise DataError(
            f"{where}: RLE of size {found}: the list has the image as {list(size)} (height, width)",
            kind="size",
        )
    runs = read_runs(segmentation.get("counts"), size, where)
    return _Region(sum(runs[1::2]), class_id, [], runs)


def _shapes(regions: list[_Region], size: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    for region in regions:
        for polygon in region.polygons:
            yield region.class_id, polygon
        if region.runs:
            yield region.class_id, to_mask(region.runs, size)
