"""Labels, risk and features of one pass, against the network's own layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from ccfnet_tf.inference.feature_network import FeatureNetwork
from ccfnet_tf.inference.keras_network import KerasNetwork


@pytest.fixture(scope="module")
def network(model: Any) -> FeatureNetwork:
    return FeatureNetwork(model)


@pytest.mark.slow
def test_labels_and_risk_are_those_of_the_prediction(
    network: FeatureNetwork, predictor: KerasNetwork, picture: np.ndarray
) -> None:
    found, expected = network.view(picture), predictor.predict(picture)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.risk, expected.risk, atol=1e-5)


def test_features_are_the_mean_of_the_backbone(
    network: FeatureNetwork, model: Any, picture: np.ndarray
) -> None:
    inside = keras.Model(model.get_layer("backbone").inputs, model.get_layer("backbone").outputs)
    before = keras.Model(model.input, model.get_layer("pad_to_grid").output)
    features = inside(before(picture[None].astype(np.float32)))[-1]
    expected = np.asarray(features).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(network.view(picture).features, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0


def test_an_image_under_32_pixels_keeps_its_size(network: FeatureNetwork) -> None:
    image = np.random.default_rng(0).integers(0, 255, (9, 40, 3)).astype(np.uint8)
    found = network.view(image)
    assert found.labels.shape == found.risk.shape == (9, 40)
