"""Resizes and pads images to the fixed input size of a network, and maps its outputs back.

A larger image is shrunk with its aspect ratio kept and padded at the bottom and right by mirroring.
The outputs are cropped and enlarged to the original size.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.inference.resize import resize_map

Size = tuple[int, int]
"""Height and width in pixels."""


def parse_size(text: str) -> Size:
    """Parses a size HxW.

    Raises:
        ConfigError: The text does not have that form.
    """
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--size is '{text}': expected HEIGHTxWIDTH, such as 240x320")
    return int(height), int(width)


class Fitted(NamedTuple):
    """An image at the network's size.

    Attributes:
        image: uint8 [H, W, 3] of the network's size.
        used: Height and width of the image in it; the rest is padding.
        original: Height and width before resizing.
    """

    image: np.ndarray
    used: Size
    original: Size


def fit(image: np.ndarray, size: Size) -> Fitted:
    """Resizes and pads an image uint8 [H, W, 3] to `size`; one of that size is not changed."""
    original: Size = (image.shape[0], image.shape[1])
    scale = min(1.0, size[0] / original[0], size[1] / original[1])
    if scale < 1.0:
        # Rounded down to stay within the network's size, to at least one pixel.
        height, width = (max(1, int(side * scale + 1e-9)) for side in original)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    used: Size = (image.shape[0], image.shape[1])
    missing = [(0, size[0] - used[0]), (0, size[1] - used[1]), (0, 0)]
    if any(pair[1] for pair in missing):
        image = np.pad(image, missing, mode="symmetric")
    return Fitted(np.ascontiguousarray(image), used, original)


def at_most(image: np.ndarray, longest: int) -> np.ndarray:
    """Shrinks an image uint8 [H, W, 3] to a longest side; a smaller one is not changed."""
    scale = min(1.0, longest / max(image.shape[:2]))
    if scale == 1.0:
        return image
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def unfit(values: np.ndarray, fitted: Fitted) -> np.ndarray:
    """Maps float32 outputs [H, W] or [H, W, C] back to the image's original size, bilinear."""
    values = values[: fitted.used[0], : fitted.used[1]]
    if fitted.used == fitted.original:
        return values
    return resize_map(values, fitted.original)


def unfit_labels(labels: np.ndarray, fitted: Fitted) -> np.ndarray:
    """Maps class ids [H, W] back to the image's original size, by the nearest pixel."""
    labels = labels[: fitted.used[0], : fitted.used[1]]
    if fitted.used == fitted.original:
        return labels
    labels = labels.astype(np.uint16)
    return cv2.resize(labels, fitted.original[::-1], interpolation=cv2.INTER_NEAREST)
