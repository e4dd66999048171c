from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.network.labels_and_maps import calibrated

VECTOR = Calibration(scale=(0.5, 1.5, 1.0, 2.0), bias=(0.3, -1.0, 0.0, 4.0))
USUAL = [Calibration((0.3,)), Calibration((3.0,)), VECTOR]
EXTREME = [
    Calibration((0.05,)),
    Calibration((20.0,)),
    Calibration((0.05, 20.0, 1.0, 7.0), (50.0, -50.0, 0.0, 3.0)),
]


@pytest.fixture
def probabilities() -> np.ndarray:
    raised = np.exp(3 * np.random.default_rng(0).normal(size=(50, 70, 4)))
    return (raised / raised.sum(-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("calibration", USUAL)
def test_numpy_calibrates_as_the_graph_does(
    probabilities: np.ndarray, calibration: Calibration
) -> None:
    found = calibration.calibrated(probabilities)
    assert found.dtype == np.float32
    expected = np.exp(calibrated(np.log(probabilities), calibration))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for class_id in range(4):  # of all pixels, and of each
        odds = [
            np.exp(calibration.scores(probabilities[..., class_id], ids))
            for ids in (class_id, np.full((50, 70), class_id))
        ]
        np.testing.assert_array_equal(*odds)
        total = (odds[0] / found[..., class_id])[found[..., class_id] > 1e-6]
        others = np.exp(calibration.scores(probabilities, np.arange(4))).sum(-1)
        np.testing.assert_allclose(total, others[found[..., class_id] > 1e-6], rtol=1e-4)


@pytest.mark.parametrize("calibration", USUAL)
def test_the_inverse_gives_the_probabilities_back(
    probabilities: np.ndarray, calibration: Calibration
) -> None:
    found = calibration.uncalibrated(calibration.calibrated(probabilities))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, probabilities, rtol=2e-5)
    np.testing.assert_array_equal(found.argmax(-1), probabilities.argmax(-1))


@pytest.mark.parametrize("calibration", [*USUAL, *EXTREME])
def test_zeros_stay_zeros_and_ties_stay_ties(calibration: Calibration) -> None:
    certain, tied = np.eye(4), np.array([[0.5, 0.5, 0, 0], [0, 0.25, 0.25, 0.5]])
    values = np.concatenate([certain, tied]).astype(np.float32)
    for found in (calibration.calibrated(values), calibration.uncalibrated(values)):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    found = calibration.uncalibrated(values)
    np.testing.assert_array_equal(found[:4], values[:4])
    assert (found[values == 0] == 0).all()
    if len(calibration.scale) == 1:
        np.testing.assert_array_equal(found.argmax(-1), values.argmax(-1))
        assert found[4, 0] == found[4, 1]


def test_what_calibrates_attention_alone_leaves_probabilities(probabilities: np.ndarray) -> None:
    for calibration in (UNCALIBRATED, Calibration(attention_scale=2.0, blend_threshold=0.1)):
        assert calibration.calibrated(probabilities) is probabilities
        assert calibration.uncalibrated(probabilities) is probabilities


def test_attention_is_calibrated_as_in_the_graph_and_given_back() -> None:
    attention = np.linspace(0, 1, 101).astype(np.float32)
    calibration = Calibration(attention_scale=3.0, attention_bias=-1.0)
    found = calibration.calibrated_attention(attention)
    assert found.dtype == np.float32
    logit = np.log(attention[1:-1]) - np.log(1 - attention[1:-1])
    np.testing.assert_allclose(found[1:-1], 1 / (1 + np.exp(-(3 * logit - 1))), rtol=1e-5)
    np.testing.assert_array_equal(found[[0, -1]], [0, 1])
    np.testing.assert_allclose(calibration.uncalibrated_attention(found), attention, atol=1e-4)
    above = np.nextafter(np.float32(1), np.float32(2))
    assert calibration.uncalibrated_attention(np.array([above]))[0] == 1
    temperature = Calibration((0.5,))
    assert temperature.calibrated_attention(attention) is attention
    assert temperature.uncalibrated_attention(attention) is attention
