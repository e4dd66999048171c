"""Brush masks in Label Studio's encoding."""

from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.errors import DataError
from ccfnet_tf.io.label_studio_rle import from_brush, to_brush

SPOTS = np.zeros((6, 10), bool)
SPOTS[1:3, 2:7] = SPOTS[5, 9] = True

BY_THE_SDK = "000000f0391bfe2f00c27ff84c0309ffe7f008ffc0"
"""`SPOTS`, encoded by `encode_rle` of label-studio-sdk 2.1.2."""

CASES = {
    "spots": SPOTS,
    "one pixel": np.ones((1, 1), bool),
    "empty": np.zeros((5, 7), bool),
    "full, longer than one run": np.ones((200, 300), bool),
    "exactly one run": np.ones((128, 128), bool),
    "every other pixel": np.arange(35).reshape(5, 7) % 2 == 0,
    "noise": np.random.default_rng(0).random((40, 50)) < 0.3,
}


@pytest.mark.parametrize("name", CASES)
def test_decoding_returns_the_mask(name: str) -> None:
    mask = CASES[name]
    np.testing.assert_array_equal(to_brush(from_brush(mask), mask.shape, "here"), mask)


def test_the_bytes_are_those_of_label_studio() -> None:
    assert from_brush(SPOTS).hex() == BY_THE_SDK


def test_a_large_mask_of_few_runs_is_small() -> None:
    mask = np.zeros((500, 500), bool)
    mask[100:200] = True
    assert len(from_brush(mask)) < 100


def test_a_shortened_mask_is_refused() -> None:
    with pytest.raises(DataError, match="ends too early"):
        to_brush(from_brush(SPOTS)[:-3], SPOTS.shape, "here")


def test_a_mask_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="has no pixels"):
        from_brush(np.zeros((0, 4), bool))
