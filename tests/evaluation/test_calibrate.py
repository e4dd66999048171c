"""Calibration of a network whose probabilities are too sure of themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ccfnet_tf.errors import DataError, NotFiniteError
from ccfnet_tf.evaluation import calibrate
from ccfnet_tf.evaluation.calibrate import fit_calibration, sample_pixels
from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs, Prediction
from ccfnet_tf.labels import VOID, Sample, Taxonomy, distinct_colours
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED
from tests.evaluation.conftest import log_softmax

CLASSES = 3
SAMPLES = [Sample(str(index), f"{index}.jpg", f"{index}.png") for index in range(4)]
TAXONOMY = Taxonomy(("a", "b", "c"), distinct_colours(CLASSES))


def overconfident(index: int) -> tuple[np.ndarray, HeadOutputs]:
    """Classes drawn from softmax(log p / 2) of refine's log p; attention's logit is 3 too high."""
    rng = np.random.default_rng(index)
    size = (40 + index, 50)
    coarse, fine, refine = (
        log_softmax(rng.normal(size=(*size, CLASSES)) * 4).astype(np.float32) for _ in range(3)
    )
    truth = (log_softmax(refine / 2) + rng.gumbel(size=refine.shape)).argmax(-1).astype(np.int32)
    wrong = coarse.argmax(-1) != truth
    attention = (rng.normal(size=size) + 2 * wrong + 2).astype(np.float32)
    label = np.where(rng.random(size) < 0.1, VOID, truth).astype(np.int32)
    return label, HeadOutputs(coarse, fine, refine, attention)


class Overconfident:
    taxonomy = TAXONOMY
    at_once = 1
    calibration = UNCALIBRATED

    def head_outputs(self, image: np.ndarray) -> HeadOutputs:
        return overconfident(int(image[0, 0, 0]))[1]

    def prediction(self, outputs: HeadOutputs) -> Prediction:
        raise NotImplementedError

    def predict(self, image: np.ndarray) -> Prediction:
        raise NotImplementedError


def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    label = overconfident(int(sample.name))[0]
    return np.full((*label.shape, 3), int(sample.name), np.uint8), label


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_probabilities_come_true_on_other_images(method: calibrate.Method) -> None:
    pixels = sample_pixels(Overconfident(), SAMPLES[:3], load)
    labelled = sum(int((load(sample)[1] != VOID).sum()) for sample in SAMPLES[:3])
    assert pixels.truth.size == labelled
    fit = fit_calibration(pixels, method)
    assert fit.calibration.scale[0] == pytest.approx(0.5, rel=0.1)
    for name in ("risk", "attention"):
        assert fit.after[name] < 0.02
        assert fit.before[name] > 0.1
    assert fit.after["nll"] < fit.before["nll"] - 0.1

    label, outputs = overconfident(3)  # not among those it was fitted to
    before = Evaluation.of(label, outputs, TAXONOMY)
    after = Evaluation.of(label, outputs, TAXONOMY, calibration=fit.calibration)
    for head, name in (("refine", "risk"), ("coarse", "attention")):
        errors = [each.reliability(head, name).ece or 0.0 for each in (before, after)]
        assert errors[0] > 0.05
        assert errors[1] < 0.05


def test_not_one_label_changes() -> None:
    pixels = sample_pixels(Overconfident(), SAMPLES, load)
    vector = fit_calibration(pixels, "vector").calibration
    strong = replace(vector, scale=(0.3, 1.0, 2.0), bias=(5.0, -5.0, 0.0))
    label, outputs = overconfident(0)
    logits = outputs.refine * np.array(strong.scale) + np.array(strong.bias)
    assert (logits.argmax(-1) != outputs.refine.argmax(-1)).any()  # or the test shows nothing
    before = Evaluation.of(label, outputs, TAXONOMY)
    after = Evaluation.of(label, outputs, TAXONOMY, calibration=strong)
    for head in ("coarse", "fine", "refine"):
        counts = [each.images.confusion(head, CLASSES).counts for each in (before, after)]
        np.testing.assert_array_equal(*counts)


def test_a_large_split_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "MOST_VALUES", 4 * 500 * CLASSES)
    pixels = sample_pixels(Overconfident(), SAMPLES, load)
    assert pixels.truth.size == 4 * 500
    again = sample_pixels(Overconfident(), SAMPLES, load)
    np.testing.assert_array_equal(pixels.refine, again.refine)
    everything = fit_calibration(sample_pixels(Overconfident(), SAMPLES, load), "temperature")
    assert everything.calibration.scale[0] == pytest.approx(0.5, rel=0.15)


def test_a_split_of_void_cannot_be_used() -> None:
    def void(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image, label = load(sample)
        return image, np.full_like(label, VOID)

    with pytest.raises(DataError, match="no pixel of the validation split is labelled"):
        sample_pixels(Overconfident(), SAMPLES, void)


@pytest.mark.parametrize("head", ["refine", "attention"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_outputs_that_are_not_finite_are_refused(
    head: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(_: Overconfident, image: np.ndarray) -> HeadOutputs:
        label, outputs = overconfident(int(image[0, 0, 0]))
        getattr(outputs, head)[label != VOID] = value
        return outputs

    monkeypatch.setattr(Overconfident, "head_outputs", damaged)
    with pytest.raises(NotFiniteError, match="0: the network's outputs are NaN or infinite"):
        sample_pixels(Overconfident(), SAMPLES, load)
