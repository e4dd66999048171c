"""Rasterizes polygons into label maps.

Coordinates are in pixels, x to the right and y down; (0, 0) is the top left corner of the top left
pixel, whose centre is (0.5, 0.5). This is the convention of COCO and labelme.

A pixel belongs to a polygon if its centre lies inside by the even-odd rule. A centre exactly on an
edge belongs to the region to the right of it or below it. Polygons that share an edge therefore
neither overlap nor leave a gap. Tools that also draw the outline (OpenCV, Pillow, and labelme,
which uses Pillow) add half a pixel on each side. COCO's own tool gives the same result except for
centres within a third of a pixel of an edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ccfnet_tf.errors import DataError
from ccfnet_tf.io.annotation_json import shown
from ccfnet_tf.labels import VOID

FARTHEST = 1_000_000
"""Coordinates beyond this are refused as damaged; others outside the image are clipped."""

MOST_CROSSINGS = 20_000_000
"""Largest number of intersections of all polygons of an image with its rows.

A thousand round objects, each as high as an image of 4000 rows, have 8 million. Zigzag lines have
more: a file of 1 MB can contain 400 million.
"""

_BAND_PIXELS = 1 << 21
_COUNTED = 1 << 16  # Rows whose crossings are counted at a time.
_BAND_CROSSINGS = 1 << 20  # Crossings drawn at a time: about 100 MB.


def draw(
    size: tuple[int, int],
    shapes: Iterable[tuple[int, np.ndarray]],
    background: int = VOID,
    *,
    where: str = "",
) -> np.ndarray:
    """Draws shapes in order; later ones cover earlier ones.

    Args:
        size: (H, W) of the label map.
        shapes: Pairs of a class id and a polygon, float64 [N, 2] of (x, y), or a mask,
            bool [H, W].
        background: Class id of pixels outside all shapes.
        where: Location, used at the start of error messages.

    Returns:
        int32 [H, W], class ids of the shapes or `background`.

    Raises:
        DataError: The polygons cross pixel rows more than `MOST_CROSSINGS` times.
    """
    label = np.full(size, background, np.int32)
    crossings = 0
    for class_id, shape in shapes:
        if shape.dtype == bool:
            label[shape] = class_id
            continue
        edges = _edges(shape, size[0])
        crossings += int((edges.last - edges.first).sum())
        if crossings > MOST_CROSSINGS:
            raise DataError(
                f"{where}: polygons cross pixel rows {crossings} times: at most "
                f"{MOST_CROSSINGS} per image are supported: use polygons with fewer points"
            )
        _fill(label, edges, class_id)
    return label


def outline(values: Any, where: str) -> np.ndarray:
    """Converts a flat JSON list x, y, x, y, ... to a polygon.

    Returns:
        float64 [N, 2] of (x, y), N at least 3.

    Raises:
        DataError: `values` is not such a list, has fewer than 3 points, or a coordinate is NaN or
            beyond `FARTHEST`.
    """
    return points(values, where, least=3)


def points(values: Any, where: str, *, least: int) -> np.ndarray:
    """Converts a flat JSON list x, y, x, y, ... to points.

    Args:
        values: The JSON value.
        where: Location, used at the start of error messages.
        least: Smallest number of points.

    Returns:
        float64 [N, 2] of (x, y).

    Raises:
        DataError: `values` is not such a list, has too few points, or a coordinate is NaN or
            beyond `FARTHEST`.
    """
    if not isinstance(values, list) or len(values) % 2:
        raise DataError(f"{where}: {shown(values)}: expected a list of numbers x, y, x, y, ...")
    for value in values:
        if (
            type(value) not in (int, float) or not -FARTHEST <= value <= FARTHEST
        ):  # Also refuses NaN.
            raise DataError(
                f"{where}: coordinate {shown(value)}: expected a number of pixels, at most "
                f"{FARTHEST} from the corner"
            )
    if len(values) < 2 * least:
        raise DataError(f"{where}: {len(values) // 2} points: expected at least {least}")
    return np.array(values, np.float64).reshape(-1, 2)


def circle(centre: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """Approximates a circle by a polygon, with an error of at most 0.01 pixels.

    Args:
        centre: Centre, float64 [2] (x, y).
        rim: A point on the circle, float64 [2] (x, y).
    """
    radius = float(np.hypot(*(rim - centre)))
    # A polygon with n vertices lies at most radius * (pi / n)^2 / 2 inside its circle.
    corners = max(8, int(np.ceil(np.pi * np.sqrt(radius / 0.02))))
    turns = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False)
    return centre + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)


class Ellipse(NamedTuple):
    """An ellipse, stored by its parameters, since its polygon may have thousands of vertices.

    Attributes:
        centre: float64 [2] (x, y).
        radii: float64 [2], along x and y before rotation; the larger one is above 0.
        degrees: Clockwise rotation in degrees.
    """

    centre: np.ndarray
    radii: np.ndarray
    degrees: float

    def outline(self) -> np.ndarray:
        """Returns a polygon, float64 [N, 2] of (x, y)."""
        longest = float(self.radii.max())
        rim = circle(np.zeros(2), np.array([longest, 0.0])) * self.radii / longest
        return self.centre + turned(rim, self.degrees)


def turned(corners: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates points, float64 [N, 2], clockwise about (0, 0)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return corners @ np.array([[cos, sin], [-sin, cos]])


def area(corners: np.ndarray) -> float:
    """Returns the area in pixels of a simple polygon, float64 [N, 2]."""
    x, y = corners.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2.0


def is_flat(corners: np.ndarray) -> bool:
    """Returns whether all points, float64 [N, 2] with N at least 1, are collinear.

    `area` cannot be used for this: it may be 0 for a polygon that intersects itself.
    """
    offsets = corners - corners[0]
    x, y = offsets[np.argmax((offsets**2).sum(axis=1))]
    return not (offsets[:, 0] * y - offsets[:, 1] * x).any()


def is_outside(corners: np.ndarray, size: tuple[int, int] | None) -> bool:
    """Returns whether a polygon, float64 [N, 2], lies outside an image of size (H, W), if known."""
    if size is None or not len(corners):
        return False
    beyond = np.array(size[::-1])
    return bool((corners.max(axis=0) <= 0).any() or (corners.min(axis=0) >= beyond).any())


class _Edges(NamedTuple):
    """Edges of a polygon, directed from top to bottom.

    Attributes:
        top: Upper end points, float64 [N, 2] of (x, y).
        bottom: Lower end points, float64 [N, 2] of (x, y).
        first: int64 [N], first row whose centre the edge crosses.
        last: int64 [N], one past the last such row.
    """

    top: np.ndarray
    bottom: np.ndarray
    first: np.ndarray
    last: np.ndarray


def _edges(corners: np.ndarray, height: int) -> _Edges:
    start, end = corners, np.roll(corners, -1, axis=0)
    # All edges are directed downwards, so that a shared edge is rounded alike in both polygons.
    down = (start[:, 1] <= end[:, 1])[:, None]
    top, bottom = np.where(down, start, end), np.where(down, end, start)
    first, last = _nearest_centre(top[:, 1], height), _nearest_centre(bottom[:, 1], height)
    return _Edges(top, bottom, first, last)


def _fill(label: np.ndarray, edges: _Edges, class_id: int) -> None:
    """Sets the pixels of `label` whose centres lie inside the polygon."""
    width = label.shape[1]
    top, bottom, first, last = edges
    columns = np.concatenate([top[:, 0], bottom[:, 0]])
    left, right = _nearest_centre(np.array([columns.min(), columns.max()]), width)
    for rows in _bands(first, last, int(right - left) + 1):
        begin = np.clip(first, rows.start, rows.stop)
        count = np.clip(last, rows.start, rows.stop) - begin
        edge = np.repeat(np.arange(len(top)), count)
        row = begin[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
        high, low = top[edge], bottom[edge]
        fraction = (row + 0.5 - high[:, 1]) / (low[:, 1] - high[:, 1])
        column = _nearest_centre(high[:, 0] + fraction * (low[:, 0] - high[:, 0]), width)
        # Each crossing toggles all pixels to the right of it between outside and inside.
        shape = (rows.stop - rows.start, int(right - left) + 1)
        indices = (row - rows.start) * shape[1] + np.clip(column, left, right) - left
        # Only the parity counts, so that uint8 may overflow.
        changes = np.zeros(shape[0] * shape[1], np.uint8)
        np.add.at(changes, indices, 1)
        inside = np.cumsum(changes.reshape(shape)[:, :-1], axis=1, dtype=np.uint8) & 1
        label[rows, left:right][inside == 1] = class_id


def _bands(first: np.ndarray, last: np.ndarray, width: int) -> Iterator[slice]:
    """Yields bands of rows that need limited memory for any number of crossings.

    Args:
        first: int64 [N], first row that each edge crosses.
        last: int64 [N], one past the last row that each edge crosses.
        width: Width of the polygon in columns.
    """
    top, bottom = int(first.min()), int(last.max())
    for begin in range(top, bottom, _COUNTED):
        end = min(begin + _COUNTED, bottom)
        yield from _bands_between(np.clip(first, begin, end), np.clip(last, begin, end), width)


def _bands_between(first: np.ndarray, last: np.ndarray, width: int) -> Iterator[slice]:
    """Yields bands as `_bands` does; needs memory in proportion to the number of rows."""
    top, bottom = int(first.min()), int(last.max())
    crossings = np.zeros(bottom - top + 1, np.int64)
    np.add.at(crossings, first - top, 1)
    np.add.at(crossings, last - top, -1)
    before = np.concatenate([[0], np.cumsum(np.cumsum(crossings))])
    tallest = max(1, _BAND_PIXELS // width)
    start = top
    while start < bottom:
        most = int(np.searchsorted(before, before[start - top] + _BAND_CROSSINGS, "right")) - 1
        stop = min(max(top + most, start + 1), start + tallest, bottom)
        yield slice(start, stop)
        start = stop


def _nearest_centre(at: np.ndarray, limit: int) -> np.ndarray:
    """Returns the first row or column whose centre is at or after `at`, int64 0..limit."""
    return np.clip(np.ceil(at - 0.5), 0, limit).astype(np.int64)
