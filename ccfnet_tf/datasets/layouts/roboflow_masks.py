"""Roboflow's export "Semantic Segmentation Masks": a mask beside each image.

    ROOT/{train,valid,test}/<name>.jpg
    ROOT/{train,valid,test}/<name>_mask.png
    ROOT/{train,valid,test}/_classes.csv       "Pixel Value, Class", one class per line

One table may lie in ROOT for all, and one folder alone may be ROOT itself. Values that neither the
table nor `data.mask_values` lists are refused, but for 255, which is void; so are names that
stand for no class (see `name_lists`).
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.base import Listing, with_pictures
from ccfnet_tf.datasets.mask_values import MaskValues, index_values, read_index_mask
from ccfnet_tf.datasets.name_lists import (
    part_named,
    read_names,
    refuse_one_beside_void,
    taxonomy_of,
    void_notes,
)
from ccfnet_tf.datasets.pairing import MASKS, PHOTOS, files_in, pair, require, require_pictures
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample, is_void_name

FILE = "_classes.csv"
_MASK = "_mask"

_Values = dict[int, str]


def signs(root: Path) -> str:
    """Returns the first table of classes in `root`; empty where there is none."""
    try:
        paths = (root / FILE, *sorted(root.glob(f"*/{FILE}")))
        return next((p.relative_to(root).as_posix() for p in paths if _looks_like(p)), "")
    except OSError:
        return ""  # what cannot be looked at shows no sign


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the parts; no image is opened.

    Raises:
        DataError: The folder is not of this layout, has nothing to learn from, or its tables are
            damaged or differ.
    """
    require(root, signs, f"a Roboflow export of masks (train/{FILE} and so on)")
    tables = {part_named(p.parent.name): p for p in sorted(root.glob(f"*/{FILE}"))}
    folders = {
        part: folder
        for folder in sorted(root.glob("*/"))
        if (part := part_named(folder.name)) and (part in tables or (root / FILE).is_file())
    } or {"train": root}
    if "train" not in folders:
        raise DataError(f"{root}: no train/{FILE} in it: add what is to be learned")
    paths = {part: tables.get(part, root / FILE) for part in folders}
    values = {part: _read_table(path) for part, path in paths.items()}
    for part, table in values.items():
        if table != values["train"]:
            raise DataError(f"{paths[part]}: not the classes of {paths['train']}")
    meaning = _meaning(values["train"], paths["train"], data)
    if len(meaning.names) == 1:
        void = [name for name in values["train"].values() if is_void_name(name)]
        refuse_one_beside_void(paths["train"], meaning.names[0], void)
    taxonomy = taxonomy_of(list(meaning.names), paths["train"], ", a line each")
    parts = {part: _part(root, folder) for part, folder in folders.items()}
    require_pictures(parts["train"], folders["train"] / "<name>.jpg")

    def load_label(sample: Sample) -> np.ndarray:
        return read_index_mask(sample.label, meaning)

    return Listing(
        taxonomy,
        parts["train"][0],
        parts["val"][0] if "val" in parts else None,
        parts["test"][0] if "test" in parts else (),
        with_pictures(load_label),
        load_label,
        unpaired=tuple(error for part in parts.values() for error in part[1]),
        notes=void_notes(paths["train"], values["train"].values()),
        mask_values=meaning,
    )


def _looks_like(path: Path) -> bool:
    """Returns whether a table is of values; Roboflow's tables of whole images have that name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"pixel value" in file.read(100).lower()


def _read_table(path: Path) -> _Values:
    """Returns value -> name.

    Raises:
        DataError: Missing, not text, a row that is not a value 0..255 and name, or one twice.
    """
    values: _Values = {}
    for number, line in read_names(path)[1:]:
        row = [text.strip() for text in next(csv.reader([line]), [])]
        if len(row) != 2 or not re.fullmatch("[0-9]{1,3}", row[0]) or int(row[0]) > 255:
            raise DataError(f"{path}: line {number}: '{line[:60]}': expected `value, class`")
        if not row[1] or int(row[0]) in values or row[1] in values.values():
            raise DataError(f"{path}: line {number}: '{line[:60]}': once each, and with a name")
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
        rule=f"{path} lists no such value: add the row, or export the masks anew",
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
