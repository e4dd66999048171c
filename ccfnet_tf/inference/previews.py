"""The picture that shows a network learn: image, label, coarse, difficulty and refine in a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ccfnet_tf.inference.predictor import Heads
from ccfnet_tf.inference.sheet import (
    CELL_WIDTH,
    GAP,
    INK,
    LINE,
    MARGIN,
    WHITE,
    draw_legend,
    font,
    legend_places,
    to_width,
)
from ccfnet_tf.inference.writers import colour_picture, difficulty_picture
from ccfnet_tf.labels import VOID, Taxonomy

TITLES = ("image", "label", "coarse", "difficulty", "refine")

_SCALE = 64

PreviewRow = tuple[np.ndarray, np.ndarray, Heads]
"""image uint8 [H, W, 3] RGB, label int32 [H, W], what the heads answer."""


def preview_sheet(rows: Sequence[PreviewRow], taxonomy: Taxonomy) -> np.ndarray:
    """Draws pictures below each other, titles on top, and the classes they show at the bottom.

    Args:
        rows: One or more pictures with their label and answers; sizes may differ.
        taxonomy: Names and colours of the classes.

    Returns:
        uint8 RGB on white; all columns are 240 pixels wide, whatever the pictures' sizes.
    """
    cells = [[to_width(cell) for cell in _cells(*row, taxonomy)] for row in rows]
    width = 2 * MARGIN + len(TITLES) * CELL_WIDTH + (len(TITLES) - 1) * GAP
    legend = legend_places(_shown(rows), taxonomy, width)
    legend_height = LINE * (1 + legend[-1][1] // LINE) if legend else 0
    pictures_height = sum(row[0].shape[0] + GAP for row in cells)
    height = MARGIN + LINE + pictures_height + GAP + legend_height + MARGIN

    sheet = Image.new("RGB", (width, height), WHITE)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(TITLES):
        draw.text((_left(column), MARGIN - 4), title, fill=INK, font=font(16))
    _draw_scale(sheet, draw, TITLES.index("difficulty"))
    top = MARGIN + LINE
    for row in cells:
        for column, cell in enumerate(row):
            sheet.paste(Image.fromarray(cell), (_left(column), top))
        top += row[0].shape[0] + GAP
    draw_legend(draw, legend, taxonomy, top + GAP)
    return np.asarray(sheet)


def _cells(
    image: np.ndarray, label: np.ndarray, heads: Heads, taxonomy: Taxonomy
) -> list[np.ndarray]:
    """Returns the columns, uint8 [H, W, 3] each, in the order of `TITLES`."""
    return [
        image,
        colour_picture(label, taxonomy),
        colour_picture(heads.coarse, taxonomy),
        difficulty_picture(heads.difficulty),
        colour_picture(heads.refine, taxonomy),
    ]


def _shown(rows: Sequence[PreviewRow]) -> list[int]:
    """Returns the ids that occur in any label or answer, `VOID` last: long lists stay readable."""
    ids = {
        int(i)
        for _, label, h in rows
        for part in (label, h.coarse, h.refine)
        for i in np.unique(part)
    }
    return sorted(ids - {VOID}) + ([VOID] if VOID in ids else [])


def _draw_scale(sheet: Image.Image, draw: ImageDraw.ImageDraw, column: int) -> None:
    """Draws `easy ... hard` with the colours between, at the right end of a column's title."""
    right = _left(column) + CELL_WIDTH
    ramp = np.tile(np.linspace(0.0, 1.0, _SCALE, dtype=np.float32), (8, 1))
    for text, left in (("easy", right - _SCALE - 66), ("hard", right - 28)):
        draw.text((left, MARGIN - 1), text, fill=INK, font=font(13))
    sheet.paste(Image.fromarray(difficulty_picture(ramp)), (right - _SCALE - 34, MARGIN + 3))


def _left(column: int) -> int:
    return MARGIN + column * (CELL_WIDTH + GAP)
