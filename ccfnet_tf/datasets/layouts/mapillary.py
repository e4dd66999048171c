"""Mapillary Vistas (Neuhold et al., ICCV 2017), versions 1.1 to 2.0.

    ROOT/{training,validation}/images/<name>.jpg
    ROOT/{training,validation}/labels/<name>.png           1.1: palette indices
    ROOT/{training,validation}/v2.0/labels/<name>.png      2.0, or v1.2/labels/; the newest is read
    ROOT/config.json, config_v2.0.json, config_v1.2.json   names, colours, which are evaluated

A mask value is a row number of the configuration. Rows that are not evaluated are void, as are
names that stand for no class and the value 255. The labels of testing/ are not
public, so validation is the test split here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.class_and_split_lists import taxonomy_of
from ccfnet_tf.datasets.layout_helpers import (
    IMAGE_SUFFIXES,
    MASKS,
    files_in,
    pair,
    require,
    require_images,
)
from ccfnet_tf.datasets.samples import Listing, with_images
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.annotation_json import read_json, records, shown, text
from ccfnet_tf.io.read_images import NO_CLASS, read_index_values, to_classes
from ccfnet_tf.labels import VOID, Sample, Taxonomy, is_void_name

_VERSIONS = {"v2.0": "config_v2.0.json", "v1.2": "config_v1.2.json", "": "config.json"}

_Part = tuple[tuple[Sample, ...], tuple[DataError, ...]]


def signs(root: Path) -> str:
    """Returns the files that identify this layout in `root`, or an empty string."""
    found = _version(root)
    return "" if found is None else f"{_VERSIONS[found]} and training/images/"


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists `training` as the training split and `validation` as the test split.

    Images are not opened.

    Raises:
        DataError: The folder does not have this layout, contains no images, or its configuration is
            damaged.
    """
    require(root, signs, "Mapillary Vistas (training/images/, config_v2.0.json)")
    version = _version(root) or ""
    taxonomy, table = _classes(root / _VERSIONS[version])
    train, test = (_part(root, part, version) for part in ("training", "validation"))
    require_images(train, root / "training" / "images" / "<name>.jpg")
    load = partial(_load_label, table, root / _VERSIONS[version])
    unpaired = train[1] + test[1]
    return Listing(taxonomy, train[0], None, test[0], with_images(load), load, unpaired=unpaired)


def _version(root: Path) -> str | None:
    """Returns the newest version in `root` that has both labels and a configuration, or `None`."""
    try:
        for version, config in _VERSIONS.items():
            labels = root / "training" / version / "labels"
            if (root / config).is_file() and labels.is_dir():
                return version
    except OSError:
        pass  # an unreadable folder is not recognised
    return None


def _classes(path: Path) -> tuple[Taxonomy, np.ndarray]:
    """Returns the evaluated classes, and int32 [256]: mask value -> class id or `VOID`."""
    rows = records(read_json(path), "labels", str(path))
    table = np.full(256, NO_CLASS, np.int32)
    table[255] = VOID
    names: list[str] = []
    palette: list[tuple[int, int, int]] = []
    for value, row in enumerate(rows[:255]):
        where = f"{path}: 'labels'[{value}]"
        table[value] = VOID
        if row.get("evaluate") is False or is_void_name(text(row, "name", where)):
            continue
        colour = row.get("color")
        channels = colour if isinstance(colour, list) else []
        if len(channels) != 3 or any(type(c) is not int or not 0 <= c < 256 for c in channels):
            raise DataError(f"{where}: 'color' is {shown(colour)}: expected three integers 0..255")
        table[value] = len(names)
        names.append(text(row, "name", where))
        palette.append((channels[0], channels[1], channels[2]))
    taxonomy_of(names, path, ", one row per class")
    return Taxonomy(tuple(names), tuple(palette)), table


def _part(root: Path, part: str, version: str) -> _Part:
    folder = Path(part, version, "labels")
    images, labels = (
        files_in(root / part / "images", IMAGE_SUFFIXES),
        files_in(root / folder, MASKS),
    )
    return pair(images, labels, within=f"{part}/images/ or {folder}/", prefix=f"{part}/")


def _load_label(table: np.ndarray, config: Path, sample: Sample) -> np.ndarray:
    """Reads a label as int32 [H, W] of class ids or `VOID`."""
    rule = f"{config} has no such row: unpack labels and configuration of the same version"
    return to_classes(read_index_values(sample.label), table, sample.label, rule)
