"""The confusion matrix of a split, and the accuracies computed from it.

Shapes: C classes; counts [C, C] int64, rows truth, columns prediction. int64 because a float32
matrix cannot count beyond 2^24 pixels, which are 219 images of 320x240.

Protocol: pixel accuracy = correct / labelled; class accuracy = mean over classes of recall; mean
IoU = mean over classes of TP / (TP + FP + FN). Void is left out on the label's side only.
Both means are over the classes that labels contain, so that they do not depend on the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from ccfnet_tf.labels import VOID

ABSENT_RULE = (
    "a class that neither labels nor predictions contain has no IoU, and one that labels do not "
    "contain has no recall; means are over the classes that labels contain"
)
"""What a missing figure means; printed wherever one is shown as a dash."""

MEANS = {
    "class_accuracy": "mean recall over the classes that labels contain",
    "class_accuracy_all": "mean recall over all classes, 0 for one that labels do not contain",
    "mean_iou": "mean IoU over the classes that labels contain; chooses the best checkpoint and "
    "is the mean IoU of tables and metrics.csv",
    "mean_iou_present": "the same as mean_iou; older files give another mean under mean_iou, but "
    "this one under this name",
    "mean_iou_union": "mean IoU over the classes that labels or predictions contain, 0 for one "
    "that only predictions contain: which classes count depends on the network",
    "mean_boundary_iou": "mean Boundary IoU over the classes that labels contain",
    "mean_iou_all": "mean IoU over all classes, 0 for one that labels do not contain",
}
"""Which classes each mean of `evaluation.json` is over."""


class ClassFigures(ABC):
    """Figures of each class, and means, from how often it is true, predicted, and both."""

    @property
    @abstractmethod
    def truth(self) -> np.ndarray:
        """int64 [C]; labelled pixels of each class."""

    @property
    @abstractmethod
    def predicted(self) -> np.ndarray:
        """int64 [C]; labelled pixels that are predicted as each class."""

    @property
    @abstractmethod
    def hits(self) -> np.ndarray:
        """int64 [C]; pixels of each class that are predicted as it."""

    @property
    def pixels(self) -> int:
        """Labelled pixels."""
        return int(self.truth.sum())

    @property
    def pixel_accuracy(self) -> float | None:
        """Correct / labelled, 0..1; None where nothing is labelled."""
        return ratio(int(self.hits.sum()), self.pixels)

    @property
    def recall(self) -> tuple[float | None, ...]:
        """Share found of each class, 0..1; None for a class that labels do not contain."""
        return _ratios(self.hits, self.truth)

    @property
    def precision(self) -> tuple[float | None, ...]:
        """Share of the pixels predicted as a class that belong to it; None if there are none."""
        return _ratios(self.hits, self.predicted)

    @property
    def class_accuracy(self) -> float | None:
        """Mean recall over the classes that labels contain; None where nothing is labelled."""
        return mean(self.recall)

    @property
    def iou(self) -> tuple[float | None, ...]:
        """Intersection over union of each class; None if neither labels nor predictions have it.

        A class that is predicted on labelled pixels but never true has an IoU of 0.
        """
        return _ratios(self.hits, self.truth + self.predicted - self.hits)

    @property
    def dice(self) -> tuple[float | None, ...]:
        """Dice coefficient, or F1 score, of each class, 2 IoU / (1 + IoU); None where IoU is."""
        return _ratios(2 * self.hits, self.truth + self.predicted)

    @property
    def present(self) -> int:
        """Number of classes that labels contain."""
        return int((self.truth > 0).sum())

    @property
    def mean_iou_present(self) -> float | None:
        """Mean IoU over the classes that labels contain; None where nothing is labelled.

        Tables show this mean, and it selects the best checkpoint: which classes count depends on
        the labels alone.
        """
        pairs = zip(self.iou, self.recall, strict=True)
        return mean(tuple(iou for iou, recall in pairs if recall is not None))

    @property
    def mean_iou_union(self) -> float | None:
        """Mean IoU over the classes of labels or predictions; None where nothing is labelled.

        A single pixel of a class that no label contains adds a class with 0 to the mean.
        """
        return mean(self.iou)

    @property
    def mean_iou_all(self) -> float:
        """Mean IoU over all C classes; one without an IoU counts as 0."""
        return sum(value or 0.0 for value in self.iou) / len(self.iou)

    @property
    def class_accuracy_all(self) -> float:
        """Mean recall over all C classes; one that labels do not contain counts as 0."""
        return sum(value or 0.0 for value in self.recall) / len(self.recall)


@dataclass(frozen=True, eq=False)
class Confusion(ClassFigures):
    """Number of pixels for each pair of true and predicted class; merges by addition.

    Attributes:
        counts: int64 [C, C]; row = truth, column = prediction.

    Examples:
        >>> counts = Confusion.of(np.array([0, 0, 1, VOID]), np.array([0, 1, 1, 0]), classes=2)
        >>> counts.pixels, counts.pixel_accuracy
        (3, 0.6666666666666666)
        >>> counts.iou
        (0.5, 0.5)
    """

    counts: np.ndarray

    @classmethod
    def empty(cls, classes: int) -> Confusion:
        """Returns the state before the first pixel."""
        return cls(np.zeros((classes, classes), np.int64))

    @classmethod
    def of(cls, truth: np.ndarray, prediction: np.ndarray, *, classes: int) -> Confusion:
        """Counts one or many label maps.

        Args:
            truth: Integer array of any shape; 0..C-1, or `VOID` for pixels that do not count.
            prediction: Integer array of the same shape; 0..C-1 wherever `truth` is not void.
            classes: C.

        Raises:
            ValueError: The shapes differ, or a class id is outside 0..C-1.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth is {truth.shape} but prediction is {prediction.shape}")
        labelled = truth != VOID
        rows = truth[labelled].astype(np.int64)
        columns = prediction[labelled].astype(np.int64)
        for what, ids in (("truth", rows), ("prediction", columns)):
            if ids.size and not (ids.min() >= 0 and ids.max() < classes):
                raise ValueError(
                    f"{what} contains class ids {ids.min()}..{ids.max()}: expected 0..{classes - 1}"
                )
        counts = np.bincount(rows * classes + columns, minlength=classes * classes)
        return cls(counts.reshape(classes, classes).astype(np.int64))

    def merge(self, other: Confusion) -> Confusion:
        """Returns the state of both parts together."""
        if self.counts.shape != other.counts.shape:
            raise ValueError(
                f"{self.counts.shape} and {other.counts.shape} have different numbers of classes"
            )
        return Confusion(self.counts + other.counts)

    @property
    def truth(self) -> np.ndarray:
        """int64 [C]; labelled pixels of each class."""
        return self.counts.sum(axis=1)

    @property
    def predicted(self) -> np.ndarray:
        """int64 [C]; labelled pixels that are predicted as each class."""
        return self.counts.sum(axis=0)

    @property
    def hits(self) -> np.ndarray:
        """int64 [C]; pixels of each class that are predicted as it."""
        return np.diag(self.counts)


@dataclass(frozen=True, eq=False)
class ClassCounts(ClassFigures):
    """How often each class is true, predicted, and both; a confusion matrix without its cells.

    Attributes:
        counts: int64 [3, C]; rows truth, predicted, hits.
    """

    counts: np.ndarray

    @property
    def truth(self) -> np.ndarray:
        """int64 [C]; labelled pixels of each class."""
        return self.counts[0]

    @property
    def predicted(self) -> np.ndarray:
        """int64 [C]; labelled pixels that are predicted as each class."""
        return self.counts[1]

    @property
    def hits(self) -> np.ndarray:
        """int64 [C]; pixels of each class that are predicted as it."""
        return self.counts[2]


def ratio(part: int, whole: int) -> float | None:
    """Returns part / whole, or None if whole is 0."""
    return part / whole if whole else None


def mean(values: tuple[float | None, ...]) -> float | None:
    """Returns the mean of the values that are not None, or None if there are none."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _ratios(parts: np.ndarray, wholes: np.ndarray) -> tuple[float | None, ...]:
    pairs = zip(parts.tolist(), wholes.tolist(), strict=True)
    return tuple(ratio(part, whole) for part, whole in pairs)
