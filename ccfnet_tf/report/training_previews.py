"""Preview images written during training, with label and the outputs of all heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccfnet_tf.inference.keras_network import Heads
from ccfnet_tf.inference.writers import colour_image, map_image
from ccfnet_tf.io.draw_sheet import (
    CELL_WIDTH,
    GAP,
    LINE,
    MARGIN,
    TITLE,
    blank,
    legend,
    paste,
    shown_ids,
    to_width,
)
from ccfnet_tf.io.draw_text import draw_text
from ccfnet_tf.labels import Taxonomy

TITLES = ("image", "label", "coarse", "attention", "difficulty", "refine")

_SCALE = 64

PreviewRow = tuple[np.ndarray, np.ndarray, Heads]
"""Image uint8 [H, W, 3] RGB, label int32 [H, W], and the outputs of the heads."""


def preview_sheet(rows: Sequence[PreviewRow], taxonomy: Taxonomy) -> np.ndarray:
    """Draws one row per image, with column titles and a legend of the classes they contain.

    The columns are image, label, coarse prediction, attention, difficulty and refined prediction.

    Args:
        rows: One or more images with label and head outputs; sizes may differ.
        taxonomy: Names and colours of the classes.

    Returns:
        uint8 [H, W, 3] RGB on white. All columns are 240 pixels wide, regardless of image size.
    """
    cells = [[to_width(cell) for cell in preview_cells(*row, taxonomy)] for row in rows]
    width = 2 * MARGIN + len(TITLES) * CELL_WIDTH + (len(TITLES) - 1) * GAP
    label_maps = [part for _, label, h in rows for part in (label, h.coarse, h.refine)]
    names = legend(shown_ids(label_maps), taxonomy, width)
    images_height = sum(row[0].shape[0] + GAP for row in cells)
    sheet = blank(MARGIN + LINE + images_height + GAP + len(names) + MARGIN, width)

    for column, title in enumerate(TITLES):
        draw_text(sheet, title, (_left(column), MARGIN - 4), TITLE)
    for title in ("attention", "difficulty"):
        _draw_scale(sheet, TITLES.index(title))
    top = MARGIN + LINE
    for row in cells:
        for column, cell in enumerate(row):
            paste(sheet, cell, _left(column), top)
        top += row[0].shape[0] + GAP
    paste(sheet, names, 0, top + GAP)
    return sheet


def preview_cells(
    image: np.ndarray, label: np.ndarray, heads: Heads, taxonomy: Taxonomy
) -> list[np.ndarray]:
    """Returns the columns of a row, uint8 [H, W, 3] each, in the order of `TITLES`."""
    return [
        image,
        colour_image(label, taxonomy),
        colour_image(heads.coarse, taxonomy),
        map_image(heads.attention),
        map_image(heads.difficulty),
        colour_image(heads.refine, taxonomy),
    ]


def _draw_scale(sheet: np.ndarray, column: int) -> None:
    """Draws the colour scale from easy to hard at the right end of a column title."""
    right = _left(column) + CELL_WIDTH
    ramp = np.tile(np.linspace(0.0, 1.0, _SCALE, dtype=np.float32), (8, 1))
    for text, left in (("easy", right - _SCALE - 68), ("hard", right - 31)):
        draw_text(sheet, text, (left, MARGIN - 2), 14)
    paste(sheet, map_image(ramp), right - _SCALE - 36, MARGIN + 3)


def _left(column: int) -> int:
    return MARGIN + column * (CELL_WIDTH + GAP)
