"""Paired bootstrap over images: intervals of the figures of networks and of their differences.

Images are drawn with replacement, the same ones for every network, and the figures of refine are
computed from the sum of their confusion matrices (Efron and Tibshirani 1993, percentile
intervals). Pixels of one image are not independent, so images are drawn, never pixels.

Shapes: N images, C classes, R resamples; counts int64 [N, 3, C], rows truth, predicted, hits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
"""Share of the resamples that an interval contains."""

FIGURES = ("pixel_accuracy", "mean_iou")

_AT_ONCE = 100
"""Resamples whose weights are in memory at a time."""


@dataclass(frozen=True)
class Interval:
    """A figure and the range of its resamples; fractions 0..1, or differences -1..1.

    Attributes:
        value: On the original images.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """Intervals of one network; None where no image has a labelled pixel.

    Attributes:
        figures: The interval of each figure, by its name in `FIGURES`.
        gains: The interval of the difference to the first network, for each figure.
    """

    figures: dict[str, Interval | None]
    gains: dict[str, Interval | None]


def image_counts(cells: np.ndarray, images: int, classes: int) -> np.ndarray:
    """Returns counts [N, 3, C] of the cells of confusion matrices.

    Args:
        cells: int64 [M, 4], columns image, truth, prediction, pixels, as in `images.npz`.
        images: N.
        classes: C.
    """
    counts = np.zeros((images, 3, classes), np.int64)
    image, truth, predicted, pixels = cells.T
    hit = truth == predicted
    np.add.at(counts, (image, 0, truth), pixels)
    np.add.at(counts, (image, 1, predicted), pixels)
    np.add.at(counts, (image[hit], 2, truth[hit]), pixels[hit])
    return counts


def bootstrap(
    networks: Sequence[np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Resampled]:
    """Resamples images and returns the intervals of each network.

    Args:
        networks: Counts [N, 3, C] of each network, for the same images in the same order.
        resamples: R.
        seed: Seed of the draws.

    Memory: the counts as float64, and about a hundred rows of N and of 3C numbers.
    """
    drawn = resampled_figures(networks, resamples=resamples, seed=seed)
    whole = np.stack([whole_figures(counts) for counts in networks])
    return [
        Resampled(
            _intervals(whole[place], drawn[place]),
            _intervals(whole[place] - whole[0], drawn[place] - drawn[0]),
        )
        for place in range(len(networks))
    ]


def whole_figures(counts: np.ndarray) -> np.ndarray:
    """Returns float64 [len(FIGURES)] of the images as they are; NaN if no pixel is labelled."""
    figures: np.ndarray = _figures(counts.sum(axis=0)[np.newaxis])[0]
    return figures


def resampled_figures(networks: Sequence[np.ndarray], *, resamples: int, seed: int) -> np.ndarray:
    """Returns float64 [networks, R, len(FIGURES)]; NaN where a resample has no labelled pixel."""
    images = networks[0].shape[0]
    rng = np.random.default_rng(seed)
    # float64 adds integers below 2^53 exactly, and its matrix product is fast.
    flat = [counts.reshape(images, 3 * counts.shape[2]).astype(np.float64) for counts in networks]
    figures = np.full((len(networks), resamples, len(FIGURES)), np.nan)
    for start in range(0, resamples if images else 0, _AT_ONCE):
        rows = min(_AT_ONCE, resamples - start)
        times = draw(rng, rows, images)
        for place, counts in enumerate(flat):
            summed = (times @ counts).reshape(rows, 3, -1)
            figures[place, start : start + rows] = _figures(summed)
    return figures


def draw(rng: np.random.Generator, rows: int, images: int) -> np.ndarray:
    """Returns how often each image is in each resample, float64 [rows, N]; each row adds to N."""
    chosen = rng.integers(0, images, (rows, images)) + images * np.arange(rows)[:, np.newaxis]
    counts = np.bincount(chosen.ravel(), minlength=rows * images)
    return counts.reshape(rows, images).astype(np.float64)


def _figures(summed: np.ndarray) -> np.ndarray:
    """Returns pixel accuracy and mean IoU, float64 [R, 2], of counts [R, 3, C]; NaN without any.

    The mean is over the classes that the labels of a resample contain, as `mean_iou_present`.
    """
    truth, predicted, hits = summed[:, 0], summed[:, 1], summed[:, 2]
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, as it should be
        accuracy = hits.sum(axis=1) / truth.sum(axis=1)
        iou = hits / (truth + predicted - hits)
        present = truth > 0
        mean = np.where(present, iou, 0.0).sum(axis=1) / present.sum(axis=1)
    return np.stack([accuracy, mean], axis=1)


def _intervals(whole: np.ndarray, drawn: np.ndarray) -> dict[str, Interval | None]:
    """Returns the intervals of figures [F] and of their resamples [R, F]."""
    ends = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    found: dict[str, Interval | None] = {}
    for column, name in enumerate(FIGURES):
        values = drawn[:, column][~np.isnan(drawn[:, column])]
        value = float(whole[column])
        if np.isnan(value) or not values.size:
            found[name] = None
        else:
            found[name] = Interval(value, *(float(end) for end in np.quantile(values, ends)))
    return found
