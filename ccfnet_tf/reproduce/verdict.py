"""Whether one recipe is better than another, by a rule that can say no.

Two recipes are compared pair by pair: the runs of a pair have the same seed, so the same order of
the data, and are evaluated on the same images. The difference of the figures is averaged over the
pairs. Two things can make it a matter of chance:

- the images: a 95 % interval from a paired bootstrap of the images, whose resamples are averaged
  over the pairs like the figures themselves;
- the training: the sample standard deviation of the difference over the pairs (its spread).

A recipe is better (`yes`) if there are at least three pairs, the interval lies above 0, and the
mean difference exceeds the spread. `no` is the same with the signs exchanged. Else the verdict is
`not shown`, and `unfinished` until all planned pairs exist.

The spread is not that of the mean: with three pairs and no true difference, normally distributed
over the seeds, the mean exceeds it with probability .11 (t > 1.73 with 2 degrees of freedom). The
interval does not know how the seeds vary, and its classes are those that the labels of a resample
contain, so rare classes come and go.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ccfnet_tf.evaluation.bootstrap import (
    FIGURES,
    LEVEL,
    RESAMPLES,
    resampled_figures,
    whole_figures,
)

Verdict = Literal["yes", "no", "not shown", "unfinished"]

LEAST_SEEDS = 3
"""Pairs of runs below which nothing is shown: two say too little about a spread."""


@dataclass(frozen=True)
class Difference:
    """The difference of a figure between two recipes; None where a pair has no figure.

    Attributes:
        values: Of each pair.
        mean: Of `values`.
        spread: Their sample standard deviation; None for a single pair.
        low: Lower end of the interval over images.
        high: Upper end.
        verdict: By the rule.
    """

    values: tuple[float, ...]
    mean: float | None
    spread: float | None
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """The differences of two recipes.

    Attributes:
        pairs: Number of pairs.
        figures: For each of `bootstrap.FIGURES` its difference, and with the prefix `near_` that
            within 4 pixels of boundaries.
    """

    pairs: int
    figures: dict[str, Difference]

    def to_json(self) -> dict[str, Any]:
        """Returns it as a tree."""
        return {"pairs": self.pairs} | {name: asdict(each) for name, each in self.figures.items()}


def differences(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], planned: int | None = None
) -> dict[str, Difference]:
    """Returns the difference of each of `bootstrap.FIGURES` between two recipes.

    Args:
        pairs: For each pair of runs the counts int64 [N, 3, C] of `bootstrap.image_counts`, of the
            one and of the other. Both have the same images in the same order.
        planned: Number of pairs when the study is finished; by default, that of `pairs`.
    """
    # The same seed draws the same places, so pairs on one test split draw the same images.
    drawn = [resampled_figures(pair, resamples=RESAMPLES, seed=0) for pair in pairs]
    resamples = np.mean([each[0] - each[1] for each in drawn], axis=0)  # [R, F]
    values = np.stack([whole_figures(one) - whole_figures(other) for one, other in pairs])
    return {
        name: _difference(values[:, column], resamples[:, column], planned or len(pairs))
        for column, name in enumerate(FIGURES)
    }


def _difference(values: np.ndarray, resamples: np.ndarray, planned: int) -> Difference:
    """Returns the difference of a figure, from values of pairs [S] and from resamples [R]."""
    sound = resamples[~np.isnan(resamples)]
    if np.isnan(values).any() or not sound.size:
        return Difference((), None, None, None, None, "not shown")
    known = [float(value) for value in values]
    low, high = (float(np.quantile(sound, (1 + sign * LEVEL) / 2)) for sign in (-1, 1))
    spread = statistics.stdev(known) if len(known) > 1 else None
    verdict = decide(known, low, high, planned)
    return Difference(tuple(known), statistics.fmean(known), spread, low, high, verdict)


def over_seeds(values: Sequence[float], planned: int) -> Verdict:
    """Returns the verdict on differences for which there is no interval over images."""
    mean = statistics.fmean(values)
    return decide(values, mean, mean, planned)


def decide(values: Sequence[float], low: float, high: float, planned: int) -> Verdict:
    """Returns the verdict on the differences of pairs with an interval over images.

    Args:
        values: The differences.
        low: Lower end of the interval.
        high: Upper end.
        planned: Number of pairs when the study is finished. Before, there is no verdict, so that
            nobody stops when it is favourable.
    """
    if len(values) < planned:
        return "unfinished"
    if len(values) < LEAST_SEEDS:
        return "not shown"
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    if low > 0 and mean > spread:
        return "yes"
    if high < 0 and -mean > spread:
        return "no"
    return "not shown"
