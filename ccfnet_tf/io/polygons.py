"""Outlines to label maps.

Coordinates are pixels, x to the right and y down; (0, 0) is the top left corner of the top left
pixel, whose centre is (0.5, 0.5). That is the convention of COCO and of labelme.

A pixel belongs to an outline when its centre lies inside, by the even-odd rule; a centre that lies
exactly on the outline belongs to what is right of it and below it. So outlines that share an edge
share no pixel and leave none between them. Tools that also draw the line itself (OpenCV, Pillow,
and labelme through it) give half a pixel more on each side; COCO's own tool agrees but for centres
within a third of a pixel of the line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ccfnet_tf.errors import DataError
from ccfnet_tf.io.json_files import shown
from ccfnet_tf.labels import VOID

FARTHEST = 1_000_000
"""Coordinates beyond this are taken for damage; others outside the image are cut off."""


MOST_CROSSINGS = 20_000_000
"""How often the outlines of an image may cross its rows, all together.

A thousand round objects, each as high as an image of 4000 rows, cross 8 million. Lines that run to
and fro cross more: a file of 1 MB can ask for 400 million.
"""

_BAND_PIXELS = 1 << 21
_COUNTED = 1 << 16  # rows whose crossings are counted at once
_BAND_CROSSINGS = 1 << 20  # of outlines with rows, drawn at once: some 100 MB


def draw(
    size: tuple[int, int],
    shapes: Iterable[tuple[int, np.ndarray]],
    background: int = VOID,
    *,
    where: str = "",
) -> np.ndarray:
    """Draws shapes in order, later ones over earlier ones.

    Args:
        size: (H, W).
        shapes: Class id with an outline, float64 [N, 2] of (x, y), or with a mask, bool [H, W].
        background: What pixels outside every shape are.
        where: Place that messages begin with.

    Returns:
        int32 [H, W], the class ids of the shapes or `background`.

    Raises:
        DataError: The outlines cross rows more than `MOST_CROSSINGS` times.
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
                f"{where}: outlines cross rows of pixels {crossings} times: at most "
                f"{MOST_CROSSINGS} in an image are drawn: make them of fewer points"
            )
        _fill(label, edges, class_id)
    return label


def outline(values: Any, where: str) -> np.ndarray:
    """Returns an outline from a flat list x, y, x, y, ... as JSON holds it.

    Returns:
        float64 [N, 2] of (x, y), N at least 3.

    Raises:
        DataError: Not such a list, fewer than 3 points, NaN, or beyond `FARTHEST`.
    """
    return points(values, where, least=3)


def points(values: Any, where: str, *, least: int) -> np.ndarray:
    """Returns points from a flat list x, y, x, y, ...

    Args:
        values: What JSON held.
        where: Place that messages begin with.
        least: Fewest points allowed.

    Returns:
        float64 [N, 2] of (x, y).

    Raises:
        DataError: Not such a list, too few points, NaN, or beyond `FARTHEST`.
    """
    if not isinstance(values, list) or len(values) % 2:
        raise DataError(f"{where}: {shown(values)}: expected a list of numbers x, y, x, y, ...")
    for value in values:
        if type(value) not in (int, float) or not -FARTHEST <= value <= FARTHEST:  # refuses NaN
            raise DataError(
                f"{where}: coordinate {shown(value)}: expected a number of pixels, at most "
                f"{FARTHEST} from the corner"
            )
    if len(values) < 2 * least:
        raise DataError(f"{where}: {len(values) // 2} points: expected at least {least}")
    return np.array(values, np.float64).reshape(-1, 2)


def circle(centre: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """Returns the outline of a circle, nowhere off by more than 0.01 pixels.

    Args:
        centre: float64 [2] (x, y).
        rim: float64 [2] (x, y), a point on the circle.
    """
    radius = float(np.hypot(*(rim - centre)))
    # A polygon of n corners lies at most radius * (pi / n)^2 / 2 inside its circle.
    corners = max(8, int(np.ceil(np.pi * np.sqrt(radius / 0.02))))
    turns = np.linspace(0.0, 2.0 * np.pi, corners, endpoint=False)
    return centre + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)


class Ellipse(NamedTuple):
    """An ellipse; its outline, of thousands of corners where it is large, is made to be drawn.

    Attributes:
        centre: float64 [2] (x, y).
        radii: float64 [2], along x and y before it is turned; the larger is above 0.
        degrees: By how much it is turned, clockwise.
    """

    centre: np.ndarray
    radii: np.ndarray
    degrees: float

    def outline(self) -> np.ndarray:
        """Returns float64 [N, 2] of (x, y)."""
        longest = float(self.radii.max())
        rim = circle(np.zeros(2), np.array([longest, 0.0])) * self.radii / longest
        return self.centre + turned(rim, self.degrees)


def turned(corners: np.ndarray, degrees: float) -> np.ndarray:
    """Returns points float64 [N, 2] turned clockwise about (0, 0)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return corners @ np.array([[cos, sin], [-sin, cos]])


def area(corners: np.ndarray) -> float:
    """Returns the area in pixels inside an outline float64 [N, 2] that does not cross itself."""
    x, y = corners.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2.0


def is_flat(corners: np.ndarray) -> bool:
    """Returns whether all points of float64 [N, 2], N at least 1, lie on one line.

    `area` cannot tell: that of an outline that crosses itself may be 0 where much lies inside.
    """
    ways = corners - corners[0]
    x, y = ways[np.argmax((ways**2).sum(axis=1))]
    return not (ways[:, 0] * y - ways[:, 1] * x).any()


def is_outside(corners: np.ndarray, size: tuple[int, int] | None) -> bool:
    """Returns whether float64 [N, 2] lies beside an image of (H, W), where that is known."""
    if size is None or not len(corners):
        return False
    beyond = np.array(size[::-1])
    return bool((corners.max(axis=0) <= 0).any() or (corners.min(axis=0) >= beyond).any())


class _Edges(NamedTuple):
    """The edges of an outline, each from top to bottom.

    Attributes:
        top: float64 [N, 2] of (x, y).
        bottom: Likewise.
        first: int64 [N], the first row whose centre the edge crosses.
        last: int64 [N], the row after the last.
    """

    top: np.ndarray
    bottom: np.ndarray
    first: np.ndarray
    last: np.ndarray


def _edges(corners: np.ndarray, height: int) -> _Edges:
    start, end = corners, np.roll(corners, -1, axis=0)
    # Every edge is taken downwards, so that two outlines round the edge they share alike.
    down = (start[:, 1] <= end[:, 1])[:, None]
    top, bottom = np.where(down, start, end), np.where(down, end, start)
    first, last = _nearest_centre(top[:, 1], height), _nearest_centre(bottom[:, 1], height)
    return _Edges(top, bottom, first, last)


def _fill(label: np.ndarray, edges: _Edges, class_id: int) -> None:
    """Sets the pixels of `label` whose centre lies inside the outline."""
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
        share = (row + 0.5 - high[:, 1]) / (low[:, 1] - high[:, 1])
        column = _nearest_centre(high[:, 0] + share * (low[:, 0] - high[:, 0]), width)
        # From each crossing on, all pixels to the right change side.
        shape = (rows.stop - rows.start, int(right - left) + 1)
        places = (row - rows.start) * shape[1] + np.clip(column, left, right) - left
        # Odd or even is all that counts, which bytes keep though they overflow: a row may be long.
        changes = np.zeros(shape[0] * shape[1], np.uint8)
        np.add.at(changes, places, 1)
        inside = np.cumsum(changes.reshape(shape)[:, :-1], axis=1, dtype=np.uint8) & 1
        label[rows, left:right][inside == 1] = class_id


def _bands(first: np.ndarray, last: np.ndarray, width: int) -> Iterator[slice]:
    """Yields bands of rows that take little memory however often the edges cross them.

    Args:
        first: int64 [N], the first row that each edge crosses.
        last: int64 [N], the row after its last.
        width: Columns of the outline.
    """
    top, bottom = int(first.min()), int(last.max())
    for begin in range(top, bottom, _COUNTED):
        end = min(begin + _COUNTED, bottom)
        yield from _bands_between(np.clip(first, begin, end), np.clip(last, begin, end), width)


def _bands_between(first: np.ndarray, last: np.ndarray, width: int) -> Iterator[slice]:
    """Yields bands as `_bands` does; takes memory for each row."""
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
    """Returns int64, the first row or column whose centre is not before `at`, 0..limit."""
    return np.clip(np.ceil(at - 0.5), 0, limit).astype(np.int64)
