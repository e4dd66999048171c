"""Rewrites the network for one image size with operators that embedded GPUs execute correctly.

Three kinds of layers are rewritten; their outputs stay equal:

- A convolution over many channels becomes a sum of convolutions over slices of the channels. A
  texture has at most 8192 rows; where kernel pixels times input channels exceed that, LiteRT's GPU
  path computes wrong outputs without an error. On ResNet-50 every head of the paper begins with
  such a convolution, 3x3.
- A 1x1 convolution with strides becomes a strided slice followed by a convolution without strides.
  With 8-bit weights the GPU path computes garbage after the original form, which ResNet contains.
- Pyramid pooling becomes means over slices: the GPU multiplies matrices only if one is constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from ccfnet_tf.exporters.rewrite_calls import rewrite_calls
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.network.heads import PyramidPooling
from ccfnet_tf.network.labels_and_maps import exported_heads, maps

MAX_TEXTURE_ROWS = 8192
"""Largest number of kernel pixels times input channels of a convolution."""

SLICE_CHANNELS = 512
"""Input channels per slice."""

OUTPUT_SCOPE = "answers"
"""Name scope of the ops after the network's last layers."""

Tensors = dict[str, tf.Tensor]


def gpu_safe_outputs(
    model: Any, calibration: Calibration = UNCALIBRATED
) -> Callable[[tf.Tensor], Tensors]:
    """Returns a function from images of a fixed size to the outputs of `labels_and_maps.maps`.

    Args:
        model: A `CCFNet`.
        calibration: Of probabilities and maps.

    Returns:
        A function of images float32 [B, H, W, 3], RGB 0..255, all sides static.
    """
    network = _rewritten(exported_heads(model))

    def predict(images: tf.Tensor) -> Tensors:
        outputs = network({"images": images}, training=False)
        with tf.name_scope(OUTPUT_SCOPE):
            return maps(outputs, calibration, arg_max=_arg_max)

    return predict


def _arg_max(values: tf.Tensor) -> tf.Tensor:
    """Returns the class ids int32 [B, H, W] of the largest of [B, H, W, C].

    LiteRT's GPU path pads channels to multiples of 4, and its ARG_MAX includes the padding. Here
    the padding is 0, and the largest value 1.
    """
    above = tf.nn.relu(1.0 + (values - tf.reduce_max(values, -1, keepdims=True)))
    padded = tf.pad(above, [[0, 0], [0, 0], [0, 0], [0, -values.shape[-1] % 4]])
    return tf.argmax(padded, -1, output_type=tf.int32)


def _rewritten(model: keras.Model) -> keras.Model:
    return rewrite_calls(model, _call)


def _call(layer: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(layer, PyramidPooling):
        return _SlicedPyramidPooling(layer)(*args)
    if isinstance(layer, keras.layers.Conv2D) and _texture_rows(layer, args[0]) > MAX_TEXTURE_ROWS:
        return _SlicedConv(layer)(*args)
    if isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (1, 1) != layer.strides:
        return _StridedConv(layer)(*args)
    return layer(*args, **kwargs)


def _texture_rows(conv: Any, x: Any) -> int:
    height, width = conv.kernel_size
    return int(height * width * x.shape[-1])


class _RewrittenConv(keras.layers.Layer):
    """A convolution that shares the weights of another and is computed by different ops."""

    def __init__(self, conv: keras.layers.Conv2D) -> None:
        super().__init__(name=conv.name, dtype=conv.dtype_policy)
        self.conv = conv
        self.built = True

    def _with_bias_and_activation(self, output: tf.Tensor) -> tf.Tensor:
        """Adds the convolution's bias and applies its activation."""
        if self.conv.use_bias:
            output = output + tf.convert_to_tensor(self.conv.bias)
        return self.conv.activation(output)


class _SlicedConv(_RewrittenConv):
    """A convolution [B, H, W, *] -> [B, h, w, C] as a chain of sums over slices of channels."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolution, with bias and activation where it has them."""
        conv, channels = self.conv, x.shape[-1]
        kernel = tf.convert_to_tensor(conv.kernel)
        total = None
        for start in range(0, channels, SLICE_CHANNELS):
            block = tf.slice(
                x, [0, 0, 0, start], [-1, -1, -1, min(SLICE_CHANNELS, channels - start)]
            )
            part = tf.nn.conv2d(
                block,
                kernel[:, :, start : start + SLICE_CHANNELS],
                conv.strides,
                conv.padding.upper(),
                dilations=conv.dilation_rate,
            )
            # A chain of binary sums: the GPU's ADD has two operands.
            total = part if total is None else total + part
        return self._with_bias_and_activation(total)


class _StridedConv(_RewrittenConv):
    """A 1x1 convolution with strides, [B, H, W, *] -> [B, h, w, C], as slice and convolution."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolution, with bias and activation where it has them."""
        conv = self.conv
        rows, columns = conv.strides
        output = tf.nn.conv2d(
            x[:, ::rows, ::columns], tf.convert_to_tensor(conv.kernel), 1, "VALID"
        )
        return self._with_bias_and_activation(output)


class _SlicedPyramidPooling(keras.layers.Layer):
    """`PyramidPooling` for a static size: averages over rows first, then over columns."""

    def __init__(self, pooling: PyramidPooling) -> None:
        super().__init__(name=pooling.name, dtype=pooling.dtype_policy)
        self.bins = pooling.bins

    def call(self, x: tf.Tensor) -> list[tf.Tensor]:
        """Returns a map [B, n, n, F] for each n of the bins."""
        return [_pooled(_pooled(x, bins, axis=1), bins, axis=2) for bins in self.bins]

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> list[tuple[int | None, ...]]:
        """Returns the shapes of `call`'s results."""
        return [(shape[0], bins, bins, shape[3]) for bins in self.bins]


def _pooled(x: tf.Tensor, bins: int, axis: int) -> tf.Tensor:
    side = x.shape[axis]
    means = []
    for index in range(bins):
        start, end = index * side // bins, -(-(index + 1) * side // bins)
        at, size = [0] * 4, [-1] * 4
        at[axis], size[axis] = start, end - start
        means.append(tf.reduce_mean(tf.slice(x, at, size), axis, keepdims=True))
    return tf.concat(means, axis)
