from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_registry import detect
from ccfnet_tf.datasets.layouts import coco, coco_panoptic
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID
from tests.datasets.layouts.small_copies import SIZE, photo

CATEGORIES = [
    {"id": 200, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
    {"id": 1, "name": "person", "isthing": 1, "color": [4, 5, 6]},
]
NUMBERS = np.resize([0, 7, 300, 70000], SIZE)  # segment numbers: R + 256 G + 65536 B
IDS = np.resize([VOID, 0, 1, 0], SIZE)


def tree_of(**keys: Any) -> dict[str, Any]:
    segments = [(7, 1), (300, 200), (70000, 1)]
    entry = {
        "image_id": 9,
        "file_name": "a.png",
        "segments_info": [{"id": i, "category_id": c, "iscrowd": 0} for i, c in segments],
    }
    images = [{"id": 9, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}]
    return {"images": images, "annotations": [entry], "categories": CATEGORIES} | keys


def put(root: Path, part: str = "train2017", folder: str = "annotations/", **keys: Any) -> Path:
    """Writes a panoptic file, its masks and its images; returns the path of the mask."""
    masks = root / folder / f"panoptic_{part}"
    masks.mkdir(parents=True)
    (root / folder / f"panoptic_{part}.json").write_text(json.dumps(tree_of(**keys)))
    colours = np.stack([NUMBERS & 255, NUMBERS >> 8 & 255, NUMBERS >> 16], -1).astype(np.uint8)
    Image.fromarray(colours).save(masks / "a.png")
    photo(root / part / "a.jpg")
    return masks / "a.png"


def read(root: Path) -> Listing:
    return coco_panoptic.read(DataConfig(root=str(root)), root, 0)


@pytest.mark.parametrize("folder", ["annotations/", ""])
def test_segments_become_classes(tmp_path: Path, folder: str) -> None:
    put(tmp_path, folder=folder)
    put(tmp_path, "val2017", folder)
    assert detect(tmp_path) == "coco_panoptic"
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("person", "sky")
    assert [s.name for s in listing.train] == ["train2017/a"]
    assert listing.val is None
    assert [s.name for s in listing.test] == ["val2017/a"]
    for sample in (*listing.train, *listing.test):
        image, label = listing.load(sample)
        assert image.shape == (*SIZE, 3)
        assert label.dtype == np.int32
        np.testing.assert_array_equal(label, IDS)


@pytest.mark.parametrize("name", ["Unlabeled", "void"])
def test_categories_that_stand_for_no_class(tmp_path: Path, name: str) -> None:
    other = {"id": 2, "name": "road"}
    renamed = [CATEGORIES[0], CATEGORIES[1] | {"name": name}, other]
    put(tmp_path, categories=renamed)
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("road", "sky")
    np.testing.assert_array_equal(listing.load_label(listing.train[0]), np.where(IDS == 1, 1, VOID))
    assert f"'{name}' means no class" in listing.notes[0]


def test_outlines_come_first(tmp_path: Path) -> None:
    put(tmp_path)
    instances = {"images": [], "annotations": [], "categories": CATEGORIES}
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(instances))
    assert detect(tmp_path) == "coco"
    assert coco_panoptic.signs(tmp_path) == ""


def test_what_is_missing(tmp_path: Path) -> None:
    mask = put(tmp_path)
    mask.unlink()
    (fault,) = read(tmp_path).unpaired
    assert fault.kind == "missing"
    assert f"no mask {mask}: unpack the masks there" in str(fault)
    (tmp_path / "train2017" / "a.jpg").unlink()
    (fault,) = read(tmp_path).unpaired
    assert "no such image" in str(fault)


def test_a_segment_that_is_not_listed(tmp_path: Path) -> None:
    mask = put(tmp_path)
    Image.new("RGB", SIZE[::-1], (1, 1, 0)).save(mask)
    listing = read(tmp_path)
    with pytest.raises(
        DataError, match="segment 257 is not in the annotation file, which has 3"
    ) as caught:
        listing.load(listing.train[0])
    assert caught.value.kind == "value"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"images": []}, "image_id 9: no such id in 'images'"),
        ({"categories": CATEGORIES[:1]}, "category_id 1: no such id in 'categories'"),
        ({"annotations": [{"image_id": 9, "file_name": "a.png"}]}, "'segments_info' is missing"),
        ({"annotations": 5}, "'annotations' is 5"),
    ],
)
def test_lists_that_are_damaged(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    put(tmp_path, **keys)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "annotations" / "panoptic_train2017.json"))


def test_lists_that_are_invalid(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no annotation file for training \(found: nothing\)"):
        read(tmp_path)
    put(tmp_path, "val2017")
    with pytest.raises(
        DataError, match=r"no annotation file for training \(found: panoptic_val2017"
    ):
        read(tmp_path)
    with pytest.raises(DataError, match=r"panoptic_val2017\.json.*--data\.format coco_panoptic"):
        coco.read(DataConfig(root=str(tmp_path)), tmp_path, 0)
    put(tmp_path, "train2017")
    put(tmp_path, "train2014")
    with pytest.raises(DataError, match="also annotates the train split"):
        read(tmp_path)
