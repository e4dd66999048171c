"""Batch normalisation folded into convolutions, beside the network as it was trained."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.exporters.fold_batch_norm import fold_batch_norm
from ccfnet_tf.exporters.litert.float16 import MIN_FLOAT16_SIZE
from ccfnet_tf.network.fast_layers import BatchNorm, Conv, DepthwiseConv

layers = keras.layers
CONVOLUTIONS: dict[str, Any] = {
    "plain": lambda: Conv(5, 3, padding="same", use_bias=False),
    "bias": lambda: Conv(5, 1, strides=2),
    "dilated": lambda: Conv(5, 3, padding="same", dilation_rate=2),
    "depthwise": lambda: DepthwiseConv(3, strides=2, padding="valid", use_bias=False),
    "dilated depthwise": lambda: DepthwiseConv(3, padding="same", dilation_rate=(2, 2)),
    "keras": lambda: layers.Conv2D(5, (1, 3), padding="same"),
    "transposed": lambda: layers.Conv2DTranspose(5, 3),
    "activated": lambda: Conv(5, 3, activation="relu"),
}
LEFT_ALONE = ("transposed", "activated")


def network(*inner: Any, channels: int = 4) -> Any:
    """A network whose every variable has a value of its own."""
    images = keras.Input((None, None, channels))
    result = images
    for layer in inner:
        result = layer(result)
    model = keras.Model(images, result)
    random = np.random.default_rng(0)
    for variable in model.variables:
        if "float" in variable.dtype:
            variable.assign(random.uniform(-1.0, 1.0, variable.shape))
        if "variance" in variable.path:
            variable.assign(abs(variable.numpy()) + 0.2)
    return model


def norms_run(model: Any, images: np.ndarray) -> int:
    """Returns how many batch normalisations are computed."""
    graph = tf.function(lambda x: model(x, training=False)).get_concrete_function(images).graph
    kinds = [node.op for node in graph.as_graph_def().node]
    kinds += [n.op for f in graph.as_graph_def().library.function for n in f.node_def]
    return sum(kind in ("FusedBatchNormV3", "Rsqrt") for kind in kinds)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("norm", [BatchNorm, layers.BatchNormalization])
def test_every_convolution_answers_as_before(kind: str, norm: Any) -> None:
    model = network(CONVOLUTIONS[kind](), norm(epsilon=0.05), layers.ReLU())
    images = np.random.default_rng(1).normal(size=(2, 9, 12, 4)).astype(np.float32)
    found = fold_batch_norm(model)
    np.testing.assert_allclose(found(images), model(images, training=False), rtol=2e-5, atol=1e-5)
    assert norms_run(model, images) == 1
    assert norms_run(found, images) == (kind in LEFT_ALONE)


def test_what_others_need_of_a_convolution_stays() -> None:
    images = keras.Input((None, None, 3))
    conv = Conv(4, 3, name="conv")(images)
    norm = BatchNorm(name="norm")(conv)
    model = keras.Model(images, {"conv": conv, "norm": BatchNorm()(layers.ReLU()(norm))})
    for variable in model.variables:
        variable.assign(np.random.default_rng(2).uniform(0.2, 1.0, variable.shape))
    pictures = np.random.default_rng(1).normal(size=(1, 9, 12, 3)).astype(np.float32)
    found, expected = fold_batch_norm(model)(pictures), model(pictures, training=False)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=1e-5)
    assert norms_run(fold_batch_norm(model), pictures) == 1  # the one behind no convolution


def test_small_kernels_compute_in_float32() -> None:
    keras.utils.set_random_seed(0)
    channels = MIN_FLOAT16_SIZE // 9 + 1
    options = {"use_bias": False, "dtype": "mixed_bfloat16"}
    for width, expected in ((channels - 1, tf.float32), (channels, tf.bfloat16)):
        model = network(DepthwiseConv(3, **options), BatchNorm(), channels=width)
        (result,) = fold_batch_norm(model).outputs
        assert tf.as_dtype(result.dtype) == expected
