from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_registry import detect
from ccfnet_tf.datasets.layouts import label_studio
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.label_studio_rle import to_brush
from ccfnet_tf.labels import VOID

SIZE = (4, 8)
Tree = dict[str, Any]


def packed(brush: np.ndarray, *, literal: bool = False) -> list[int]:
    """Returns a brush as Label Studio encodes it: RGBA values, in runs or as literals."""
    values = np.repeat(brush.reshape(-1, 1) * 255, 4, axis=1).reshape(-1)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in (3, 4, 8, 16))
    at = 0
    while at < len(values):
        end = at
        while end < len(values) and end - at < 16 and (literal or values[end] == values[at]):
            end += 1
        bits += f"{int(not literal)}01{end - at - 1:04b}"
        written = values[at:end] if literal else values[at : at + 1]
        bits += "".join(f"{value:08b}" for value in written)
        at = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def region(kind: str, label: str = "leaf", **value: Any) -> Tree:
    return {
        "type": f"{kind}labels",
        "original_width": SIZE[1],
        "original_height": SIZE[0],
        "value": value | {f"{kind}labels": [label]},
    }


WIDE = {"original_width": 80_000_000, "original_height": 1}
POLYGON = region("polygon", points=[[12.5, 25], [50, 25], [50, 75], [12.5, 75]])
SHAPES = {
    "polygon": POLYGON,
    "rectangle": region("rectangle", x=12.5, y=25, width=37.5, height=50, rotation=0),
    "turned": region("rectangle", x=50, y=75, width=37.5, height=50, rotation=180),
}
EXPECTED = np.zeros(SIZE, bool)
EXPECTED[1:3, 1:4] = True


def task(results: list[Tree], address: str = "/data/upload/1/0a1b2c3d-a.png", **keys: Any) -> Tree:
    annotation = {"id": 1, "result": results, "was_cancelled": False, "ground_truth": False}
    return {"id": 5, "data": {"image": address}, "annotations": [annotation]} | keys


def put(root: Path, tasks: Any, name: str = "project-1.json") -> None:
    Image.new("RGB", SIZE[::-1]).save(root / "a.png")
    (root / name).write_text(json.dumps(tasks))


def read(root: Path) -> Listing:
    return label_studio.read(DataConfig(root=str(root)), root, 0)


def label_of(root: Path, results: list[Tree]) -> np.ndarray:
    put(root, [task(results)])
    listing = read(root)
    return listing.load(listing.train[0])[1]


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(tmp_path: Path, name: str) -> None:
    label = label_of(tmp_path, [SHAPES[name], region("polygon", "stem", points=[[0, 0]] * 3)])
    assert detect(tmp_path) == "label_studio"
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("leaf", "stem")
    assert [s.name for s in listing.train] == ["a"]
    np.testing.assert_array_equal(label == 0, EXPECTED)
    assert (label == VOID).sum() == 26


def test_ellipses(tmp_path: Path) -> None:
    label = label_of(tmp_path, [region("ellipse", x=50, y=50, radiusX=50, radiusY=25, rotation=0)])
    assert (label[1:3, 2:6] == 1).all()
    assert (label[[0, 3]] == 0).all()


@pytest.mark.parametrize("literal", [False, True])
def test_brushes(tmp_path: Path, literal: bool) -> None:
    brush = np.random.default_rng(0).random(SIZE) > 0.5
    label = label_of(tmp_path, [region("brush", format="rle", rle=packed(brush, literal=literal))])
    assert read(tmp_path).taxonomy.names == ("background", "leaf")
    np.testing.assert_array_equal(label == 1, brush)


def test_the_short_export(tmp_path: Path) -> None:
    short = {
        "id": 1,
        "image": "/data/upload/1/0a1b2c3d-a.png",
        "annotator": 1,
        "tag": [POLYGON["value"] | {"original_width": SIZE[1], "original_height": SIZE[0]}],
    }
    put(tmp_path, [short])
    assert detect(tmp_path) == "label_studio"
    listing = read(tmp_path)
    np.testing.assert_array_equal(listing.load_label(listing.train[0]) == 1, EXPECTED)


def test_shape_and_label_as_two_results(tmp_path: Path) -> None:
    bare = POLYGON | {"type": "polygon", "value": {"points": POLYGON["value"]["points"]}}
    named = POLYGON | {"type": "labels", "value": bare["value"] | {"labels": ["leaf"]}}
    np.testing.assert_array_equal(label_of(tmp_path, [bare, named]) == 1, EXPECTED)
    assert read(tmp_path).notes == ()


def test_which_annotation_counts(tmp_path: Path) -> None:
    wrong = {"result": [region("polygon", "stem", points=POLYGON["value"]["points"])]}
    right = {"result": [POLYGON]}
    for several in (
        [wrong | {"was_cancelled": True}, right],
        [wrong, right | {"ground_truth": True}],
        [right, wrong],
    ):
        put(tmp_path, [task([], annotations=several)])
        assert read(tmp_path).taxonomy.names == ("background", "leaf")


def test_left_out_regions_are_reported(tmp_path: Path) -> None:
    keypoint = region("keypoint", x=1, y=1)
    tasks = [task([POLYGON, keypoint]), task([], "/x/b.png", annotations=[])]
    put(tmp_path, tasks)
    listing = read(tmp_path)
    assert len(listing.train) == 1
    (note,) = listing.notes
    assert "1 tasks without an annotation, 1 regions without an area or a label" in note


def test_an_annotation_of_nothing_is_background(tmp_path: Path) -> None:
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "b.png")
    put(tmp_path, [task([POLYGON]), task([], "/x/b.png")])
    listing = read(tmp_path)
    assert (listing.load(listing.train[1])[1] == 0).all()


def test_images(tmp_path: Path) -> None:
    put(tmp_path, [task([POLYGON]), task([POLYGON], "s3://b/c/x.png"), task([POLYGON])])
    listing = read(tmp_path)
    errors = [str(fault) for fault in listing.unpaired]
    assert "task 1: image 's3://b/c/x.png': no such image" in errors[0]
    assert "is also the image of another task" in errors[1]


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/1/0a1b2c3d-caf%C3%A9%201.png",
        "/data/upload/1/0a1b2c3d-caf\u00e9 1.png",
        "/data/local-files/?d=set/caf%C3%A9%201.png",
        "https://host/caf%C3%A9%201.png?token=x",
    ],
)
def test_addresses_that_are_encoded(tmp_path: Path, address: str) -> None:
    put(tmp_path, [task([POLYGON], address)])
    (tmp_path / "a.png").rename(tmp_path / "caf\u00e9 1.png")
    assert [sample.name for sample in read(tmp_path).train] == ["caf\u00e9 1"]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([task([POLYGON | {"image_rotation": 90}])], "region 0: image_rotation is 90"),
        ([5, task([])], "expected a list of tasks"),
        ([task([], annotations=5)], "'annotations' is 5"),
        ([task([], annotations=[{"result": 5}])], "'result' is 5"),
        ([task([POLYGON], "nothing")], "no image address"),
        ([task([POLYGON | {"original_width": 10**9}])], "at most 80 million"),
        ([task([POLYGON | {"original_width": None}])], "'original_width' is missing"),
        ([task([POLYGON, POLYGON | {"original_width": 9}])], "the image is (9, 4) pixels"),
        ([task([region("polygon", points=[[1, "x"], [1, 2], [2, 2]])])], "coordinate 'x'"),
        ([task([region("polygon", points=5)])], "'points' is 5"),
        ([task([region("rectangle", x=1, y=1, width=1, height=None)])], "coordinate missing"),
        ([task([region("brush", rle=[1, 300])])], "expected bytes 0..255"),
        (
            [task([region("ellipse", x=5, y=5, radiusX=1e6, radiusY=1) | WIDE])],
            "a coordinate or length of 4000000 pixels: expected at most 1000000",
        ),
        (
            [task([region("polygon", points=[[1, 1], [1e6, 1], [1, 9]]) | WIDE])],
            "expected at most 1000000",
        ),
        ([task([])], "0 class names"),
    ],
)
def test_exports_that_are_damaged(tmp_path: Path, tasks: list[Any], words: str) -> None:
    put(tmp_path, tasks)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rle: rle[:-2], "ends too early"),
        (lambda rle: rle[:3], "ends too early"),
        (lambda rle: [], "ends too early"),
        (lambda rle: [255, *rle[1:]], "values: expected 4 for each of 8x4"),
    ],
)
def test_brushes_that_are_damaged(change: Any, words: str) -> None:
    rle = packed(np.random.default_rng(0).random(SIZE) > 0.5)
    with pytest.raises(DataError, match=words):
        to_brush(bytes(change(rle)), SIZE, "here")


def test_no_brush_ends_otherwise() -> None:
    rle = bytes(packed(np.random.default_rng(0).random(SIZE) > 0.5))
    rng = np.random.default_rng(1)
    refused: list[str] = []
    for _ in range(300):
        damaged = bytearray(rle)
        damaged[rng.integers(4, len(rle))] ^= 1 << int(rng.integers(8))
        try:
            shape = to_brush(bytes(damaged), SIZE, "here").shape
        except DataError as error:
            refused.append(str(error))
        else:
            assert shape == SIZE
    assert 0 < len(refused) < 300
    assert all(line.startswith("here: ") for line in refused)
