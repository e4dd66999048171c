"""Calibration of a network on the images of its validation split, in one pass over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ccfnet_tf.datasets.samples import Load
from ccfnet_tf.errors import DataError, NotFiniteError
from ccfnet_tf.evaluation.evaluate import evaluate
from ccfnet_tf.evaluation.fit_calibration import (
    MOST_VALUES,
    PixelSample,
    fit_logistic,
    fit_temperature,
    fit_vector,
)
from ccfnet_tf.evaluation.pixel_scores import HeadScores, calibrated, calibrated_attention, sigmoid
from ccfnet_tf.evaluation.reliability import Reliability
from ccfnet_tf.inference.segmenter_protocol import MAPS, CascadeSegmenter
from ccfnet_tf.labels import VOID, Sample
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration

Method = Literal["temperature", "vector"]

SMALLEST_THRESHOLD = 1e-7
"""The threshold of a hard blend that uses fine everywhere."""


@dataclass(frozen=True)
class Fit:
    """A calibration, and its effect on the pixels that it was fitted to.

    Attributes:
        calibration: The fitted calibration.
        pixels: Number of labelled pixels that it was fitted to.
        before: ECE of each of `MAPS` without calibration, 15 bins of equal width; and `nll`, the
            mean negative log-likelihood of the true classes in nats.
        after: The same with the calibration.
    """

    calibration: Calibration
    pixels: int
    before: dict[str, float]
    after: dict[str, float]


def fit_calibration(pixels: PixelSample, method: Method) -> Fit:
    """Fits a calibration to labelled pixels.

    Args:
        pixels: At least one.
        method: `temperature`, one factor of refine's log-probabilities; or `vector`, a factor and
            a bias for each class.
    """
    scale: tuple[float, ...] = (1.0,)
    bias: tuple[float, ...] = ()
    if method == "temperature":
        scale = (fit_temperature(pixels.refine, pixels.truth),)
    else:
        scale, bias = fit_vector(pixels.refine, pixels.truth)
    attention = fit_logistic(pixels.attention, pixels.coarse != pixels.truth)
    calibration = Calibration(scale, bias, *attention)
    before, after = (_figures(pixels, each) for each in (UNCALIBRATED, calibration))
    return Fit(calibration, pixels.truth.size, before, after)


def choose_threshold(
    network: CascadeSegmenter,
    samples: Sequence[Sample],
    load: Load,
    *,
    advance: Callable[[], None] = lambda: None,
) -> float:
    """Returns the threshold of a hard blend with the highest mean IoU on a split.

    It is one of `hard_switch.THRESHOLDS`, or one below all of them: fine everywhere. If several are
    equal, it is the one with the fewest pixels of fine.

    Args:
        network: Whose attention and branches are read; its own blend does not matter.
        samples: A split, such as `Parts.val`.
        load: Reads a sample, `Parts.load`.
        advance: Called after each image.

    Raises:
        DataError: No pixel is labelled, or an image cannot be read.
        NotFiniteError: An output of the network is NaN.
        ResourceError: Memory runs out.
    """
    best = evaluate(network, samples, load, advance=advance).switch("attention").best
    if best is None:
        raise DataError("no pixel of the validation split is labelled: nothing to calibrate with")
    return max(best.threshold, SMALLEST_THRESHOLD)


def sample_pixels(
    network: CascadeSegmenter,
    samples: Sequence[Sample],
    load: Load,
    *,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> PixelSample:
    """Draws labelled pixels of every image, at most the same number of each; memory is bounded.

    Args:
        network: The network.
        samples: A split, such as `Parts.val`.
        load: Reads a sample, `Parts.load`.
        seed: Seed of the draw.
        advance: Called after each image.

    Returns:
        All labelled pixels of a small split, and about `MOST_VALUES` / C of a large one.

    Raises:
        DataError: No pixel is labelled, or an image cannot be read.
        NotFiniteError: An output of the network is NaN or infinite on a pixel that is drawn.
        ResourceError: Memory runs out.
    """
    classes = len(network.taxonomy.names)
    most = max(1, MOST_VALUES // classes // max(1, len(samples)))
    generator = np.random.default_rng(seed)
    drawn = []
    for sample in samples:
        image, label = load(sample)
        places = np.flatnonzero(label != VOID)
        if places.size > most:
            places = np.sort(generator.choice(places, most, replace=False))
        outputs = network.head_outputs(image)
        pixels = PixelSample(
            outputs.refine.reshape(-1, classes)[places],
            label.ravel()[places],
            outputs.attention.ravel()[places],
            outputs.coarse.argmax(axis=-1).ravel()[places],
        )
        _refuse_not_finite(pixels, sample.name)
        drawn.append(pixels)
        advance()
    if not sum(each.truth.size for each in drawn):
        raise DataError("no pixel of the validation split is labelled: nothing to calibrate with")
    return PixelSample(*(np.concatenate(parts) for parts in zip(*drawn, strict=True)))


def _refuse_not_finite(pixels: PixelSample, name: str) -> None:
    """Refuses outputs to which nothing can be fitted."""
    if not (np.isfinite(pixels.refine).all() and np.isfinite(pixels.attention).all()):
        raise NotFiniteError(
            f"{name}: the network's outputs are NaN or infinite: its weights are damaged; use an "
            "earlier checkpoint, or train again with a lower learning rate"
        )


def _figures(pixels: PixelSample, calibration: Calibration) -> dict[str, float]:
    logs = np.ascontiguousarray(pixels.refine.T)
    label = HeadScores.of(logs).label  # before calibration, which changes no label
    scores = HeadScores.of(calibrated(logs, calibration))
    wrong = {
        "attention": pixels.coarse != pixels.truth,
        "difficulty": pixels.coarse != pixels.truth,
        "risk": label != pixels.truth,
    }
    logits = {
        "attention": calibrated_attention(pixels.attention, calibration),
        "difficulty": scores.wrong_logit(pixels.coarse),
        "risk": scores.wrong_logit(label),
    }
    figures = {name: _ece(logits[name], wrong[name]) for name in MAPS}
    likelihood = scores.logs[pixels.truth, np.arange(pixels.truth.size)]
    return figures | {"nll": float(-likelihood.mean(dtype=np.float64))}


def _ece(logit: np.ndarray, wrong: np.ndarray) -> float:
    found = Reliability.of(sigmoid(logit), wrong).ece
    assert found is not None  # there is at least one pixel
    return found
