"""Fits a `network.calibration_parameters.Calibration` to pixels of the validation split.

Temperature scaling (Guo et al., ICML 2017) and vector scaling minimise the negative log-likelihood
of the true classes; attention gets the scale and bias of a logistic regression (Platt, 1999). All
three problems are convex and are solved by Newton's method.

Shapes: N pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

MOST_VALUES = 1 << 25
"""Largest number of log-probabilities: 128 MB in float32, 4 million pixels of 8 classes."""

SMALLEST_SCALE, LARGEST_SCALE = 0.05, 20.0
"""Bounds of scales: for a network that is right everywhere the best scale is infinite."""

RIDGE = 1e-6
"""Weight of the squared distance from no calibration; makes every minimum unique."""

_STEPS = 100
_CONVERGED = 1e-8  # largest change of a parameter


class PixelSample(NamedTuple):
    """Labelled pixels drawn from images, for the fit.

    Attributes:
        refine: float32 [N, C]; uncalibrated log-probabilities of refine.
        truth: int32 [N]; class ids 0..C-1.
        attention: float32 [N]; uncalibrated logit of P(coarse is wrong).
        coarse: int [N]; coarse's class ids.
    """

    refine: np.ndarray
    truth: np.ndarray
    attention: np.ndarray
    coarse: np.ndarray


def fit_temperature(log_probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Returns the factor s that maximises the likelihood of softmax(s * log p).

    It is 1 / temperature and is kept between `SMALLEST_SCALE` and `LARGEST_SCALE`.

    Args:
        log_probabilities: float [N, C], N at least 1.
        truth: Integer [N], 0..C-1.
    """
    chosen = _of_class(log_probabilities, truth)

    def loss(scale: np.ndarray) -> float:
        mean = float(np.mean(_logsumexp(log_probabilities * scale[0]) - scale[0] * chosen))
        return mean + RIDGE / 2 * float((scale[0] - 1) ** 2)

    def slopes(scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probability = _softmax(log_probabilities * scale[0])
        expected = np.einsum("nc,nc->n", probability, log_probabilities)
        square = np.einsum("nc,nc,nc->n", probability, log_probabilities, log_probabilities)
        slope = np.mean(expected - chosen) + RIDGE * (scale[0] - 1)
        return np.array([slope]), np.array([[np.mean(square - expected**2) + RIDGE]])

    (scale,) = _newton(loss, slopes, np.ones(1), scales=1)
    return float(scale)


def fit_vector(
    log_probabilities: np.ndarray, truth: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns a factor and a bias for each class; see `fit_temperature`.

    The numbers of a class that `truth` does not contain are determined by the ridge as well.
    """
    pixels, classes = log_probabilities.shape
    start = np.concatenate([np.ones(classes), np.zeros(classes)])

    def scores(parameters: np.ndarray) -> np.ndarray:
        return log_probabilities * parameters[:classes] + parameters[classes:]

    def loss(parameters: np.ndarray) -> float:
        found = scores(parameters)
        mean = float(np.mean(_logsumexp(found) - _of_class(found, truth)))
        return mean + RIDGE / 2 * float(np.sum((parameters - start) ** 2))

    def slopes(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probability = _softmax(scores(parameters))
        error = probability.copy()
        error[np.arange(pixels), truth] -= 1
        slope = np.concatenate([np.einsum("nc,nc->c", error, log_probabilities), error.sum(0)])
        # d2/da db of logsumexp: p_a [a = b] - p_a p_b, times the inputs that scale a and b.
        rows = np.concatenate([probability * log_probabilities, probability], axis=1)
        curve = -(rows.T @ rows)
        squares = probability * log_probabilities
        ids = np.arange(classes)
        curve[ids, ids] += np.einsum("nc,nc->c", squares, log_probabilities)
        curve[ids, classes + ids] += squares.sum(0)
        curve[classes + ids, ids] += squares.sum(0)
        curve[classes + ids, classes + ids] += probability.sum(0)
        ridge = RIDGE * (parameters - start)
        return slope / pixels + ridge, curve / pixels + RIDGE * np.eye(2 * classes)

    found = _newton(loss, slopes, start, scales=classes)
    return tuple(found[:classes].tolist()), tuple(found[classes:].tolist())


def fit_logistic(logit: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Returns the scale and bias that maximise the likelihood of sigmoid(scale * logit + bias).

    Args:
        logit: float [N], N at least 1.
        positive: bool [N].
    """
    target = positive.astype(np.float64)
    inputs = np.stack([logit.astype(np.float64), np.ones(logit.size)])
    start = np.array([1.0, 0.0])

    def loss(parameters: np.ndarray) -> float:
        score = parameters @ inputs
        mean = float(np.mean(np.logaddexp(0, score) - target * score))
        return mean + RIDGE / 2 * float(np.sum((parameters - start) ** 2))

    def slopes(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probability = np.exp(-np.logaddexp(0, -(parameters @ inputs)))
        slope = inputs @ (probability - target) / logit.size + RIDGE * (parameters - start)
        curve = (inputs * (probability * (1 - probability))) @ inputs.T / logit.size
        return slope, curve + RIDGE * np.eye(2)

    scale, bias = _newton(loss, slopes, start, scales=1)
    return float(scale), float(bias)


def _newton(
    loss: Callable[[np.ndarray], float],
    slopes: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    start: np.ndarray,
    *,
    scales: int,
) -> np.ndarray:
    """Minimises a convex function; the first `scales` parameters stay within the bounds."""
    parameters, value = start, loss(start)
    for _ in range(_STEPS):
        slope, curve = slopes(parameters)
        at_bound = _at_bound(parameters, slope, scales)
        step = np.zeros_like(parameters)
        free = ~at_bound
        step[free] = -np.linalg.solve(curve[np.ix_(free, free)], slope[free])
        length = 1.0
        while True:
            tried = parameters + length * step
            tried[:scales] = np.clip(tried[:scales], SMALLEST_SCALE, LARGEST_SCALE)
            lower = loss(tried)
            if lower <= value or length < 1e-6:
                break
            length /= 2
        if lower > value or np.abs(tried - parameters).max() < _CONVERGED:
            break
        parameters, value = tried, lower
    return parameters


def _at_bound(parameters: np.ndarray, slope: np.ndarray, scales: int) -> np.ndarray:
    """Returns which scales are at a bound and would be moved beyond it, bool [parameters]."""
    held = np.zeros(parameters.size, bool)
    held[:scales] = (parameters[:scales] <= SMALLEST_SCALE) & (slope[:scales] > 0)
    held[:scales] |= (parameters[:scales] >= LARGEST_SCALE) & (slope[:scales] < 0)
    return held


def _of_class(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, truth[:, None].astype(np.int64), axis=1)[:, 0]


def _logsumexp(values: np.ndarray) -> np.ndarray:
    largest = values.max(axis=1)
    return np.asarray(largest + np.log(np.exp(values - largest[:, None]).sum(axis=1)))


def _softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
