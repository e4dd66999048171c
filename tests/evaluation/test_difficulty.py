from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.evaluation.difficulty import BINS, EASY, HARD, ScoreHistogram


def exact_auroc(scores: np.ndarray, hard: np.ndarray) -> float:
    """The definition: share of (hard, easy) pairs in the right order, ties half."""
    pairs = scores[hard][:, None] - scores[~hard][None]
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)


@pytest.mark.parametrize(
    ("hard", "easy", "auroc"),
    [
        ([2.0], [1.0], 1.0),
        ([1.0], [2.0], 0.0),
        ([1.0], [1.0], 0.5),
        ([3.0, 1.0], [2.0, 0.0], 3 / 4),
        ([1.0, 1.0, 5.0], [1.0, 0.0], (0.5 + 1 + 0.5 + 1 + 1 + 1) / 6),
        ([100.0], [20.0], 0.5),  # both are certain: clipped to the same bin
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
    assert ours == pytest.approx(exact_auroc(scores, hard), abs=1e-3)


def test_none_where_all_pixels_are_of_one_kind() -> None:
    assert ScoreHistogram.empty().auroc is None
    assert ScoreHistogram.empty().hard_share is None
    for flag in (True, False):
        state = ScoreHistogram.of(np.zeros(5), np.full(5, flag))
        assert state.auroc is None
        assert state.hard_share == float(flag)


def test_rows_and_ends() -> None:
    state = ScoreHistogram.of(np.array([-99.0, 99.0, 99.0]), np.array([True, False, False]))
    assert state.counts[HARD, 0] == 1
    assert state.counts[EASY, BINS - 1] == 2
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
    with pytest.raises(ValueError, match="hard is"):
        ScoreHistogram.of(np.zeros(2), np.array([True]))
