from __future__ import annotations

import cv2
import numpy as np
import pytest

from ccfnet_tf.evaluation.boundaries import BANDS, RINGS, boundary_counts, near_edge, ring_of
from ccfnet_tf.labels import VOID


def blobs(seed: int, size: tuple[int, int] = (37, 53), void: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 3, (size[0] // 9 + 1, size[1] // 9 + 1)).astype(np.uint8)
    label = cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST).astype(np.int32)
    holes = cv2.resize(rng.random((9, 9)), size[::-1]) < void
    return np.where(holes, VOID, label)


def slow_rings(label: np.ndarray) -> np.ndarray:
    """Returns the ring of each pixel by looking at all pairs of pixels."""
    height, width = label.shape
    border = []
    for row, column in np.argwhere(label != VOID):
        steps = ((-1, 0), (1, 0), (0, -1), (0, 1))
        near = [(row + down, column + right) for down, right in steps]
        inside = [(r, c) for r, c in near if 0 <= r < height and 0 <= c < width]
        if any(label[place] not in (VOID, label[row, column]) for place in inside):
            border.append((row, column))
    if not border:
        return np.full(label.shape, RINGS - 1)
    rows, columns = np.indices(label.shape)
    places = np.array(border)
    distance = np.sqrt(
        (rows[..., None] - places[:, 0]) ** 2 + (columns[..., None] - places[:, 1]) ** 2
    ).min(-1)
    return sum((distance >= width).astype(int) for width in BANDS)  # type: ignore[return-value]


@pytest.mark.parametrize("void", [0.0, 0.3])
def test_rings_against_all_pairs(void: float) -> None:
    label = blobs(0, void=void)
    assert (void > 0) == (label == VOID).any()
    np.testing.assert_array_equal(ring_of(label), slow_rings(label))


def test_a_straight_boundary_has_bands_as_wide_as_they_say() -> None:
    label = np.repeat([[0] * 40 + [1] * 40], 5, axis=0)
    rings = ring_of(label)
    for index, width in enumerate(BANDS):
        assert ((rings <= index).sum(axis=1) == 2 * width).all()


def test_void_and_a_single_class_make_no_boundary() -> None:
    label = np.zeros((6, 9), np.int32)
    assert (ring_of(label) == RINGS - 1).all()
    label[:, 4] = VOID
    label[:, 5:] = 1
    assert (ring_of(label) == RINGS - 1).all()
    assert (ring_of(np.full((1, 1), VOID)) == RINGS - 1).all()


def slow_edge(label: np.ndarray) -> np.ndarray:
    """Each class by itself, as in the paper: the mask less its erosion; void agrees with all."""
    radius = max(1, round(0.02 * np.hypot(*label.shape)))
    near = np.zeros(label.shape, bool)
    for index in np.unique(label[label != VOID]):
        mask = ((label == index) | (label == VOID)).astype(np.uint8)
        padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=radius)[1:-1, 1:-1]
        near |= (label == index) & (inner == 0)
    return near


@pytest.mark.parametrize("size", [(37, 53), (120, 160), (1, 7), (200, 15)])
@pytest.mark.parametrize("void", [0.0, 0.3])
def test_boundary_counts_against_each_class_by_itself(size: tuple[int, int], void: float) -> None:
    label, prediction = blobs(1, size, void), blobs(2, size)
    prediction = np.where(label == VOID, VOID, prediction)
    np.testing.assert_array_equal(near_edge(label), slow_edge(label))
    (counts,) = boundary_counts(label, prediction[np.newaxis], 3)
    at, also = slow_edge(label), slow_edge(prediction)
    for index in range(3):
        one, two = at & (label == index), also & (prediction == index)
        assert counts[:, index].tolist() == [one.sum(), two.sum(), (one & two).sum()]


def test_the_same_prediction_is_perfect_and_void_counts_nowhere() -> None:
    label = blobs(3, void=0.4)
    (same,) = boundary_counts(label, label[np.newaxis], 3)
    assert (same == same[0]).all()
    nothing = np.full((8, 8), VOID)
    assert not boundary_counts(nothing, nothing[np.newaxis], 3).any()
