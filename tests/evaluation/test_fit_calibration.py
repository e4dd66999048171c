from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp
from sklearn.linear_model import LogisticRegression

from ccfnet_tf.evaluation.fit_calibration import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    fit_logistic,
    fit_temperature,
    fit_vector,
)

PIXELS, CLASSES = 4000, 4


def drawn(scale: float | np.ndarray, bias: float | np.ndarray = 0.0) -> tuple[np.ndarray, ...]:
    """Returns log-probabilities [N, C] and classes drawn from softmax(scale * log p + bias)."""
    rng = np.random.default_rng(0)
    logits = log_softmax(rng.normal(size=(PIXELS, CLASSES)) * 4, axis=1)
    truth = (log_softmax(logits * scale + bias, axis=1) + rng.gumbel(size=logits.shape)).argmax(1)
    return logits.astype(np.float32), truth.astype(np.int32)


def likelihood(logits: np.ndarray, truth: np.ndarray) -> float:
    """Negative, the mean over pixels."""
    return float(np.mean(logsumexp(logits, axis=1) - logits[np.arange(PIXELS), truth]))


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_the_temperature_is_the_one_of_a_general_optimiser(scale: float) -> None:
    logits, truth = drawn(scale)
    found = fit_temperature(logits, truth)
    expected = minimize(lambda s: likelihood(logits * s[0], truth), [1.0], tol=1e-10).x[0]
    assert found == pytest.approx(expected, rel=1e-4)
    assert found == pytest.approx(scale, rel=0.1)


def test_vector_scaling_is_the_one_of_a_general_optimiser() -> None:
    scale, bias = np.array([0.4, 1.0, 2.0, 0.7]), np.array([0.0, -1.0, 2.0, 0.5])
    logits, truth = drawn(scale, bias)
    found_scale, found_bias = fit_vector(logits, truth)
    ours = likelihood(logits * np.array(found_scale) + np.array(found_bias), truth)
    start = np.concatenate([np.ones(CLASSES), np.zeros(CLASSES)])
    free = minimize(lambda p: likelihood(logits * p[:CLASSES] + p[CLASSES:], truth), start)
    assert ours == pytest.approx(free.fun, abs=1e-5)
    np.testing.assert_allclose(found_scale, scale, rtol=0.25)
    # A number added to all biases changes nothing.
    np.testing.assert_allclose(np.diff(found_bias), np.diff(bias), atol=0.4)
    assert ours < likelihood(logits * fit_temperature(logits, truth), truth) - 0.01


def test_the_logistic_regression_is_scikit_learn_s() -> None:
    rng = np.random.default_rng(1)
    logit = rng.normal(size=PIXELS) * 3
    positive = rng.random(PIXELS) < 1 / (1 + np.exp(-(0.5 * logit - 1.5)))
    theirs = LogisticRegression(C=1e9, tol=1e-10).fit(logit[:, None], positive)
    expected = theirs.coef_.item(), theirs.intercept_.item()
    assert fit_logistic(logit, positive) == pytest.approx(expected, rel=1e-3)


def test_a_network_that_is_never_wrong_keeps_a_finite_scale() -> None:
    logits, _ = drawn(1.0)
    assert fit_temperature(logits, logits.argmax(1)) == LARGEST_SCALE
    scale, bias = fit_vector(logits, logits.argmax(1))
    assert np.isfinite([*scale, *bias]).all()
    assert max(scale) <= LARGEST_SCALE


def test_a_score_that_points_the_wrong_way_keeps_its_order() -> None:
    logit = np.linspace(-3, 3, 100)
    scale, bias = fit_logistic(logit, logit < 0)
    assert scale == SMALLEST_SCALE
    assert abs(bias) < 0.1  # half of the pixels are positive


@pytest.mark.parametrize("positive", [True, False])
def test_pixels_of_one_kind_give_finite_numbers(positive: bool) -> None:
    scale, bias = fit_logistic(np.linspace(-3, 3, 100), np.full(100, positive))
    assert np.isfinite([scale, bias]).all()
    assert (bias > 0) == positive


def test_a_class_that_no_label_holds_stays_finite() -> None:
    logits, truth = drawn(1.0)
    scale, bias = fit_vector(logits, np.minimum(truth, 2))
    assert np.isfinite([*scale, *bias]).all()


def test_logits_of_any_size_do_not_overflow() -> None:
    logit = np.array([-1e4, -1e4, 1e4, 1e4], np.float32)
    scale, bias = fit_logistic(logit, logit < 0)  # pytest turns NumPy's warnings into errors
    assert np.isfinite([scale, bias]).all()
