"""Reliability of probabilities: the expected calibration error (ECE).

Each bin has three integer counts: pixels, those for which the event occurred, and the sum of the
probabilities in units of 2^-24, so that counts of parts add up exactly. The rounding changes no
mean by more than 2^-25.

Shapes: counts int64 [..., 3, BINS]; rows pixels, those with the event, sum of probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ccfnet_tf.evaluation.auroc_and_aurc import WRONG
from ccfnet_tf.evaluation.score_histogram import centres

BINS = 15
"""Bins of equal width (Guo et al., ICML 2017)."""

STEP = 2.0**-24
"""Unit of the sums of probabilities."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Probabilities of an event in bins of equal width, and its frequency; merges by addition.

    Attributes:
        counts: int64 [3, BINS]; rows pixels, those with the event, sum of probabilities / STEP.
            A probability p is in bin floor(BINS p), 1 in the last.
    """

    counts: np.ndarray

    @classmethod
    def of(cls, probability: np.ndarray, true: np.ndarray) -> Reliability:
        """Counts probabilities, float32 [N] in 0..1, and whether the event occurred, bool [N]."""
        return cls(count_reliability(probability, true, 0, 1)[0])

    def merge(self, other: Reliability) -> Reliability:
        """Returns the state of both parts together."""
        return Reliability(self.counts + other.counts)

    @property
    def ece(self) -> float | None:
        """Mean over pixels of |frequency of the event - mean probability| of their bin.

        None without pixels.
        """
        return _ece(*self._columns())

    def curve(self) -> list[dict[str, Any]]:
        """Returns the pixels, mean probability and frequency of the event of each bin."""
        pixels, true, total = self._columns()
        return [
            {
                "pixels": int(count),
                "predicted": float(summed / count) if count else None,
                "observed": float(hits / count) if count else None,
            }
            for count, hits, summed in zip(pixels, true, total, strict=True)
        ]

    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pixels, true, total = self.counts
        return pixels, true, total * STEP


def count_reliability(
    probability: np.ndarray, true: np.ndarray, group: np.ndarray | int, groups: int
) -> np.ndarray:
    """Counts probabilities of several groups of pixels.

    Args:
        probability: float32 [N], 0..1.
        true: bool [N].
        group: Integer [N], 0..G-1, or one for all pixels.
        groups: G.

    Returns:
        int64 [G, 3, BINS], as in `Reliability`.
    """
    cell = bin_of(probability) + BINS * group
    size = BINS * groups
    untrue, came_true = np.bincount(cell + size * true, minlength=2 * size).reshape(2, size)
    # float64 adds integers below 2^53 exactly.
    summed = np.bincount(cell, weights=in_steps(probability), minlength=size)
    rows = [untrue + came_true, came_true, summed]
    return np.stack(rows).astype(np.int64).reshape(3, groups, BINS).swapaxes(0, 1)


def count_class_reliability(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Counts the probability of each class, and whether the pixel has that class.

    Args:
        probabilities: float32 [C, N].
        truth: Integer [N], 0..C-1.

    Returns:
        int64 [C, 3, BINS], as in `Reliability`.
    """
    classes = probabilities.shape[0]
    counts = np.zeros((classes, 3, BINS), np.int64)
    counts[:, 0, 0] = truth.size
    counts[:, 1, 0] = np.bincount(truth, minlength=classes)
    for index, row in enumerate(probabilities):
        # Few probabilities are above the first bin; its counts are the totals without those.
        places = np.flatnonzero(row >= np.float32(1 / BINS))
        above = Reliability.of(row[places], truth[places] == index).counts
        counts[index, 2, 0] = int(in_steps(row).sum(dtype=np.float64))
        counts[index, :, 0] -= above.sum(axis=1)
        counts[index] += above
    return counts


def adaptive_ece(counts: np.ndarray) -> float | None:
    """Returns the ECE over `BINS` bins of equally many pixels (Nguyen and O'Connor, EMNLP 2015).

    Args:
        counts: int64 [2, K] of a `ScoreHistogram` whose scores are logits of probabilities.

    Returns:
        None without pixels. Pixels of one fine bin stay together, in the bin that contains their
        middle, and count with the probability at the middle of the fine bin, which differs from
        theirs by at most 5e-5.
    """
    pixels = counts.sum(axis=0)
    total = int(pixels.sum())
    if not total:
        return None
    # Exact in integers: the middle of a fine bin, in halves of a pixel.
    middle = 2 * np.cumsum(pixels) - pixels
    place = np.minimum(middle * BINS // (2 * total), BINS - 1)
    probability = 1 / (1 + np.exp(-np.clip(centres(), -700, 700)))
    columns = (pixels, counts[WRONG], pixels * probability)
    return _ece(*(np.bincount(place, weights=column, minlength=BINS) for column in columns))


def bin_of(probability: np.ndarray) -> np.ndarray:
    """Returns the bin of each probability, int64 [N] of float32 [N]."""
    return np.minimum(probability * np.float32(BINS), np.float32(BINS - 1)).astype(np.int64)


def in_steps(probability: np.ndarray) -> np.ndarray:
    """Returns probabilities as integer multiples of `STEP`, float32 [N] of float32 [N]."""
    return np.rint(probability * np.float32(1 / STEP))


def _ece(pixels: np.ndarray, true: np.ndarray, summed: np.ndarray) -> float | None:
    total = pixels.sum()
    return float(np.abs(true - summed).sum() / total) if total else None
