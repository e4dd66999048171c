"""The picture that shows a network learn: image, label, coarse, difficulty and refine in a row."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ccfnet_tf.inference.predictor import Heads
from ccfnet_tf.inference.writers import VOID_COLOUR, colour_picture, difficulty_picture
from ccfnet_tf.labels import VOID, Taxonomy

TITLES = ("image", "label", "coarse", "difficulty", "refine")

_CELL_WIDTH = 240
_MARGIN = 14
_GAP = 8
_LINE = 24
_SWATCH = 13
_SCALE = 64
_WHITE = (255, 255, 255)
_INK = (45, 45, 45)
_PALE = (190, 190, 190)

PreviewRow = tuple[np.ndarray, np.ndarray, Heads]
"""image uint8 [H, W, 3] RGB, label int32 [H, W], what the heads answer."""


def preview_strip(
    image: np.ndarray, label: np.ndarray, heads: Heads, taxonomy: Taxonomy
) -> np.ndarray:
    """Draws one picture; see `preview_sheet`."""
    return preview_sheet([(image, label, heads)], taxonomy)


def preview_sheet(rows: Sequence[PreviewRow], taxonomy: Taxonomy) -> np.ndarray:
    """Draws pictures below each other, titles on top, and the classes they show at the bottom.

    Args:
        rows: One or more pictures with their label and answers; sizes may differ.
        taxonomy: Names and colours of the classes.

    Returns:
        uint8 RGB on white; all columns are 240 pixels wide, whatever the pictures' sizes.
    """
    cells = [[_to_width(cell) for cell in _cells(*row, taxonomy)] for row in rows]
    width = 2 * _MARGIN + len(TITLES) * _CELL_WIDTH + (len(TITLES) - 1) * _GAP
    legend = _legend_places(_shown(rows), taxonomy, width)
    legend_height = _LINE * (1 + legend[-1][1] // _LINE) if legend else 0
    pictures_height = sum(row[0].shape[0] + _GAP for row in cells)
    height = _MARGIN + _LINE + pictures_height + _GAP + legend_height + _MARGIN

    sheet = Image.new("RGB", (width, height), _WHITE)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(TITLES):
        draw.text((_left(column), _MARGIN - 4), title, fill=_INK, font=_font(16))
    _draw_scale(sheet, draw, TITLES.index("difficulty"))
    top = _MARGIN + _LINE
    for row in cells:
        for column, cell in enumerate(row):
            sheet.paste(Image.fromarray(cell), (_left(column), top))
        top += row[0].shape[0] + _GAP
    _draw_legend(draw, legend, taxonomy, top + _GAP)
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


def _to_width(cell: np.ndarray) -> np.ndarray:
    height = max(1, round(cell.shape[0] * _CELL_WIDTH / cell.shape[1]))
    shrinks = cell.shape[1] > _CELL_WIDTH
    # Area when shrinking, else thin things drop out; nearest when growing keeps pixels visible.
    method = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(cell, (_CELL_WIDTH, height), interpolation=method))


def _shown(rows: Sequence[PreviewRow]) -> list[int]:
    """Returns the ids that occur in any label or answer, `VOID` last: long lists stay readable."""
    ids = {
        int(i)
        for _, label, h in rows
        for part in (label, h.coarse, h.refine)
        for i in np.unique(part)
    }
    return sorted(ids - {VOID}) + ([VOID] if VOID in ids else [])


def _legend_places(
    ids: Sequence[int], taxonomy: Taxonomy, width: int
) -> list[tuple[int, int, int]]:
    """Returns (left, top, id) of each entry, in lines as wide as the sheet."""
    places = []
    left, top = _MARGIN, 0
    for index in ids:
        entry = _SWATCH + 6 + round(_font(14).getlength(_name(index, taxonomy))) + 18
        if left + entry > width - _MARGIN and left > _MARGIN:
            left, top = _MARGIN, top + _LINE
        places.append((left, top, index))
        left += entry
    return places


def _draw_scale(sheet: Image.Image, draw: ImageDraw.ImageDraw, column: int) -> None:
    """Draws `easy ... hard` with the colours between, at the right end of a column's title."""
    right = _left(column) + _CELL_WIDTH
    ramp = np.tile(np.linspace(0.0, 1.0, _SCALE, dtype=np.float32), (8, 1))
    for text, left in (("easy", right - _SCALE - 66), ("hard", right - 28)):
        draw.text((left, _MARGIN - 1), text, fill=_INK, font=_font(13))
    sheet.paste(Image.fromarray(difficulty_picture(ramp)), (right - _SCALE - 34, _MARGIN + 3))


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    places: Sequence[tuple[int, int, int]],
    taxonomy: Taxonomy,
    top: int,
) -> None:
    for left, down, index in places:
        y = top + down
        colour = VOID_COLOUR if index == VOID else taxonomy.palette[index]
        draw.rectangle((left, y, left + _SWATCH, y + _SWATCH), fill=colour, outline=_PALE)
        draw.text((left + _SWATCH + 6, y - 2), _name(index, taxonomy), fill=_INK, font=_font(14))


def _name(index: int, taxonomy: Taxonomy) -> str:
    return "void" if index == VOID else taxonomy.names[index]


def _left(column: int) -> int:
    return _MARGIN + column * (_CELL_WIDTH + _GAP)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow's own font: OpenCV's cannot draw letters outside ASCII.
    return ImageFont.load_default(size)
