from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from ccfnet_tf.evaluation.reliability import (
    BINS,
    Reliability,
    adaptive_ece,
    count_class_reliability,
    count_reliability,
)
from ccfnet_tf.evaluation.score_histogram import ScoreHistogram


def drawn(seed: int, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities and whether they came true, less often than they say."""
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.5, 2, count).astype(np.float32)
    return probability, rng.random(count) < probability**1.3


def slow_ece(probability: np.ndarray, true: np.ndarray, place: np.ndarray) -> float:
    gaps = []
    for index in np.unique(place):
        inside = place == index
        gap = abs(true[inside].mean() - probability[inside].astype(np.float64).mean())
        gaps.append(gap * inside.mean())
    return float(sum(gaps))


def test_ece_against_its_definition() -> None:
    probability, true = drawn(0)
    state = Reliability.of(probability, true)
    place = np.minimum((probability * np.float32(15)).astype(int), 14)
    assert state.ece == pytest.approx(slow_ece(probability, true, place), abs=2**-25)


def test_the_curve_against_scikit_learn() -> None:
    probability, true = drawn(1)
    # In the middle of steps, so that no probability lies on an edge of a bin.
    probability = (np.floor(probability * 1500) + np.float32(0.5)) / np.float32(1500)
    curve = Reliability.of(probability, true).curve()
    observed, predicted = calibration_curve(true, probability, n_bins=BINS)
    filled = [row for row in curve if row["pixels"]]
    np.testing.assert_allclose([row["observed"] for row in filled], observed)
    np.testing.assert_allclose([row["predicted"] for row in filled], predicted, atol=1e-6)


def test_adaptive_ece_against_scikit_learn() -> None:
    probability, true = drawn(2)
    logit = np.log(probability) - np.log1p(-probability)
    ours = adaptive_ece(ScoreHistogram.of(logit, true).counts)
    observed, predicted = calibration_curve(true, probability, n_bins=BINS, strategy="quantile")
    assert ours == pytest.approx(np.abs(observed - predicted).mean(), abs=2e-4)


def test_adaptive_ece_where_all_scores_are_one() -> None:
    true = np.arange(100) < 30
    assert adaptive_ece(ScoreHistogram.of(np.zeros(100), true).counts) == pytest.approx(
        0.2, abs=5e-5
    )
    assert adaptive_ece(ScoreHistogram.empty().counts) is None
    sure = ScoreHistogram.of(np.array([-np.inf, np.inf]), np.array([False, True]))
    assert adaptive_ece(sure.counts) == pytest.approx(0, abs=1e-12)


def test_ends_and_nothing() -> None:
    state = Reliability.of(
        np.float32([0, 1, 1 / 15, 14 / 15]), np.array([False, True, False, True])
    )
    assert [row["pixels"] for row in state.curve()] == [1, 1, *[0] * 12, 2]
    none = Reliability(np.zeros((3, BINS), np.int64))
    assert none.ece is None
    assert none.curve()[0] == {"pixels": 0, "predicted": None, "observed": None}


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_each_class_is_counted_as_by_itself(classes: int) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(classes, 500)) * 2
    probabilities = (np.exp(logits) / np.exp(logits).sum(0)).astype(np.float32)
    truth = rng.integers(0, classes, 500)
    counts = count_class_reliability(probabilities, truth)
    for index in range(classes):
        alone = Reliability.of(probabilities[index], truth == index)
        np.testing.assert_array_equal(counts[index], alone.counts)


def test_each_group_is_counted_as_by_itself() -> None:
    probability, true = drawn(5, 3000)
    group = np.random.default_rng(6).integers(0, 3, 3000)
    counts = count_reliability(probability, true, group, 4)
    for index in range(4):  # nothing is in the last group
        alone = Reliability.of(probability[group == index], true[group == index])
        np.testing.assert_array_equal(counts[index], alone.counts)


@pytest.mark.parametrize("cut", [0, 7, 20_000])
def test_parts_add_up_to_exactly_the_whole(cut: int) -> None:
    probability, true = drawn(4)
    head, tail = (
        Reliability.of(probability[part], true[part]) for part in (np.s_[:cut], np.s_[cut:])
    )
    whole = Reliability.of(probability, true)
    np.testing.assert_array_equal(head.merge(tail).counts, whole.counts)
