"""Resizes images and maps with many channels."""

from __future__ import annotations

import cv2
import numpy as np

Size = tuple[int, int]
"""Height and width in pixels."""

_CHANNELS = 64  # per call: OpenCV 5 takes at most 128


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes an image, uint8 [H, W, 3], and filters it against aliasing where it shrinks."""
    if image.shape[:2] == size:
        return image
    shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, size[::-1], interpolation=how)


def resize_map(values: np.ndarray, size: Size) -> np.ndarray:
    """Resizes float32 [H, W] or [H, W, C] bilinearly."""
    if values.shape[:2] == size:
        return values
    planes = values if values.ndim == 3 else values[..., np.newaxis]
    result = np.empty((*size, planes.shape[2]), np.float32)
    for first in range(0, planes.shape[2], _CHANNELS):
        channels = slice(first, first + _CHANNELS)
        block = np.ascontiguousarray(planes[..., channels])
        resized = cv2.resize(block, size[::-1], interpolation=cv2.INTER_LINEAR)
        result[..., channels] = resized.reshape(*size, -1)
    return result.reshape(*size, *values.shape[2:])
