"""Images of any size for a network of one size, and its answers back on their pixels.

An image that is too large is made smaller with its proportions kept; what is then missing at the
bottom and right is mirrored. The answer is cropped there, and enlarged again.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from ccfnet_tf.errors import ConfigError

Size = tuple[int, int]
"""Height and width in pixels."""

_CHANNELS = 64  # at once: OpenCV 5 takes no more than 128


def parse_size(text: str) -> Size:
    """Reads HxW.

    Raises:
        ConfigError: It is not of that form.
    """
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--size is '{text}': expected HEIGHTxWIDTH, such as 240x320")
    return int(height), int(width)


class Fitted(NamedTuple):
    """An image at the network's size.

    Attributes:
        image: uint8 [H, W, 3] of the network's size.
        used: Height and width of the part that is the image; the rest is mirrored.
        original: Height and width that it came with.
    """

    image: np.ndarray
    used: Size
    original: Size


def fit(image: np.ndarray, size: Size) -> Fitted:
    """Returns an image uint8 [H, W, 3] at `size`; one of that size is returned as it is."""
    original: Size = (image.shape[0], image.shape[1])
    scale = min(1.0, size[0] / original[0], size[1] / original[1])
    if scale < 1.0:
        # Rounded down, but never to nothing, and never above the network's size.
        height, width = (max(1, int(side * scale + 1e-9)) for side in original)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    used: Size = (image.shape[0], image.shape[1])
    missing = [(0, size[0] - used[0]), (0, size[1] - used[1]), (0, 0)]
    if any(pair[1] for pair in missing):
        image = np.pad(image, missing, mode="symmetric")
    return Fitted(np.ascontiguousarray(image), used, original)


def at_most(image: np.ndarray, longest: int) -> np.ndarray:
    """Returns an image uint8 [H, W, 3] shrunk to that longest side; a smaller one as it is."""
    scale = min(1.0, longest / max(image.shape[:2]))
    if scale == 1.0:
        return image
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def unfit(values: np.ndarray, fitted: Fitted) -> np.ndarray:
    """Returns float32 [H, W] or [H, W, C] of the network's size on the pixels it came from."""
    values = values[: fitted.used[0], : fitted.used[1]]
    if fitted.used == fitted.original:
        return values
    planes = np.atleast_3d(values)
    whole = np.empty((*fitted.original, planes.shape[2]), np.float32)
    for first in range(0, planes.shape[2], _CHANNELS):
        some = planes[..., first : first + _CHANNELS]
        part = cv2.resize(some, fitted.original[::-1], interpolation=cv2.INTER_LINEAR)
        whole[..., first : first + _CHANNELS] = np.atleast_3d(part)
    return whole.reshape(*fitted.original, *values.shape[2:])


def unfit_labels(labels: np.ndarray, fitted: Fitted) -> np.ndarray:
    """Returns class ids [H, W], by the nearest pixel."""
    labels = labels[: fitted.used[0], : fitted.used[1]]
    if fitted.used == fitted.original:
        return labels
    labels = labels.astype(np.uint16)
    return cv2.resize(labels, fitted.original[::-1], interpolation=cv2.INTER_NEAREST)
