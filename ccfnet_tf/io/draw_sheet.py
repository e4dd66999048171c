"""Pieces of a sheet of images: cells of one width, text, and a legend of classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from ccfnet_tf.io.draw_text import draw_text, shortened, text_width
from ccfnet_tf.labels import VOID, VOID_COLOUR, Taxonomy

CELL_WIDTH = 240
MARGIN = 14
GAP = 8
LINE = 24
WHITE = (255, 255, 255)
TITLE = 17
"""Letters of a column's title, in pixels."""
SMALL = 15
"""Letters of names and legends, in pixels."""
_PALE = (190, 190, 190)


def blank(height: int, width: int) -> np.ndarray:
    """Returns a white image, uint8 [height, width, 3]."""
    return np.full((height, width, 3), WHITE, np.uint8)


def paste(sheet: np.ndarray, cell: np.ndarray, left: int, top: int) -> None:
    """Puts an image into a sheet, which is changed in place."""
    sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell


def to_width(cell: np.ndarray) -> np.ndarray:
    """Returns an image, uint8 [H, W, 3], `CELL_WIDTH` pixels wide."""
    height = max(1, round(cell.shape[0] * CELL_WIDTH / cell.shape[1]))
    shrinks = cell.shape[1] > CELL_WIDTH
    # Area when shrinking, else thin things drop out; nearest when growing keeps pixels visible.
    method = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(cell, (CELL_WIDTH, height), interpolation=method))


def shown_ids(label_maps: Iterable[np.ndarray]) -> list[int]:
    """Returns the class ids that occur in any label map, `VOID` last: legends stay short."""
    ids = {int(index) for labels in label_maps for index in np.unique(labels)}
    return sorted(ids - {VOID}) + ([VOID] if VOID in ids else [])


def legend(
    ids: Sequence[int], taxonomy: Taxonomy, width: int, *, size: int = SMALL, margin: int = MARGIN
) -> np.ndarray:
    """Draws the names of classes behind squares of their colours.

    Args:
        ids: Class ids, in this order; `VOID` too.
        taxonomy: Names and colours.
        width: Width of the answer in pixels; entries go on in a next line.
        size: Height of the letters in pixels.
        margin: Pixels left free at both sides.

    Returns:
        uint8 [H, width, 3] on white.
    """
    line, swatch = round(1.6 * size), round(0.9 * size)
    beside, between = swatch + round(0.4 * size), round(1.2 * size)
    places = []
    left, top = margin, 0
    for index in ids:
        name = shortened(_name(index, taxonomy), size, width - 2 * margin - beside)
        entry = beside + text_width(name, size)
        if left + entry > width - margin and left > margin:
            left, top = margin, top + line
        places.append((left, top, index, name))
        left += entry + between
    strip = blank(top + line if ids else 0, width)
    for left, top, index, name in places:
        colour = VOID_COLOUR if index == VOID else taxonomy.palette[index]
        high = top + size - swatch + 1  # the squares stand where letters do
        corners = (left, high), (left + swatch, high + swatch)
        cv2.rectangle(strip, *corners, colour, cv2.FILLED)
        cv2.rectangle(strip, *corners, _PALE)
        draw_text(strip, name, (left + beside, top), size)
    return strip


def _name(index: int, taxonomy: Taxonomy) -> str:
    return "void" if index == VOID else taxonomy.names[index]
