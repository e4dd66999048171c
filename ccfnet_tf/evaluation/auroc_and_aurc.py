"""Measures how well a score ranks wrong pixels above right ones, from counts in order of the score.

Pixels with the same score are ties, and ties share a step of every curve: no figure depends on
their order. If scores were counted in bins, the pixels of a bin are ties. The resulting error is
bounded by the pixels that share a bin: AUROC by half of the share of pairs (one wrong, one right)
in one bin; AUGRC by that times the error rate and the accuracy; the two false-positive rates by
the share of one kind in the one bin that contains the threshold; average precision by the sum over
bins of their share of the wrong pixels times the range of precision within the bin, and AURC by
the sum over bins of their share of the pixels times the range of the risk within the bin.

Shapes: K distinct scores or bins, in ascending order; larger = more likely wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

WRONG, RIGHT = 0, 1
"""Rows of counts [2, K]."""

RECALL = 95
"""Percent of the errors, or of the right pixels, at which false-positive rates are computed."""

POINTS = 100
"""Largest number of points of a risk-coverage curve."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Pixels in ascending order of a score.

    Attributes:
        wrong: int64 [K]; wrong pixels at each score.
        right: int64 [K]; right pixels at each score.
    """

    wrong: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray) -> Ranking:
        """Returns the ranking of counts [2, K], rows `WRONG` and `RIGHT`; drops unused scores."""
        used = counts[:, counts.any(axis=0)]
        return cls(used[WRONG], used[RIGHT])

    @property
    def errors(self) -> int:
        """Wrong pixels."""
        return int(self.wrong.sum())

    @property
    def pixels(self) -> int:
        """All pixels."""
        return self.errors + int(self.right.sum())

    @property
    def error_rate(self) -> float | None:
        """Share of wrong pixels, the average precision of a score without information."""
        return self.errors / self.pixels if self.pixels else None

    @property
    def auroc(self) -> float | None:
        """Area under the ROC curve; positive = wrong.

        The probability that a wrong pixel has a higher score than a right one, ties counted half.
        None if all pixels are of one kind.
        """
        if not self._both_kinds:
            return None
        wrong, right = self.wrong.astype(np.float64), self.right.astype(np.float64)
        right_below = np.cumsum(right) - right
        return float(np.sum(wrong * (right_below + right / 2)) / (wrong.sum() * right.sum()))

    @property
    def average_precision(self) -> float | None:
        """Average precision; positive = wrong. None if no pixel is wrong.

        The sum over thresholds of precision times the gain in recall, as scikit-learn defines it.
        """
        if not self.errors:
            return None
        wrong, right = self.wrong[::-1], self.right[::-1]
        flagged = np.cumsum(wrong + right)
        return float(np.sum(wrong * (np.cumsum(wrong) / flagged)) / self.errors)

    @property
    def fpr_at_error_recall(self) -> float | None:
        """Share of right pixels that are flagged where 95 % of the wrong ones are.

        At the highest threshold that flags so many. None if all pixels are of one kind.
        """
        return _fpr(self.wrong[::-1], self.right[::-1]) if self._both_kinds else None

    @property
    def fpr_at_correct_recall(self) -> float | None:
        """Share of wrong pixels that are kept where 95 % of the right ones are.

        The FPR95 of misclassification detection (Hendrycks and Gimpel, ICLR 2017; Corbiere et al.,
        NeurIPS 2019): positive = right. None if all pixels are of one kind.
        """
        return _fpr(self.right, self.wrong) if self._both_kinds else None

    @property
    def aurc(self) -> float | None:
        """Area under the risk-coverage curve (Geifman et al., ICLR 2019); None without pixels.

        Risk is the error rate among the pixels kept, coverage their share, the surest first. The
        points, one for each distinct score, are joined by straight lines; from coverage 0 to the
        first point the risk is that of the first point.
        """
        if not self.pixels:
            return None
        coverage, risk = self._curve()
        return float(np.sum(np.diff(coverage, prepend=0) * _midpoints(risk, risk[0])))

    @property
    def e_aurc(self) -> float | None:
        """Excess AURC: AURC less that of the order with all right pixels first.

        The latter is e + (1 - e) ln(1 - e) for an error rate e (Geifman et al., ICLR 2019).
        """
        if self.aurc is None or self.error_rate is None:
            return None
        accuracy = 1 - self.error_rate
        best = self.error_rate + (accuracy * math.log(accuracy) if accuracy else 0.0)
        return self.aurc - best

    @property
    def augrc(self) -> float | None:
        """Area under the generalised risk-coverage curve (Traub et al., NeurIPS 2024).

        Generalised risk is the share of all pixels that are kept and wrong; the curve begins at 0.
        None without pixels.
        """
        if not self.pixels:
            return None
        coverage, risk = self._curve()
        return float(np.sum(np.diff(coverage, prepend=0) * _midpoints(risk * coverage, 0.0)))

    def risk_coverage(self) -> dict[str, list[float]]:
        """Returns at most `POINTS` points of the risk-coverage curve, in order of coverage."""
        if not self.pixels:
            return {"coverage": [], "risk": []}
        coverage, risk = self._curve()
        wanted = np.arange(1, POINTS + 1) / POINTS
        chosen = np.unique(np.minimum(np.searchsorted(coverage, wanted), coverage.size - 1))
        return {"coverage": coverage[chosen].tolist(), "risk": risk[chosen].tolist()}

    @property
    def _both_kinds(self) -> bool:
        return 0 < self.errors < self.pixels

    def _curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns coverage and risk after each distinct score, float64 [K]."""
        kept = np.cumsum(self.wrong + self.right)
        return kept / self.pixels, np.cumsum(self.wrong) / kept


def _fpr(positive: np.ndarray, negative: np.ndarray) -> float:
    """Returns the share of negatives taken where at least `RECALL` percent of positives are."""
    taken = np.cumsum(positive)
    last = int(np.argmax(100 * taken >= RECALL * taken[-1]))
    return float(negative[: last + 1].sum() / negative.sum())


def _midpoints(values: np.ndarray, first: float) -> np.ndarray:
    return (values + np.concatenate([[first], values[:-1]])) / 2
