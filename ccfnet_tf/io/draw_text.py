"""Text in images: Latin, Greek, Cyrillic, Chinese, Japanese, Korean, Arabic and Hebrew letters.

The font is the one that OpenCV 5 carries within itself, so that a name looks the same on every
machine, whatever fonts it has. Letters that it lacks show as question marks.
"""

from __future__ import annotations

from functools import cache
from threading import Lock
from typing import Any

import cv2
import numpy as np

INK = (45, 45, 45)
"""Colour of text on white."""

_DRAWING = Lock()  # OpenCV leaves Python's lock while it draws, and a font keeps its last glyphs
_ROOM = (1 << 15, 1 << 15)  # far larger than any text


def draw_text(
    picture: np.ndarray, text: str, place: tuple[int, int], size: int, *, colour: Any = INK
) -> None:
    """Draws one line of text into an image.

    Args:
        picture: uint8 [H, W, 3], changed in place; what lies outside is cut off.
        text: The line.
        place: x and y of its upper left corner in pixels.
        size: Height of the letters in pixels; tails reach a quarter below.
        colour: RGB.
    """
    with _DRAWING:
        cv2.putText(picture, _plain(text), (place[0], place[1] + size), colour, _font(), size)


def text_width(text: str, size: int) -> int:
    """Returns how wide a line is in pixels."""
    with _DRAWING:
        box = cv2.getTextSize(_ROOM, _plain(text), (0, 0), _font(), size)
    return int(box[2])


def shortened(text: str, size: int, width: int) -> str:
    """Returns a line that is not wider than `width` pixels, cut with dots where it must be."""
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        if text_width(f"{text[:middle]}...", size) <= width:
            low = middle
        else:
            high = middle - 1
    return f"{text[:low]}..."


def _plain(text: str) -> str:
    """Returns text that OpenCV can take: half a surrogate pair ends the process."""
    return "".join(c if c.isprintable() else "?" for c in text).encode("utf-8", "replace").decode()


@cache
def _font() -> Any:
    return cv2.FontFace("uni")
