"""How well a score tells the pixels that coarse gets wrong from those it gets right.

A part has millions of pixels, so scores are not kept but counted into fine bins of their logit;
the area under the ROC curve (AUROC) follows from the counts. Bins are of the logit, not of the
probability, because most pixels are easy and crowd near P(hard) = 0.

Bins divide 1 + |logit| by its float32 exponent and the first 12 bits of its fraction. So a bin is
1/4096 wide at a logit of 0, 1/256 from 15 to 31, and never wider than (1 + |logit|) / 4096; nothing
that a network answers is clipped; and the graph and NumPy find the same bins, in whole numbers.

Shapes: counts [2, BINS] int64; row `HARD` = coarse wrong, row `EASY` = coarse right, as in the
attention head's classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ccfnet_tf.labels import HARD

FRACTION = 12
"""Bits of the fraction of 1 + |logit| that tell bins apart."""

BINS = 2 * 12 << FRACTION
"""For each sign 12 doublings of 1 + |logit|, each of 2^FRACTION bins: 1.5 MB of counts."""

LIMIT = 4095.0
"""Logits from here on, of either sign, count as one: no sound network has them."""

SHIFT = 23 - FRACTION
"""What a float32 number's 23 bits of fraction are shifted by."""

ONE = 0x3F800000
"""The bits of 1.0 as float32."""


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
        logits = np.clip(logits, -LIMIT, LIMIT).astype(np.float32)
        away = ((1 + np.abs(logits)).view(np.int32) - ONE) >> SHIFT
        away = np.minimum(away, BINS // 2 - 1)
        bins = np.where(logits < 0, BINS // 2 - 1 - away, BINS // 2 + away)
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

        Scores within a bin count as ties, so the error is at most half of the share of pairs (one
        hard, one easy) that lie in a bin together; this is below half of the largest share that
        one bin has of the easy pixels, or of the hard ones. Equal scores make no error. None if
        all pixels are of one kind.
        """
        hard, easy = self.counts.astype(np.float64)
        pairs = hard.sum() * easy.sum()
        if not pairs:
            return None
        easy_below = np.cumsum(easy) - easy
        return float(np.sum(hard * (easy_below + easy / 2)) / pairs)
