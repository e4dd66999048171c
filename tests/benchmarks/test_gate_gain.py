from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gate_gain import Pixels, affine_loss, blended, fit_affine_gate
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs


def test_the_fitted_gate_is_the_one_that_the_labels_were_drawn_by() -> None:
    """Where fine is right with sigmoid(.7 a - 1) and coarse otherwise, no other gate is better."""
    rng = np.random.default_rng(0)
    attention = rng.normal(0, 3, 20_000)
    from_fine = rng.random(attention.size) < 1 / (1 + np.exp(-(0.7 * attention - 1.0)))
    right, wrong = np.log(0.999), np.log(0.001)
    pixels = Pixels(np.where(from_fine, wrong, right), np.where(from_fine, right, wrong), attention)
    scale, bias = fit_affine_gate(pixels)
    assert (scale, bias) == (pytest.approx(0.7, abs=0.06), pytest.approx(-1.0, abs=0.1))
    assert affine_loss(pixels, scale, bias) <= affine_loss(pixels, 0.7, -1.0) + 1e-4


def test_the_blend_by_hand() -> None:
    logs = [np.log(np.array([[p]], np.float32)) for p in ([0.7, 0.3], [0.1, 0.9], [0.5, 0.5])]
    outputs = HeadOutputs(*logs, attention=np.array([[2.0]], np.float32))
    weight = 1 / (1 + np.exp(-(0.5 * 2.0 - 3.0)))
    expected = (1 - weight) * np.array([0.7, 0.3]) + weight * np.array([0.1, 0.9])
    found = blended(outputs, 0.5, -3.0)
    np.testing.assert_allclose(np.exp(found.refine[0, 0]), expected, rtol=1e-5)
    assert found.coarse is outputs.coarse
