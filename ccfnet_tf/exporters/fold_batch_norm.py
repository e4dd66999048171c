"""Folds batch normalisation into the preceding convolution: the same outputs with fewer ops.

On CPUs, TensorFlow fuses a convolution, its bias and its activation into one op. With batch
normalisation in between it does so only in float32; in bfloat16 these are three ops, each of which
reads and writes the full feature map.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ccfnet_tf.exporters.litert.float16 import MIN_FLOAT16_SIZE
from ccfnet_tf.exporters.rewrite_calls import rewrite_calls

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Returns the network for inference, with batch normalisation folded into convolutions.

    Folded weights have the compute type of their layer, which halves their size in bfloat16; all
    other layers are shared with the model. Convolutions with small kernels compute in float32:
    their time is negligible, and in a trained MobileNetV2 in bfloat16 they cause half of the labels
    that differ from float32.

    Args:
        model: A functional model, which may contain other models.
    """
    return rewrite_calls(model, _call)


def _call(layer: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(layer, keras.layers.BatchNormalization):
        source = args[0]._keras_history
        if _is_linear(source.operation):
            (inputs,) = source.operation._inbound_nodes[source.node_index].input_tensors
            return _Folded(source.operation, layer)(inputs)
    return layer(*args, **kwargs)


def _is_linear(layer: Any) -> bool:
    """Returns whether a layer is a convolution without an activation."""
    return isinstance(layer, _CONVOLUTIONS) and layer.activation is keras.activations.linear


class _Folded(keras.layers.Layer):
    """A convolution [B, H, W, *] -> [B, h, w, C] with its batch normalisation folded in."""

    def __init__(self, conv: Any, norm: keras.layers.BatchNormalization) -> None:
        kernel, bias = _weights(conv, norm)
        policy = "float32" if kernel.size < MIN_FLOAT16_SIZE else conv.dtype_policy
        super().__init__(name=norm.name, dtype=policy)
        # A closure: Keras would track the convolution's weights if the layer were an attribute.
        self._convolve = partial(_convolve, conv)
        self._shape = conv.compute_output_shape
        self.kernel, self.bias = (self._constant(each) for each in (kernel, bias))
        self.built = True

    def _constant(self, values: np.ndarray) -> keras.Variable:
        variable = self.add_weight(shape=values.shape, dtype=self.compute_dtype, trainable=False)
        variable.assign(values)
        return variable

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the normalised convolution."""
        convolved = self._convolve(x, tf.convert_to_tensor(self.kernel))
        return tf.nn.bias_add(convolved, tf.convert_to_tensor(self.bias))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of `call`'s result."""
        return self._shape(shape)


def _weights(conv: Any, norm: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias, float32, of one convolution that is equal to both layers."""
    of_norm = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    gamma, beta, mean, variance = (np.asarray(each, np.float64) for each in of_norm)
    scale = gamma / np.sqrt(variance + norm.epsilon)
    before = np.asarray(conv.bias, np.float64) if conv.use_bias else 0.0
    # A depthwise kernel has shape [k, k, C, 1], any other [k, k, *, C].
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
