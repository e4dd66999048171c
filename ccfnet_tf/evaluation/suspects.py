"""Labels that are probably wrong: regions where the network's probabilities contradict the label.

A pixel contradicts its label when the network predicts another class, which is strictly more
probable. Its log odds are log(p(predicted) / p(given)), the log of the posterior odds of the two
classes, above 0.
Contradicting pixels of one predicted class that touch, diagonally too, form a region. The score of
a region is its area times its mean log odds, which is the sum of the log odds of its pixels.

Regions instead of pixels follow Rottmann and Reese, "Automated Detection of Label Errors in
Semantic Segmentation Datasets via Deep Learning and Uncertainty Quantification" (2022, arXiv
2207.06104). They rate a region by a classifier trained on statistics of regions; the score here
needs no training. Probabilities must come from a network that did not train on the image. Between
networks they are comparable if they are calibrated; of one network, a temperature multiplies all
log odds by the same factor, and changes no order.

Shapes: an image of height H and width W, C classes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import cv2
import numpy as np

from ccfnet_tf.labels import VOID

MINIMUM_AREA = 64
"""Smallest region in pixels: one cell of the network's features, whose stride is 8."""

_SMALLEST = np.finfo(np.float32).tiny  # A probability that underflowed to 0 keeps finite log odds.

Item = TypeVar("Item")


class Region(NamedTuple):
    """Touching pixels that contradict their label in favour of one class.

    Attributes:
        left: Column of the first pixel of the box around the region.
        top: Row of the first pixel of the box.
        inside: bool [height, width] of the box; True in the region.
        given: Class id that most of the pixels are labelled with; the lower id if two are equal.
        predicted: Class id that is predicted for all of the pixels.
        log_odds: Mean of log(p(predicted) / p(given)) over the pixels; natural logarithm.
    """

    left: int
    top: int
    inside: np.ndarray
    given: int
    predicted: int
    log_odds: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height in pixels."""
        height, width = self.inside.shape
        return self.left, self.top, width, height

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.inside.sum())

    @property
    def score(self) -> float:
        """Area times mean log odds."""
        return self.area * self.log_odds


def find_regions(
    label: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    *,
    minimum: int = MINIMUM_AREA,
) -> list[Region]:
    """Returns the regions of an image that contradict its label.

    Args:
        label: int32 [H, W], class ids or `VOID`; void pixels belong to no region.
        predicted: int32 [H, W], the network's labels. They need not be the most probable classes:
            vector scaling changes probabilities, but no label.
        probabilities: float [H, W, C], calibrated.
        minimum: Smallest area of a region in pixels, at least 1.

    Returns:
        Regions by predicted class, then by the position that OpenCV's labelling gives them.
    """
    odds = log_odds(label, predicted, probabilities)
    found = []
    for index in np.unique(predicted[odds > 0]):
        mask = ((predicted == index) & (odds > 0)).astype(np.uint8)
        _, numbers, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        large = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] >= minimum)
        for number in large[large > 0].tolist():  # Number 0 is everything outside of `mask`.
            left, top, width, height = stats[number, : cv2.CC_STAT_AREA].tolist()
            window = slice(top, top + height), slice(left, left + width)
            inside = numbers[window] == number
            given = int(np.bincount(label[window][inside]).argmax())
            mean = float(odds[window][inside].mean(dtype=np.float64))
            found.append(Region(left, top, inside, given, int(index), mean))
    return found


def log_odds(label: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns log(p(predicted) / p(given)) of each pixel, float32 [H, W].

    It is 0 for void, where the label is what is predicted, and where the given class is at least
    as probable. Arguments as in `find_regions`.
    """
    logs = np.log(np.maximum(probabilities, _SMALLEST), dtype=np.float32)
    known = label != VOID

    def of(classes: np.ndarray) -> np.ndarray:
        return np.asarray(np.take_along_axis(logs, classes[..., None], axis=-1)[..., 0])

    odds = of(predicted) - of(np.where(known, label, 0))
    return np.where(known, np.maximum(odds, np.float32(0)), np.float32(0))


def image_score(regions: Sequence[Region]) -> float:
    """Returns the score of an image: the sum of the scores of its regions; 0 if it has none.

    The sum, not the best region: it found planted errors slightly better, above all label maps that
    were moved, which have many regions but no large one (docs/label_errors.md).
    """
    return sum(region.score for region in regions)


class Best(Generic[Item]):
    """Keeps the `count` items of the highest scores; of equal ones, those added first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._added = 0
        self._heap: list[tuple[float, int, Item]] = []

    def admits(self, score: float) -> bool:
        """Returns whether an item of this score would be kept."""
        return len(self._heap) < self._count or score > self._heap[0][0]

    def add(self, score: float, item: Item) -> None:
        """Adds an item, and drops the last one if there are more than `count`."""
        if self.admits(score):
            self._added += 1
            push = heapq.heappush if len(self._heap) < self._count else heapq.heappushpop
            push(self._heap, (score, -self._added, item))

    def in_order(self) -> list[Item]:
        """Returns the kept items, highest score first."""
        return [
            item for _, _, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)
        ]
