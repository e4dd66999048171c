"""Figures of each image: `images.csv` for people, `images.npz` for programs.

images.npz contains `names` [N], and for each of `CELLS` the cells of every confusion matrix that
are not 0: int64 [M, 4], columns image, truth, prediction, pixels. A bootstrap over images
therefore needs no second pass over the data.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.evaluation.easy_hard import HEADS
from ccfnet_tf.evaluation.reliability import STEP

COMPARED = (*HEADS, "average")
"""Predictions whose confusion matrices are kept: the heads, and the plain average of coarse and
fine."""

NEAR_PREFIX = "near_"

CELLS = (*COMPARED, *(NEAR_PREFIX + prediction for prediction in COMPARED))
"""Names of the confusion matrices: of all labelled pixels, and with `NEAR_PREFIX` of those within
4 pixels of a boundary."""

NUMBERS = (
    "index",
    "height",
    "width",
    "pixels",
    "corrected",
    "spoiled",
    "attention",
    "difficulty",
    "risk",
    "at_risk",
)
"""Columns of `ImageTable.numbers`: index in the split, sizes, labelled pixels, errors of coarse
that refine corrects, right pixels of coarse that it spoils, sums of the maps / STEP, and pixels
whose risk is above 1/2."""


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Counts of each image of a part of a split.

    Attributes:
        names: Names of N images, as `Sample.name`.
        numbers: int64 [N, len(NUMBERS)].
        cells: For each of `CELLS` the cells of the confusion matrices that are not 0, int64
            [M, 4]; columns index of the image in the split, truth, prediction, pixels.
    """

    names: tuple[str, ...]
    numbers: np.ndarray
    cells: Mapping[str, np.ndarray]

    @classmethod
    def joined(cls, tables: Iterable[ImageTable]) -> ImageTable:
        """Returns the images of several tables in the order of the split.

        Raises:
            ValueError: An image is in two of them.
        """
        parts = [*tables]
        numbers = np.concatenate([_none(len(NUMBERS)), *(part.numbers for part in parts)])
        names = [name for part in parts for name in part.names]
        order = np.argsort(numbers[:, 0], kind="stable")
        twice = np.flatnonzero(np.diff(numbers[order, 0]) == 0)
        if twice.size:
            raise ValueError(f"image '{names[order[twice[0]]]}' is in more than one part")
        cells = {
            head: np.concatenate([_none(4), *(p.cells[head] for p in parts)]) for head in CELLS
        }
        ordered = {
            head: rows[np.argsort(rows[:, 0], kind="stable")] for head, rows in cells.items()
        }
        return cls(tuple(names[place] for place in order), numbers[order], ordered)

    def confusion(self, head: str, classes: int) -> Confusion:
        """Returns the confusion matrix over all images of one of `CELLS`."""
        counts = np.zeros((classes, classes), np.int64)
        rows = self.cells[head]
        np.add.at(counts, (rows[:, 1], rows[:, 2]), rows[:, 3])
        return Confusion(counts)

    def to_csv(self) -> str:
        """Returns `images.csv`: one row per image; fractions 0..1, undefined figures are empty.

        Means are over the labelled pixels, and mean IoU over the classes of the image's label.
        """
        file = io.StringIO()
        figures = ("pixel_accuracy", "mean_iou")
        of_heads = [f"{head}_{figure}" for head in HEADS for figure in figures]
        means = ["mean_attention", "mean_difficulty", "mean_risk", "share_at_risk"]
        writer = csv.writer(file, lineterminator="\n")
        columns = ["corrected", "spoiled", *means]
        writer.writerow(["image", "height", "width", "pixels", *of_heads, *columns])
        starts = {head: self._starts(head) for head in HEADS}
        for place, name in enumerate(self.names):
            _, height, width, pixels, corrected, spoiled, *sums, at_risk = self.numbers[
                place
            ].tolist()
            accuracies = [
                figure
                for head in HEADS
                for figure in _figures(self.cells[head][slice(*starts[head][place : place + 2])])
            ]
            shares = [_share(total * STEP, pixels) for total in sums]
            figures_ = [*accuracies, corrected, spoiled, *shares, _share(at_risk, pixels)]
            writer.writerow([name, height, width, pixels, *map(_shown, figures_)])
        return file.getvalue()

    def to_npz(self) -> bytes:
        """Returns the content of `images.npz`."""
        file = io.BytesIO()
        places = self.numbers[:, 0]
        arrays: dict[str, Any] = {}
        for head in CELLS:
            rows = self.cells[head].copy()
            rows[:, 0] = np.searchsorted(places, rows[:, 0])
            arrays[head] = rows
        np.savez_compressed(file, names=np.array(self.names, dtype=np.str_), **arrays)
        return file.getvalue()

    def _starts(self, head: str) -> list[int]:
        """Returns the first cell of each image, and the end of the last one."""
        rows = self.cells[head][:, 0]
        return [*np.searchsorted(rows, self.numbers[:, 0]).tolist(), rows.size]


def cells_of(truth: np.ndarray, prediction: np.ndarray, classes: int, index: int) -> np.ndarray:
    """Returns the confusion matrix of one image as int64 [M, 4], as in `ImageTable`.

    Args:
        truth: Integer [N], 0..C-1.
        prediction: Integer [N], 0..C-1.
        classes: C.
        index: Index of the image in the split.
    """
    counts = np.bincount(truth * classes + prediction)
    filled = np.flatnonzero(counts)
    columns = (np.full(filled.size, index), filled // classes, filled % classes, counts[filled])
    return np.stack(columns, axis=1).astype(np.int64)


def _none(columns: int) -> np.ndarray:
    return np.zeros((0, columns), np.int64)


def _figures(rows: np.ndarray) -> tuple[float | None, float | None]:
    """Returns pixel accuracy and mean IoU of one image's cells [M, 4]."""
    # Over the classes of this image alone, so that a thousand classes cost no more.
    ids, compact = np.unique(rows[:, 1:3], return_inverse=True)
    counts = np.zeros((ids.size, ids.size), np.int64)
    counts[tuple(compact.reshape(-1, 2).T)] = rows[:, 3]
    confusion = Confusion(counts)
    return confusion.pixel_accuracy, confusion.mean_iou_present


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6f}"
