"""Scores of every pixel, computed from the log-probabilities of a head with NumPy.

The maps of `network.labels_and_maps.maps`, which computes them in a graph, as logits; and the
scores that need no additional head: maximum softmax, entropy and margin.

Shapes: log-probabilities float32 [C, N] of C classes and N pixels, classes first, so that every
reduction runs over long rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration

SMALL = 1e-30
"""A float32 sum of probabilities below this is too imprecise for its logarithm."""

LEAST = np.float32(-1e30)
"""Replaces the logarithm of 0, so that 0 log 0 is 0."""


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Scores of one head for N pixels.

    Attributes:
        logs: float32 [C, N]; log-probabilities.
        first: float32 [N]; the largest of them.
        second: float32 [N]; the second largest, which may equal it.
        label: int32 [N]; the class of the largest; the lowest id if several are equal.
    """

    logs: np.ndarray
    first: np.ndarray
    second: np.ndarray
    label: np.ndarray

    @classmethod
    def of(cls, logs: np.ndarray) -> HeadScores:
        """Finds the two most probable classes of every pixel of log-probabilities [C, N].

        NaN is kept, also in `first`.
        """
        logs = np.maximum(logs, LEAST)
        first = logs[0].copy()
        second = np.full_like(first, LEAST)
        label = np.zeros(first.size, np.int32)
        for index, row in enumerate(logs[1:], 1):
            np.maximum(second, np.minimum(row, first), out=second)
            np.copyto(label, index, where=row > first)
            np.maximum(first, row, out=first)
        return cls(logs, first, second, label)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float32 [C, N]."""
        return np.exp(self.logs)

    @cached_property
    def max_softmax(self) -> np.ndarray:
        """Logit of 1 - the largest probability, float32 [N]."""
        return _log_sum(self._others, self.second) - self.first

    @cached_property
    def entropy(self) -> np.ndarray:
        """Logit of the entropy divided by its maximum, the logarithm of C, float32 [N]."""
        entropy = -np.einsum("cn,cn->n", self.probabilities, self.logs)
        share = np.clip(entropy / np.float32(np.log(max(2, len(self.logs)))), 0, 1)
        return _log(share) - _log(1 - share)

    @cached_property
    def margin(self) -> np.ndarray:
        """Logit of 1 - (largest - second largest probability), float32 [N]."""
        next_one = np.exp(self.second)
        return _log_sum(self._others + next_one, self.second) - _log(np.exp(self.first) - next_one)

    def wrong_logit(self, label: np.ndarray) -> np.ndarray:
        """Returns the logit of 1 - the probability of a class, float32 [N] of classes [N]."""
        logits = self.max_softmax.copy()
        # Elsewhere the class is the most probable one, and the logit is that of maximum softmax.
        places = np.flatnonzero(label != self.label)
        chosen = label[places]
        others = _sum_without(self.probabilities[:, places], chosen)
        logits[places] = _log_sum(others, self.first[places]) - self.logs[chosen, places]
        return logits

    @cached_property
    def _others(self) -> np.ndarray:
        """Sum of all probabilities but the largest, float32 [N]."""
        return _sum_without(self.probabilities, self.label)


def calibrated(logs: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Returns calibrated log-probabilities, float32 [C, N], of refine's [C, N]."""
    if (calibration.scale, calibration.bias) == (UNCALIBRATED.scale, UNCALIBRATED.bias):
        return logs
    scale = np.array(calibration.scale, np.float32)[:, np.newaxis]
    bias = np.array(calibration.bias or (0.0,), np.float32)[:, np.newaxis]
    logits = logs * scale + bias
    logits -= logits.max(axis=0)
    return logits - np.log(np.exp(logits).sum(axis=0))


def calibrated_attention(logit: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Returns the calibrated logit of attention, float32 [...] of [...]."""
    return logit * np.float32(calibration.attention_scale) + np.float32(calibration.attention_bias)


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + exp(-logit)), float32 [...] of float32 [...]."""
    with np.errstate(over="ignore"):  # exp of a large number is inf, and 1 / inf is 0
        return 1 / (1 + np.exp(-logit))


def _sum_without(probabilities: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns the sum over all classes but one, float32 [N] of [C, N].

    Adding a probability near 1 and subtracting it again would lose small ones in float32.
    """
    places = np.arange(label.size)
    chosen = probabilities[label, places]
    probabilities[label, places] = 0
    others = probabilities.sum(axis=0)
    probabilities[label, places] = chosen
    return others


def _log_sum(summed: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Returns the logarithm of a sum of probabilities, or of its largest term if it is tiny."""
    return np.where(summed > SMALL, _log(summed), largest)


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(values)
