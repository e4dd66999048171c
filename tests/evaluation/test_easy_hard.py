from __future__ import annotations

import numpy as np

from ccfnet_tf.evaluation.easy_hard import GroupAccuracy

HARD = np.array([True, True, False, False, False])
RIGHT = np.array([[0, 0, 1, 1, 1], [1, 0, 1, 0, 0], [1, 1, 1, 1, 0]], bool)


def test_hand_worked() -> None:
    assert GroupAccuracy.of(HARD, RIGHT).to_json() == {
        "easy": {"share": 3 / 5, "coarse": 1.0, "fine": 1 / 3, "refine": 2 / 3},
        "hard": {"share": 2 / 5, "coarse": 0.0, "fine": 1 / 2, "refine": 1.0},
    }


def test_an_empty_group_has_no_accuracy() -> None:
    figures = GroupAccuracy.of(np.array([False]), np.ones((3, 1), bool)).to_json()
    assert figures["hard"] == {"share": 0.0, "coarse": None, "fine": None, "refine": None}
    assert GroupAccuracy.empty().to_json()["easy"]["share"] is None


def test_merge_of_parts_equals_the_whole() -> None:
    parts = GroupAccuracy.of(HARD[:2], RIGHT[:, :2]).merge(GroupAccuracy.of(HARD[2:], RIGHT[:, 2:]))
    np.testing.assert_array_equal(parts.counts, GroupAccuracy.of(HARD, RIGHT).counts)
