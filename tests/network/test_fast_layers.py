"""Every layer has the outputs, gradients and statistics of the Keras layer it replaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.network import fast_layers
from ccfnet_tf.network.fast_layers import BatchNorm, Conv, DepthwiseConv

SHAPE = (2, 9, 12, 4)
ENOUGH = fast_layers.ENOUGH_IMAGES
MANY = (8, 9, 3, 4)  # images enough for batch norm to take their statistics alone
ROUNDING = {"float32": 1e-5, "mixed_bfloat16": 2e-2, "mixed_float16": 4e-3}
CASES: list[tuple[type[keras.layers.Layer], dict[str, Any], tuple[int, ...]]] = [
    (Conv, {"filters": 6, "kernel_size": 1}, SHAPE),
    (Conv, {"filters": 6, "kernel_size": 1, "strides": 2, "activation": "relu"}, SHAPE),
    (Conv, {"filters": 6, "kernel_size": 1, "strides": 2, "use_bias": False}, (2, 7, 5, 4)),
    (Conv, {"filters": 6, "kernel_size": 3, "strides": 2}, SHAPE),
    (Conv, {"filters": 6, "kernel_size": 3, "padding": "same", "dilation_rate": 4}, SHAPE),
    (Conv, {"filters": 6, "kernel_size": 3, "padding": "same"}, (2, 5, 6, 1100)),
    (Conv, {"filters": 6, "kernel_size": 3}, (2, 5, 6, 1024)),
    (Conv, {"filters": 6, "kernel_size": 3, "padding": "same"}, (2, 5, 61, 9)),
    (Conv, {"filters": 6, "kernel_size": 3, "activation": "relu"}, (2, 5, 63, 9)),
    (Conv, {"filters": 6, "kernel_size": (1, 4), "padding": "same"}, (2, 5, 61, 5)),
    (Conv, {"filters": 6, "kernel_size": 3, "padding": "same", "dilation_rate": 2}, (1, 5, 91, 4)),
    (Conv, {"filters": 6, "kernel_size": 3, "padding": "same", "groups": 2}, (2, 5, 61, 4)),
    (Conv, {"filters": 6, "kernel_size": 1, "groups": 2}, SHAPE),
    (DepthwiseConv, {"kernel_size": 3, "strides": 2, "use_bias": False}, SHAPE),
    (DepthwiseConv, {"kernel_size": 3, "strides": 2, "activation": "relu"}, (2, 11, 8, 4)),
    (DepthwiseConv, {"kernel_size": 3, "dilation_rate": 2}, SHAPE),
    (DepthwiseConv, {"kernel_size": 5, "strides": 2}, SHAPE),
    (DepthwiseConv, {"kernel_size": 5, "strides": 2, "use_bias": False}, (2, 12, 11, 4)),
    (DepthwiseConv, {"kernel_size": 5, "padding": "same", "dilation_rate": 4}, SHAPE),
    (BatchNorm, {"momentum": 0.7}, MANY),
    (BatchNorm, {"synchronized": True, "momentum": 0.7}, MANY),
    (BatchNorm, {"epsilon": 1.001e-5}, (8, 1, 1, 4)),
    (BatchNorm, {"trainable": False}, SHAPE),
]


def pair(
    kind: type[keras.layers.Layer], options: dict[str, Any], shape: tuple[int, ...]
) -> list[keras.layers.Layer]:
    """Returns Keras's layer and the faster one with the same random weights."""
    rng = np.random.default_rng(0)
    made = [kind.__bases__[0](**options), kind(**options)]
    for layer in made:
        layer.build(shape)
    weights = [np.abs(rng.normal(0.5, 0.3, value.shape)) for value in made[0].weights]
    for layer in made:
        layer.set_weights(weights)
    return made


def learn(layer: keras.layers.Layer, x: tf.Tensor) -> list[np.ndarray]:
    """Returns the output and all gradients, and after a step all weights and the output."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        output = tf.function(layer)(x, training=True)
        pull = np.random.default_rng(2).normal(size=output.shape)
        loss = tf.reduce_sum(tf.cast(output, tf.float32) * tf.constant(pull, tf.float32))
    variables = [variable.value for variable in layer.trainable_variables]
    found = [output, *tape.gradient(loss, [x, *variables]), *layer.get_weights()]
    found.append(layer(x, training=False))
    return [tf.cast(value, tf.float32).numpy() for value in found]


@pytest.mark.parametrize("policy", ROUNDING)
@pytest.mark.parametrize(("kind", "options", "shape"), CASES)
def test_equals_the_layer_of_keras(
    kind: type[keras.layers.Layer], options: dict[str, Any], shape: tuple[int, ...], policy: str
) -> None:
    original, faster = pair(kind, {**options, "dtype": policy}, shape)
    plain, _ = pair(kind, {**options, "dtype": "float32"}, shape)
    x = np.random.default_rng(1).normal(1.0, 1.0, shape)
    x = tf.cast(tf.constant(x, tf.float32), faster.compute_dtype)
    found, rough, exact = learn(faster, x), learn(original, x), learn(plain, tf.cast(x, tf.float32))
    assert len(found) > 3
    for mine, of_keras, truth in zip(found, rough, exact, strict=True):
        # If Keras rounds its sums at every addition, the faster layer may deviate as much.
        bound = max(ROUNDING[policy] * np.abs(truth).max(), 1.5 * np.abs(of_keras - truth).max())
        np.testing.assert_allclose(mine, truth, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Conv, {"filters": 6, "kernel_size": 1}),
        (Conv, {"filters": 6, "kernel_size": 3, "padding": "same"}),  # 61 columns: own gradient
        (Conv, {"filters": 6, "kernel_size": 3}),
        (Conv, {"filters": 6, "kernel_size": 7, "strides": 2}),
        (Conv, {"filters": 6, "kernel_size": 3, "padding": "same", "dilation_rate": 2}),
        (DepthwiseConv, {"kernel_size": 3, "strides": 2}),
        (DepthwiseConv, {"kernel_size": 3, "padding": "same"}),
    ],
)
def test_the_bias_gradient_over_many_positions_is_exact(
    kind: type[keras.layers.Layer], options: dict[str, Any]
) -> None:
    layer = kind(**options, dtype="mixed_bfloat16")
    x = tf.zeros([8, 61, 61, 6], tf.bfloat16)
    with tf.GradientTape() as tape:
        output = tf.function(layer)(x, training=True)
    pull = np.random.default_rng(0).normal(0.3, size=output.shape)
    pull = tf.cast(tf.constant(pull, tf.float32), tf.bfloat16)
    found = tape.gradient(output, layer.bias.value, pull)
    truth = tf.cast(pull, tf.float64).numpy().sum((0, 1, 2))
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-2 * np.abs(truth).max())


@pytest.mark.parametrize(("kind", "options", "shape"), CASES)
def test_weights_and_configuration_equal_those_of_keras(
    kind: type[keras.layers.Layer], options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    plain, faster = pair(kind, options, shape)
    assert [(v.name, v.shape) for v in faster.weights] == [(v.name, v.shape) for v in plain.weights]
    assert {**faster.get_config(), "name": ""} == {**plain.get_config(), "name": ""}
    twin = keras.layers.deserialize(keras.layers.serialize(faster))
    assert type(twin) is kind


def gradient_ops(layer: keras.layers.Layer, shape: tuple[int, ...], *, training: bool) -> set[str]:
    @tf.function
    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = layer(x, training=training)
        return tape.gradient(output, [x, *(v.value for v in layer.trainable_variables)])

    x = tf.TensorSpec(shape, layer.compute_dtype)
    return {op.type for op in step.get_concrete_function(x).graph.get_operations()}


def test_a_dilated_convolution_is_not_split_into_small_images() -> None:
    if not fast_layers.dilates_natively(tf.float32):
        pytest.skip("this TensorFlow has no gradient of a dilated convolution")
    layer = Conv(6, 3, padding="same", dilation_rate=2)
    layer.build(SHAPE)
    assert "SpaceToBatchND" not in gradient_ops(layer, SHAPE, training=True)


def test_without_a_native_gradient_keras_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_layers, "dilates_natively", lambda dtype: False)
    layer = Conv(6, 3, padding="same", dilation_rate=2)
    layer.build(SHAPE)
    assert "SpaceToBatchND" in gradient_ops(layer, SHAPE, training=True)


@pytest.mark.parametrize(("kind", "options", "shape"), CASES)
def test_inference_graphs_contain_no_custom_gradient(
    kind: type[keras.layers.Layer], options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer = kind(**options, dtype="mixed_bfloat16")
    layer.build(shape)
    call = tf.function(lambda x: layer(x, training=False))
    operations = call.get_concrete_function(
        tf.TensorSpec(shape, tf.bfloat16)
    ).graph.get_operations()
    assert not [op.type for op in operations if op.type == "IdentityN"]


def test_the_faster_gradient_is_used() -> None:
    layer = Conv(6, 1, dtype="mixed_bfloat16")
    layer.build(SHAPE)
    assert "Conv2DBackpropFilter" not in gradient_ops(layer, SHAPE, training=True)
    layer = DepthwiseConv(3, 2, dtype="mixed_bfloat16")
    layer.build(SHAPE)
    found = gradient_ops(layer, SHAPE, training=True)
    assert "DepthwiseConv2dNativeBackpropInput" not in found


@pytest.mark.slow
def test_the_network_uses_the_faster_layers_everywhere(
    small_network: Callable[..., Any],
) -> None:
    model = small_network()
    kinds = {type(layer) for layer in (*model.layers, *model.get_layer("backbone").layers)}
    assert not kinds & set(fast_layers.FASTER)
    assert set(fast_layers.FASTER.values()) <= kinds


def test_a_mask_is_handled_by_keras() -> None:
    plain, faster = pair(BatchNorm, {}, SHAPE)
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    mask = np.arange(12)[None, None] < np.full((2, 9, 1), 5)
    seen, expected = (layer(x, training=True, mask=mask) for layer in (faster, plain))
    np.testing.assert_allclose(seen, expected, atol=1e-5)


def row_length(width: int) -> int:
    """Returns how much of a row oneDNN reads: its length in the fewest equal, even pieces."""
    lengths = range(width + width % 2, -(-width // 32) * 32 + 1, 2)
    if width <= 32:
        return lengths[0]

    def pieces(length: int) -> int:
        return length // next(piece for piece in range(32, 0, -2) if length % piece == 0)

    return min(lengths, key=pieces)


@pytest.mark.parametrize("reach", range(1, 13))
def test_a_row_is_never_read_past_its_end(reach: int) -> None:
    found = []
    for width in range(1, 257):
        past = row_length(width) + reach > -(-(width + reach) // 32) * 32
        assert fast_layers.overruns(width, reach) == past
        assert bool(fast_layers.overruns(tf.constant(width), reach)) == past
        maps = [tf.zeros([1, 1, columns, 1]) for columns in (width + reach, width)]
        wider, out = fast_layers._widened(*maps, reach)
        columns = out.shape[2]
        assert wider.shape[2] - columns == reach
        assert not fast_layers.overruns(columns, reach)
        assert columns == (-(-width // 32) * 32 if past else width)
        found += [width] if past else []
    if reach == 2:  # of a 3x3 kernel; no more is multiplied than before
        assert found[:2] == [61, 62]  # an image of 241 at stride 4
        assert all(row_length(width) % 32 == 0 for width in found)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("known", [True, False])
def test_short_rows_are_padded_in_low_precision(policy: str, known: bool) -> None:
    layer = Conv(6, 3, padding="same", dtype=policy)
    layer.build((2, 5, 61, 4))

    @tf.function
    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            output = layer(x, training=True)
        return tape.gradient(output, layer.trainable_variables[0].value)

    spec = tf.TensorSpec((2, 5, 61 if known else None, 4), layer.compute_dtype)
    graph = step.get_concrete_function(spec).graph
    (gradient,) = [op for op in graph.get_operations() if op.type == "Conv2DBackpropFilter"]
    own = gradient.inputs[0].op.type != "Placeholder"
    assert own == (policy == "mixed_bfloat16")
    if own and known:
        assert gradient.inputs[0].shape[2] == gradient.inputs[2].shape[2] == 64


@pytest.mark.parametrize("width", [7, 61])
def test_an_unknown_width_gives_the_same_gradient(width: int) -> None:
    layer = Conv(3, 3, padding="same", dtype="mixed_bfloat16")
    layer.build((2, 5, width, 4))
    x = np.random.default_rng(0).normal(size=(2, 5, width, 4))
    x = tf.cast(tf.constant(x), tf.bfloat16)

    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.cast(layer(x, training=True), tf.float32)))
        return tape.gradient(loss, layer.trainable_variables[0].value)

    unknown = tf.function(step, input_signature=[tf.TensorSpec((2, 5, None, 4), tf.bfloat16)])
    np.testing.assert_allclose(unknown(x), step(x), rtol=2e-2, atol=2e-2)


FEW = [(1, 1, 1, 4), (1, 2, 2, 4), (1, 9, 12, 4)]  # of one image


def norm_with_statistics(**options: Any) -> tuple[BatchNorm, np.ndarray, np.ndarray]:
    """Returns a layer with random moving statistics, and its mean and variance."""
    rng = np.random.default_rng(0)
    layer = BatchNorm(momentum=0.9, **options)
    layer.build((None, None, None, 4))
    weights = [rng.uniform(0.5, 2.0, 4).astype(np.float32) for _ in range(4)]
    layer.set_weights(weights)
    return layer, weights[2], weights[3]


@pytest.mark.parametrize("policy", ROUNDING)
@pytest.mark.parametrize("shape", FEW)
def test_training_on_one_image_matches_inference(shape: tuple[int, ...], policy: str) -> None:
    layer, *_ = norm_with_statistics(dtype=policy)
    x = np.random.default_rng(1).normal(1.0, 2.0, shape).astype(np.float32)
    x = tf.cast(x, layer.compute_dtype)
    expected = layer(x, training=False)
    found = layer(x, training=True)
    bound = ROUNDING[policy] * max(1.0, np.abs(tf.cast(expected, tf.float32)).max())
    np.testing.assert_allclose(*(tf.cast(v, tf.float32) for v in (found, expected)), atol=bound)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("pictures", [1, 2, 3, 5, 7, 8, 12])
@pytest.mark.parametrize("side", [1, 5])
def test_few_images_are_normalised_with_moving_statistics_too(
    side: int, pictures: int, static: bool
) -> None:
    layer, mean, variance = norm_with_statistics()
    gamma, beta = layer.get_weights()[:2]
    x = np.random.default_rng(1).normal(1.0, 2.0, (pictures, side, side, 4)).astype(np.float32)
    signature = [tf.TensorSpec((pictures if static else None, side, side, 4))]
    call = tf.function(lambda x: layer(x, training=True), input_signature=signature)
    found = call(tf.constant(x))

    share = (min(pictures, ENOUGH) - 1) / (ENOUGH - 1)
    of_batch = x.mean((0, 1, 2)), x.var((0, 1, 2))
    center = share * of_batch[0] + (1 - share) * mean
    scale = np.sqrt(share * of_batch[1] + (1 - share) * variance + layer.epsilon)
    np.testing.assert_allclose(found, (x - center) / scale * gamma + beta, atol=1e-5)

    momentum = 0.9 ** (min(pictures, ENOUGH) / ENOUGH)
    spread = of_batch[1] + (1 - share) * momentum * (of_batch[0] - mean) ** 2
    now = layer.get_weights()[2:]
    np.testing.assert_allclose(now[0], momentum * mean + (1 - momentum) * of_batch[0], atol=1e-6)
    np.testing.assert_allclose(now[1], momentum * variance + (1 - momentum) * spread, atol=1e-6)


@pytest.mark.parametrize("shape", FEW)
def test_the_kernel_before_batch_norm_learns_from_one_image(shape: tuple[int, ...]) -> None:
    layer, *_ = norm_with_statistics()
    x = tf.constant(np.random.default_rng(1).normal(size=shape), tf.float32)
    assert np.abs(learn(layer, x)[1]).max() > 0.1  # the gradient of the input


def test_statistics_of_single_values_converge_to_those_of_all() -> None:
    layer, *_ = norm_with_statistics()
    layer.momentum = 0.95
    values = np.random.default_rng(1).normal(3.0, 2.0, (3000, 1, 1, 1, 4)).astype(np.float32)
    call = tf.function(lambda x: layer(x, training=True))
    for x in values:
        call(tf.constant(x))
    mean, variance = layer.get_weights()[2:]
    np.testing.assert_allclose(mean, 3.0, atol=0.6)
    np.testing.assert_allclose(variance, 4.0, rtol=0.3)
