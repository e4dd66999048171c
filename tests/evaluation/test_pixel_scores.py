from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.evaluation.pixel_scores import HeadScores, calibrated, calibrated_attention, sigmoid
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.network.labels_and_maps import maps


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns float64 [C, N]."""
    logits = logits - logits.max(0)
    return logits - np.log(np.exp(logits).sum(0))


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("classes", [2, 8])
def test_scores_are_as_fine_where_a_head_is_sure(scale: float, classes: int) -> None:
    """Also where float32 has no number between the largest probability and 1."""
    logs = log_softmax(np.random.default_rng(0).normal(size=(classes, 3000)) * scale)
    ours = HeadScores.of(logs.astype(np.float32))
    exact = logs.astype(np.float32).astype(np.float64)
    ordered = np.sort(exact, axis=0)
    others = np.log(np.exp(ordered[:-1]).sum(0))
    np.testing.assert_array_equal(ours.label, logs.argmax(0))
    np.testing.assert_allclose(ours.max_softmax, others - ordered[-1], rtol=1e-5, atol=2e-6)
    margin = np.exp(ordered[-1]) - np.exp(ordered[-2])
    below = np.logaddexp(others, ordered[-2])
    clear = margin > 1e-3
    np.testing.assert_allclose(
        ours.margin[clear], (below - np.log(margin))[clear], rtol=1e-4, atol=2e-4
    )
    entropy = -(np.exp(exact) * exact).sum(0) / np.log(classes)
    np.testing.assert_allclose(sigmoid(ours.entropy), entropy, rtol=1e-5, atol=1e-7)
    label = np.random.default_rng(1).integers(0, classes, 3000)
    chosen = np.take_along_axis(exact, label[np.newaxis], 0)[0]
    rest = np.exp(exact)
    np.put_along_axis(rest, label[np.newaxis], 0, 0)
    np.testing.assert_allclose(
        ours.wrong_logit(label), np.log(rest.sum(0)) - chosen, rtol=1e-5, atol=2e-6
    )


def test_beyond_what_float32_adds_up() -> None:
    logs = np.array([[0, 0, 0], [-60, -80, -400], [-61, -200, -np.inf]], np.float32)
    ours = HeadScores.of(logs)
    expected = [np.logaddexp(-60, -61), -80, -400]
    np.testing.assert_allclose(ours.max_softmax, expected, rtol=1e-6)
    assert (np.diff(ours.margin) < 0).all()
    assert not np.isnan(ours.entropy).any()


def test_ties_and_a_single_class() -> None:
    even = HeadScores.of(np.log(np.full((4, 2), 0.25, np.float32)))
    assert even.label.tolist() == [0, 0]
    assert (even.margin == np.inf).all()
    assert (sigmoid(even.entropy) > 0.99999).all()
    alone = HeadScores.of(np.zeros((1, 2), np.float32))
    assert (alone.max_softmax < -1e20).all()
    assert (alone.margin < -1e20).all()
    assert (alone.entropy == -np.inf).all()


@pytest.mark.parametrize(
    "calibration",
    [
        UNCALIBRATED,
        Calibration((0.7,), (), 1.3, -0.2),
        Calibration((0.5, 1.0, 2.0), (0.1, -0.3, 0.4), 0.6, 0.9),
    ],
)
def test_the_maps_are_those_of_the_graph(calibration: Calibration) -> None:
    rng = np.random.default_rng(2)
    coarse, refine = (log_softmax(rng.normal(size=(3, 400)) * 3).astype(np.float32) for _ in "ab")
    attention = rng.normal(size=(400, 2)).astype(np.float32)
    theirs = maps(
        {"coarse": tf.constant(coarse.T), "attention": attention, "refine": refine.T}, calibration
    )
    ours = HeadScores.of(calibrated(refine, calibration))
    label = HeadScores.of(refine).label
    np.testing.assert_array_equal(label, theirs["labels"])
    difficulty = ours.wrong_logit(HeadScores.of(coarse).label)
    logit = calibrated_attention(attention[:, 0] - attention[:, 1], calibration)
    np.testing.assert_allclose(ours.probabilities.T, theirs["probabilities"], atol=1e-6)
    np.testing.assert_allclose(sigmoid(difficulty), theirs["difficulty"], atol=1e-6)
    np.testing.assert_allclose(sigmoid(ours.wrong_logit(label)), theirs["risk"], atol=1e-6)
    np.testing.assert_allclose(sigmoid(logit), theirs["attention"], atol=1e-6)


def test_sigmoid_has_no_warning_at_the_ends() -> None:
    ends = np.array([-1e30, -90, 0, 90, 1e30], np.float32)
    np.testing.assert_allclose(sigmoid(ends), [0, 0, 0.5, 1, 1], atol=1e-30)
