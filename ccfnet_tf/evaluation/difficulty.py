"""How well a score tells the pixels that coarse gets wrong from those it gets right.

A part has millions of pixels, so scores are not kept but counted into fine bins of their logit;
the area under the ROC curve (AUROC) follows from the counts. Bins are of the logit, not of the
probability, because most pixels are easy and crowd near P(hard) = 0.

Shapes: counts [2, BINS] int64; row `HARD` = coarse wrong, row `EASY` = coarse right, as in the
attention head's classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HARD = 0
EASY = 1

BINS = 4096
LIMIT = 16.0
"""Logits are clipped to -LIMIT..LIMIT: P within 1e-7 of 0 or 1 is one and the same."""


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Scores of hard and of easy pixels; merges by addition.

    Attributes:
        counts: int64 [2, BINS]; rows `HARD` and `EASY`, columns bins of the logit, ascending.
    """

    counts: np.ndarray

    @classmethod
    def empty(cls) -> ScoreHistogram:
        """Returns the state before the first pixel."""
        return cls(np.zeros((2, BINS), np.int64))

    @classmethod
    def of(cls, logits: np.ndarray, hard: np.ndarray) -> ScoreHistogram:
        """Counts scores.

        Args:
            logits: float [N], hard - easy: larger = more likely hard; finite.
            hard: bool [N], where coarse is wrong.

        Raises:
            ValueError: The shapes differ, or a logit is NaN.
        """
        if logits.shape != hard.shape:
            raise ValueError(f"logits are {logits.shape} but hard is {hard.shape}")
        if np.isnan(logits).any():
            raise ValueError("a logit is NaN")
        position = (np.clip(logits.astype(np.float64), -LIMIT, LIMIT) + LIMIT) * _BINS_PER_UNIT
        bins = np.minimum(position.astype(np.int64), BINS - 1)
        counts = [np.bincount(bins[hard == which], minlength=BINS) for which in (True, False)]
        return cls(np.stack(counts).astype(np.int64))

    def merge(self, other: ScoreHistogram) -> ScoreHistogram:
        """Returns the state of both parts together."""
        return ScoreHistogram(self.counts + other.counts)

    @property
    def hard_share(self) -> float | None:
        """Share of pixels that coarse gets wrong; None where nothing is labelled."""
        pixels = int(self.counts.sum())
        return int(self.counts[HARD].sum()) / pixels if pixels else None

    @property
    def auroc(self) -> float | None:
        """Chance that a hard pixel's score lies above an easy one's, ties counted half.

        Scores within a bin (1/128 of a logit) count as ties. None if all pixels are of one kind.
        """
        hard, easy = self.counts.astype(np.float64)
        pairs = hard.sum() * easy.sum()
        if not pairs:
            return None
        easy_below = np.cumsum(easy) - easy
        return float(np.sum(hard * (easy_below + easy / 2)) / pairs)


_BINS_PER_UNIT = BINS / (2 * LIMIT)
