from __future__ import annotations

import math
import re
import tracemalloc

import numpy as np
import pytest

from ccfnet_tf.errors import DataError
from ccfnet_tf.io import polygons
from ccfnet_tf.io.polygons import area, circle, draw, is_flat, outline, points
from ccfnet_tf.labels import VOID


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)


def test_a_square_covers_the_pixels_between_its_corners() -> None:
    label = draw((5, 6), [(7, box(1, 2, 4, 4))])
    assert label.dtype == np.int32
    expected = np.full((5, 6), VOID)
    expected[2:4, 1:4] = 7
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize(
    ("left", "right", "columns"),
    [
        (0.0, 1.0, [0]),
        (0.49, 1.51, [0, 1]),
        (0.51, 1.49, []),
        (0.5, 1.5, [0]),  # A centre on the edge belongs to the right.
        (-3.0, 99.0, [0, 1, 2, 3]),
    ],
)
def test_a_pixel_is_inside_if_its_centre_is(left: float, right: float, columns: list[int]) -> None:
    across = draw((1, 4), [(0, box(left, 0, right, 1))])
    down = draw((4, 1), [(0, box(0, left, 1, right))])
    assert np.flatnonzero(across == 0).tolist() == columns
    assert np.flatnonzero(down == 0).tolist() == columns


def test_adjacent_shapes_neither_overlap_nor_leave_a_gap() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        middle = rng.uniform(3, 17, 2)
        if rng.random() < 0.5:
            middle = np.round(middle) + 0.5  # centres on lines and corners
        around = box(0, 0, 20, 20)
        sides = [np.stack([around[i], around[(i + 1) % 4], middle]) for i in range(4)]
        cover = sum((draw((20, 20), [(1, side[::-1])], 0) for side in sides), np.zeros((20, 20)))
        np.testing.assert_array_equal(cover, 1)


def test_the_way_round_does_not_matter() -> None:
    corners = np.random.default_rng(4).uniform(-5, 25, (9, 2))
    expected = draw((20, 20), [(1, corners)])
    np.testing.assert_array_equal(draw((20, 20), [(1, corners[::-1])]), expected)
    np.testing.assert_array_equal(draw((20, 20), [(1, np.roll(corners, 4, axis=0))]), expected)


def test_later_shapes_lie_over_earlier_ones() -> None:
    mask = np.zeros((3, 3), bool)
    mask[2] = True
    label = draw((3, 3), [(1, box(0, 0, 3, 3)), (2, mask), (3, box(2, 0, 3, 3))], 0)
    np.testing.assert_array_equal(label, [[1, 1, 3], [1, 1, 3], [2, 2, 3]])


def test_even_odd() -> None:
    star = np.array(
        [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0], [3, 3], [6, 3], [6, 6], [3, 6], [3, 3]]
    )
    label = draw((9, 9), [(1, star.astype(np.float64))], 0)
    assert label.sum() == 81 - 9
    assert not label[3:6, 3:6].any()


def test_shapes_without_pixels() -> None:
    outside = [box(-9, -9, -1, -1), box(30, 30, 40, 40), box(3, 3, 3, 9), box(0.6, 0.6, 0.9, 0.9)]
    assert (draw((5, 5), [(1, shape) for shape in outside]) == VOID).all()
    assert (draw((5, 5), []) == VOID).all()


def test_far_corners_are_cut_off() -> None:
    assert (draw((5, 7), [(1, box(-1e6, -1e6, 1e6, 1e6))]) == 1).all()


def test_many_crossings_in_one_pixel() -> None:
    comb = [[float(x % 2 * 9), x % 2 * 5.0] for x in range(600)]  # 600 times the same line
    label = draw((5, 9), [(1, np.array(comb))], 0)
    assert not label.any()


def test_area() -> None:
    assert area(box(1, 2, 4, 4)) == 6.0
    assert area(box(1, 2, 4, 4)[::-1]) == 6.0
    assert area(np.zeros((3, 2))) == 0.0


@pytest.mark.parametrize(
    ("corners", "flat"),
    [
        ([[0, 0], [8, 8], [8, 0], [0, 8]], False),  # crosses itself: an area of 0, as sums go
        ([[0, 0], [4, 4], [9, 9], [2, 2]], True),
        ([[3, 3], [3, 3], [3, 3]], True),
        ([[0, 0], [9, 0], [9, 1e-3]], False),
    ],
)
def test_is_flat(corners: list[list[float]], flat: bool) -> None:
    assert is_flat(np.array(corners)) == flat


def test_circle() -> None:
    for radius in (0.3, 4.0, 300.0):
        corners = circle(np.array([5.0, 6.0]), np.array([5.0 + radius, 6.0]))
        middles = (corners + np.roll(corners, 1, axis=0)) / 2
        distance = np.hypot(*(middles - (5.0, 6.0)).T)
        assert radius - 0.01 <= distance.min() <= distance.max() <= radius
    label = draw((40, 40), [(1, circle(np.array([20.0, 20.0]), np.array([20.0, 5.0])))], 0)
    assert abs(label.sum() - math.pi * 15**2) < 10
    assert draw((9, 9), [(1, circle(np.array([4.0, 4.0]), np.array([4.0, 4.0])))], 0).sum() == 0


def test_values_become_points() -> None:
    np.testing.assert_array_equal(outline([0, 1.5, -2, 3, 4, 5], "a"), [[0, 1.5], [-2, 3], [4, 5]])
    assert points([], "a", least=0).shape == (0, 2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1, 2, 3, 4], "2 points: expected at least 3"),
        ([1, 2, 3, 4, 5], "list of 5"),
        ({}, "an object"),
        (None, "missing"),
        ([1, 2, 3, 4, 5, math.nan], "coordinate nan"),
        ([1, 2, 3, 4, 5, -math.inf], "coordinate -inf"),
        ([1, 2, 3, 4, 5, 10**400], "a huge number"),
        ([1, 2, 3, 4, 5, 1_000_001], "coordinate 1000001"),
        ([1, 2, 3, 4, 5, "6"], "coordinate '6'"),
        ([1, 2, 3, 4, 5, True], "coordinate True"),
        ([1, 2, 3, 4, 5, [6]], "a list of 1"),
        ([[1, 2], [3, 4], [5, 6], [7, 8], [9, 9], [9, 9]], "a list of 2"),
    ],
)
def test_invalid_polygons_are_refused(values: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        outline(values, "a.json: shape 3")
    assert str(caught.value).startswith("a.json: shape 3: ")


@pytest.mark.parametrize("size", [(1, 5_000_000), (5_000_000, 1), (2, 2_500_000)])
def test_a_very_wide_image_needs_little_more_memory_than_its_label(
    size: tuple[int, int],
) -> None:
    tracemalloc.start()
    label = draw(size, [(0, box(-1, -1, size[1] + 1, size[0] + 1))])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (label == 0).all()
    assert peak < label.nbytes + 60e6


def test_a_polygon_that_crosses_every_row_a_thousand_times_needs_little_memory() -> None:
    """A file of 100 kB, which would need gigabytes if drawn in one pass."""
    rows, edges = 4000, 4000
    x = np.linspace(0, 500, edges)
    corners = zigzag(edges, rows)
    tracemalloc.start()
    label = draw((rows, 500), [(1, corners)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6
    # Parity: the outline closes along the diagonal, and each stripe is in or out by its crossings.
    middle = label[rows // 2]
    crossed = [0.5 * (x[i] + x[i + 1]) for i in range(edges - 1)]
    for column in (0, 17, 100, 499):
        inside = sum(at <= column + 0.5 for at in crossed) + (column + 0.5 >= 250)
        assert (middle[column] == 1) == bool(inside % 2)


def zigzag(edges: int, rows: int) -> np.ndarray:
    x = np.linspace(0, 500, edges)
    return np.stack([x, np.where(np.arange(edges) % 2, rows, 0)], axis=1)


@pytest.mark.parametrize("pieces", [1, 50])
def test_zigzag_polygons_are_refused_before_they_are_drawn(pieces: int) -> None:
    """A file of 1 MB, which would take half a minute to draw, as one polygon or as several."""
    shapes = [(1, corners) for corners in np.split(zigzag(100_000, 4000), pieces)]
    with pytest.raises(DataError) as caught:
        draw((4000, 500), shapes, where="a.json: b.jpg")
    assert re.fullmatch(
        r"a\.json: b\.jpg: polygons cross pixel rows \d+ times: at most 20000000 per image are "
        "supported: use polygons with fewer points",
        str(caught.value),
    )


@pytest.mark.parametrize("seed", range(5))
def test_drawing_in_bands_gives_the_same_result(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-20, 80, (40, 2))
    original = draw((60, 50), [(1, corners)])
    monkeypatch.setattr(polygons, "_COUNTED", 13)
    monkeypatch.setattr(polygons, "_BAND_PIXELS", 100)
    monkeypatch.setattr(polygons, "_BAND_CROSSINGS", 7)
    np.testing.assert_array_equal(draw((60, 50), [(1, corners)]), original)
    assert 0 < (original == 1).mean() < 1
