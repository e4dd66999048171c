"""COCO instance annotations (Lin et al., ECCV 2014), rasterised to label maps.

    ROOT/annotations/instances_train2017.json     the training split
    ROOT/annotations/instances_val2017.json       the test split, as COCO publishes no test labels
    ROOT/annotations/instances_test2017.json      optional: the test split; val is then validation
    ROOT/train2017/<file_name>                    or in images/train2017/, images/ or ROOT

The name of an annotation file decides its split: with the word val (valid, validation) or test in
it, the file is that split; any other file (such as latest.json) is train. These files are read in
place of annotations/instances_*.json:

    ROOT/annotations.json, or other JSON files in annotations/
    ROOT/{train,valid,test}/_annotations.coco.json    Roboflow, images in the same folder
    ROOT/{train,val,test}/annotations.json            or labels.json, annotations/*.json, ...;
                                                      images in the same folder, images/ or data/
    ROOT/annotations/{train,val,test}/*.json          one each; images in
                                                      ROOT/images/{train,val,test}/
    ROOT/result.json, labels.json, ...                Label Studio, FiftyOne

An annotation file in the folder of a split is that split, and val is then the validation split. An
image that is not at its file_name is looked up by the last components of that path. Images that no
annotation file lists are left out.

Each category is a class; class ids follow the order of the category ids. A category without
annotations is left out if it is the supercategory of others or has the name of another. A single
category is learned against background. Polygons and RLE (plain or compressed) are drawn from large
to small, so that small objects stay visible; crowds (`iscrowd`) are drawn as their class. An
annotation without an area is not drawn. One whose category is not in the file is drawn as void.
Both are reported in the notes. A pixel without an annotation is void, unless a category is named
background or `_background_`: then it has that class, except inside the box of an annotation that
has no outline. Categories whose names stand for no class are void.
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
from ccfnet_tf.datasets.class_and_split_lists import PARTS, part_named, void_notes, with_background
from ccfnet_tf.datasets.locate_images import FoundImages, path_parts
from ccfnet_tf.datasets.samples import Listing, with_images
from ccfnet_tf.datasets.split_names import part_folders, part_of
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.annotation_json import (
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
from ccfnet_tf.io.coco_rle import read_runs, to_mask
from ccfnet_tf.io.polygons import area, draw, is_flat, is_outside, outline, points
from ccfnet_tf.io.read_images import image_size
from ccfnet_tf.labels import VOID, Sample

ROBOFLOW = "_annotations.coco.json"

_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_MAX_LISTED_IDS = 8  # category ids in a message
_MAX_LISTS = 20  # a folder with more JSON files has one per image, and is not of this layout


class _Outline(NamedTuple):
    """One annotation: index in the list, category id, outline packed by `_pack_polygons`."""

    number: int
    category: int
    segmentation: Any


class _Region(NamedTuple):
    """The area of an annotation: polygons, each float64 [N, 2], or the runs of an RLE."""

    pixels: float
    class_id: int
    polygons: list[np.ndarray]
    runs: list[int]


@dataclass
class _Image:
    """One image of an annotation file.

    Attributes:
        name: Name of the sample.
        size: (H, W); `None` if the file does not state it.
        image: Path of the image, or the reason why it is missing.
        label: How messages refer to the image.
        outlines: Annotations that have an outline.
        boxes: Bounding boxes, float64 [4, 2], of the annotations that have none.
    """

    name: str
    size: tuple[int, int] | None
    image: str | DataError
    label: str
    outlines: list[_Outline] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)


@dataclass
class _List:
    """The content of an annotation file.

    Attributes:
        path: The file.
        categories: Category id -> name and supercategory.
        images: Its images.
        without_area: Indices of the annotations that are not drawn.
        unknown: Index of an annotation -> its category id, if the file does not define it.
        orphans: Indices of the annotations whose image is not in the file.
        drawn: Category ids of all other annotations.
    """

    path: Path
    categories: dict[int, tuple[str, str]]
    images: list[_Image] = field(default_factory=list)
    without_area: list[int] = field(default_factory=list)
    unknown: dict[int, int] = field(default_factory=dict)
    orphans: list[int] = field(default_factory=list)
    drawn: set[int] = field(default_factory=set)


def signs(root: Path) -> str:
    """Returns the first annotation file in `root`, or an empty string if there is none."""
    try:
        return next((p.relative_to(root).as_posix() for p in _lists(root) if _looks_like(p)), "")
    except OSError:
        return ""  # an unreadable folder is not recognised


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Reads the annotation files. Opens no image; label maps are drawn when they are loaded.

    Raises:
        DataError: There is no annotation file for training, a split has two, a file is damaged, the
            categories of two files differ, or there is no category or no annotation with an area.
    """
    paths = _parts(root)
    finder = FoundImages(root)
    lists: dict[str, _List] = {}
    for part, path in paths.items():
        lists[part] = _read_list(path, _search_folders(root, path, list(paths.values())), finder)
        if lists[part].categories != lists["train"].categories:
            raise DataError(f"{path}: its categories differ from those of {paths['train']}")
    names, roots = _class_names(lists, paths["train"])
    _refuse_without_outlines(lists)
    source = f"{paths['train']}: categories"
    taxonomy, by_name, background = with_background(list(names.values()), source)
    ids = {key: by_name[name] for key, name in names.items()}
    ids |= {key: VOID for each in lists.values() for key in each.unknown.values()}
    parts = {
        part: tuple(
            Sample(i.name, i.image, i.label) for i in each.images if isinstance(i.image, str)
        )
        for part, each in lists.items()
    }
    known = {image.name: image for each in lists.values() for image in each.images}
    load_label = partial(_load_label, known, ids, background)
    return Listing(
        taxonomy,
        parts["train"],
        parts.get("val"),
        parts.get("test", ()),
        with_images(load_label),
        load_label,
        unpaired=tuple(i.image for i in known.values() if isinstance(i.image, DataError)),
        notes=(
            *roots,
            *void_notes(source, names.values()),
            *(note for each in lists.values() for note in _notes(each)),
        ),
    )


def _looks_like(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(65536)
    is_object = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    items = b'"items"' in head or b'"item"' in head or b'"polygon"' in head
    foreign = b'"segments_info"' in head or (items and _KEYS[0] not in head)
    return is_object and any(key in head for key in _KEYS) and not foreign


def _lists(root: Path) -> list[Path]:
    """Returns the annotation files of `root`, or else those in the folders of its splits."""
    parents = (root, root / "annotations")
    folders = [f for parent in parents for fs in part_folders(parent).values() for f in fs]
    in_parts = [
        path for folder in folders for path in _lists_in(folder) or _lists_by_content(folder)
    ]
    return (
        _lists_in(root) or in_parts or sorted(root.glob(f"*/{ROBOFLOW}")) or _lists_by_content(root)
    )


def _lists_in(folder: Path) -> list[Path]:
    """Returns the annotation files, recognised by name or folder; of several kinds, the first."""
    others = _json_files(folder / "annotations")
    instances = [path for path in others if path.name.startswith("instances_")]
    single = (folder / "annotations.json", folder / ROBOFLOW)
    return instances or [path for path in single if path.is_file()][:1] or others


def _lists_by_content(folder: Path) -> list[Path]:
    """Returns the JSON files of a folder that contain COCO annotations."""
    files = _json_files(folder)
    return [path for path in files if _looks_like(path)] if len(files) <= _MAX_LISTS else []


def _json_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.glob("*.json") if path.name[0] != ".")
    return [path for path in files if not path.name.startswith("panoptic_")]


def _parts(root: Path) -> dict[str, Path]:
    """Returns split -> its annotation file, train first."""
    found: dict[str, Path] = {}
    lists = _lists(root)
    for path in lists:
        part = part_of(_folder(root, path)) or part_in(path)
        if part in found:
            raise DataError(
                f"{path}: {found[part]} also annotates the {part} split: keep one of them"
            )
        found[part] = path
    if "train" not in found:
        there = ", ".join(path.relative_to(root).as_posix() for path in lists) or "nothing"
        panoptic = next(root.glob("**/panoptic_*.json"), None)
        if panoptic is not None and not lists:
            there = f"{panoptic.name}, which --data.format coco_panoptic reads"
        raise DataError(
            f"{root}: no annotation file for training (found: {there}): expected "
            f"annotations/instances_train*.json, annotations.json, or a file in train/ (such as "
            f"{ROBOFLOW} or annotations.json)"
        )
    if "val" in found and "test" not in found and not _folder(root, found["val"]):
        found["test"] = found.pop("val")
    return {part: found[part] for part in PARTS if part in found}


def part_in(path: Path) -> str:
    """Returns the split that the name of an annotation file states, or `train` by default."""
    words = re.findall(r"[^\W\d_]+", path.stem.lower())
    return next(
        (part_named(word) for word in words if part_named(word) in ("val", "test")), "train"
    )


class _SearchFolders(NamedTuple):
    """Where the images of an annotation file are looked up.

    Attributes:
        own: Name of the folder that only this file's images are in, or an empty string.
        folders: Folders to search, in order.
        others: Folders of the other annotation files, which are not searched.
    """

    own: str
    folders: list[Path]
    others: list[Path]


def _folder(root: Path, path: Path) -> str:
    """Returns the name of the split folder that contains an annotation file, or an empty string."""
    above = path.relative_to(root).parts[:-1]
    default = above[0] if above and path.name == ROBOFLOW else ""
    return next((name for name in above if part_of(name)), default)


def _search_folders(root: Path, path: Path, paths: list[Path]) -> _SearchFolders:
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
    return _SearchFolders(own[0] if own and path.parent != root else "", folders, others)


def _own_folders(root: Path, path: Path) -> list[str]:
    """Returns the names of the folders that contain only the images of one annotation file."""
    if folder := _folder(root, path):
        return [folder, f"images/{folder}"]
    part = part_in(path)
    own = "" if path.parent == root else path.stem.removeprefix("instances_")
    names = (own, f"images/{own}" if own else "", part, f"images/{part}")
    return [name for name in dict.fromkeys(names) if name]


def _read_list(path: Path, search: _SearchFolders, finder: FoundImages) -> _List:
    """Reads an annotation file; keeps only what labels are drawn from, to save memory."""
    tree = read_json(path)
    read = _List(path, read_categories(tree, path))
    images = _images(tree, path, search, finder)
    read.images = list(images.values())
    for number, entry in enumerate(records(tree, "annotations", str(path))):
        where = f"{path}: 'annotations'[{number}]"
        key, category = whole(entry, "image_id", where), whole(entry, "category_id", where)
        if key not in images:
            read.orphans.append(number)
            continue
        segmentation = _pack_polygons(entry.pop("segmentation", None), images[key].size)
        if segmentation is None:
            read.without_area.append(number)
            images[key].boxes += _box(entry.get("bbox"))
            continue
        if category in read.categories:
            read.drawn.add(category)
        else:
            read.unknown[number] = category
        images[key].outlines.append(_Outline(number, category, segmentation))
    return read


def read_categories(tree: Record, path: Path) -> dict[int, tuple[str, str]]:
    """Returns category id -> name and supercategory.

    Raises:
        DataError: There is no list of categories, one has no id or name, or an id is not unique.
    """
    found: dict[int, tuple[str, str]] = {}
    for number, category in enumerate(records(tree, "categories", str(path))):
        where = f"{path}: 'categories'[{number}]"
        key, name = whole(category, "id", where), text(category, "name", where)
        if key in found:
            raise DataError(f"{where}: id {key}, {shown(name)}: the id is not unique")
        above = category.get("supercategory")
        found[key] = name, above if isinstance(above, str) else ""
    return found


def _class_names(lists: Mapping[str, _List], path: Path) -> tuple[dict[int, str], list[str]]:
    """Returns category id -> name of the classes, and notes about categories that are left out."""
    kept = dict(sorted(lists["train"].categories.items()))
    used = set().union(*(each.drawn for each in lists.values()))
    notes = []
    for key, (name, above) in list(kept.items()):
        others = [other for other in kept.items() if other[0] != key]
        twin = any(other == name for _, (other, _) in others)
        is_root = above in ("", "none", name) and any(top == name for _, (_, top) in others)
        if key not in used and (twin or is_root):
            del kept[key]
            notes.append(
                f"{path}: category '{name}' (id {key}) is only a group of others and is left out"
            )
        elif twin and any(other == name for k, (other, _) in others if k in used):
            raise DataError(
                f"{path}: 'categories': id {key}, {shown(name)}: the name is not unique"
            )
    return {key: name for key, (name, _) in kept.items()}, notes


def _refuse_without_outlines(lists: Mapping[str, _List]) -> None:
    """Raises an error if there are annotations but none can be drawn."""
    if any(each.drawn for each in lists.values()):
        return
    for each in lists.values():
        if each.unknown:
            raise DataError(
                f"{_unknown_categories(each)}; no other annotation is left to learn from"
            )
    without = [each for each in lists.values() if each.without_area]
    if without:
        count = sum(len(each.without_area) for each in without)
        raise DataError(
            f"{without[0].path}: none of the {count} annotations has an outline with an area; "
            "boxes alone do not label pixels: export polygons or masks"
        )


def _notes(read: _List) -> Iterator[str]:
    """Yields a note about each kind of annotation that is left out or drawn as void."""
    if read.unknown:
        yield f"{_unknown_categories(read)}; their pixels are void"
    for numbers, what in (
        (
            read.without_area,
            "without an area (no outline, fewer than 3 points, or outside the image): not drawn",
        ),
        (read.orphans, "of images that are not in the file: left out"),
    ):
        if numbers:
            yield f"{read.path}: {_counted(numbers, what)}"


def _counted(numbers: Sequence[int], what: str) -> str:
    named = ", ".join(f"'annotations'[{number}]" for number in numbers[:3])
    more = ", ..." if len(numbers) > 3 else ""
    plural = "annotation" if len(numbers) == 1 else "annotations"
    return f"{len(numbers)} {plural} {what} ({named}{more})"


def _unknown_categories(read: _List) -> str:
    ids = sorted(set(read.unknown.values()))
    shown = ", ".join(map(str, ids[:_MAX_LISTED_IDS])) + (
        ", ..." if len(ids) > _MAX_LISTED_IDS else ""
    )
    known = f"{min(read.categories)}..{max(read.categories)}" if read.categories else "none"
    what = f"of category_id {shown}, where 'categories' has {len(read.categories)} ({known})"
    return f"{read.path}: {_counted(list(read.unknown), what)}: add the missing categories"


def _images(
    tree: Record, path: Path, search: _SearchFolders, finder: FoundImages
) -> dict[int, _Image]:
    """Returns the images of an annotation file by their id."""
    images: dict[int, _Image] = {}
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
        name = f"{search.own}/{name}" if search.own and parts[0] != search.own else name
        if key in images or name in names:
            raise DataError(f"{where}: id {key}, {shown(name)}: the id or the name is not unique")
        names.add(name)
        label = f"{path}: image {key} ({shown(named)})"
        image = _find(search, relative, named, label, finder)
        if isinstance(image, str) and image in taken:
            image = DataError(f"{label}: {image} is also the image of {taken[image]}: keep one")
        elif isinstance(image, str):
            taken[image] = f"image {key}"
        images[key] = _Image(name, _size(entry, where), image, label)
    return images


def _size(entry: Record, where: str) -> tuple[int, int] | None:
    """Returns (H, W), or `None`: Label Studio states no size for images that it could not open."""
    if entry.get("height") is None and entry.get("width") is None:
        return None
    return picture_size(entry, "height", "width", where)


def _find(
    search: _SearchFolders, relative: PurePosixPath, named: str, label: str, finder: FoundImages
) -> str | DataError:
    """Returns the path of an image, or an error; its folder is searched first from then on."""
    for index, folder in enumerate(search.folders):
        if is_there(folder / relative):
            search.folders.insert(0, search.folders.pop(index))
            return str(folder / relative)
    try:
        return str(finder.find(named, label, search.others))
    except DataError as missing:
        return missing


def _pack_polygons(segmentation: Any, size: tuple[int, int] | None) -> Any:
    """Returns polygons as arrays of x, y, x, y, ..., which need a quarter of the memory.

    Polygons that cover no pixel of the image, of size (H, W), are left out; returns `None` if none
    remains. Any other value is returned unchanged, and checked when the label is loaded.
    """
    if isinstance(segmentation, dict) and not segmentation.get("counts", segmentation):
        return None
    if not isinstance(segmentation, list):
        return segmentation
    flat = len(segmentation) > 1 and all(type(value) in (int, float) for value in segmentation)
    packed = [_pack_polygon(values, size) for values in ([segmentation] if flat else segmentation)]
    return [values for values in packed if values is not None] or None


def _pack_polygon(values: Any, size: tuple[int, int] | None) -> Any:
    """Returns a polygon as an array, or `None` if it covers no pixel of an image of (H, W)."""
    try:
        corners = points(values, "", least=0)
    except DataError:
        return values
    if len(corners) < 3 or is_flat(corners) or is_outside(corners, size):
        return None
    return array("d", values)


def _box(bbox: Any) -> list[np.ndarray]:
    """Returns the outline of a box [x, y, width, height]; an empty list if `bbox` is not a box."""
    try:
        (left, top), (width, height) = points(bbox, "", least=2)[:2]
    except DataError:
        return []
    right, bottom = left + width, top + height
    return [np.array([[left, top], [right, top], [right, bottom], [left, bottom]])]


def _unpack(values: Any, where: str) -> np.ndarray:
    return np.array(values).reshape(-1, 2) if isinstance(values, array) else outline(values, where)


def _load_label(
    images: Mapping[str, _Image], ids: Mapping[int, int], background: int, sample: Sample
) -> np.ndarray:
    image = images[sample.name]
    size = image.size or image_size(sample.image)
    regions = [
        _region(annotation, ids, size, f"{image.label}: 'annotations'[{annotation.number}]")
        for annotation in image.outlines
    ]
    regions.sort(key=lambda region: -region.pixels)
    # A box without an outline contains an object of unknown shape: its pixels are not background.
    unknown = ((VOID, box) for box in image.boxes)
    return draw(size, chain(unknown, _shapes(regions, size)), background, where=sample.label)


def _region(
    annotation: _Outline, ids: Mapping[int, int], size: tuple[int, int], where: str
) -> _Region:
    segmentation, class_id = annotation.segmentation, ids[annotation.category]
    if isinstance(segmentation, list) and segmentation:
        polygons = [_unpack(values, where) for values in segmentation]
        return _Region(sum(map(area, polygons)), class_id, polygons, [])
    if not isinstance(segmentation, dict):
        raise DataError(
            f"{where}: 'segmentation' is {shown(segmentation)}: expected polygons or RLE; boxes "
            "alone do not label pixels"
        )
    stated = segmentation.get("size")
    if stated != list(size):
        found = shown(stated)
        if isinstance(stated, list) and len(stated) == 2:
            found = f"[{shown(stated[0])}, {shown(stated[1])}]"
        raise DataError(
            f"{where}: RLE of size {found}: the image has the size {list(size)} (height, width)",
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
