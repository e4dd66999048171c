"""Test-time augmentation: averages the outputs for scaled and mirrored views of an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.inference.head_probabilities import to_outputs, to_probabilities
from ccfnet_tf.inference.resize import resize_image, resize_map
from ccfnet_tf.inference.segmenter_protocol import (
    CascadeSegmenter,
    HeadOutputs,
    Maps,
    Prediction,
    ProbabilitySegmenter,
    Segmenter,
    risk_of,
    too_large,
)
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import Calibration

SCALES = (0.25, 4.0)
"""Smallest and largest scale that `--tta` accepts."""

_SCALES, _FLIP = "scales=", "flip"
_EXPECTED = "expected scales=0.75,1,1.25, flip, or both, after all inputs"


@dataclass(frozen=True)
class Augmentation:
    """Views of an image whose outputs are averaged.

    Attributes:
        scales: Factors of height and width.
        flip: Whether every scale is also mirrored left to right.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def views(self) -> int:
        """How often the network is called per image."""
        return len(self.scales) * (1 + self.flip)


def parse_augmentation(words: Sequence[str]) -> Augmentation:
    """Reads the words of `--tta`: `scales=0.75,1,1.25`, `flip`, or both.

    Raises:
        ConfigError: Another word, a word given twice, or a scale that is not accepted.
    """
    scales: tuple[float, ...] | None = None
    flip = False
    for word in words:
        if word.startswith(_SCALES) and scales is None:
            scales = _parse_scales(word.removeprefix(_SCALES))
        elif word == _FLIP and not flip:
            flip = True
        else:
            raise ConfigError(f"--tta has '{word}': {_EXPECTED}")
    return Augmentation(scales or (1.0,), flip)


def _parse_scales(text: str) -> tuple[float, ...]:
    low, high = SCALES
    scales = []
    for part in text.split(","):
        try:
            scale = float(part)
        except ValueError:
            scale = math.nan
        if not low <= scale <= high:
            raise ConfigError(
                f"--tta has scale '{part}': expected numbers from {low:g} to {high:g} with commas "
                "between, such as scales=0.75,1,1.25"
            )
        if scale in scales:
            raise ConfigError(f"--tta has scale '{part}' twice: give every scale once")
        scales.append(scale)
    return tuple(scales)


class AugmentedNetwork:
    """Averages probabilities and maps over scales and mirrored views.

    Args:
        network: A network that returns probabilities, if only on request.
        augmentation: The views.

    Attributes:
        taxonomy: The network's.
        at_once: The network's.
        calibration: The network's.
    """

    def __init__(self, network: Segmenter, augmentation: Augmentation) -> None:
        self._predict: Callable[[np.ndarray], Prediction | Maps] = network.predict
        if isinstance(network, ProbabilitySegmenter):
            self._predict = network.predict_with_probabilities
        self._augmentation = augmentation
        self.taxonomy: Taxonomy = network.taxonomy
        self.at_once: int = network.at_once
        self.calibration: Calibration = network.calibration

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        """Labels every pixel by the averages of uncalibrated probabilities.

        Args:
            image: uint8 [H, W, 3], RGB, upright, any size.

        Raises:
            ConfigError: The network has no probabilities.
            RunError: The same, of a SavedModel.
            DataError, ImageTooLargeError, ResourceError: As in `Segmenter.predict`.
        """
        calibration = self.calibration

        def maps_of(view: np.ndarray) -> list[np.ndarray]:
            prediction = self._predict(view)
            if not isinstance(prediction, Prediction):
                raise ConfigError(
                    "--tta averages probabilities, and this file was exported with --outputs "
                    "labels, without them: export the run again with --outputs probabilities"
                )
            uncalibrated = calibration.uncalibrated(prediction.probabilities)
            attention = calibration.uncalibrated_attention(prediction.attention)
            return [attention, prediction.difficulty, uncalibrated]

        attention, difficulty, uncalibrated = self._averages(image, maps_of)
        labels = uncalibrated.argmax(axis=-1).astype(np.int32)
        attention = calibration.calibrated_attention(attention)
        probabilities = calibration.calibrated(uncalibrated)
        risk = risk_of(labels, probabilities)
        return Prediction(labels, attention, difficulty, risk, probabilities)

    def _averages(
        self, image: np.ndarray, maps_of: Callable[[np.ndarray], list[np.ndarray]]
    ) -> list[np.ndarray]:
        """Returns the averages over all views of float32 [H, W] and [H, W, C]."""
        size = (image.shape[0], image.shape[1])
        sums: list[np.ndarray] = []
        try:
            for scale in self._augmentation.scales:
                scaled = resize_image(image, _scaled(size, scale))
                added = [resize_map(each, size) for each in self._over_flips(scaled, maps_of)]
                sums = [a + b for a, b in zip(sums, added, strict=True)] if sums else added
            return [each / np.float32(self._augmentation.views) for each in sums]
        except MemoryError as error:
            raise too_large(image) from error

    def _over_flips(
        self, image: np.ndarray, maps_of: Callable[[np.ndarray], list[np.ndarray]]
    ) -> list[np.ndarray]:
        """Returns the sums over the image and, where asked for, its mirror image."""
        maps = maps_of(image)
        if not self._augmentation.flip:
            return maps
        mirrored = maps_of(np.ascontiguousarray(image[:, ::-1]))
        return [each + other[:, ::-1] for each, other in zip(maps, mirrored, strict=True)]


class AugmentedCascade(AugmentedNetwork):
    """Averages the probabilities of every head; maps follow from the averages.

    Args:
        network: A network whose heads can be read.
        augmentation: The views.
    """

    def __init__(self, network: CascadeSegmenter, augmentation: Augmentation) -> None:
        super().__init__(network, augmentation)
        self._cascade = network

    def predict(self, image: np.ndarray, /) -> Prediction:
        """Labels every pixel; argument and errors as in `Segmenter.predict`."""
        return self.prediction(self.head_outputs(image))

    def head_outputs(self, image: np.ndarray, /) -> HeadOutputs:
        """Computes the averaged outputs of all heads; argument and errors as in `predict`."""

        def heads_of(view: np.ndarray) -> list[np.ndarray]:
            return to_probabilities(self._cascade.head_outputs(view))

        return to_outputs(self._averages(image, heads_of))

    def prediction(self, outputs: HeadOutputs, /) -> Prediction:
        """Returns the prediction that follows from the outputs of the heads."""
        return self._cascade.prediction(outputs)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    height, width = (max(1, round(scale * side)) for side in size)
    return height, width
