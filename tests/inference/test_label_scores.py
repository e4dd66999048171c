"""Labels that are enlarged or averaged are the network's, with any calibration."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ccfnet_tf.inference.downscale import SmallerImages
from ccfnet_tf.inference.segmenter_protocol import Maps, Prediction, Segmenter, label_scores
from ccfnet_tf.inference.test_time import Augmentation, AugmentedNetwork
from ccfnet_tf.inference.tiles import TiledNetwork, Tiling
from ccfnet_tf.runtimes.letterbox import fit
from ccfnet_tf.runtimes.litert import _prediction
from tests.inference.by_brightness import ByBrightness

SURE, UNSURE = 0.45, 0.4
IMAGE = np.full((64, 128, 3), 200, np.uint8)
IMAGE[:, :64] = 20


class Biased(ByBrightness):
    """Like a network with vector scaling: class 1 is the likeliest, and never a label."""

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        found = super().predict(image)
        labels = np.where(found.labels == 1, 0, found.labels)
        probabilities = np.full((*labels.shape, 3), 1 - SURE - UNSURE, np.float32)
        probabilities[..., 1] = SURE
        np.put_along_axis(probabilities, labels[..., np.newaxis], np.float32(UNSURE), axis=-1)
        risk = np.full(labels.shape, 1 - UNSURE, np.float32)
        return Prediction(labels, found.attention, found.difficulty, risk, probabilities)


class LiteRT(Biased):
    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        fitted = fit(image, (32, 64))
        found = super().predict(fitted.image)
        assert isinstance(found, Prediction)
        return _prediction(found._asdict(), fitted)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda network: SmallerImages(network, (32, 64)),
        lambda network: AugmentedNetwork(network, Augmentation((0.5, 1.0), flip=True)),
        lambda network: TiledNetwork(network, Tiling(48)),
        lambda _: LiteRT(),
    ],
    ids=["size", "tta", "tile", "litert"],
)
def test_labels_and_risk_are_those_of_the_network(
    wrapped: Callable[[Segmenter], Segmenter],
) -> None:
    found, expected = wrapped(Biased()).predict(IMAGE), Biased().predict(IMAGE)
    away = np.r_[:60, 68:128]  # from the boundary between the classes, where they mix
    np.testing.assert_array_equal(found.labels[:, away], expected.labels[:, away])
    np.testing.assert_allclose(found.risk[:, away], 1 - UNSURE, atol=1e-6)


def test_probabilities_are_scores_where_the_label_is_the_likeliest() -> None:
    plain, biased = ByBrightness().predict(IMAGE), Biased().predict(IMAGE)
    assert isinstance(plain, Prediction)
    assert isinstance(biased, Prediction)
    assert label_scores(plain) is plain.probabilities
    scores = label_scores(biased)
    np.testing.assert_array_equal(scores.argmax(-1), biased.labels)
    np.testing.assert_array_equal(np.sort(scores), np.sort(biased.probabilities))
    assert (biased.probabilities[..., 1] == np.float32(SURE)).all()  # not changed in place
