"""Damaged files raise a one-line error with their path, or give arrays of the documented form."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layouts import (
    ade20k,
    camvid,
    cityscapes,
    sift_flow,
    stanford_background,
    voc,
)
from ccfnet_tf.datasets.mask_values_to_classes import index_values, read_index_mask
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.read_images import read_image
from ccfnet_tf.labels import VOID
from tests.datasets.layouts import small_copies

READERS = {
    "ade20k": (ade20k, small_copies.ade20k),
    "camvid": (camvid, small_copies.camvid),
    "cityscapes": (cityscapes, small_copies.cityscapes),
    "sift_flow": (sift_flow, small_copies.sift_flow),
    "voc": (voc, small_copies.voc),
    "voc, coloured": (voc, lambda root: small_copies.voc(root, coloured=True)),
}

# Decoders warn of odd metadata: a warning is not a fault here.
pytestmark = pytest.mark.filterwarnings("ignore")


def mutants(original: bytes, count: int, seed: str) -> Iterator[bytes]:
    """Yields damaged copies; half of the damage is in the first bytes, where headers are."""
    rng = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(original)
        for _ in range(rng.choice((1, 1, 2, 5))):
            if not damaged:
                break
            reach = min(len(damaged), 250) if rng.random() < 0.5 else len(damaged)
            here = rng.randrange(reach)
            there = rng.randrange(len(damaged))
            match rng.randrange(6):
                case 0:
                    damaged[here] ^= 1 << rng.randrange(8)
                case 1:
                    damaged[here] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
                case 2:
                    damaged[here:here] = rng.randbytes(rng.randrange(1, 9))
                case 3:
                    del damaged[here : here + rng.randrange(1, 9)]
                case 4:
                    damaged[here], damaged[there] = damaged[there], damaged[here]
                case _:
                    del damaged[there:]
        yield bytes(damaged)


def outcome(read: Callable[[], Any]) -> Any:
    """Returns the result of `read` or its DataError; other exceptions propagate."""
    try:
        return read()
    except DataError as error:
        return error


def one_line(error: DataError) -> bool:
    return not {"\n", "\r"} & set(str(error))


def survives(
    path: Path, read: Callable[[], np.ndarray], promise: Callable[[np.ndarray], bool], count: int
) -> None:
    """Damages `path` repeatedly; `read` must return a valid result or raise a DataError."""
    original = path.read_bytes()
    refused = 0
    for number, damaged in enumerate(mutants(original, count, path.name)):
        path.write_bytes(damaged)
        found = outcome(read)
        if isinstance(found, DataError):
            refused += 1
            assert str(path) in str(found), number
            assert one_line(found), number
        else:
            assert promise(found), number
    path.write_bytes(original)
    assert promise(read())
    assert refused > count // 20


def is_label(classes: int) -> Callable[[np.ndarray], bool]:
    def promise(label: np.ndarray) -> bool:
        inside = label.min(initial=0) >= VOID and label.max(initial=0) < classes
        return label.dtype == np.int32 and label.ndim == 2 and bool(inside)

    return promise


def is_image(image: np.ndarray) -> bool:
    return image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


@pytest.mark.parametrize("name", READERS)
def test_labels(tmp_path: Path, name: str) -> None:
    module, small = READERS[name]
    found = module.read(DataConfig(root=str(tmp_path)), small(tmp_path), 0)
    for sample in found.train[:2]:  # of SIFT Flow, one is compressed and one is not
        survives(
            Path(sample.label),
            lambda sample=sample: found.load_label(sample),  # type: ignore[misc]
            is_label(len(found.taxonomy.names)),
            150,
        )


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_images(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    small_copies.photo(path)
    survives(path, lambda: read_image(path), is_image, 200)


def test_index_masks(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    small_copies.mask(path, small_copies.values([0, 1, 2, 3, 255]))
    survives(
        path,
        lambda: read_index_mask(path, index_values("abcd", None, void=[255])),
        is_label(4),
        200,
    )


def test_regions(tmp_path: Path) -> None:
    path = tmp_path / "a.regions.txt"
    path.write_text("0 1 2 -1\n3 4 5 6\n7 7 -1 0\n" * 4)
    survives(path, lambda: stanford_background.read_regions(path), is_label(8), 600)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sift_flow", "TestSet1.txt"),
        ("camvid", "train.txt"),
        ("voc", "ImageSets/Segmentation/train.txt"),
    ],
)
def test_lists(tmp_path: Path, name: str, file: str) -> None:
    module, small = READERS[name]
    data = DataConfig(root=str(small(tmp_path)))
    path = tmp_path / file
    noticed = 0
    for number, damaged in enumerate(mutants(path.read_bytes(), 200, name)):
        path.write_bytes(damaged)
        found = outcome(lambda: module.read(data, tmp_path, 0))
        if isinstance(found, DataError):
            noticed += 1
            assert one_line(found), number
            continue
        noticed += bool(found.unpaired)
        samples = (*found.train, *found.test)
        for key in ("name", "image", "label"):
            assert len({getattr(sample, key) for sample in samples}) == len(samples), number
        for error in found.unpaired:
            assert error.kind == "missing", number
            assert one_line(error), number
    assert noticed > 100
