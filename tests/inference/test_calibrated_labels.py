"""Labels that are enlarged or averaged are those of the uncalibrated network, at every pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from ccfnet_tf.inference.downscale import SmallerImages, shrunk
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.resize import resize_map
from ccfnet_tf.inference.segmenter_protocol import Maps, Prediction, Segmenter
from ccfnet_tf.inference.test_time import Augmentation
from ccfnet_tf.inference.tiles import Tiling
from ccfnet_tf.inference.wrap_segmenter import Wrapping, wrap
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runtimes.letterbox import fit
from ccfnet_tf.runtimes.litert import _prediction
from tests.inference.local_network import LocalCascade, noise

IMAGE = noise(150, 230)
SMALL = (70, 110)
VIEWS, TILES = Augmentation((0.5, 1.0, 1.5), flip=True), Tiling(64)
CALIBRATIONS = [
    Calibration((0.3,)),
    Calibration((3.0,), attention_scale=3.0, attention_bias=-1.0),
    Calibration((0.5, 1.5, 1.0, 2.0, 0.7), (0.3, -1.0, 0.0, 4.0, 1.0), 0.5, 0.7),
]
NAMES = ["flatter", "steeper", "vector"]


def softmax(probabilities: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Calibrates probabilities [..., C] by the definition, in float64."""
    logits = np.log(probabilities.astype(np.float64)) * np.array(calibration.scale)
    raised = np.exp(logits + np.array(calibration.bias or [0.0]))
    return np.asarray(raised / raised.sum(-1, keepdims=True))


def attended(attention: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Calibrates attention [...] by the definition, in float64."""
    exact = np.clip(attention.astype(np.float64), 1e-7, 1 - 1e-7)
    logit = np.log(exact) - np.log(1 - exact)
    scaled = logit * calibration.attention_scale + calibration.attention_bias
    return np.asarray(1 / (1 + np.exp(-scaled)))


def risk(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(1 - np.take_along_axis(probabilities, labels[..., None], -1)[..., 0])


class Artifact:
    """Has calibrated probabilities and no heads, like an exported file.

    Outputs depend on the pixels within `radius`, so that tiles differ where they are joined.
    """

    at_once = 1

    def __init__(self, calibration: Calibration, radius: int = 16) -> None:
        self.calibration = calibration
        self._cascade = LocalCascade(radius=radius)
        self.taxonomy = self._cascade.taxonomy

    def predict(self, image: np.ndarray, /) -> Prediction:
        found = self._cascade.predict(image)
        probabilities = softmax(found.probabilities, self.calibration).astype(np.float32)
        return found._replace(
            attention=attended(found.attention, self.calibration).astype(np.float32),
            probabilities=probabilities,
            risk=risk(found.labels, probabilities).astype(np.float32),
        )


class OfOneSize(Artifact):
    """Like a LiteRT file, whose predictions are enlarged."""

    def predict(self, image: np.ndarray, /) -> Prediction:
        fitted = fit(image, SMALL)
        found = _prediction(super().predict(fitted.image)._asdict(), fitted, self.calibration)
        assert isinstance(found, Prediction)
        return found


WRAPPED: dict[str, Callable[[Segmenter], Segmenter]] = {
    "size": lambda network: SmallerImages(network, SMALL),
    "tta": lambda network: wrap(network, Wrapping(VIEWS)),
    "tile": lambda network: wrap(network, Wrapping(tiling=TILES)),
    "all": lambda network: SmallerImages(wrap(network, Wrapping(VIEWS, TILES)), (100, 150)),
}


@pytest.mark.parametrize("calibration", CALIBRATIONS, ids=NAMES)
@pytest.mark.parametrize("name", [*WRAPPED, "litert", "litert with tta"])
def test_labels_of_files_are_those_without_a_calibration(
    name: str, calibration: Calibration
) -> None:
    kind = OfOneSize if "litert" in name else Artifact
    around = WRAPPED.get(name.removeprefix("litert with "), lambda network: network)
    plain, found = (around(kind(each)).predict(IMAGE) for each in (UNCALIBRATED, calibration))
    np.testing.assert_array_equal(found.labels, plain.labels)
    assert (found.labels.dtype, found.risk.dtype) == (np.int32, np.float32)
    if isinstance(plain, Prediction):
        assert isinstance(found, Prediction)
        exact = softmax(plain.probabilities, calibration)
        np.testing.assert_allclose(found.probabilities, exact, atol=1e-5)
        np.testing.assert_allclose(found.risk, risk(found.labels, exact), atol=1e-5)
    if name == "tta":  # only averages are calibrated; tiles and sizes enlarge calibrated maps
        average = attended(plain.attention, calibration)
        # Calibrated attention near 1 has few bits left in float32.
        np.testing.assert_allclose(found.attention, average, atol=5e-3)


@pytest.mark.parametrize("calibration", [UNCALIBRATED, *CALIBRATIONS], ids=["none", *NAMES])
def test_risk_is_that_of_calibrated_probabilities(calibration: Calibration) -> None:
    """For wrappers that return no probabilities."""
    network = Artifact(UNCALIBRATED, radius=0)
    small = network.predict(shrunk(IMAGE, SMALL)).probabilities
    enlarged, whole = resize_map(small, (150, 230)), network.predict(IMAGE).probabilities
    for name, expected in (("size", enlarged), ("tile", whole)):
        found = WRAPPED[name](Artifact(calibration, radius=0)).predict(IMAGE)
        assert isinstance(found, Maps)
        np.testing.assert_array_equal(found.labels, expected.argmax(-1))
        exact = risk(found.labels, softmax(expected, calibration))
        np.testing.assert_allclose(found.risk, exact, atol=1e-5)


@pytest.fixture(scope="module")
def runs(toy: Callable[..., Any]) -> dict[Calibration, KerasNetwork]:
    """A network without and with the calibrations."""
    keras.utils.set_random_seed(0)
    made = toy(5)
    kernel = made.get_layer("backbone").get_layer("body").kernel
    kernel.assign(kernel / 25.0)  # logits in units
    both = [UNCALIBRATED, *CALIBRATIONS]
    return {each: KerasNetwork(made, calibration=each) for each in both}


@pytest.mark.parametrize("calibration", CALIBRATIONS, ids=NAMES)
@pytest.mark.parametrize("name", WRAPPED)
def test_labels_of_runs_are_those_without_a_calibration(
    runs: dict[Calibration, KerasNetwork], name: str, calibration: Calibration
) -> None:
    plain, found = (
        WRAPPED[name](runs[each]).predict(IMAGE) for each in (UNCALIBRATED, calibration)
    )
    assert len(np.unique(plain.labels)) > 1
    np.testing.assert_array_equal(found.labels, plain.labels)
    assert np.abs(found.risk - plain.risk).max() > 0.05


def test_certain_classes_give_numbers() -> None:
    """Probabilities of 0 and 1, as rounding leaves them, with the strongest calibrations."""

    class Certain(Artifact):
        def predict(self, image: np.ndarray, /) -> Prediction:
            found = super().predict(image)
            probabilities = np.eye(5, dtype=np.float32)[found.labels]
            return found._replace(probabilities=probabilities, risk=np.zeros_like(found.risk))

    vector = Calibration((0.05, 20.0, 1.0, 7.0, 0.05), (99.0, -99.0, 0.0, 3.0, 1.0))
    for calibration in (Calibration((0.05,)), Calibration((20.0,)), vector):
        for around in WRAPPED.values():
            found = around(Certain(calibration)).predict(IMAGE)
            assert ((found.risk >= 0) & (found.risk <= 1)).all()
