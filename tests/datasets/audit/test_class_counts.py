from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.labels import VOID

A = np.array([[0, 0, 1], [VOID, 0, 1]], np.int32)
B = np.array([[1, 1], [1, 2]], np.int32)


def test_counts_of_two_labels_by_hand() -> None:
    both = Census.of(A, 4) + Census.of(B, 4)
    assert both.pixels.tolist() == [3, 5, 1, 0]
    assert both.pictures.tolist() == [1, 2, 1, 0]
    assert both.within.tolist() == [5, 9, 4, 0]
    assert (both.void, both.samples) == (1, 2)
    np.testing.assert_allclose(both.shares(), [3 / 9, 5 / 9, 1 / 9, 0])


def test_weights_by_hand() -> None:
    both = Census.of(A, 4) + Census.of(B, 4)
    # frequencies 3/5, 5/9, 1/4; their median is 5/9; class 3 never occurs
    np.testing.assert_allclose(
        both.median_frequency(), [5 / 9 / (3 / 5), 1.0, 5 / 9 / (1 / 4), 0.0]
    )
    np.testing.assert_allclose(both.inverse_log()[[0, 3]], 1 / np.log([1.02 + 3 / 9, 1.02]))


def test_no_labels_and_only_void() -> None:
    void = Census.of(np.full((3, 4), VOID, np.int32), 2)
    for census, pixels in ((Census.empty(2), 0), (void, 12)):
        assert census.void == pixels
        assert census.shares().tolist() == [0, 0]
        assert census.median_frequency().tolist() == [0, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6), st.integers(0, 6))
def test_counts_are_additive(seeds: list[int], cut: int) -> None:
    labels = [np.random.default_rng(s).integers(VOID, 5, (4, 7)).astype(np.int32) for s in seeds]
    parts = [Census.of(label, 5) for label in labels]
    whole = sum(parts, Census.empty(5))
    left, right = sum(parts[:cut], Census.empty(5)), sum(parts[cut:], Census.empty(5))
    for key, value in vars(left + right).items():
        np.testing.assert_array_equal(value, vars(whole)[key])
    everything = np.stack(labels)
    assert whole.pixels.tolist() == [(everything == k).sum() for k in range(5)]
    assert whole.void == pytest.approx((everything == VOID).sum())
