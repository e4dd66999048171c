"""A cascade without weights whose outputs depend on the pixels within a known radius alone."""

from __future__ import annotations

import cv2
import numpy as np

from ccfnet_tf.inference.segmenter_protocol import HeadOutputs, Prediction
from ccfnet_tf.labels import Taxonomy, distinct_colours
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED


class LocalCascade:
    """Scores classes by random colours, against the mean colour around each pixel.

    Args:
        classes: How many.
        radius: How far a pixel's outputs reach, in pixels; beyond the image all is black.
    """

    at_once = 1
    calibration = UNCALIBRATED

    def __init__(self, classes: int = 5, radius: int = 0) -> None:
        names = tuple(f"class {index}" for index in range(classes))
        self.taxonomy = Taxonomy(names, distinct_colours(classes))
        self.seen: list[tuple[int, int]] = []
        self._radius = radius
        self._colours = np.random.default_rng(1).normal(size=(4, 3, classes)).astype(np.float32)

    def head_outputs(self, image: np.ndarray, /) -> HeadOutputs:
        self.seen.append((image.shape[0], image.shape[1]))
        side = 2 * self._radius + 1
        local = image.astype(np.float32) / 64 - 2
        if side > 1:
            local = cv2.blur(local, (side, side), borderType=cv2.BORDER_CONSTANT) * self._radius
        heads = [_log_softmax(local @ colours) for colours in self._colours[:3]]
        return HeadOutputs(*heads, attention=local @ self._colours[3, :, 0])

    def prediction(self, outputs: HeadOutputs, /) -> Prediction:
        probabilities = np.exp(outputs.refine)
        labels = probabilities.argmax(-1).astype(np.int32)
        attention = 1 / (1 + np.exp(-outputs.attention))
        coarse = outputs.coarse.argmax(-1)[..., np.newaxis]
        difficulty = 1 - np.take_along_axis(probabilities, coarse, -1)[..., 0]
        return Prediction(labels, attention, difficulty, 1 - probabilities.max(-1), probabilities)

    def predict(self, image: np.ndarray, /) -> Prediction:
        return self.prediction(self.head_outputs(image))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns smooth noise, uint8 [H, W, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6 + 2, width // 6 + 2, 3))
    return cv2.resize(coarse.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
