"""Every figure against scikit-learn, or against a slow version written from its definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics

from ccfnet_tf.evaluation.auroc_and_aurc import RIGHT, WRONG, Ranking
from ccfnet_tf.evaluation.score_histogram import ScoreHistogram, bins_of


def exactly(scores: np.ndarray, wrong: np.ndarray) -> Ranking:
    """Counts each distinct score apart."""
    _, place = np.unique(scores, return_inverse=True)
    counts = [np.bincount(place[flags], minlength=place.max() + 1) for flags in (wrong, ~wrong)]
    return Ranking.of(np.stack(counts))


def slow_areas(scores: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    """Returns AURC and AUGRC: pixels are given up from the most doubtful on, ties at once."""
    count = scores.size
    coverage, selective, general = [], [], []
    for threshold in np.unique(scores)[::-1]:
        kept = wrong[scores <= threshold]
        coverage.append(kept.size / count)
        selective.append(kept.sum() / kept.size)
        general.append(kept.sum() / count)
    coverage.append(0.0)
    selective.append(selective[-1])
    general.append(0.0)
    areas = []
    for risk in (selective, general):
        steps = range(len(coverage) - 1)
        areas.append(
            sum((coverage[i] - coverage[i + 1]) * (risk[i] + risk[i + 1]) / 2 for i in steps)
        )
    return areas[0], areas[1]


def slow_rates(scores: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    """Returns the two false-positive rates by scikit-learn's ROC curves."""
    rates = []
    for positive, values in ((wrong, scores), (~wrong, -scores)):
        false, true, _ = metrics.roc_curve(positive, values, drop_intermediate=False)
        rates.append(false[np.argmax(true >= 0.95)])
    return rates[0], rates[1]


def normal(rng: np.random.Generator, wrong: np.ndarray) -> np.ndarray:
    return rng.normal(size=wrong.size) * 3 + 2 * wrong


def rounded(rng: np.random.Generator, wrong: np.ndarray) -> np.ndarray:
    return np.round(rng.normal(size=wrong.size) + wrong)


def all_tied(rng: np.random.Generator, wrong: np.ndarray) -> np.ndarray:
    return np.full(wrong.size, rng.normal())


def perfect(rng: np.random.Generator, wrong: np.ndarray) -> np.ndarray:
    return rng.random(wrong.size) + wrong


def reversed_(rng: np.random.Generator, wrong: np.ndarray) -> np.ndarray:
    return rng.random(wrong.size) - wrong


@pytest.mark.parametrize("draw", [normal, rounded, all_tied, perfect, reversed_])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_every_figure(
    draw: Callable[[np.random.Generator, np.ndarray], np.ndarray], share: float
) -> None:
    rng = np.random.default_rng(5)
    wrong = rng.random(1500) < share
    scores = draw(rng, wrong)
    ours = exactly(scores, wrong)
    error = wrong.mean()
    assert ours.error_rate == pytest.approx(error)
    assert ours.auroc == pytest.approx(metrics.roc_auc_score(wrong, scores))
    assert ours.average_precision == pytest.approx(metrics.average_precision_score(wrong, scores))
    rates = (ours.fpr_at_error_recall, ours.fpr_at_correct_recall)
    assert rates == pytest.approx(slow_rates(scores, wrong))
    aurc, augrc = slow_areas(scores, wrong)
    assert ours.aurc == pytest.approx(aurc)
    assert ours.augrc == pytest.approx(augrc)
    # Traub et al. 2024, equation 8.
    accuracy = 1 - error
    assert augrc == pytest.approx((1 - ours.auroc) * accuracy * error + error**2 / 2)
    assert ours.e_aurc == pytest.approx(aurc - error - accuracy * np.log(accuracy))
    if draw is perfect:
        # The closed form of the best order is that of infinitely many pixels.
        assert ours.e_aurc == pytest.approx(0, abs=1e-3)
        assert (ours.auroc, rates) == (1, (0, 0))
    if draw is all_tied:
        assert (ours.auroc, ours.average_precision) == (0.5, pytest.approx(error))
        assert ours.aurc == pytest.approx(error)


def precision_range(wrong: np.ndarray, right: np.ndarray) -> float:
    """Returns the bound of the docstring: what the order within bins can do to the precision."""
    wrong, right = wrong[::-1], right[::-1]
    before = np.cumsum(wrong) - wrong, np.cumsum(right) - right
    best = (before[0] + wrong) / np.maximum(before[0] + wrong + before[1], 1)
    worst = before[0] / np.maximum(before[0] + before[1] + right, 1)
    return float((wrong * (best - worst)).sum() / wrong.sum())


def risk_range(wrong: np.ndarray, right: np.ndarray) -> float:
    before = np.cumsum(wrong) - wrong, np.cumsum(right) - right
    worst = (before[0] + wrong) / np.maximum(before[0] + wrong + before[1], 1)
    best = before[0] / np.maximum(before[0] + before[1] + right, 1)
    pixels = wrong + right
    return float((pixels * (worst - best)).sum() / pixels.sum())


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_bins_change_no_figure_by_more_than_the_bound(spread: float, share: float) -> None:
    rng = np.random.default_rng(6)
    wrong = rng.random(200_000) < share
    scores = ((rng.normal(size=wrong.size) + wrong) * spread).astype(np.float32)
    counts = ScoreHistogram.of(scores, wrong).counts
    binned, exact = Ranking.of(counts), exactly(scores, wrong)
    portions = counts / counts.sum(axis=1, keepdims=True)
    pairs = (portions[WRONG] * portions[RIGHT]).sum() / 2
    largest = portions.max(axis=1)
    bounds = {
        "auroc": pairs,
        "augrc": pairs * share * 1.01,
        "average_precision": precision_range(*counts),
        "aurc": risk_range(*counts),
        "fpr_at_error_recall": largest[RIGHT],
        "fpr_at_correct_recall": largest[WRONG],
    }
    for name, bound in bounds.items():
        change = abs(getattr(binned, name) - getattr(exact, name))
        assert change <= bound + 1e-12, name
        assert bound < (0.02 if "average" in name or spread < 1 else 0.005), name
        # With all scores within a twentieth of a logit there are few bins.
        assert change < (5e-3 if spread < 1 else 1e-4), name
    assert np.array_equal(exactly(bins_of(scores), wrong).wrong, binned.wrong)


def test_pixels_of_one_kind() -> None:
    none = Ranking.of(np.zeros((2, 5), np.int64))
    names = ("auroc", "average_precision", "fpr_at_error_recall", "fpr_at_correct_recall")
    assert all(getattr(none, name) is None for name in (*names, "aurc", "e_aurc", "augrc"))
    assert none.risk_coverage() == {"coverage": [], "risk": []}
    right = Ranking.of(np.array([[0, 0], [3, 4]]))
    assert all(getattr(right, name) is None for name in names)
    assert (right.aurc, right.e_aurc, right.augrc) == (0, 0, 0)
    wrong = Ranking.of(np.array([[3, 4], [0, 0]]))
    assert (wrong.average_precision, wrong.auroc, wrong.fpr_at_error_recall) == (1, None, None)
    assert (wrong.aurc, wrong.e_aurc, wrong.augrc) == (1, 0, 0.5)


def test_the_curve_has_few_points_and_ends_with_all_pixels() -> None:
    rng = np.random.default_rng(7)
    wrong = rng.random(5000) < 0.2
    scores = rng.normal(size=5000) + wrong
    curve = exactly(scores, wrong).risk_coverage()
    assert len(curve["coverage"]) == len(curve["risk"]) == 100
    assert (curve["coverage"][-1], curve["risk"][-1]) == (1, wrong.mean())
    for coverage, risk in zip(*curve.values(), strict=True):
        kept = np.argsort(scores)[: round(coverage * 5000)]
        assert risk == pytest.approx(wrong[kept].mean())
    assert exactly(np.zeros(9), np.arange(9) < 3).risk_coverage()["coverage"] == [1]
