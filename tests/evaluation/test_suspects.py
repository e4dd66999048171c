"""Regions of hand-made labels and probabilities: areas, boxes and scores are known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ccfnet_tf.evaluation import suspects
from ccfnet_tf.evaluation.suspects import MINIMUM_AREA, Best, Region, image_score, log_odds
from ccfnet_tf.labels import VOID


def certain(classes: np.ndarray, count: int = 3, *, high: float = 0.8) -> np.ndarray:
    """Returns float32 [H, W, count]: `high` for the class of each pixel, the others equal."""
    low = (1 - high) / (count - 1)
    return np.where(classes[..., None] == np.arange(count), high, low).astype(np.float32)


def find_regions(
    label: np.ndarray, probabilities: np.ndarray, *, minimum: int = MINIMUM_AREA
) -> list[Region]:
    """Of a network that predicts the most probable classes."""
    predicted = probabilities.argmax(axis=-1)
    return suspects.find_regions(label, predicted, probabilities, minimum=minimum)


def test_a_region_has_its_box_area_classes_and_score() -> None:
    label = np.zeros((10, 12), np.int32)
    predicted = label.copy()
    predicted[2:5, 3:9] = 2
    predicted[2, 3] = 0  # The box stays, the area is one pixel smaller.
    (region,) = find_regions(label, certain(predicted), minimum=1)
    assert region.box == (3, 2, 6, 3)
    assert (region.area, region.given, region.predicted) == (17, 0, 2)
    assert region.log_odds == pytest.approx(math.log(0.8 / 0.1))
    assert region.score == pytest.approx(17 * math.log(8))
    np.testing.assert_array_equal(region.inside, (predicted == 2)[2:5, 3:9])


def test_log_odds_are_averaged_over_the_region() -> None:
    label = np.zeros((1, 3), np.int32)
    probabilities = np.array([[[0.2, 0.8], [0.4, 0.6], [0.9, 0.1]]])
    (region,) = find_regions(label, probabilities, minimum=1)
    assert region.score == pytest.approx(math.log(4) + math.log(1.5))
    assert region.log_odds == pytest.approx(region.score / 2)


def test_regions_of_other_predicted_classes_are_separate() -> None:
    label = np.zeros((4, 8), np.int32)
    predicted = label.copy()
    predicted[:, 2:4], predicted[:, 4:6] = 1, 2
    found = find_regions(label, certain(predicted), minimum=1)
    assert [(each.predicted, each.box) for each in found] == [(1, (2, 0, 2, 4)), (2, (4, 0, 2, 4))]


def test_pixels_touch_diagonally() -> None:
    label = np.zeros((4, 4), np.int32)
    (region,) = find_regions(label, certain(np.eye(4, dtype=np.int32)), minimum=4)
    assert (region.area, region.box) == (4, (0, 0, 4, 4))


def test_the_given_class_is_the_most_frequent_one_and_the_lower_of_equal_ones() -> None:
    label = np.array([[1, 1, 1, 2, 2]], np.int32)
    predicted = np.zeros_like(label)
    assert find_regions(label, certain(predicted), minimum=1)[0].given == 1
    assert find_regions(label[:, 1:], certain(predicted[:, 1:]), minimum=1)[0].given == 1


def test_void_is_in_no_region_and_separates_regions() -> None:
    label = np.zeros((3, 7), np.int32)
    label[:, 3] = VOID
    found = find_regions(label, certain(np.ones_like(label)), minimum=1)
    assert [each.box for each in found] == [(0, 0, 3, 3), (4, 0, 3, 3)]
    assert find_regions(np.full_like(label, VOID), certain(np.ones_like(label)), minimum=1) == []


@pytest.mark.parametrize("given", [0, 1])
def test_a_given_class_that_is_as_probable_as_the_predicted_one_is_right(given: int) -> None:
    label = np.full((2, 2), given, np.int32)
    tied = np.tile(np.float32([0.4, 0.4, 0.2]), (2, 2, 1))
    assert find_regions(label, tied, minimum=1) == []
    third = np.full((2, 2), 2, np.int32)
    (region,) = find_regions(third, tied, minimum=1)
    assert region.predicted == 0
    assert region.log_odds == pytest.approx(math.log(2))


def test_regions_below_the_minimum_are_left_out() -> None:
    label = np.zeros((8, 20), np.int32)
    predicted = label.copy()
    predicted[:, :8], predicted[:7, 10:19] = 1, 1  # 64 and 63 pixels
    (region,) = find_regions(label, certain(predicted))
    assert region.area == 64


def test_a_right_label_and_a_single_class_have_no_region() -> None:
    label = np.random.default_rng(0).integers(0, 3, (9, 9)).astype(np.int32)
    assert find_regions(label, certain(label), minimum=1) == []
    assert find_regions(label * 0, np.ones((9, 9, 1), np.float32), minimum=1) == []


def test_a_label_that_is_predicted_is_right_whatever_vector_scaling_makes_of_it() -> None:
    label = np.zeros((4, 4), np.int32)
    probabilities = certain(np.ones_like(label))  # class 1 is more probable after calibration
    assert suspects.find_regions(label, label, probabilities, minimum=1) == []
    predicted = label + 2  # neither the label nor the most probable class
    assert suspects.find_regions(label, predicted, probabilities, minimum=1) == []
    probabilities = np.tile(np.float32([0.1, 0.5, 0.4]), (4, 4, 1))
    (region,) = suspects.find_regions(label, predicted, probabilities, minimum=1)
    assert region.predicted == 2
    assert region.log_odds == pytest.approx(math.log(4))


def test_a_probability_of_zero_has_finite_log_odds() -> None:
    label = np.zeros((1, 1), np.int32)
    odds = log_odds(label, label + 1, np.array([[[0.0, 1.0]]]))
    assert 80 < odds[0, 0] < 100


def slow_regions(label: np.ndarray, probabilities: np.ndarray) -> list[tuple[object, ...]]:
    """Returns predicted class, area and score of each region, by flood fill from the definition."""
    height, width = label.shape
    chosen = {}
    for y in range(height):
        for x in range(width):
            p, given = probabilities[y, x].astype(float), label[y, x]
            if given != VOID and p.max() > p[given]:
                chosen[y, x] = int(p.argmax()), math.log(p.max() / p[given])
    found = []
    while chosen:
        start = next(iter(chosen))
        index, odds = chosen.pop(start)
        stack, area, score = [start], 1, odds
        while stack:
            y, x = stack.pop()
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in chosen and chosen[near][0] == index:
                    score += chosen.pop(near)[1]
                    area += 1
                    stack.append(near)
        found.append((index, area, score))
    return sorted(found)


@pytest.mark.parametrize("seed", range(5))
def test_regions_equal_those_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 2, 3, VOID], (23, 31)).astype(np.int32)
    probabilities = rng.dirichlet(np.full(4, 0.5), (23, 31)).astype(np.float32)
    found = find_regions(label, probabilities, minimum=1)
    ours = sorted((each.predicted, each.area, each.score) for each in found)
    expected = slow_regions(label, probabilities)
    assert [each[:2] for each in ours] == [each[:2] for each in expected]
    np.testing.assert_allclose([e[2] for e in ours], [e[2] for e in expected], rtol=1e-4)
    assert image_score(found) == pytest.approx(sum(each.score for each in found))


def test_an_image_without_regions_has_score_zero() -> None:
    assert image_score([]) == 0.0
    region = Region(0, 0, np.ones((2, 2), bool), 0, 1, 1.5)
    assert image_score([region, region._replace(log_odds=0.5)]) == 8.0


@pytest.mark.parametrize("count", [1, 3, 50])
def test_best_keeps_the_highest_and_the_first_of_equal_ones(count: int) -> None:
    rng = np.random.default_rng(count)
    scores = rng.integers(0, 6, 40).tolist()
    best = Best[int](count)
    for place, score in enumerate(scores):
        best.add(score, place)
    expected = sorted(range(40), key=lambda place: -scores[place])[:count]
    assert best.in_order() == expected
    assert best.admits(max(scores) + 1)
    assert best.admits(scores[expected[-1]]) == (count > 40)  # An equal one comes too late.
    assert best.admits(-1) == (count > 40)
