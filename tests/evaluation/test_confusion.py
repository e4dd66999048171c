from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.labels import VOID

# Four classes: 2 is only predicted, 3 appears nowhere.
TRUTH = np.array([[0, 0, 0, 1], [1, VOID, 0, VOID]])
GUESS = np.array([[0, 0, 1, 1], [2, 3, 0, 0]])


def test_hand_worked_figures() -> None:
    state = Confusion.of(TRUTH, GUESS, classes=4)

    np.testing.assert_array_equal(
        state.counts, [[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    )
    assert state.counts.dtype == np.int64
    assert state.pixels == 6
    assert state.pixel_accuracy == pytest.approx(4 / 6)
    assert state.recall == (3 / 4, 1 / 2, None, None)
    assert state.class_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert state.iou == (3 / 4, 1 / 3, 0.0, None)
    assert state.mean_iou_union == pytest.approx((3 / 4 + 1 / 3 + 0) / 3)
    assert state.present == 2
    assert state.mean_iou_present == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert state.mean_iou_all == pytest.approx((3 / 4 + 1 / 3) / 4)
    assert state.class_accuracy_all == pytest.approx((3 / 4 + 1 / 2) / 4)


@pytest.mark.parametrize("seed", range(5))
def test_figures_of_each_class_against_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Class 3 is only predicted, 4 only true, 5 appears nowhere.
    truth = rng.choice([0, 1, 2, 4, VOID], size=(13, 17), p=[0.5, 0.2, 0.1, 0.05, 0.15])
    guess = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 4, truth.shape))
    guess[(guess == 4) | (guess == VOID)] = 3
    state = Confusion.of(truth, guess, classes=6)
    pair = (truth[truth != VOID], guess[truth != VOID])
    options = {"labels": range(6), "average": None, "zero_division": np.nan}
    for ours, function in (
        (state.precision, metrics.precision_score),
        (state.recall, metrics.recall_score),
        (state.dice, metrics.f1_score),
    ):
        theirs = [None if np.isnan(value) else value for value in function(*pair, **options)]
        assert ours == pytest.approx(theirs)
    assert (state.precision[4:], state.recall[3], state.recall[5]) == ((None, None), None, None)
    assert state.dice[3:] == (0.0, 0.0, None)
    jaccard = metrics.jaccard_score(*pair, labels=range(5), average=None)
    assert state.iou == pytest.approx([*jaccard, None])


def test_prediction_on_void_counts_nowhere() -> None:
    other = GUESS.copy()
    other[TRUTH == VOID] = 2
    first, second = (Confusion.of(TRUTH, guess, classes=4) for guess in (GUESS, other))
    np.testing.assert_array_equal(first.counts, second.counts)


def test_all_void_has_no_figures() -> None:
    state = Confusion.of(np.full((2, 3), VOID), np.zeros((2, 3), int), classes=3)
    assert state.pixels == 0
    assert state.pixel_accuracy is None
    assert state.class_accuracy is None
    assert state.mean_iou_present is None
    assert state.mean_iou_union is None
    assert state.iou == (None, None, None)


@pytest.mark.parametrize("cut", [0, 1, 7, 16])
def test_merge_of_parts_equals_the_whole(cut: int) -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, VOID], size=(16, 8, 8))
    guess = rng.integers(0, 3, size=(16, 8, 8))
    head = Confusion.of(truth[:cut], guess[:cut], classes=3)
    tail = Confusion.of(truth[cut:], guess[cut:], classes=3)
    whole = Confusion.of(truth, guess, classes=3)
    np.testing.assert_array_equal(head.merge(tail).counts, whole.counts)
    np.testing.assert_array_equal(Confusion.empty(3).merge(whole).counts, whole.counts)


def test_counts_beyond_float32() -> None:
    big = Confusion(np.array([[2**24, 0], [0, 0]], np.int64))
    assert big.merge(Confusion(np.array([[1, 0], [0, 0]], np.int64))).pixels == 2**24 + 1


@pytest.mark.parametrize(
    ("truth", "guess", "says"),
    [
        ([3], [0], "truth contains class ids 3..3"),
        ([-2], [0], "truth contains"),
        ([0], [3], "prediction contains"),
        ([0], [-1], "prediction contains"),
        ([0, 1], [0], "truth is (2,) but prediction is (1,)"),
    ],
)
def test_refuses_ids_outside_the_classes(truth: list[int], guess: list[int], says: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Confusion.of(np.array(truth), np.array(guess), classes=3)
    assert says in str(caught.value)
