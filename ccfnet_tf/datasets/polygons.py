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

from collections.abc import Iterable
from typing import Any

import numpy as np

from ccfnet_tf.datasets.json_files import shown
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID

FARTHEST = 1_000_000
"""Coordinates beyond this are taken for damage; others outside the picture are cut off."""


def draw(
    size: tuple[int, int], shapes: Iterable[tuple[int, np.ndarray]], background: int = VOID
) -> np.ndarray:
    """Draws shapes in order, later ones over earlier ones.

    Args:
        size: (H, W).
        shapes: Class id with an outline, float64 [N, 2] of (x, y), or with a mask, bool [H, W].
        background: What pixels outside every shape are.

    Returns:
        int32 [H, W], the class ids of the shapes or `background`.
    """
    label = np.full(size, background, np.int32)
    for class_id, shape in shapes:
        if shape.dtype == bool:
            label[shape] = class_id
        else:
            _fill(label, shape, class_id)
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


def area(corners: np.ndarray) -> float:
    """Returns the area in pixels inside an outline float64 [N, 2] that does not cross itself."""
    x, y = corners.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2.0


def _fill(label: np.ndarray, corners: np.ndarray, class_id: int) -> None:
    """Sets the pixels of `label` whose centre lies inside the outline."""
    height, width = label.shape
    start, end = corners, np.roll(corners, -1, axis=0)
    # Every edge is taken downwards, so that two outlines round the edge they share alike.
    down = (start[:, 1] <= end[:, 1])[:, None]
    top, bottom = np.where(down, start, end), np.where(down, end, start)
    first = _nearest_centre(top[:, 1], height)
    count = _nearest_centre(bottom[:, 1], height) - first  # rows whose centre the edge crosses
    edge = np.repeat(np.arange(len(corners)), count)
    if not edge.size:
        return
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    high, low = top[edge], bottom[edge]
    share = (row + 0.5 - high[:, 1]) / (low[:, 1] - high[:, 1])
    column = _nearest_centre(high[:, 0] + share * (low[:, 0] - high[:, 0]), width)
    rows = slice(int(row.min()), int(row.max()) + 1)
    columns = slice(int(column.min()), int(column.max()))
    # From each crossing on, all pixels to the right change side; bytes may wrap, parity stays.
    changes = np.zeros((rows.stop - rows.start, columns.stop - columns.start + 1), np.uint8)
    np.add.at(changes, (row - rows.start, column - columns.start), 1)
    inside = np.cumsum(changes[:, :-1], axis=1, dtype=np.uint8) & 1
    label[rows, columns][inside == 1] = class_id


def _nearest_centre(at: np.ndarray, limit: int) -> np.ndarray:
    """Returns int64, the first row or column whose centre is not before `at`, 0..limit."""
    return np.clip(np.ceil(at - 0.5), 0, limit).astype(np.int64)
