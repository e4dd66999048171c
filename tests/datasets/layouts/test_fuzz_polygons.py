"""Compares polygon drawing with a slow per-pixel version; fuzzes the readers of JSON files."""

from __future__ import annotations

import base64
import copy
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layouts import coco, label_studio, labelme
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.polygons import draw
from ccfnet_tf.labels import VOID

H, W = 9, 12

BAD: list[Any] = [
    None, True, 0, -1, 3, 2.5, 1e308, 2**31, 2**63, -(2**200), 10**320, float("nan"),
    float("inf"), "", "x", "\ud800", "a\nb", "\0", "../x", "/", "x" * 3000, [], [[]], [None], {},
    {"counts": []}, [[1, 2]], [[0, 0], [1e300, 2], [3, 3]], [[0, 1, 2, 3, 4, "5"]],
]  # fmt: skip

_file = io.BytesIO()
Image.fromarray(np.array([[1, 0], [1, 1]], np.uint8)).save(_file, "PNG")
PATCH = base64.b64encode(_file.getvalue()).decode()

LABELME = {
    "version": "5.4.1",
    "shapes": [
        {"label": "sky", "points": [[0, 0], [12, 0], [12, 4], [0, 4.5]], "shape_type": "polygon"},
        {"label": "sea", "points": [[2, 5], [9, 8]], "shape_type": "rectangle", "mask": None},
        {"label": "sun", "points": [[3, 3], [3, 1]], "shape_type": "circle"},
        {"label": "sun", "points": [[3, 3]], "shape_type": "point"},
        {
            "label": "sea",
            "points": [[1, 1], [2, 2]],
            "shape_type": "mask",
            "mask": PATCH,
        },
    ],
    "imagePath": "a.png",
    "imageData": None,
    "imageHeight": H,
    "imageWidth": W,
}

COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "height": H, "width": W},
        {"id": 2, "file_name": "b.png", "height": H, "width": W},
    ],
    "categories": [{"id": 4, "name": "cat"}, {"id": 7, "name": "dog"}],
    "annotations": [
        {
            "image_id": 1,
            "category_id": 4,
            "segmentation": [[0, 0, 9, 0.5, 5, 8], [1, 1, 3, 3, 1, 3]],
        },
        {"image_id": 1, "category_id": 7, "segmentation": {"size": [H, W], "counts": [50, 8, 50]}},
        {"image_id": 2, "category_id": 7, "segmentation": {"size": [H, W], "counts": "b18b1"}},
    ],
}


def write_labelme(root: Path, content: bytes) -> Path:
    for name in ("a.json", "b.json"):  # b stays undamaged
        (root / name).write_text(json.dumps(LABELME | {"imagePath": f"{name[0]}.png"}))
    (root / "a.json").write_bytes(content)
    return root / "a.json"


def write_coco(root: Path, content: bytes) -> Path:
    (root / "annotations.json").write_bytes(content)
    return root / "annotations.json"


LABEL_STUDIO = [
    {
        "id": number,
        "data": {"image": f"/data/upload/1/{name}.png"},
        "annotations": [
            {
                "was_cancelled": False,
                "result": [
                    {
                        "type": f"{kind}labels",
                        "original_width": W,
                        "original_height": H,
                        "value": value | {f"{kind}labels": [label]},
                    }
                    for kind, label, value in (
                        ("polygon", "cat", {"points": [[0, 0], [90, 5], [50.5, 80]]}),
                        ("rectangle", "dog", {"x": 1, "y": 2, "width": 30, "height": 40}),
                        ("ellipse", "dog", {"x": 50, "y": 50, "radiusX": 9, "radiusY": 8}),
                    )
                ],
            }
        ],
    }
    for number, name in enumerate("ab")
]


def write_label_studio(root: Path, content: bytes) -> Path:
    (root / "export.json").write_bytes(content)
    return root / "export.json"


LAYOUTS: dict[str, tuple[Any, Any, Callable[[Path, bytes], Path]]] = {
    "labelme": (labelme, LABELME, write_labelme),
    "coco": (coco, COCO, write_coco),
    "label_studio": (label_studio, LABEL_STUDIO, write_label_studio),
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in "ab":
        Image.new("RGB", (W, H), (9, 9, 9)).save(tmp_path / f"{name}.png")
    return tmp_path


def outcome(reader: Any, root: Path) -> tuple[int, list[DataError]]:
    """Returns the number of samples read, and the errors; other exceptions propagate."""
    try:
        listing: Listing = reader.read(DataConfig(root=str(root)), root, 0)
    except DataError as error:
        return 0, [error]
    faults = list(listing.unpaired)
    read = 0
    for sample in listing.train:
        try:
            image, label = listing.load(sample)
        except DataError as error:
            faults.append(error)
            continue
        assert image.shape == (H, W, 3)
        assert (label.dtype, label.ndim) == (np.int32, 2)
        assert VOID <= label.min() <= label.max() < len(listing.taxonomy.names)
        read += 1
    return read, faults


def judge(reader: Any, root: Path, path: Path) -> bool:
    """Returns whether a file was refused, after checking the error."""
    read, faults = outcome(reader, root)
    assert read or faults
    for fault in faults:
        message = str(fault)
        assert message.startswith(str(root)), message
        assert "\n" not in message
        assert len(message) < 600 + len(str(root)) * 3
        message.encode()
    assert reader.signs(root) is not None
    return bool(faults)


def places(tree: Any, road: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of every value in a JSON tree."""
    if road:
        yield road
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*road, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from places(value, (*road, index))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_undamaged_files_are_read(pictures: Path, layout: str) -> None:
    reader, tree, write = LAYOUTS[layout]
    write(pictures, json.dumps(tree).encode())
    assert outcome(reader, pictures) == (2, [])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_of_every_kind_in_every_place(pictures: Path, layout: str) -> None:
    reader, tree, write = LAYOUTS[layout]
    rng = np.random.default_rng(6)
    refused = 0
    roads = list(places(tree))
    for road in roads:
        for kind in rng.choice(len(BAD) + 1, 4, replace=False):
            changed = copy.deepcopy(tree)
            owner = changed
            for step in road[:-1]:
                owner = owner[step]
            if kind == len(BAD):
                del owner[road[-1]]
            else:
                owner[road[-1]] = BAD[kind]
            refused += judge(reader, pictures, write(pictures, json.dumps(changed).encode()))
    assert refused > 2 * len(roads)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_bytes(pictures: Path, layout: str) -> None:
    reader, tree, write = LAYOUTS[layout]
    rng = np.random.default_rng(7)
    original = json.dumps(tree).encode()
    refused = 0
    for turn in range(200):
        content = bytearray(original)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            # Every second time with characters of JSON's syntax, so more files remain parsable.
            alphabet = bytes(range(256)) if turn % 2 else b'0123456789-.,:[]{}"eE '
            content[at] = alphabet[rng.integers(len(alphabet))]
        if turn % 10 == 0:
            content = content[: rng.integers(0, len(content))]
        refused += judge(reader, pictures, write(pictures, bytes(content)))
    assert refused > 50


def slow(corners: np.ndarray) -> np.ndarray:
    """Returns which pixel centres are inside, by counting the edges to the left of each."""
    inside = np.zeros((H, W), bool)
    x, y = np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((y0 <= y) != (y1 <= y)) & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x)
    return inside


def test_outlines_of_every_form() -> None:
    rng = np.random.default_rng(8)
    for turn in range(150):
        corners = rng.uniform(-4, 16, (rng.integers(3, 10), 2))
        if turn % 3 == 1:
            corners = np.round(corners)
        if turn % 3 == 2:
            # Half-pixel corners are on pixel centres. Vertical edges have exact crossings.
            steps = np.round(corners) + 0.5
            corners = np.repeat(steps, 2, axis=0)
            corners[1::2, 0] = np.roll(steps, -1, axis=0)[:, 0]
        label = draw((H, W), [(5, corners)])
        np.testing.assert_array_equal(label == 5, slow(corners))
        assert set(np.unique(label)) <= {VOID, 5}
