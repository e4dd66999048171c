"""COCO panoptic labels (Kirillov et al., CVPR 2019): JSON files, and one segment PNG per image.

    ROOT/annotations/panoptic_train2017.json        or ROOT/panoptic_train2017.json
    ROOT/annotations/panoptic_train2017/<name>.png  or ROOT/panoptic_train2017/
    ROOT/train2017/<file_name>                      looked up as in `coco`

The colour of a pixel encodes the number of its segment, R + 256 G + 65536 B; the JSON file states
the category of each segment, and 0 is void. Classes are the categories in the order of their ids,
except those whose names stand for no class. Splits are decided as in `coco`: val
is the test split if there is no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.class_and_split_lists import PARTS, taxonomy_of, void_notes
from ccfnet_tf.datasets.layouts import coco
from ccfnet_tf.datasets.locate_images import FoundImages, path_parts
from ccfnet_tf.datasets.samples import Listing, with_images
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.annotation_json import (
    Record,
    is_there,
    path_text,
    read_json,
    records,
    shown,
    whole,
)
from ccfnet_tf.io.read_images import read_mask
from ccfnet_tf.labels import VOID, Sample, is_void_name

_PATTERN = "panoptic_*.json"


@dataclass
class _Set:
    """State shared by the JSON files of a data set; reading each file adds to it.

    Attributes:
        root: Folder of the data set.
        ids: Category id -> class id.
        segments: Sample name -> number of a segment -> class id.
        faults: An error for each missing image or mask.
    """

    root: Path
    ids: dict[int, int] = field(default_factory=dict)
    segments: dict[str, dict[int, int]] = field(default_factory=dict)
    faults: list[DataError] = field(default_factory=list)

    @cached_property
    def finder(self) -> FoundImages:
        """Index of the images below the folder."""
        return FoundImages(self.root)


def signs(root: Path) -> str:
    """Returns the first panoptic file in `root`, or an empty string.

    A folder that also has an instance file is read by `coco`: the result is then empty.
    """
    try:
        lists = [] if coco.signs(root) else _lists(root)
    except OSError:
        return ""  # an unreadable folder is not recognised
    return lists[0].relative_to(root).as_posix() if lists else ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Reads the panoptic files without opening images.

    Raises:
        DataError: There is no panoptic file for training, a split has two, a file is damaged, or
            the categories of two files differ.
    """
    parts: dict[str, tuple[Sample, ...]] = {}
    categories: dict[int, str] = {}
    state = _Set(root)
    for part, path in _parts(root).items():
        tree = read_json(path)
        own = {key: name for key, (name, _) in coco.read_categories(tree, path).items()}
        if categories and own != categories:
            raise DataError(f"{path}: its categories differ from those of the training file")
        categories = dict(sorted(own.items()))
        classes = [key for key, name in categories.items() if not is_void_name(name)]
        state.ids = dict.fromkeys(categories, VOID) | {key: i for i, key in enumerate(classes)}
        parts[part] = _samples(tree, path, state)
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    names = [name for name in categories.values() if not is_void_name(name)]
    load_label = partial(_load_label, state.segments)
    return Listing(
        taxonomy_of(names, f"{root}: categories of {_PATTERN}", "; add the missing ones"),
        parts["train"],
        parts.get("val"),
        parts.get("test", ()),
        with_images(load_label),
        load_label,
        unpaired=tuple(state.faults),
        notes=void_notes(f"{root}: categories of {_PATTERN}", categories.values()),
    )


def _lists(root: Path) -> list[Path]:
    return sorted((root / "annotations").glob(_PATTERN)) or sorted(root.glob(_PATTERN))


def _parts(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _lists(root):
        part = coco.part_in(path)
        if part in found:
            raise DataError(f"{path}: {found[part]} also annotates the {part} split: keep one")
        found[part] = path
    if "train" not in found:
        there = ", ".join(path.name for path in found.values()) or "nothing"
        raise DataError(
            f"{root}: no annotation file for training (found: {there}): expected "
            "annotations/panoptic_train*.json"
        )
    return {part: found[part] for part in PARTS if part in found}


def _samples(tree: Record, path: Path, state: _Set) -> tuple[Sample, ...]:
    """Returns the samples of a panoptic file; adds to the segments and faults of `state`."""
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
            raise DataError(f"{where}: image_id {key}: no such id in 'images'")
        pieces = path_parts(path_text(entry, "file_name", where))
        if not pieces:
            raise DataError(f"{where}: 'file_name' is not the path of a mask")
        mask = "/".join(pieces)
        name = f"{own}/{Path(mask).with_suffix('').as_posix()}"
        if name in state.segments:
            raise DataError(f"{where}: file_name '{mask[:60]}' is not unique")
        state.segments[name] = _classes(entry, where, state.ids)
        try:
            image = _find_image(state, own, images[key], where)
        except DataError as missing:
            state.faults.append(missing)
            continue
        label = _first([path.with_suffix("") / mask, state.root / path.stem / mask])
        if label is None:
            fault = f"{where}: no mask {path.with_suffix('') / mask}: unpack the masks there"
            state.faults.append(DataError(fault, kind="missing"))
            continue
        samples.append(Sample(name, str(image), str(label)))
    return tuple(samples)


def _classes(entry: Record, where: str, ids: Mapping[int, int]) -> dict[int, int]:
    """Returns number of a segment -> class id."""
    classes = {0: VOID}
    for index, segment in enumerate(records(entry, "segments_info", where)):
        item = f"{where}: 'segments_info'[{index}]"
        category = whole(segment, "category_id", item)
        if category not in ids:
            raise DataError(f"{item}: category_id {category}: no such id in 'categories'")
        classes[whole(segment, "id", item)] = ids[category]
    return classes


def _find_image(state: _Set, own: str, named: str, where: str) -> Path:
    root, relative = state.root, Path(*path_parts(named))
    folders = (root / own, root / "images" / own, root / "images", root)
    return _first([folder / relative for folder in folders]) or state.finder.find(
        named, f"{where}: image {shown(named)}"
    )


def _first(paths: list[Path]) -> Path | None:
    return next((path for path in paths if is_there(path)), None)


def _load_label(segments: Mapping[str, Mapping[int, int]], sample: Sample) -> np.ndarray:
    """Reads a label as int32 [H, W] of class ids or `VOID`."""
    mask = read_mask(sample.label).astype(np.int32)
    numbers = mask if mask.ndim == 2 else mask @ np.array([1, 256, 65536], np.int32)
    used, inverse = np.unique(numbers, return_inverse=True)
    classes = segments[sample.name]
    unknown = next((int(number) for number in used if int(number) not in classes), None)
    if unknown is not None:
        raise DataError(
            f"{sample.label}: segment {unknown} is not in the annotation file, which has "
            f"{len(classes) - 1} for this image: use the masks and the file of one version",
            kind="value",
        )
    table = np.array([classes[int(number)] for number in used], np.int32)
    return table[inverse].reshape(numbers.shape)
