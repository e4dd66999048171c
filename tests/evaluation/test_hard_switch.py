from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.evaluation.hard_switch import THRESHOLDS, HardSwitch, SwitchPoint, count_switch

CLASSES, PIXELS = 4, 3000


def drawn(seed: int = 0) -> tuple[np.ndarray, ...]:
    """Returns scores, truth, coarse and fine; fine is right more often where the score is high."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, PIXELS)  # class 3 is predicted, but in no label
    logit = rng.normal(-1, 3, PIXELS)
    wrong = rng.random((2, PIXELS)) < np.stack([1 / (1 + np.exp(-logit)), np.full(PIXELS, 0.2)])
    coarse, fine = np.where(wrong, rng.integers(0, CLASSES, (2, PIXELS)), truth)
    return logit, truth, coarse, fine


@pytest.mark.parametrize("index", [0, 1, 10, 30, len(THRESHOLDS)])
def test_a_point_is_the_result_of_the_switch(index: int) -> None:
    logit, truth, coarse, fine = drawn()
    point = HardSwitch(count_switch(logit, truth, coarse, fine, CLASSES)).points[index]
    above = np.full(PIXELS, True) if index == 0 else logit > THRESHOLDS[index - 1]
    confusion = Confusion.of(truth, np.where(above, fine, coarse), classes=CLASSES)
    threshold = 0.0 if index == 0 else 1 / (1 + np.exp(-THRESHOLDS[index - 1]))
    expected = (threshold, above.mean(), confusion.pixel_accuracy, confusion.mean_iou_present)
    assert point == SwitchPoint(*map(pytest.approx, expected))


def test_a_score_on_a_threshold_is_not_above_it() -> None:
    """As in the layer `HardGate`."""
    one = np.array([1])
    points = HardSwitch(count_switch(THRESHOLDS[20:21], one, 0 * one, one, 2)).points
    assert [point.fine_share for point in points] == [1.0] * 21 + [0.0] * 61


def test_parts_add_up() -> None:
    arrays = drawn()
    parts = [
        count_switch(*(array[half] for array in arrays), CLASSES)
        for half in (np.s_[:1000], np.s_[1000:])
    ]
    np.testing.assert_array_equal(sum(parts), count_switch(*arrays, CLASSES))


def test_the_chosen_point_uses_the_fewest_pixels_of_fine_and_loses_nothing() -> None:
    switch = HardSwitch(count_switch(*drawn(), CLASSES))
    chosen = switch.as_good_as_fine
    assert chosen is not None
    assert 0 < chosen.fine_share < 1
    everywhere = switch.points[0].mean_iou
    assert chosen.mean_iou >= everywhere
    assert all(
        point.mean_iou < everywhere
        for point in switch.points
        if point.fine_share < chosen.fine_share
    )


def test_the_best_point_has_the_highest_mean_iou_and_of_those_the_fewest_pixels() -> None:
    switch = HardSwitch(count_switch(*drawn(), CLASSES))
    best = switch.best
    assert best is not None
    assert best.mean_iou == max(point.mean_iou for point in switch.points)
    assert best.mean_iou > max(switch.points[0].mean_iou, switch.points[-1].mean_iou)
    logit, truth, coarse, _ = drawn()
    same = HardSwitch(count_switch(logit, truth, coarse, coarse, CLASSES))
    assert same.best == same.points[-1]  # fine is needed nowhere


def test_between_two_points_the_result_is_interpolated() -> None:
    switch = HardSwitch(count_switch(*drawn(), CLASSES))
    one, other = switch.points[20], switch.points[21]
    middle = switch.at_share((one.fine_share + other.fine_share) / 2)
    assert middle == pytest.approx(
        ((one.pixel_accuracy + other.pixel_accuracy) / 2, (one.mean_iou + other.mean_iou) / 2)
    )
    assert switch.at_share(1.0) == (switch.points[0].pixel_accuracy, switch.points[0].mean_iou)


def test_without_labelled_pixels_there_is_no_point() -> None:
    nothing = np.zeros(0, np.int64)
    switch = HardSwitch(count_switch(nothing.astype(float), nothing, nothing, nothing, CLASSES))
    assert switch.points == ()
    assert switch.best is None
    assert switch.as_good_as_fine is None
    assert switch.at_share(0.5) is None
