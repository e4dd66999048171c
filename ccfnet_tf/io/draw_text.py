"""Draws text in Latin, Greek, Cyrillic, Chinese, Japanese, Korean, Arabic and Hebrew script.

The font is built into OpenCV 5, so that text looks the same on every machine, whatever fonts are
installed. Characters missing from the font appear as question marks.
"""

from __future__ import annotations

from functools import cache
from threading import Lock
from typing import Any

import cv2
import numpy as np

INK = (45, 45, 45)
"""Default colour of text on white."""

_DRAWING = Lock()  # OpenCV releases the GIL while it draws, and a font caches its last glyphs.
_CANVAS = (1 << 15, 1 << 15)  # Far larger than any text.


def draw_text(
    image: np.ndarray, text: str, corner: tuple[int, int], size: int, *, colour: Any = INK
) -> None:
    """Draws one line of text into an image.

    Args:
        image: uint8 [H, W, 3], changed in place; text outside of it is clipped.
        text: The line.
        corner: (x, y) of the upper left corner of the text in pixels.
        size: Font size in pixels; descenders extend a quarter below.
        colour: RGB colour.
    """
    with _DRAWING:
        cv2.putText(image, _plain(text), (corner[0], corner[1] + size), colour, _font(), size)


def text_width(text: str, size: int) -> int:
    """Returns the width of a line in pixels."""
    with _DRAWING:
        box = cv2.getTextSize(_CANVAS, _plain(text), (0, 0), _font(), size)
    return int(box[2])


def shortened(text: str, size: int, width: int) -> str:
    """Truncates a line with `...` if it is wider than `width` pixels."""
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:  # Finds the longest prefix that fits.
        middle = (low + high + 1) // 2
        if text_width(f"{text[:middle]}...", size) <= width:
            low = middle
        else:
            high = middle - 1
    return f"{text[:low]}..."


def _plain(text: str) -> str:
    """Replaces characters that OpenCV cannot draw; an unpaired surrogate crashes the process."""
    return "".join(c if c.isprintable() else "?" for c in text).encode("utf-8", "replace").decode()


@cache
def _font() -> Any:
    return cv2.FontFace("uni")
