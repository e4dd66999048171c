"""COCO's panoptic labels (Kirillov et al., CVPR 2019): a list, and a PNG of segments an image.

    ROOT/annotations/panoptic_train2017.json        or ROOT/panoptic_train2017.json
    ROOT/annotations/panoptic_train2017/<name>.png  or ROOT/panoptic_train2017/
    ROOT/train2017/<file_name>                      found as those of `coco`

The colour of a pixel is the number of its segment, R + 256 G + 65536 B, whose category the list
states; 0 is void. Classes are the categories by id, but for names that stand for no class (see
`name_lists`). Parts are those of `coco`: val is the test split where there is no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.base import Listing, with_pictures
from ccfnet_tf.datasets.find_images import FoundPictures, path_parts
from ccfnet_tf.datasets.layouts import coco
from ccfnet_tf.datasets.name_lists import PARTS, taxonomy_of, void_notes
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.images import read_mask
from ccfnet_tf.io.json_files import Record, is_there, path_text, read_json, records, shown, whole
from ccfnet_tf.labels import VOID, Sample, is_void_name

_PATTERN = "panoptic_*.json"


@dataclass
class _Set:
    """What the lists of a set share, and what they add.

    Attributes:
        root: Folder of the set.
        ids: Category id -> class id.
        segments: Sample name -> number of a segment -> class id.
        faults: Images and masks that are missing.
    """

    root: Path
    ids: dict[int, int] = field(default_factory=dict)
    segments: dict[str, dict[int, int]] = field(default_factory=dict)
    faults: list[DataError] = field(default_factory=list)

    @cached_property
    def found(self) -> FoundPictures:
        """The images below the folder."""
        return FoundPictures(self.root)


def signs(root: Path) -> str:
    """Returns the first list in `root`; empty where there is none, or where one of outlines is."""
    try:
        lists = [] if coco.signs(root) else _lists(root)
    except OSError:
        return ""  # what cannot be looked at shows no sign
    return lists[0].relative_to(root).as_posix() if lists else ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Reads the lists; no image is opened.

    Raises:
        DataError: No list to learn from, two for one part, a list that is damaged, or categories
            that differ between lists.
    """
    parts: dict[str, tuple[Sample, ...]] = {}
    categories: dict[int, str] = {}
    whole_set = _Set(root)
    for part, path in _parts(root).items():
        tree = read_json(path)
        own = {key: name for key, (name, _) in coco.read_categories(tree, path).items()}
        if categories and own != categories:
            raise DataError(f"{path}: its categories are not those of the training list")
        categories = dict(sorted(own.items()))
        classes = [key for key, name in categories.items() if not is_void_name(name)]
        whole_set.ids = dict.fromkeys(categories, VOID) | {key: i for i, key in enumerate(classes)}
        parts[part] = _samples(tree, path, whole_set)
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    names = [name for name in categories.values() if not is_void_name(name)]
    load_label = partial(_load_label, whole_set.segments)
    return Listing(
        taxonomy_of(names, f"{root}: categories of {_PATTERN}", "; add the missing ones"),
        parts["train"],
        parts.get("val"),
        parts.get("test", ()),
        with_pictures(load_label),
        load_label,
        unpaired=tuple(whole_set.faults),
        notes=void_notes(f"{root}: categories of {_PATTERN}", categories.values()),
    )


def _lists(root: Path) -> list[Path]:
    return sorted((root / "annotations").glob(_PATTERN)) or sorted(root.glob(_PATTERN))


def _parts(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _lists(root):
        part = coco.part_in(path)
        if part in found:
            raise DataError(f"{path}: {found[part]} is the list of the {part} split too: keep one")
        found[part] = path
    if "train" not in found:
        there = ", ".join(path.name for path in found.values()) or "nothing"
        raise DataError(
            f"{root}: no list to learn from (found: {there}): expected "
            "annotations/panoptic_train*.json"
        )
    return {part: found[part] for part in PARTS if part in found}


def _samples(tree: Record, path: Path, into: _Set) -> tuple[Sample, ...]:
    """Returns the samples of a list; adds to the set's segments and faults."""
    own = path.stem.removeprefix("panoptic_")
    images: dict[int, str] = {}
    for number, entry in enumerate(records(tree, "images", str(path))):
        where = f"{path}: 'images'[{number}]"
        images[whole(entry, "id", where)] = path_text(entry, "file_name", where)
    samples = []
    for number, entry in enumerate(records(tree, "annotations", str(path))):
        where = f"{path}: 'annotations'[{number}]"
        key = whole(entry, "image_id", where)
        if key not in images:
            raise DataError(f"{where}: image_id {key}: there is no such image")
        pieces = path_parts(path_text(entry, "file_name", where))
        if not pieces:
            raise DataError(f"{where}: 'file_name' names no mask")
        mask = "/".join(pieces)
        name = f"{own}/{Path(mask).with_suffix('').as_posix()}"
        if name in into.segments:
            raise DataError(f"{where}: file_name '{mask[:60]}' is there already")
        into.segments[name] = _classes(entry, where, into.ids)
        try:
            picture = _picture(into, own, images[key], where)
        except DataError as missing:
            into.faults.append(missing)
            continue
        label = _first([path.with_suffix("") / mask, into.root / path.stem / mask])
        if label is None:
            fault = f"{where}: no mask {path.with_suffix('') / mask}: unpack the masks there"
            into.faults.append(DataError(fault, kind="missing"))
            continue
        samples.append(Sample(name, str(picture), str(label)))
    return tuple(samples)


def _classes(entry: Record, where: str, ids: Mapping[int, int]) -> dict[int, int]:
    """Returns number of a segment -> class id."""
    classes = {0: VOID}
    for index, segment in enumerate(records(entry, "segments_info", where)):
        place = f"{where}: 'segments_info'[{index}]"
        category = whole(segment, "category_id", place)
        if category not in ids:
            raise DataError(f"{place}: category_id {category}: there is no such category")
        classes[whole(segment, "id", place)] = ids[category]
    return classes


def _picture(into: _Set, own: str, named: str, where: str) -> Path:
    root, relative = into.root, Path(*path_parts(named))
    folders = (root / own, root / "images" / own, root / "images", root)
    return _first([folder / relative for folder in folders]) or into.found.find(
        named, f"{where}: image {shown(named)}"
    )


def _first(paths: list[Path]) -> Path | None:
    return next((path for path in paths if is_there(path)), None)


def _load_label(segments: Mapping[str, Mapping[int, int]], sample: Sample) -> np.ndarray:
    """Reads a label, int32 [H, W], class ids or `VOID`."""
    mask = read_mask(sample.label).astype(np.int32)
    numbers = mask if mask.ndim == 2 else mask @ np.array([1, 256, 65536], np.int32)
    used, place = np.unique(numbers, return_inverse=True)
    classes = segments[sample.name]
    strange = next((int(number) for number in used if int(number) not in classes), None)
    if strange is not None:
        raise DataError(
            f"{sample.label}: segment {strange} is not in the list, which has "
            f"{len(classes) - 1} of this image: the mask is of another version",
            kind="value",
        )
    table = np.array([classes[int(number)] for number in used], np.int32)
    return table[place].reshape(numbers.shape)
