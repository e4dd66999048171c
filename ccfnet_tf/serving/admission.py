"""Limits concurrent requests by their pixels, which determine memory and are known beforehand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

DEFAULT_MAX_PIXELS = 2048 * 2048
"""Default of the most pixels of a request's images."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_NO_FRAME = (0xC4, 0xC8, 0xCC)


class PixelBudget:
    """Limits the number of concurrent requests and their total number of pixels.

    Args:
        requests: Most concurrent requests.
        pixels: Most pixels of all concurrent requests; no single request may have more.
    """

    def __init__(self, requests: int, pixels: int) -> None:
        self._changed = threading.Condition()
        self._requests, self._pixels = requests, pixels

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Waits until `pixels` are available, and reserves them within the context."""
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
    """Returns the number of pixels of an input: arrays uint8 [B, H, W, 3] or encoded images [B].

    Returns 0 for other values, which the graph rejects.
    """
    if value.dtype == object:
        return sum(_encoded_pixels(each) for each in value.ravel() if isinstance(each, bytes))
    return value.size // 3 if value.ndim == 4 else 0


def _encoded_pixels(content: bytes) -> int:
    if content.startswith(_PNG):
        return int.from_bytes(content[16:20]) * int.from_bytes(content[20:24])
    return _jpeg_pixels(content) if content.startswith(_JPEG) else 0


def _jpeg_pixels(content: bytes) -> int:
    """Returns height times width from the frame header, searched as in the exported graph."""
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        kind = content[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in _NO_FRAME:
            height, width = content[at + 5 : at + 7], content[at + 7 : at + 9]
            return int.from_bytes(height) * int.from_bytes(width)
        at += 1 if kind == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4])
    return 0
