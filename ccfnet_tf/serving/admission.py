"""How much is computed at a time: memory goes with the pixels, whose number is known before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

DEFAULT_MAX_PIXELS = 2048 * 2048
"""Pixels of a request's images where nothing else is said."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_NO_FRAME = (0xC4, 0xC8, 0xCC)


class PixelBudget:
    """Lets so many requests compute at a time, and of so many pixels together.

    Args:
        requests: Most at a time.
        pixels: Most pixels of all of them; a request must not have more.
    """

    def __init__(self, requests: int, pixels: int) -> None:
        self._changed = threading.Condition()
        self._requests, self._pixels = requests, pixels

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Waits until there is room, and takes it."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests > 0 and self._pixels >= pixels)
            self._requests -= 1
            self._pixels -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._requests += 1
                self._pixels += pixels
                self._changed.notify_all()


def pixels_of(value: np.ndarray) -> int:
    """Returns the pixels of an input: of arrays uint8 [B, H, W, 3], or of encoded images [B].

    What is not an image has none; the graph refuses it.
    """
    if value.dtype == object:
        return sum(_encoded_pixels(each) for each in value.ravel() if isinstance(each, bytes))
    return value.size // 3 if value.ndim == 4 else 0


def _encoded_pixels(content: bytes) -> int:
    if content.startswith(_PNG):
        return int.from_bytes(content[16:20]) * int.from_bytes(content[20:24])
    return _jpeg_pixels(content) if content.startswith(_JPEG) else 0


def _jpeg_pixels(content: bytes) -> int:
    """Returns height times width of the frame header, found as the exported graph finds it."""
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        kind = content[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in _NO_FRAME:
            height, width = content[at + 5 : at + 7], content[at + 7 : at + 9]
            return int.from_bytes(height) * int.from_bytes(width)
        at += 1 if kind == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4])
    return 0
