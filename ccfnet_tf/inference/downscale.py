"""Large images for a network that was trained on small ones: shrunk before, enlarged after."""

from __future__ import annotations

import cv2
import numpy as np

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.inference.segmenter import SMALLEST, Maps, Network, Prediction
from ccfnet_tf.labels import Taxonomy

Box = tuple[int, int]
"""Height and width in pixels that images shall not exceed."""


def parse_box(text: str) -> Box:
    """Reads `--size`: N is the longest side, HxW a box.

    Raises:
        ConfigError: It is neither, or below the network's smallest size.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdecimal() for side in sides):
        raise ConfigError(
            f"--size is '{text}': expected the longest side in pixels, such as 640, or "
            "HEIGHTxWIDTH, such as 480x640"
        )
    height, width = int(sides[0]), int(sides[-1])
    if min(height, width) < SMALLEST:
        raise ConfigError(f"--size is '{text}': at least {SMALLEST} pixels are needed")
    return height, width


class SmallerPictures:
    """A network that sees images at most as large as a box; its answers have their own size.

    Args:
        network: What answers.
        box: Height and width that an image is shrunk to, with its proportions kept; smaller ones
            stay as they are.

    Attributes:
        taxonomy: The network's.
        at_once: The network's.
    """

    def __init__(self, network: Network, box: Box) -> None:
        self._network = network
        self._box = box
        self.taxonomy: Taxonomy = network.taxonomy
        self.at_once: int = network.at_once

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        """Labels every pixel of an image; arguments and errors as in `Network.predict`."""
        small = shrunk(image, self._box)
        answer = self._network.predict(small)
        if small is image:
            return answer
        return enlarged(answer, (image.shape[0], image.shape[1]))


def shrunk(image: np.ndarray, box: Box) -> np.ndarray:
    """Returns an image uint8 [H, W, 3] that fits into a box; one that does as it is."""
    scale = min(1.0, box[0] / image.shape[0], box[1] / image.shape[1])
    if scale == 1.0:
        return image
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def enlarged(answer: Prediction | Maps, size: tuple[int, int]) -> Maps:
    """Returns labels and difficulty at another height and width.

    Where there are probabilities, they are enlarged class by class and the likeliest counts, so
    that outlines are smooth and memory is that of two maps.
    """
    across = size[::-1]
    difficulty = cv2.resize(answer.difficulty.astype(np.float32), across)
    if not isinstance(answer, Prediction):
        small = answer.labels.astype(np.uint16)
        labels = cv2.resize(small, across, interpolation=cv2.INTER_NEAREST)
        return Maps(labels.astype(np.int32), difficulty)
    likeliest = np.full(size, -1.0, np.float32)
    labels = np.zeros(size, np.int32)
    for index in range(answer.probabilities.shape[-1]):
        values = cv2.resize(np.ascontiguousarray(answer.probabilities[..., index]), across)
        better = values > likeliest
        labels[better] = index
        np.maximum(likeliest, values, out=likeliest)
    return Maps(labels, difficulty)
