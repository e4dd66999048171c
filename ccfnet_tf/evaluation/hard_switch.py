"""A hard switch between coarse and fine: how many pixels need the label of fine.

Fine is used where a score of coarse's errors is above a threshold, coarse elsewhere: the cascade as
the paper describes it, whose last branch receives the hard pixels. The score is attention, or
coarse's own maximum softmax, which any network has. Pixels are counted, not time.

Shapes: T thresholds, C classes, N pixels; counts int64 [T+1, 2, 3, C].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ccfnet_tf.evaluation.confusion import ClassCounts, ratio

SWITCHES = ("attention", "max_softmax")
"""Scores of coarse's errors that a switch can read."""

THRESHOLDS = np.linspace(-14.0, 6.0, 81)
"""Logits of the thresholds, [T], ascending: probabilities of 1e-6 to .998."""


def count_switch(
    logit: np.ndarray, truth: np.ndarray, coarse: np.ndarray, fine: np.ndarray, classes: int
) -> np.ndarray:
    """Counts classes by the interval between two thresholds that a pixel's score is in.

    Args:
        logit: float [N]; score that coarse is wrong.
        truth: int64 [N]; class ids.
        coarse: int32 [N]; class ids that coarse predicts.
        fine: int32 [N]; class ids that fine predicts.
        classes: C.

    Returns:
        int64 [T+1, 2, 3, C]: of coarse and of fine, how often each class is true, predicted and
        both.
    """
    interval = np.searchsorted(THRESHOLDS, logit)  # the number of thresholds that it is above

    def count(ids: np.ndarray, mask: np.ndarray | slice = slice(None)) -> np.ndarray:
        cells = interval[mask] * classes + ids[mask]
        counts = np.bincount(cells, minlength=(len(THRESHOLDS) + 1) * classes)
        return counts.reshape(-1, classes)

    true = count(truth)
    rows = [[true, count(head), count(head, head == truth)] for head in (coarse, fine)]
    return np.array(rows, np.int64).transpose(2, 0, 1, 3)


@dataclass(frozen=True)
class SwitchPoint:
    """A switch at one threshold.

    Attributes:
        threshold: Score above which fine is used, 0..1; 0 uses fine everywhere.
        fine_share: Share of the pixels that fine labels, 0..1.
        pixel_accuracy: Of the result, 0..1.
        mean_iou: Of the result, over the classes that labels contain, 0..1.
    """

    threshold: float
    fine_share: float
    pixel_accuracy: float
    mean_iou: float


@dataclass(frozen=True, eq=False)
class HardSwitch:
    """The result of a switch at every threshold; merges by adding the counts.

    Attributes:
        counts: int64 [T+1, 2, 3, C] of `count_switch`.
    """

    counts: np.ndarray

    @cached_property
    def points(self) -> tuple[SwitchPoint, ...]:
        """The switch from fine everywhere to fine almost nowhere; empty without labelled pixels."""
        coarse, fine = self.counts[:, 0], self.counts[:, 1]
        # Row i of the sums is a switch at threshold i - 1: coarse below it, fine above it.
        below = np.concatenate([np.zeros_like(coarse[:1]), coarse.cumsum(axis=0)[:-1]])
        above = fine[::-1].cumsum(axis=0)[::-1]
        thresholds = [0.0, *(1.0 / (1.0 + np.exp(-THRESHOLDS)))]
        points = []
        for threshold, kept, redone in zip(thresholds, below, above, strict=True):
            state = ClassCounts(kept + redone)
            share = ratio(int(redone[0].sum()), state.pixels)
            accuracy, iou = state.pixel_accuracy, state.mean_iou_present
            if share is not None and accuracy is not None and iou is not None:
                points.append(SwitchPoint(float(threshold), share, accuracy, iou))
        return tuple(points)

    @property
    def best(self) -> SwitchPoint | None:
        """The point with the highest mean IoU, and of those the one with the fewest pixels of fine.

        None without labelled pixels. Choose a threshold on the validation split only.
        """
        return max(self.points, key=lambda point: (point.mean_iou, -point.fine_share), default=None)

    @property
    def as_good_as_fine(self) -> SwitchPoint | None:
        """The point with the fewest pixels of fine whose mean IoU is that of fine everywhere.

        None without labelled pixels.
        """
        if not self.points:
            return None
        everywhere = self.points[0].mean_iou
        return [point for point in self.points if point.mean_iou >= everywhere][-1]

    def at_share(self, share: float) -> tuple[float, float] | None:
        """Returns accuracy and mean IoU at a share of fine, between the two nearest points.

        Args:
            share: Share of the pixels that fine labels, 0..1.

        Returns:
            None without labelled pixels, or below the share of the highest threshold.
        """
        points = self.points[::-1]  # np.interp needs ascending shares
        shares = [point.fine_share for point in points]
        if not shares or share < shares[0]:
            return None
        accuracy = np.interp(share, shares, [point.pixel_accuracy for point in points])
        return float(accuracy), float(np.interp(share, shares, [p.mean_iou for p in points]))
