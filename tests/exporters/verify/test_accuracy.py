"""What a file loses in accuracy: counted over labelled images, and nothing else is charged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.open_data_set import Parts, read_parts
from ccfnet_tf.exporters.verify.accuracy import Accuracy, measure_accuracy
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import MAPS, Maps, Prediction
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runtimes.letterbox import Size, fit, unfit, unfit_labels

SMALLER: Size = (33, 40)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return read_parts(DataConfig(format="scenes", scenes=20, scene_size=(40, 56)), 0)


@pytest.fixture(scope="module", params=[1.0, 0.3], ids=["uncalibrated", "calibrated"])
def predictor(
    parts: Parts, toy: Callable[..., Any], request: pytest.FixtureRequest
) -> KerasNetwork:
    keras.utils.set_random_seed(0)
    return KerasNetwork(
        toy(len(parts.taxonomy.names)),
        taxonomy=parts.taxonomy,
        calibration=Calibration((request.param,)),
    )


class OfOneSize:
    """Keras's own answers through the size of a file: as probabilities, or as labels."""

    at_once = 1

    def __init__(self, predictor: KerasNetwork, *, labels: bool) -> None:
        self.taxonomy: Taxonomy = predictor.taxonomy
        self.calibration = predictor.calibration
        self.predictor, self.labels = predictor, labels

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        fitted = fit(image, SMALLER)
        found = self.predictor.predict(fitted.image)
        maps = [unfit(getattr(found, name), fitted) for name in MAPS]
        if self.labels:
            return Maps(unfit_labels(found.labels, fitted), *maps)
        refine = self.predictor.head_outputs(fitted.image).refine  # not calibrated
        labels = unfit(np.exp(refine), fitted).argmax(-1)
        return Prediction(labels, *maps, unfit(found.probabilities, fitted))


class Knowing:
    """Answers images in their order by labels that are known."""

    at_once = 1
    calibration = UNCALIBRATED

    def __init__(self, taxonomy: Taxonomy, answers: list[np.ndarray]) -> None:
        self.taxonomy, self.answers = taxonomy, iter(answers)

    def predict(self, image: np.ndarray, /) -> Maps:
        return Maps(next(self.answers), *[np.zeros(image.shape[:2], np.float32)] * 3)


@pytest.mark.parametrize("labels", [False, True])
def test_a_size_is_no_loss(parts: Parts, predictor: KerasNetwork, labels: bool) -> None:
    network, told = OfOneSize(predictor, labels=labels), list[float]()
    found = measure_accuracy(predictor, network, parts, SMALLER, told.append)
    assert found.loss == 0.0
    assert sum(told) == pytest.approx(1.0)
    assert 0.0 < found.keras < 1.0
    assert (found.split, found.images) == ("val", len(parts.val))


def test_labelled_pixels_are_counted(parts: Parts, predictor: KerasNetwork) -> None:
    truths = [parts.load(sample)[1] for sample in parts.val]
    half = [truth.copy() for truth in truths]
    for labels in half:
        labels[: labels.shape[0] // 2] += 1
    told = list[float]()
    right = sum(int((a == b)[b >= 0].sum()) for a, b in zip(half, truths, strict=True))
    known = sum(int((truth >= 0).sum()) for truth in truths)
    found = measure_accuracy(predictor, Knowing(parts.taxonomy, half), parts, SMALLER, told.append)
    assert found.file == pytest.approx(right / known)
    assert found.loss == pytest.approx(100 * (found.keras - found.file))
    every = measure_accuracy(
        predictor, Knowing(parts.taxonomy, truths), parts, SMALLER, told.append
    )
    assert every.file == 1.0
    assert every.keras == found.keras


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (0.83, "83.00 % of pixels correct, 1.00 points below Keras's 84.00 % (5 images of val)"),
        (0.85, "85.00 % of pixels correct, 1.00 points above Keras's 84.00 % (5 images of val)"),
    ],
)
def test_a_file_that_is_better_is_not_called_worse(file: float, said: str) -> None:
    assert str(Accuracy(0.84, file, 5, "val")) == said
