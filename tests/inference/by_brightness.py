"""A network of no weights: what predict does with images, without the seconds of a real one."""

from __future__ import annotations

import numpy as np

from ccfnet_tf.inference.segmenter_protocol import Maps, Prediction
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED

TAXONOMY = Taxonomy(("dark", "grey", "light"), ((90, 160, 250), (20, 60, 160), (230, 200, 120)))


class ByBrightness:
    """Labels pixels by their red value: 0, 1 or 2 for a third each.

    Difficulty is red / 255, attention the rest up to 1, and risk 0.
    """

    taxonomy = TAXONOMY
    at_once = 1
    calibration = UNCALIBRATED

    def __init__(self, *, maps: bool = False) -> None:
        self.seen: list[tuple[int, int]] = []
        self._maps = maps

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        """Labels an image, uint8 [H, W, 3]."""
        self.seen.append((image.shape[0], image.shape[1]))
        red = image[..., 0].astype(np.int32)
        labels = np.minimum(red // 85, 2).astype(np.int32)
        difficulty = (red / 255).astype(np.float32)
        found = Maps(labels, 1 - difficulty, difficulty, np.zeros_like(difficulty))
        if self._maps:
            return found
        return Prediction(*found, np.eye(3, dtype=np.float32)[labels])
