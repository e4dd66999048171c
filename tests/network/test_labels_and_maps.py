from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.network.labels_and_maps import calibrated, maps, other_classes

TEMPERATURE = Calibration(scale=(0.5,), attention_scale=0.7, attention_bias=-0.3)
VECTOR = Calibration(scale=(0.5, 1.5, 1.0, 2.0), bias=(0.3, -1.0, 0.0, 4.0))


def softmax(values: np.ndarray) -> np.ndarray:
    """By the definition, in float64."""
    raised = np.exp(values - values.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


@pytest.fixture
def outputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    refine = np.log(softmax(rng.normal(size=(5, 7, 4)) * 3))
    coarse, attention = rng.normal(size=(5, 7, 4)), rng.normal(size=(5, 7, 2))
    found = {"coarse": coarse, "refine": refine, "attention": attention}
    return {name: each.astype(np.float32) for name, each in found.items()}


@pytest.mark.parametrize("calibration", [UNCALIBRATED, TEMPERATURE, VECTOR])
def test_maps_are_what_their_definitions_say(
    outputs: dict[str, np.ndarray], calibration: Calibration
) -> None:
    found = {name: each.numpy() for name, each in maps(outputs, calibration).items()}
    label, coarse = outputs["refine"].argmax(-1), outputs["coarse"].argmax(-1)
    bias = np.array(calibration.bias or [0.0])
    probabilities = softmax(outputs["refine"] * np.array(calibration.scale) + bias)
    logit = outputs["attention"][..., 0] - outputs["attention"][..., 1]
    logit = logit * calibration.attention_scale + calibration.attention_bias

    np.testing.assert_array_equal(found["labels"], label)
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-6)
    np.testing.assert_allclose(found["attention"], 1 / (1 + np.exp(-logit)), atol=1e-6)

    def wrong(of: np.ndarray) -> np.ndarray:
        return 1 - np.take_along_axis(probabilities, of[..., None], axis=-1)[..., 0]

    np.testing.assert_allclose(found["risk"], wrong(label), atol=1e-6)
    np.testing.assert_allclose(found["difficulty"], wrong(coarse), atol=1e-6)
    assert (label != coarse).any()  # or difficulty and risk are one
    if calibration is VECTOR:
        assert (probabilities.argmax(-1) != label).any()  # or a changed label would not be seen


def test_doubt_is_not_lost_beside_a_probability_near_one() -> None:
    logits = tf.constant([[0.0, -30.0], [0.0, -31.0]])  # both probabilities are 1 in float32
    first, second = np.log(other_classes(tf.nn.softmax(logits), tf.constant([0, 0])))
    np.testing.assert_allclose([first, second], [-30.0, -31.0], rtol=1e-6)


def test_without_calibration_nothing_is_computed(outputs: dict[str, Any]) -> None:
    refine = tf.constant(outputs["refine"])
    np.testing.assert_array_equal(calibrated(refine, UNCALIBRATED), refine)
