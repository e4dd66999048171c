from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ccfnet_tf.evaluation.auroc_and_aurc import RIGHT, WRONG
from ccfnet_tf.evaluation.score_histogram import BINS, ScoreHistogram, bins_of, centres


def exact_auroc(scores: np.ndarray, hard: np.ndarray) -> float:
    """Share of (hard, easy) pairs in the right order, ties half, by ranks (Mann and Whitney)."""
    _, place, times = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[place]  # equal scores share the mean of theirs
    count = int(hard.sum())
    above = ranks[hard].sum() - count * (count + 1) / 2
    return float(above / (count * (hard.size - count)))


@pytest.mark.parametrize(
    ("hard", "easy", "auroc"),
    [
        ([2.0], [1.0], 1.0),
        ([1.0], [2.0], 0.0),
        ([1.0], [1.0], 0.5),
        ([3.0, 1.0], [2.0, 0.0], 3 / 4),
        ([1.0, 1.0, 5.0], [1.0, 0.0], (0.5 + 1 + 0.5 + 1 + 1 + 1) / 6),
        ([100.0], [20.0], 1.0),  # as probabilities in float32 both are 1
        ([20.02], [20.0], 1.0),
        ([-20.0], [-20.02], 1.0),
        ([1e9], [1e8], 0.5),  # beyond what is told apart
        ([-np.inf], [np.inf], 0.0),
    ],
)
def test_hand_worked(hard: list[float], easy: list[float], auroc: float) -> None:
    flags = np.array([True] * len(hard) + [False] * len(easy))
    assert ScoreHistogram.of(np.array(hard + easy), flags).auroc == pytest.approx(auroc)


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_close_to_exact_on_random_scores(spread: float) -> None:
    rng = np.random.default_rng(1)
    hard = rng.random(3000) < 0.2
    scores = rng.normal(size=3000) * spread + hard * spread
    ours = ScoreHistogram.of(scores, hard).auroc
    assert ours == pytest.approx(exact_auroc(scores, hard), abs=1e-4)


def beyond_16(rng: np.random.Generator, hard: np.ndarray) -> np.ndarray:
    """Half of the pixels lie beyond +-16, in two narrow heaps that still tell hard from easy."""
    far = rng.random(hard.size) < 0.5
    near = rng.normal(size=hard.size) * 3 + hard
    heap = np.sign(near) * (20 + rng.normal(size=hard.size)) + 0.5 * hard
    return np.where(far, heap, near)


def up_to_40(rng: np.random.Generator, hard: np.ndarray) -> np.ndarray:
    return rng.uniform(-40, 40, hard.size) * 0.9 + 4 * hard


def sure_and_wrong(rng: np.random.Generator, hard: np.ndarray) -> np.ndarray:
    """Sure of what is easy, from -13 to -40 on a scale of ratios."""
    return -np.exp(rng.uniform(np.log(13), np.log(40), hard.size)) * np.where(hard, 0.97, 1)


def ties(rng: np.random.Generator, hard: np.ndarray) -> np.ndarray:
    return np.round(rng.normal(size=hard.size) * 20 + 5 * hard)


def saturated(rng: np.random.Generator, hard: np.ndarray) -> np.ndarray:
    """Most pixels have one of two scores, the others lie close to these."""
    end = np.where(rng.random(hard.size) < 0.3 + 0.2 * hard, 30.0, -30.0)
    return end + (rng.random(hard.size) < 0.3) * (rng.normal(size=hard.size) + 0.2 * hard)


def half_precision(rng: np.random.Generator, hard: np.ndarray) -> np.ndarray:
    return (rng.normal(size=hard.size) * 10 + 3 * hard).astype(np.float16).astype(np.float32)


def near_zero(rng: np.random.Generator, hard: np.ndarray) -> np.ndarray:
    return 0.05 * (rng.normal(size=hard.size) + hard)


@pytest.mark.parametrize(
    "draw", [beyond_16, up_to_40, sure_and_wrong, ties, saturated, half_precision, near_zero]
)
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_close_to_exact_on_hard_distributions(
    draw: Callable[[np.random.Generator, np.ndarray], np.ndarray], share: float
) -> None:
    rng = np.random.default_rng(4)
    hard = rng.random(100_000) < share
    scores = draw(rng, hard)
    state = ScoreHistogram.of(scores, hard)
    error = abs(state.auroc - exact_auroc(scores, hard))  # type: ignore[operator]
    # Where half of all scores are one number, those that share its bin count as equal to it.
    assert error < (2e-4 if draw is saturated else 1e-5)
    shares = state.counts / state.counts.sum(axis=1, keepdims=True)
    assert error <= (shares[WRONG] * shares[RIGHT]).sum() / 2 + 1e-12  # what the docstring promises
    if draw is ties:
        assert error < 1e-12


@pytest.mark.parametrize("low", [-4000.0, -40.0, -1.0, -1e-3, 0.0, 0.3, 15.0, 17.0, 40.0, 4000.0])
def test_bins_are_as_narrow_as_promised(low: float) -> None:
    for _ in range(5):  # wherever in its bin a score lies
        low *= 1.0001
        scores = np.array([low, low + (1 + abs(low)) / 4096])
        assert ScoreHistogram.of(scores, np.array([False, True])).auroc == 1.0


def test_none_where_all_pixels_are_of_one_kind() -> None:
    assert ScoreHistogram.empty().auroc is None
    for flag in (True, False):
        state = ScoreHistogram.of(np.zeros(5), np.full(5, flag))
        assert state.auroc is None
        assert state.ranking.error_rate == float(flag)


def test_the_centre_of_a_bin_lies_in_it() -> None:
    middle = centres()
    np.testing.assert_array_equal(bins_of(middle), np.arange(BINS))
    np.testing.assert_allclose(middle, -middle[::-1])


def test_rows_and_ends() -> None:
    state = ScoreHistogram.of(np.array([-1e99, np.inf, 1e9]), np.array([True, False, False]))
    assert state.counts[WRONG, 0] == 1
    assert state.counts[RIGHT, BINS - 1] == 2
    assert state.counts.sum() == 3


@pytest.mark.parametrize("cut", [0, 3, 50])
def test_merge_of_parts_equals_the_whole(cut: int) -> None:
    rng = np.random.default_rng(2)
    scores, hard = rng.normal(size=50) * 9, rng.random(50) < 0.5
    parts = ScoreHistogram.of(scores[:cut], hard[:cut]).merge(
        ScoreHistogram.of(scores[cut:], hard[cut:])
    )
    np.testing.assert_array_equal(parts.counts, ScoreHistogram.of(scores, hard).counts)


def test_refuses_nan_and_uneven_lengths() -> None:
    with pytest.raises(ValueError, match="NaN"):
        ScoreHistogram.of(np.array([np.nan]), np.array([True]))
    with pytest.raises(ValueError, match="wrong is"):
        ScoreHistogram.of(np.zeros(2), np.array([True]))
