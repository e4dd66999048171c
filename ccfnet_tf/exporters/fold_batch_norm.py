"""Batch normalisation folded into the convolution before it: the same answer in fewer ops.

TensorFlow computes a convolution, its bias and its activation as one op on CPUs. With batch
normalisation between them it does so in float32 alone; in bfloat16 these are three ops, each of
which reads and writes the whole map.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ccfnet_tf.exporters.litert.float16 import LEAST

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Returns the network without batch normalisation behind convolutions, for inference.

    Folded weights are of the type that the layer computes in, which halves them in bfloat16; other
    layers are shared with the model. Small kernels compute in float32: they take next to no time,
    and in a trained MobileNetV2 in bfloat16 half of the labels that differ from float32's are
    theirs.

    Args:
        model: A functional model, which may hold others.
    """
    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=_call)


def _call(layer: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(layer, keras.Model):
        return fold_batch_norm(layer)(*args, **kwargs)
    if isinstance(layer, keras.layers.BatchNormalization):
        source = args[0]._keras_history
        if _is_linear(source.operation):
            (taken,) = source.operation._inbound_nodes[source.node_index].input_tensors
            return _Folded(source.operation, layer)(taken)
    return layer(*args, **kwargs)


def _is_linear(layer: Any) -> bool:
    """Whether it is a convolution without an activation of its own."""
    return isinstance(layer, _CONVOLUTIONS) and layer.activation is keras.activations.linear


class _Folded(keras.layers.Layer):
    """A convolution [B, H, W, *] -> [B, h, w, C] and the batch normalisation behind it."""

    def __init__(self, conv: Any, norm: keras.layers.BatchNormalization) -> None:
        kernel, bias = _weights(conv, norm)
        policy = "float32" if kernel.size < LEAST else conv.dtype_policy
        super().__init__(name=norm.name, dtype=policy)
        # In a function: as an attribute the convolution's own weights would be this layer's too.
        self._convolve = partial(_convolve, conv)
        self._shape = conv.compute_output_shape
        self.kernel, self.bias = (self._constant(each) for each in (kernel, bias))
        self.built = True

    def _constant(self, values: np.ndarray) -> keras.Variable:
        made = self.add_weight(shape=values.shape, dtype=self.compute_dtype, trainable=False)
        made.assign(values)
        return made

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the normalised convolution."""
        found = self._convolve(x, tf.convert_to_tensor(self.kernel))
        return tf.nn.bias_add(found, tf.convert_to_tensor(self.bias))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of `call`'s result."""
        return self._shape(shape)


def _weights(conv: Any, norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias, float32, of a convolution that answers as both layers do."""
    of_norm = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    gamma, beta, mean, variance = (np.asarray(each, np.float64) for each in of_norm)
    scale = gamma / np.sqrt(variance + norm.epsilon)
    before = np.asarray(conv.bias, np.float64) if conv.use_bias else 0.0
    # A depthwise kernel is [k, k, C, 1], another [k, k, *, C].
    kernel = np.asarray(conv.kernel, np.float64)
    kernel *= scale[:, np.newaxis] if _is_depthwise(conv) else scale
    return kernel.astype(np.float32), ((before - mean) * scale + beta).astype(np.float32)


def _is_depthwise(conv: Any) -> bool:
    return isinstance(conv, keras.layers.DepthwiseConv2D)


def _convolve(conv: Any, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    if not _is_depthwise(conv):
        return conv.convolution_op(x, kernel)
    return keras.ops.depthwise_conv(
        x, kernel, conv.strides, conv.padding, conv.data_format, conv.dilation_rate
    )
