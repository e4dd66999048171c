from __future__ import annotations

import cv2
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ccfnet_tf.pipeline.augment_appearance import RECTANGLES, blur, hidden


def blurred(image: np.ndarray, draw: float, largest: float) -> np.ndarray:
    return np.asarray(blur(tf.constant(image, tf.float32), tf.constant(draw), largest))


@pytest.mark.parametrize("draw", [0.55, 0.75, 1.0])
@pytest.mark.parametrize("largest", [0.4, 1.5, 5.0])
def test_blur_is_opencv_gaussian(draw: float, largest: float) -> None:
    delta = np.zeros((41, 41, 3), np.float32)
    delta[20, 20] = 255
    noise = np.random.default_rng(0).integers(0, 256, (41, 41, 3)).astype(np.float32)
    for image in (delta, noise):
        deviation = largest * (2 * draw - 1)
        size = 2 * int(np.ceil(3 * largest)) + 1
        # OpenCV's border reflects like the padding here: without repeating the outermost pixel.
        expected = cv2.GaussianBlur(image, (size, size), deviation)
        np.testing.assert_allclose(blurred(image, draw, largest), expected, atol=0.02)


@pytest.mark.parametrize("draw", [0.0, 0.3, 0.4999, 0.5, 0.5001])
def test_half_of_the_draws_leave_the_image_sharp(draw: float) -> None:
    image = np.random.default_rng(0).uniform(0, 255, (33, 33, 3)).astype(np.float32)
    np.testing.assert_array_equal(blurred(image, draw, 2.0), image)


@pytest.mark.parametrize("draw", [0.6, 1.0])
def test_blur_does_not_darken_edges(draw: float) -> None:
    image = np.full((32, 32, 3), (255, 200, 7), np.float32)
    np.testing.assert_allclose(blurred(image, draw, 5.0), image, rtol=1e-5)


def covered(crop: int, draws: np.ndarray, largest: float) -> np.ndarray:
    return np.asarray(hidden(crop, tf.constant(draws, tf.float32), largest))


@settings(max_examples=60, deadline=None)
@given(
    crop=st.integers(32, 150),
    largest=st.floats(0.0, 0.5),
    seed=st.integers(0, 2**31),
    extreme=st.booleans(),
)
def test_hidden_share_is_within_the_limit(
    crop: int, largest: float, seed: int, extreme: bool
) -> None:
    rng = np.random.default_rng(seed)
    draws = rng.uniform(0, 1, (5, RECTANGLES))
    if extreme:
        draws = rng.choice([0.0, np.nextafter(np.float32(1), np.float32(0))], draws.shape)
    mask = covered(crop, draws, largest)
    assert mask.shape == (crop, crop)
    assert mask.dtype == bool
    assert mask.mean() <= largest


def test_rectangles_hide_half_of_the_limit_on_average_at_any_position() -> None:
    rng = np.random.default_rng(0)
    masks = [covered(64, rng.uniform(0, 1, (5, RECTANGLES)), 0.2) for _ in range(300)]
    shares = np.array([mask.mean() for mask in masks])
    assert 0.08 < shares.mean() < 0.1  # half of 0.2, minus overlaps and rounding
    assert shares.max() > 0.17
    assert shares.min() < 0.01
    where = np.mean(masks, axis=0)
    assert where[20:44, 20:44].mean() > 0.1
    assert where[:4].mean() > 0.02
    assert where[:, -4:].mean() > 0.02


@pytest.mark.parametrize("number", range(1, RECTANGLES + 1))
def test_area_is_shared_by_the_drawn_number_of_rectangles(number: int) -> None:
    draws = np.full((5, RECTANGLES), 0.5)
    draws[0, 0], draws[1, 0] = 0.999, (number - 0.5) / RECTANGLES
    draws[3, :], draws[4, :] = (0.0, 0.0, 0.99, 0.99), (0.0, 0.99, 0.0, 0.99)
    mask = covered(200, draws, 0.1)
    parts, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    assert parts - 1 == number
    side = np.sqrt(0.1 * 200**2 / number)
    for part in stats[1:]:
        width, height = part[cv2.CC_STAT_WIDTH], part[cv2.CC_STAT_HEIGHT]
        assert part[cv2.CC_STAT_AREA] == width * height
        assert abs(width - side) < 2
        assert abs(height - side) < 2


def test_aspect_ratios_are_between_half_and_double() -> None:
    ratios = []
    for draw in (0.0, 0.999):
        draws = np.full((5, RECTANGLES), 0.5)
        draws[1, 0], draws[2] = 0.0, draw
        mask = covered(200, draws, 0.4)
        ratios.append(mask.any(axis=1).sum() / mask.any(axis=0).sum())
    np.testing.assert_allclose(ratios, [0.5, 2.0], rtol=0.04)
