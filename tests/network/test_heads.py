from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.network import heads
from ccfnet_tf.network.normalise_pad_resize import Enlarge, HalfSize, PadToGrid, ToImage

LOG = math.log


def blend(coarse: np.ndarray, attention: np.ndarray, fine: np.ndarray) -> tf.Tensor:
    parts = [tf.cast(part, tf.float32) for part in (coarse, attention, fine)]
    return heads.Blend()([heads.log_softmax(parts[0]), parts[1], parts[2]])


def pixel(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32).reshape(1, 1, 1, -1)


def test_blend_by_hand() -> None:
    coarse = pixel(LOG(0.7), LOG(0.2), LOG(0.1)) + 3.0  # logits may be moved
    fine = pixel(LOG(0.1), LOG(0.6), LOG(0.3)) - 5.0
    attention = pixel(LOG(0.25), LOG(0.75)) + 1.0  # 0 hard, 1 easy
    # .75 * (.7, .2, .1) + .25 * (.1, .6, .3)
    result = np.exp(blend(coarse, attention, fine)).ravel()
    np.testing.assert_allclose(result, [0.55, 0.3, 0.15], atol=1e-6)


def test_blend_equals_one_head_where_attention_is_certain() -> None:
    coarse, fine = pixel(0.0, 1.0, 2.0), pixel(5.0, -1.0, 0.0)
    easy = blend(coarse, pixel(-40.0, 40.0), fine)
    hard = blend(coarse, pixel(40.0, -40.0), fine)
    np.testing.assert_allclose(easy, tf.nn.log_softmax(coarse), atol=1e-6)
    np.testing.assert_allclose(hard, tf.nn.log_softmax(fine), atol=1e-6)


def test_blend_is_finite_for_extreme_logits() -> None:
    rng = np.random.default_rng(0)
    shape = (2, 4, 4, 6)
    coarse, fine = (
        tf.Variable(rng.choice([-100.0, 0.0, 100.0], shape), dtype=tf.float32) for _ in "cf"
    )
    attention = tf.Variable(rng.choice([-100.0, 100.0], (2, 4, 4, 2)), dtype=tf.float32)
    with tf.GradientTape() as tape:
        result = heads.Blend()([heads.log_softmax(coarse), attention, fine])
        loss = tf.reduce_sum(result)
    assert np.isfinite(result).all()
    assert np.max(result) <= 1e-5
    np.testing.assert_allclose(np.exp(result).sum(-1), 1.0, atol=1e-5)
    for gradient in tape.gradient(loss, [coarse, attention, fine]):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).sum() > 0


def test_blend_and_its_gradient_equal_tensorflows_own_ops() -> None:
    rng = np.random.default_rng(1)
    values = [rng.normal(0, 3, (1, 3, 3, c)).astype(np.float32) for c in (4, 2, 4)]
    inputs = [tf.Variable(value) for value in values]
    with tf.GradientTape(persistent=True) as tape:
        coarse, attention, fine = inputs
        ours = heads.Blend()([heads.log_softmax(coarse), attention, fine])
        gate = tf.nn.softmax(attention)
        plain = tf.math.log(
            gate[..., 1:] * tf.nn.softmax(coarse) + gate[..., :1] * tf.nn.softmax(fine)
        )
        a, b = tf.reduce_sum(ours[..., 0]), tf.reduce_sum(plain[..., 0])
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    for mine, theirs in zip(tape.gradient(a, inputs), tape.gradient(b, inputs), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_blend_gradient_is_shared_where_both_heads_agree() -> None:
    coarse, fine = tf.Variable(pixel(0.0, 0.0)), tf.Variable(pixel(0.0, 0.0))
    with tf.GradientTape() as tape:
        logs = heads.Blend()([heads.log_softmax(coarse), pixel(0.0, 0.0), fine])
        loss = logs[0, 0, 0, 0]
    for gradient in tape.gradient(loss, [coarse, fine]):
        np.testing.assert_allclose(np.ravel(gradient), [0.25, -0.25], atol=1e-6)


def test_the_affine_gate_by_hand_and_its_gradient() -> None:
    gate = heads.AffineGate()
    attention = pixel(3.0, 1.0)  # logit 2 of P(hard)
    np.testing.assert_allclose(tf.nn.softmax(gate(attention))[0, 0, 0, 0], 1 / (1 + np.exp(-0.2)))
    gate.scale.assign(0.05)
    gate.bias.assign(-0.12)
    with tf.GradientTape() as tape:
        logits = gate(attention)
        difference = logits[..., 0] - logits[..., 1]
    np.testing.assert_allclose(difference, [[[0.5 * 2.0 - 1.2]]], rtol=1e-5)  # k a + b
    np.testing.assert_allclose(tape.gradient(difference, [gate.scale, gate.bias]), [20.0, 10.0])


def test_the_hard_gate_chooses_one_branch_and_has_no_gradient() -> None:
    logits = tf.Variable([[[[LOG(0.29 / 0.71), 0.0], [1.0, 1.0 - LOG(0.31 / 0.69)]]]])
    coarse, fine = pixel(0.0, 1.0, 2.0), pixel(5.0, -1.0, 0.0)
    with tf.GradientTape() as tape:
        gate = heads.HardGate(0.3)(logits)
        first, second = (
            heads.Blend()([heads.log_softmax(coarse), gate[:, :, i : i + 1], fine]) for i in (0, 1)
        )
    np.testing.assert_allclose(first, tf.nn.log_softmax(coarse), atol=1e-6)
    np.testing.assert_allclose(second, tf.nn.log_softmax(fine), atol=1e-6)
    assert tape.gradient(gate, logits) is None


def adaptive_average(x: np.ndarray, bins: int) -> np.ndarray:
    """Adaptive average pooling, bin by bin."""
    height, width = x.shape[1:3]
    result = np.empty((x.shape[0], bins, bins, x.shape[3]), np.float64)
    for i in range(bins):
        for j in range(bins):
            top, bottom = math.floor(i * height / bins), math.ceil((i + 1) * height / bins)
            left, right = math.floor(j * width / bins), math.ceil((j + 1) * width / bins)
            result[:, i, j] = x[:, top:bottom, left:right].mean((1, 2), dtype=np.float64)
    return result


@pytest.mark.parametrize("size", [(5, 5), (6, 6), (7, 13), (31, 41), (12, 1)])
def test_pyramid_pooling_is_exact_for_uneven_sizes(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(2, 1, (2, *size, 3)).astype(np.float32)
    layer = heads.PyramidPooling()
    pool = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 3])])
    for maps in (layer(x), pool(x)):
        for bins, result in zip((1, 2, 3, 6), maps, strict=True):
            np.testing.assert_allclose(result, adaptive_average(x, bins), atol=1e-5)


def test_confidence_is_added_to_the_easy_logit() -> None:
    coarse = np.log(pixel(0.9, 0.06, 0.04))
    layer = heads.AddConfidence()
    result = layer([pixel(0.5, -1.0), coarse]).numpy().ravel()
    np.testing.assert_allclose(result, [0.5, -1.0 + LOG(0.9 / 0.1)], atol=1e-4)
    layer.scale.assign(0.5)
    result = layer([pixel(0.5, -1.0), coarse]).numpy().ravel()
    np.testing.assert_allclose(result, [0.5, -1.0 + 0.5 * LOG(0.9 / 0.1)], atol=1e-4)


def test_confidence_keeps_its_digits_where_coarse_is_certain() -> None:
    """1 - p has two digits left in float32 at these logits, and none above."""
    for certainty in np.linspace(0.0, 13.0, 27):
        logits = np.float32([certainty, 0.1, -0.7])
        exact = logits.astype(np.float64)
        others = np.delete(exact, exact.argmax())
        expected = exact.max() - np.log(np.exp(others).sum())
        found = heads.AddConfidence()([pixel(0.0, 0.0), pixel(*logits)]).numpy().ravel()[1]
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 33])
def test_confidence_counts_classes_that_tie(classes: int) -> None:
    tied = np.full((1, 1, 1, classes), 4.0, np.float32)
    found = heads.AddConfidence()([pixel(0.0, 0.0), tied]).numpy().ravel()[1]
    assert found == pytest.approx(-np.log(classes - 1), abs=1e-6)
    tied[..., 0] += 3e-5  # nearly
    found = heads.AddConfidence()([pixel(0.0, 0.0), tied]).numpy().ravel()[1]
    assert found == pytest.approx(-np.log(classes - 1), abs=1e-4)


@pytest.mark.parametrize("logits", [pixel(100.0, -100.0), pixel(0.0, -80.0)])
def test_confidence_of_a_certain_coarse_is_finite(logits: np.ndarray) -> None:
    result = heads.AddConfidence()([pixel(0.0, 0.0), heads.log_softmax(logits)]).numpy().ravel()
    np.testing.assert_allclose(result, [0.0, LOG(1e6)], rtol=0.01)


def test_entropy_is_normalised_by_log_c() -> None:
    sure, unsure = pixel(1.0, 0.0, 0.0, 0.0), pixel(0.25, 0.25, 0.25, 0.25)
    half = pixel(0.5, 0.5, 0.0, 0.0)
    entropy = [float(np.ravel(heads.Entropy()(p))[0]) for p in (sure, half, unsure)]
    np.testing.assert_allclose(entropy, [0.0, 0.5, 1.0], atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        heads.PyramidPooling(bins=(1, 4), name="p"),
        heads.Blend(name="b"),
        heads.AffineGate(name="g"),
        heads.HardGate(0.2, name="h"),
        PadToGrid(16, name="pad"),
        HalfSize(name="half"),
        Enlarge(name="enlarged"),
        ToImage(16, 3, name="to_image"),
    ],
)
def test_layers_survive_serialisation(layer: keras.layers.Layer) -> None:
    twin = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(twin) is type(layer)
    assert twin.get_config() == layer.get_config()
