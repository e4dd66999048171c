"""Pieces of a sheet of pictures: cells of one width, text, and a legend of classes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import ImageDraw, ImageFont

from ccfnet_tf.inference.writers import VOID_COLOUR
from ccfnet_tf.labels import VOID, Taxonomy

CELL_WIDTH = 240
MARGIN = 14
GAP = 8
LINE = 24
WHITE = (255, 255, 255)
INK = (45, 45, 45)
_SWATCH = 13
_PALE = (190, 190, 190)


def to_width(cell: np.ndarray) -> np.ndarray:
    """Returns a picture, uint8 [H, W, 3], `CELL_WIDTH` pixels wide."""
    height = max(1, round(cell.shape[0] * CELL_WIDTH / cell.shape[1]))
    shrinks = cell.shape[1] > CELL_WIDTH
    # Area when shrinking, else thin things drop out; nearest when growing keeps pixels visible.
    method = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(cell, (CELL_WIDTH, height), interpolation=method))


def legend_places(ids: Sequence[int], taxonomy: Taxonomy, width: int) -> list[tuple[int, int, int]]:
    """Returns (left, top, id) of each entry, in lines as wide as the sheet."""
    places = []
    left, top = MARGIN, 0
    for index in ids:
        entry = _SWATCH + 6 + round(font(14).getlength(_name(index, taxonomy))) + 18
        if left + entry > width - MARGIN and left > MARGIN:
            left, top = MARGIN, top + LINE
        places.append((left, top, index))
        left += entry
    return places


def draw_legend(
    draw: ImageDraw.ImageDraw,
    places: Sequence[tuple[int, int, int]],
    taxonomy: Taxonomy,
    top: int,
) -> None:
    """Draws what `legend_places` laid out, from `top` on."""
    for left, down, index in places:
        y = top + down
        colour = VOID_COLOUR if index == VOID else taxonomy.palette[index]
        draw.rectangle((left, y, left + _SWATCH, y + _SWATCH), fill=colour, outline=_PALE)
        draw.text((left + _SWATCH + 6, y - 2), _name(index, taxonomy), fill=INK, font=font(14))


def _name(index: int, taxonomy: Taxonomy) -> str:
    return "void" if index == VOID else taxonomy.names[index]


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns a font of that many pixels."""
    # Pillow's own font: OpenCV's cannot draw letters outside ASCII.
    return ImageFont.load_default(size)
