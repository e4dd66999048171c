"""Scores of wrong and of right pixels, counted in fine bins, from which a ranking is computed.

A split has millions of pixels, so scores are not kept but counted in bins of their logit. Bins
divide the logit, not the probability, because most pixels are easy and have one near 0.

The bin is given by the float32 exponent of 1 + |logit| and the first 12 bits of its fraction. It is
1/4096 wide at a logit of 0, 1/256 from 15 to 31, and never wider than (1 + |logit|) / 4096; no
output of a network is clipped; and the graph and NumPy compute the same bins, in integers.

Shapes: counts [2, BINS] int64; rows `WRONG` and `RIGHT`, of the prediction that the score rates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ccfnet_tf.evaluation.auroc_and_aurc import Ranking

FRACTION = 12
"""Bits of the fraction of 1 + |logit| that distinguish bins."""

BINS = 2 * 12 << FRACTION
"""For each sign 12 doublings of 1 + |logit|, each of 2^FRACTION bins: 1.5 MB of counts."""

LIMIT = 4095.0
"""Larger logits, of either sign, are clipped to this; no trained network has them."""

SHIFT = 23 - FRACTION
"""Bits by which the 23 bits of a float32 fraction are shifted."""

ONE = 0x3F800000
"""The bits of 1.0 as float32."""


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Scores of wrong and of right pixels; merges by addition.

    Attributes:
        counts: int64 [2, BINS]; rows `WRONG` and `RIGHT`, columns bins of the logit, ascending.
    """

    counts: np.ndarray

    @classmethod
    def empty(cls) -> ScoreHistogram:
        """Returns the state before the first pixel."""
        return cls(np.zeros((2, BINS), np.int64))

    @classmethod
    def of(cls, logits: np.ndarray, wrong: np.ndarray) -> ScoreHistogram:
        """Counts scores.

        Args:
            logits: float [N]; larger = more likely wrong.
            wrong: bool [N].

        Raises:
            ValueError: The shapes differ, or a logit is NaN.
        """
        if logits.shape != wrong.shape:
            raise ValueError(f"logits are {logits.shape} but wrong is {wrong.shape}")
        if np.isnan(logits).any():
            raise ValueError("a logit is NaN")
        return cls(count_bins(bins_of(logits), wrong))

    def merge(self, other: ScoreHistogram) -> ScoreHistogram:
        """Returns the state of both parts together."""
        return ScoreHistogram(self.counts + other.counts)

    @property
    def ranking(self) -> Ranking:
        """How well the score ranks wrong pixels above right ones; scores in a bin are ties."""
        return Ranking.of(self.counts)

    @property
    def auroc(self) -> float | None:
        """The same as `Ranking.auroc`.

        The error is at most half of the share of pairs (one wrong, one right) that share a bin;
        this is below half of the largest share that one bin has of the right pixels, or of the
        wrong ones. Equal scores cause no error.
        """
        return self.ranking.auroc


def bins_of(logits: np.ndarray) -> np.ndarray:
    """Returns the bin of each logit, int32 [N] of float [N], which must not be NaN."""
    logits = np.clip(logits, -LIMIT, LIMIT).astype(np.float32)
    away = ((1 + np.abs(logits)).view(np.int32) - ONE) >> SHIFT
    np.minimum(away, BINS // 2 - 1, out=away)
    return np.where(logits < 0, BINS // 2 - 1 - away, BINS // 2 + away)


def count_bins(bins: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Returns int64 [2, BINS] of bins [N], as of `bins_of`, and flags [N]."""
    counts = np.bincount(bins + np.where(wrong, 0, BINS).astype(np.int32), minlength=2 * BINS)
    return counts.reshape(2, BINS).astype(np.int64, copy=False)


def centres() -> np.ndarray:
    """Returns the logit in the middle of each bin, float64 [BINS], ascending."""
    middle = np.arange(BINS // 2, dtype=np.int32) << SHIFT
    away = (middle + (ONE + (1 << (SHIFT - 1)))).view(np.float32).astype(np.float64) - 1
    return np.concatenate([-away[::-1], away])
