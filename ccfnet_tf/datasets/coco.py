"""Object outlines in the format of COCO (Lin et al., ECCV 2014), made into label maps.

    ROOT/annotations/instances_train2017.json     what is learned from
    ROOT/annotations/instances_val2017.json       the test part, as COCO gives out no test labels
    ROOT/annotations/instances_test2017.json      if there is one: test, and val is then val
    ROOT/train2017/<file_name>                    or in images/train2017/, images/ or ROOT

The name decides: a list with the word val (valid, validation) or test in its name is that part, any
other is train (latest.json is). In place of annotations/instances_*.json there may be other JSON
files in annotations/, or one annotations.json. Pictures that no list names are left out.

A class is a category; its id is the category's rank by id. Polygons, and RLE plain or compressed,
are drawn larger ones first, so that small things stay visible; crowds (`iscrowd`) are drawn as
their class. A pixel without an outline is void, unless a category is named background: then it is
of that class.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.json_files import (
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
from ccfnet_tf.datasets.listing import Listing, LoadLabel, with_pictures
from ccfnet_tf.datasets.name_lists import PARTS, taxonomy_of
from ccfnet_tf.datasets.polygons import area, draw, outline
from ccfnet_tf.datasets.rle import read_runs, to_mask
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID, Sample, Taxonomy

BACKGROUND = "background"

_WORDS = {"val": "val", "valid": "val", "validation": "val", "test": "test"}


class _Outline(NamedTuple):
    """What an annotation says: its place in the list, its class, its outline as `_packed`."""

    number: int
    class_id: int
    segmentation: Any


class _Region(NamedTuple):
    """What an annotation covers: polygons float64 [N, 2] each, or the runs of `rle`."""

    pixels: float
    class_id: int
    polygons: list[np.ndarray]
    runs: list[int]


@dataclass
class _Picture:
    """An entry of a list; `image` is `None` where its file is missing."""

    name: str
    size: tuple[int, int]
    image: str | None
    label: str
    outlines: list[_Outline] = field(default_factory=list)


def signs(root: Path) -> str:
    """Returns the first list in `root`; empty where there is none."""
    try:
        for path in _lists(root):
            with path.open("rb") as file:
                head = file.read(65536)
            if any(key in head for key in (b'"images"', b'"annotations"', b'"categories"')):
                return path.relative_to(root).as_posix()
    except OSError:
        pass  # what cannot be looked at shows no sign
    return ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Reads the lists; no picture is opened, and no outline is drawn yet.

    Raises:
        DataError: No list to learn from, two for one part, a list that is damaged or refers to
            what it does not hold, categories that differ between lists, fewer than 2 or more than
            256 of them.
    """
    paths = _parts(root)
    categories: dict[int, str] = {}
    pictures: dict[str, list[_Picture]] = {}
    for part, path in paths.items():
        tree = read_json(path)
        own = _categories(tree, path)
        if categories and own != categories:
            raise DataError(f"{path}: its categories are not those of {paths['train'].name}")
        categories = own
        taxonomy = _taxonomy(categories, path)
        ids = {key: rank for rank, key in enumerate(sorted(categories))}
        pictures[part] = _pictures(tree, path, _folders(root, path), ids)
        del tree  # much larger than what is kept: not two at a time
    lowered = [name.casefold() for name in taxonomy.names]
    background = lowered.index(BACKGROUND) if BACKGROUND in lowered else VOID
    known = {picture.name: picture for part in pictures.values() for picture in part}
    parts = {
        part: tuple(Sample(p.name, p.image, p.label) for p in those if p.image is not None)
        for part, those in pictures.items()
    }
    load_label = _loader(known, background)
    return Listing(
        taxonomy,
        parts["train"],
        parts.get("val"),
        parts.get("test", ()),
        with_pictures(load_label),
        load_label,
        unpaired=tuple(
            DataError(f"{p.label}: no such picture in {root}", kind="missing")
            for p in known.values()
            if p.image is None
        ),
    )


def _lists(root: Path) -> list[Path]:
    folder = root / "annotations"
    others = sorted(path for path in folder.glob("*.json") if path.name[0] != ".")
    instances = [path for path in others if path.name.startswith("instances_")]
    single = root / "annotations.json"
    return instances or ([single] if single.is_file() else others)


def _parts(root: Path) -> dict[str, Path]:
    """Returns part -> its list, train first."""
    found: dict[str, Path] = {}
    lists = _lists(root)
    for path in lists:
        part = _part_in(path)
        if part in found:
            raise DataError(
                f"{path}: {found[part].name} is the list of the {part} part too: keep one of them"
            )
        found[part] = path
    if "train" not in found:
        there = ", ".join(path.name for path in lists) or "nothing"
        raise DataError(
            f"{root}: no list to learn from (found: {there}): expected "
            "annotations/instances_train*.json or annotations.json"
        )
    if "val" in found and "test" not in found:
        found["test"] = found.pop("val")
    return {part: found[part] for part in PARTS if part in found}


def _part_in(path: Path) -> str:
    words = re.findall(r"[^\W\d_]+", path.stem.lower())
    return next((_WORDS[word] for word in words if word in _WORDS), "train")


def _folders(root: Path, path: Path) -> tuple[str, list[Path]]:
    """Returns the name of a list's own folder, and the folders where its pictures may be."""
    own = "" if path.parent == root else path.stem.removeprefix("instances_")
    part = _part_in(path)
    names = dict.fromkeys((own, f"images/{own}", part, f"images/{part}", "images", ""))
    return own, [root / name for name in names if (root / name).is_dir()]


def _categories(tree: Record, path: Path) -> dict[int, str]:
    """Returns category id -> name."""
    names: dict[int, str] = {}
    for number, category in enumerate(records(tree, "categories", str(path))):
        where = f"{path}: 'categories'[{number}]"
        key, name = whole(category, "id", where), text(category, "name", where)
        if key in names or name in names.values():
            raise DataError(f"{where}: id {key}, {shown(name)}: id or name is there already")
        names[key] = name
    return names


def _taxonomy(categories: Mapping[int, str], path: Path) -> Taxonomy:
    names = [categories[key] for key in sorted(categories)]
    mend = f"; add a category '{BACKGROUND}' for all that has no outline"
    return taxonomy_of(names, f"{path}: categories", mend)


def _pictures(
    tree: Record, path: Path, place: tuple[str, list[Path]], ids: Mapping[int, int]
) -> list[_Picture]:
    """Returns the pictures that a list names, with their outlines.

    Args:
        tree: The list.
        path: Its file.
        place: What `_folders` returned.
        ids: Category id -> class id.
    """
    own, folders = place
    found: dict[int, _Picture] = {}
    names: set[str] = set()
    for number, entry in enumerate(records(tree, "images", str(path))):
        where = f"{path}: 'images'[{number}]"
        key, file_name = whole(entry, "id", where), _relative(entry, where)
        name = file_name.with_suffix("").as_posix()
        name = f"{own}/{name}" if own and file_name.parts[0] != own else name
        if key in found or name in names:
            raise DataError(f"{where}: id {key}, {shown(name)}: id or name is there already")
        names.add(name)
        size = picture_size(entry, "height", "width", where)
        image = _find(folders, file_name)
        label = f"{path}: image {key} ({shown(str(file_name))})"
        found[key] = _Picture(name, size, image, label)
    for number, entry in enumerate(records(tree, "annotations", str(path))):
        where = f"{path}: 'annotations'[{number}]"
        key, category = whole(entry, "image_id", where), whole(entry, "category_id", where)
        if key not in found:
            raise DataError(f"{where}: image_id {key}: there is no such image")
        if category not in ids:
            raise DataError(f"{where}: category_id {category}: there is no such category")
        outlines = _packed(entry.pop("segmentation", None))
        found[key].outlines.append(_Outline(number, ids[category], outlines))
    return list(found.values())


def _packed(segmentation: Any) -> Any:
    """Returns polygons as arrays of x, y, x, y, ..., which take a quarter of the memory.

    What is no polygon stays as JSON held it: whoever reads the label is told what is wrong.
    """
    return list(map(_pack, segmentation)) if isinstance(segmentation, list) else segmentation


def _pack(values: Any) -> Any:
    try:
        outline(values, "")
    except DataError:
        return values
    return array("d", values)


def _unpacked(values: Any, where: str) -> np.ndarray:
    return np.array(values).reshape(-1, 2) if isinstance(values, array) else outline(values, where)


def _relative(entry: Record, where: str) -> PurePosixPath:
    named = path_text(entry, "file_name", where)
    path = PurePosixPath(named)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise DataError(
            f"{where}: file_name {shown(named)}: expected a path inside the folder of pictures"
        )
    return path


def _find(folders: list[Path], file_name: PurePosixPath) -> str | None:
    """Returns the file; the folder that has it comes first from then on."""
    for index, folder in enumerate(folders):
        if is_there(folder / file_name):
            folders.insert(0, folders.pop(index))
            return str(folder / file_name)
    return None


def _loader(pictures: Mapping[str, _Picture], background: int) -> LoadLabel:
    def load_label(sample: Sample) -> np.ndarray:
        picture = pictures[sample.name]
        size = picture.size
        regions = [
            _region(told, size, f"{picture.label}: 'annotations'[{told.number}]")
            for told in picture.outlines
        ]
        regions.sort(key=lambda region: -region.pixels)
        return draw(size, _shapes(regions, size), background)

    return load_label


def _region(told: _Outline, size: tuple[int, int], where: str) -> _Region:
    segmentation = told.segmentation
    if isinstance(segmentation, list) and segmentation:
        polygons = [_unpacked(values, where) for values in segmentation]
        return _Region(sum(map(area, polygons)), told.class_id, polygons, [])
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
            f"{where}: RLE of size {found}: the list has the picture as {list(size)} "
            "(height, width)",
            kind="size",
        )
    runs = read_runs(segmentation.get("counts"), size, where)
    return _Region(sum(runs[1::2]), told.class_id, [], runs)


def _shapes(regions: list[_Region], size: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    for region in regions:
        for polygon in region.polygons:
            yield region.class_id, polygon
        if region.runs:
            yield region.class_id, to_mask(region.runs, size)
