"""Shrinks large images before the network, and enlarges its predictions to their size."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.inference.segmenter_protocol import (
    MAPS,
    SMALLEST,
    Maps,
    Prediction,
    Segmenter,
)
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import Calibration

Box = tuple[int, int]
"""Largest height and width of an image in pixels."""

_LARGEST = 80.0  # difference of scores whose exponential, times any number of classes, is finite


def parse_box(text: str) -> Box:
    """Parses `--size`: N is the longest side, HxW a box.

    Raises:
        ConfigError: The text has neither form, or is below the network's smallest size.
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


class SmallerImages:
    """Wraps a network: images are shrunk to a box, predictions enlarged to the image's size.

    Args:
        network: Any network.
        box: Largest height and width. Proportions are kept; smaller images are not resized.

    Attributes:
        taxonomy: The network's.
        at_once: The network's.
        calibration: The network's.
    """

    def __init__(self, network: Segmenter, box: Box) -> None:
        self._network = network
        self._box = box
        self.taxonomy: Taxonomy = network.taxonomy
        self.at_once: int = network.at_once
        self.calibration: Calibration = network.calibration

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        """Labels every pixel of an image; arguments and errors as in `Segmenter.predict`."""
        small = shrunk(image, self._box)
        prediction = self._network.predict(small)
        if small is image:
            return prediction
        return enlarged(prediction, (image.shape[0], image.shape[1]), self.calibration)


def shrunk(image: np.ndarray, box: Box) -> np.ndarray:
    """Returns an image, uint8 [H, W, 3], shrunk to fit into a box."""
    scale = min(1.0, box[0] / image.shape[0], box[1] / image.shape[1])
    if scale == 1.0:
        return image
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def enlarged(
    prediction: Prediction | Maps, size: tuple[int, int], calibration: Calibration
) -> Maps:
    """Returns labels and the three maps at another height and width.

    Probabilities, if present, are enlarged uncalibrated, and the label is the class with the
    largest one, which gives smooth outlines; its risk is calibrated. Classes are enlarged one at a
    time, so that memory for a few maps suffices.

    Args:
        prediction: Of a network.
        size: Height and width of the result.
        calibration: How the probabilities of the prediction are calibrated.
    """
    across = size[::-1]
    attention, difficulty, risk = (
        cv2.resize(getattr(prediction, name).astype(np.float32), across) for name in MAPS
    )
    if not isinstance(prediction, Prediction):
        small = prediction.labels.astype(np.uint16)
        labels = cv2.resize(small, across, interpolation=cv2.INTER_NEAREST)
        return Maps(labels.astype(np.int32), attention, difficulty, risk)
    probabilities = calibration.uncalibrated(prediction.probabilities)
    largest = np.full(size, -1.0, np.float32)
    labels = np.zeros(size, np.int32)
    for index, plane in _planes(probabilities, size):
        labels[plane > largest] = index
        np.maximum(largest, plane, out=largest)
    if calibration.keeps_probabilities:
        return Maps(labels, attention, difficulty, 1 - largest)
    chosen, others = calibration.scores(largest, labels), np.zeros(size, np.float32)
    for index, plane in _planes(probabilities, size):
        odds = np.exp(np.minimum(calibration.scores(plane, index) - chosen, _LARGEST))
        others += np.where(labels == index, np.float32(0), odds)
    return Maps(labels, attention, difficulty, others / (1 + others))


def _planes(probabilities: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields every class and its probabilities [H, W, C] at another height and width."""
    for index in range(probabilities.shape[-1]):
        plane = np.ascontiguousarray(probabilities[..., index])
        yield index, cv2.resize(plane, size[::-1])
