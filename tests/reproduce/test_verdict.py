"""Verdicts by the rule, and intervals by a slow bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.evaluation.bootstrap import RESAMPLES, draw
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.reproduce.verdict import decide, differences, over_seeds
from tests.evaluation.test_bootstrap import CLASSES, counts_of, matrices


@pytest.mark.parametrize(
    ("values", "low", "high", "verdict"),
    [
        ([0.02, 0.03, 0.01], 0.005, 0.04, "yes"),
        ([-0.02, -0.03, -0.01], -0.04, -0.005, "no"),
        ([0.02, 0.03, 0.01], -0.001, 0.04, "not shown"),  # the images do not show it
        ([0.09, 0.03, -0.06], 0.005, 0.04, "not shown"),  # the seeds do not
        ([-0.09, -0.03, 0.06], -0.04, -0.005, "not shown"),
        ([0.02, 0.03], 0.005, 0.04, "not shown"),  # too few
        ([0.0, 0.0, 0.0], 0.0, 0.0, "not shown"),
    ],
)
def test_the_rule(values: list[float], low: float, high: float, verdict: str) -> None:
    assert decide(values, low, high, planned=len(values)) == verdict
    assert decide(values, low, high, planned=len(values) + 1) == "unfinished"


def test_without_images_the_spread_alone_decides() -> None:
    assert over_seeds([0.02, 0.03, 0.01], 3) == "yes"
    assert over_seeds([-0.02, -0.03, -0.01], 3) == "no"
    assert over_seeds([0.09, 0.03, -0.06], 3) == "not shown"
    assert over_seeds([0.02], 1) == "not shown"
    assert over_seeds([0.02, 0.03, 0.01], 4) == "unfinished"


def test_intervals_are_those_of_the_mean_over_pairs() -> None:
    pairs = [(matrices(seed), matrices(seed + 10)) for seed in range(3)]
    found = differences([(counts_of(one), counts_of(other)) for one, other in pairs])
    rng = np.random.default_rng(0)  # the same draws for every pair
    times = np.concatenate([draw(rng, 100, 9) for _ in range(RESAMPLES // 100)]).astype(int)

    def mean_iou(each: np.ndarray, counts: np.ndarray) -> float:
        total = (each[:, None, None] * counts).sum(0)
        value = Confusion(total).mean_iou_present
        assert value is not None
        return value

    whole = [mean_iou(np.ones(9, int), a) - mean_iou(np.ones(9, int), b) for a, b in pairs]
    iou = found["mean_iou"]
    np.testing.assert_allclose(iou.values, whole)
    assert iou.mean == pytest.approx(np.mean(whole))
    assert iou.spread == pytest.approx(np.std(whole, ddof=1))
    slow = [np.mean([mean_iou(each, a) - mean_iou(each, b) for a, b in pairs]) for each in times]
    assert len(slow) == RESAMPLES
    assert (iou.low, iou.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))
    assert CLASSES == 4


def test_a_recipe_is_not_better_than_itself() -> None:
    counts = [counts_of(matrices(seed)) for seed in range(3)]
    same = differences([(each, each) for each in counts])["mean_iou"]
    assert (same.mean, same.low, same.high, same.verdict) == (0, 0, 0, "not shown")


def test_without_a_labelled_pixel_nothing_is_shown() -> None:
    nothing = np.zeros((4, 3, 2), np.int64)
    found = differences([(nothing, nothing)] * 3)["pixel_accuracy"]
    assert (found.mean, found.low, found.verdict) == (None, None, "not shown")


def test_an_image_without_labels_does_not_hide_the_others() -> None:
    one, other = (counts_of(matrices(seed)) for seed in (0, 1))
    void = np.zeros((30, *one.shape[1:]), np.int64)
    sparse = [np.concatenate([each[:1], void]) for each in (one, other)]
    found = differences([(sparse[0], sparse[1])] * 3)["pixel_accuracy"]
    assert found.mean is not None
    assert found.low == found.high == pytest.approx(found.mean)
