"""Leaves pixels without a label whose prediction is too likely to be wrong."""

from __future__ import annotations

from threading import Lock

import numpy as np

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.inference.segmenter_protocol import Maps, Prediction, Segmenter
from ccfnet_tf.labels import VOID, Taxonomy
from ccfnet_tf.network.calibration_parameters import Calibration


def parse_threshold(text: str) -> float:
    """Parses `--abstain-above`, a probability.

    Raises:
        ConfigError: It is not a number from 0 to 1.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:  # NaN too
        raise ConfigError(f"--abstain-above is '{text}': expected a risk from 0 to 1, such as 0.5")
    return value


class Abstaining:
    """Wraps a network: labels of pixels whose risk is above a threshold become void.

    Args:
        network: Any network.
        above: Largest risk, 0 to 1, with which a pixel keeps its label.

    Attributes:
        taxonomy: The network's.
        at_once: The network's.
        calibration: The network's.
        pixels: Number of pixels predicted so far.
        kept: How many of them kept their label.
    """

    def __init__(self, network: Segmenter, above: float) -> None:
        self._network = network
        self._above = above
        self._lock = Lock()
        self.taxonomy: Taxonomy = network.taxonomy
        self.at_once: int = network.at_once
        self.calibration: Calibration = network.calibration
        self.pixels = self.kept = 0

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        """Labels every pixel of an image that is sure enough; see `Segmenter.predict`."""
        prediction = self._network.predict(image)
        sure = prediction.risk <= self._above
        with self._lock:
            self.pixels += sure.size
            self.kept += int(sure.sum())
        return prediction._replace(labels=np.where(sure, prediction.labels, np.int32(VOID)))
