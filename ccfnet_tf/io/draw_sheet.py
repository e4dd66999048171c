"""Building blocks of contact sheets: cells of equal width and a legend of classes."""

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
"""Font size of column titles in pixels."""
SMALL = 15
"""Font size of names and legends in pixels."""
_BORDER = (190, 190, 190)


def blank(height: int, width: int) -> np.ndarray:
    """Returns a white image, uint8 [height, width, 3]."""
    return np.full((height, width, 3), WHITE, np.uint8)


def paste(sheet: np.ndarray, cell: np.ndarray, left: int, top: int) -> None:
    """Copies an image into a sheet in place."""
    sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell


def to_width(cell: np.ndarray) -> np.ndarray:
    """Resizes an image, uint8 [H, W, 3], to a width of `CELL_WIDTH` pixels."""
    height = max(1, round(cell.shape[0] * CELL_WIDTH / cell.shape[1]))
    shrinking = cell.shape[1] > CELL_WIDTH
    # Area interpolation keeps thin objects when shrinking; nearest keeps pixels visible when
    # enlarging.
    method = cv2.INTER_AREA if shrinking else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(cell, (CELL_WIDTH, height), interpolation=method))


def shown_ids(label_maps: Iterable[np.ndarray]) -> list[int]:
    """Returns the class ids that occur in any label map, sorted, with `VOID` last."""
    ids = {int(index) for labels in label_maps for index in np.unique(labels)}
    return sorted(ids - {VOID}) + ([VOID] if VOID in ids else [])


def legend(
    ids: Sequence[int], taxonomy: Taxonomy, width: int, *, size: int = SMALL, margin: int = MARGIN
) -> np.ndarray:
    """Draws a legend: a coloured square and the name of each class.

    Args:
        ids: Class ids in the order of the legend; may include `VOID`.
        taxonomy: Class names and colours.
        width: Width of the legend in pixels; entries wrap to the next line.
        size: Font size in pixels.
        margin: Left and right margin in pixels.

    Returns:
        uint8 [H, width, 3] on white.
    """
    line, swatch = round(1.6 * size), round(0.9 * size)
    text_offset, spacing = swatch + round(0.4 * size), round(1.2 * size)
    entries = []
    left, top = margin, 0
    for index in ids:
        name = shortened(_name(index, taxonomy), size, width - 2 * margin - text_offset)
        entry_width = text_offset + text_width(name, size)
        if left + entry_width > width - margin and left > margin:
            left, top = margin, top + line
        entries.append((left, top, index, name))
        left += entry_width + spacing
    strip = blank(top + line if ids else 0, width)
    for left, top, index, name in entries:
        colour = VOID_COLOUR if index == VOID else taxonomy.palette[index]
        high = top + size - swatch + 1  # Aligns the square with the baseline of the text.
        corners = (left, high), (left + swatch, high + swatch)
        cv2.rectangle(strip, *corners, colour, cv2.FILLED)
        cv2.rectangle(strip, *corners, _BORDER)
        draw_text(strip, name, (left + text_offset, top), size)
    return strip


def _name(index: int, taxonomy: Taxonomy) -> str:
    return "void" if index == VOID else taxonomy.names[index]
