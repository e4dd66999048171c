"""Roboflow's export "Semantic Segmentation Masks": each mask is stored next to its image.

    ROOT/{train,valid,test}/<name>.jpg
    ROOT/{train,valid,test}/<name>_mask.png
    ROOT/{train,valid,test}/_classes.csv       "Pixel Value, Class", one class per line

The splits may share one table in ROOT, and a single split may be ROOT itself. The value 255 and
names that stand for no class are void. Any other value that neither the table
nor `data.mask_values` lists is an error.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.class_and_split_lists import (
    part_named,
    read_names,
    refuse_one_beside_void,
    taxonomy_of,
    void_notes,
)
from ccfnet_tf.datasets.layout_helpers import (
    MASKS,
    PHOTOS,
    files_in,
    pair,
    require,
    require_images,
)
from ccfnet_tf.datasets.mask_values_to_classes import MaskValues, index_values, read_index_mask
from ccfnet_tf.datasets.samples import Listing, with_images
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample, is_void_name

FILE = "_classes.csv"
_MASK = "_mask"

_Values = dict[int, str]


def signs(root: Path) -> str:
    """Returns the first class table in `root`, or an empty string if there is none."""
    try:
        paths = (root / FILE, *sorted(root.glob(f"*/{FILE}")))
        return next((p.relative_to(root).as_posix() for p in paths if _looks_like(p)), "")
    except OSError:
        return ""  # an unreadable folder is not recognised


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the splits without opening images.

    Raises:
        DataError: The folder does not have this layout, contains no training images, or its tables
            are damaged or differ.
    """
    require(root, signs, f"a Roboflow export of masks (train/{FILE} and so on)")
    tables = {part_named(p.parent.name): p for p in sorted(root.glob(f"*/{FILE}"))}
    folders = {
        part: folder
        for folder in sorted(root.glob("*/"))
        if (part := part_named(folder.name)) and (part in tables or (root / FILE).is_file())
    } or {"train": root}
    if "train" not in folders:
        raise DataError(f"{root}: contains no train/{FILE}: add the training split")
    paths = {part: tables.get(part, root / FILE) for part in folders}
    values = {part: _read_table(path) for part, path in paths.items()}
    for part, table in values.items():
        if table != values["train"]:
            raise DataError(f"{paths[part]}: its classes differ from those of {paths['train']}")
    meaning = _meaning(values["train"], paths["train"], data)
    if len(meaning.names) == 1:
        void = [name for name in values["train"].values() if is_void_name(name)]
        refuse_one_beside_void(paths["train"], meaning.names[0], void)
    taxonomy = taxonomy_of(list(meaning.names), paths["train"], ", one per line")
    parts = {part: _part(root, folder) for part, folder in folders.items()}
    require_images(parts["train"], folders["train"] / "<name>.jpg")

    def load_label(sample: Sample) -> np.ndarray:
        return read_index_mask(sample.label, meaning)

    return Listing(
        taxonomy,
        parts["train"][0],
        parts["val"][0] if "val" in parts else None,
        parts["test"][0] if "test" in parts else (),
        with_images(load_label),
        load_label,
        unpaired=tuple(error for part in parts.values() for error in part[1]),
        notes=void_notes(paths["train"], values["train"].values()),
        mask_values=meaning,
    )


def _looks_like(path: Path) -> bool:
    """Returns whether a table lists mask values; image-level label tables have the same name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"pixel value" in file.read(100).lower()


def _read_table(path: Path) -> _Values:
    """Returns value -> name.

    Raises:
        DataError: The file is missing or not text, a row is not a value 0..255 and a name, or a
            value or name is not unique.
    """
    values: _Values = {}
    for number, line in read_names(path)[1:]:
        row = [text.strip() for text in next(csv.reader([line]), [])]
        if len(row) != 2 or not re.fullmatch("[0-9]{1,3}", row[0]) or int(row[0]) > 255:
            raise DataError(f"{path}: line {number}: '{line[:60]}': expected `value, class`")
        if not row[1] or int(row[0]) in values or row[1] in values.values():
            raise DataError(
                f"{path}: line {number}: '{line[:60]}': values and names must be unique and not "
                "empty"
            )
        values[int(row[0])] = row[1]
    return values


def _meaning(table: _Values, path: Path, data: DataConfig) -> MaskValues:
    void = {value for value, name in table.items() if is_void_name(name)}
    classes = {value: name for value, name in sorted(table.items()) if value not in void}
    return index_values(
        list(classes.values()),
        data.mask_values,
        values=list(classes),
        void=void | ({255} - classes.keys()),
        rule=f"{path} lists no such value: add a row for it, or export the masks again",
    )


def _part(root: Path, folder: Path) -> tuple[tuple[Sample, ...], tuple[DataError, ...]]:
    files = files_in(folder, MASKS)
    labels = {key.removesuffix(_MASK): path for key, path in files.items() if key.endswith(_MASK)}
    images = {
        key: path
        for key, path in files_in(folder, PHOTOS).items()
        if not (key.endswith(_MASK) and path.suffix.lower() in MASKS)
    }
    prefix = "" if folder == root else f"{folder.name}/"
    return pair(images, labels, within=f"{folder} (a mask is <name>{_MASK}.png)", prefix=prefix)
