"""Damaged class lists, tables and exports raise a one-line error or give valid labels."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_registry import READERS
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID
from tests.datasets import test_class_files
from tests.datasets.layouts import (
    test_ade20k_full,
    test_coco_panoptic,
    test_cvat_images,
    test_hugging_face,
    test_label_studio,
    test_mapillary,
    test_roboflow_masks,
)
from tests.datasets.layouts.test_fuzz import mutants

# Decoders warn of odd metadata: a warning is not a fault here.
pytestmark = pytest.mark.filterwarnings("ignore")


def own(file: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        for path in test_class_files.plants_voc(root):
            test_class_files.index_mask(path)
        (root / file).write_text(test_class_files.FILES[file](test_class_files.VOC_COLOURS))
        return root / file

    return write


def cvat(root: Path) -> Path:
    test_cvat_images.put(root, test_cvat_images.document())
    return root / "annotations.xml"


def studio(root: Path) -> Path:
    brush = np.random.default_rng(0).random(test_label_studio.SIZE) > 0.5
    rle = test_label_studio.packed(brush)
    regions = [
        *test_label_studio.SHAPES.values(),
        test_label_studio.region("brush", format="rle", rle=rle),
    ]
    test_label_studio.put(root, [test_label_studio.task(regions)])
    return root / "project-1.json"


def panoptic(root: Path) -> Path:
    test_coco_panoptic.put(root)
    return root / "annotations" / "panoptic_train2017.json"


def roboflow(root: Path) -> Path:
    return test_roboflow_masks.put(root, "train") / "train" / "_classes.csv"


def hub(name: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        test_hugging_face.pictures(root, "a", "b")
        test_hugging_face.table(root / "metadata.csv", ["a", "b"])
        if name == "metadata.jsonl":
            (root / "metadata.csv").unlink()
            test_hugging_face.table(root / name, ["a", "b"])
        return root / name

    return write


def vistas(root: Path) -> Path:
    return test_mapillary.small(root, "v2.0", "config_v2.0.json") / "config_v2.0.json"


def ade(file: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        test_ade20k_full.small(root, index=file == "index_ade20k.pkl")
        (root / "classes.txt").write_text("sky\ncar\n")
        if file == "index_ade20k.pkl":
            tree = {"a": "sky", "objectnames": test_ade20k_full.NAMES[:20], "b": "car"}
            (root / file).write_bytes(pickle.dumps(tree))
            (root / "classes.txt").write_text("sky\nthing 3\n")
        return next(root.rglob(file))

    return write


FILES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    **{file: ("voc", own(file)) for file in test_class_files.FILES},
    "annotations.xml": ("cvat_images", cvat),
    "project-1.json": ("label_studio", studio),
    "panoptic_train2017.json": ("coco_panoptic", panoptic),
    "_classes.csv": ("roboflow_masks", roboflow),
    "metadata.csv": ("hugging_face", hub("metadata.csv")),
    "metadata.jsonl": ("hugging_face", hub("metadata.jsonl")),
    "id2label.json": ("hugging_face", hub("id2label.json")),
    "config_v2.0.json": ("mapillary", vistas),
    "index_ade20k.pkl": ("ade20k_full", ade("index_ade20k.pkl")),
    "ADE_1.json": ("ade20k_full", ade("ADE_1.json")),
}


def outcome(reader: Any, root: Path) -> list[DataError]:
    """Returns the errors; exceptions other than DataError propagate."""
    try:
        listing = reader.read(DataConfig(root=str(root)), root, 0)
    except DataError as error:
        return [error]
    faults = list(listing.unpaired)
    for sample in (*listing.train, *(listing.val or ()), *listing.test):
        try:
            _, label = listing.load(sample)
        except DataError as error:
            faults.append(error)
            continue
        assert (label.dtype, label.ndim) == (np.int32, 2)
        assert VOID <= label.min() <= label.max() < len(listing.taxonomy.names)
    return faults


@pytest.mark.parametrize("file", FILES)
def test_damaged_files(tmp_path: Path, file: str) -> None:
    name, write = FILES[file]
    path = write(tmp_path)
    reader = READERS[name]  # type: ignore[index]
    original = path.read_bytes()
    assert outcome(reader, tmp_path) == []
    refused = 0
    for number, damaged in enumerate(mutants(original, 60, file)):
        path.write_bytes(damaged)
        reader.signs(tmp_path)
        faults = outcome(reader, tmp_path)
        refused += bool(faults)
        for fault in faults:
            assert str(tmp_path) in str(fault), number
            assert not {"\n", "\r"} & set(str(fault)), number
    assert refused > 5


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b"\xff\xfe\x00", b"[" * 50_000, json.dumps(10**400).encode()],
)
@pytest.mark.parametrize("file", FILES)
def test_files_of_something_else(tmp_path: Path, file: str, content: bytes) -> None:
    name, write = FILES[file]
    path = write(tmp_path)
    path.write_bytes(content)
    reader = READERS[name]  # type: ignore[index]
    reader.signs(tmp_path)
    for fault in outcome(reader, tmp_path):
        assert str(tmp_path) in str(fault)
        assert "\n" not in str(fault)
