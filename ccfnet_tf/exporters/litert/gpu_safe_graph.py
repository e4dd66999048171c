"""Rewrites the network for one image size with operators that embedded GPUs execute correctly.

Three layers are rewritten, with equal outputs:

- A convolution over many channels is a sum of convolutions over slices of them. LiteRT's GPU path
  answers wrong, without an error, where 9 times the channels is above the 8192 rows that a texture
  may have, and on ResNet-50 every head of the paper begins with such a convolution.
- A 1x1 convolution with strides is one without, of every second row and column. With weights in 8
  bits the GPU path answers garbage behind the former, which ResNet has.
- Pyramid pooling is a mean of slices: the GPU multiplies by matrices only where one is constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from ccfnet_tf.network.heads import PyramidPooling
from ccfnet_tf.network.outputs import difficulty, exported_heads, probabilities

LARGEST_TEXTURE = 8192
"""Rows: kernel pixels times input channels of a convolution."""

SLICE = 512
"""Channels of a slice."""

ANSWERS = "answers"
"""Scope of the ops behind the network's last layers."""

Answers = dict[str, tf.Tensor]


def gpu_safe_outputs(model: Any) -> Callable[[tf.Tensor], Answers]:
    """Returns a function from images of a fixed size to probabilities and P(hard).

    Args:
        model: A `CCFNet`.

    Returns:
        float32 [B, H, W, 3], RGB 0..255, all static, -> `probabilities` [B, H, W, C] and
        `difficulty` [B, H, W], float32.
    """
    network = _said_otherwise(exported_heads(model))

    def answers(images: tf.Tensor) -> Answers:
        outputs = network({"images": images}, training=False)
        with tf.name_scope(ANSWERS):
            return {
                "probabilities": probabilities(outputs["refine"]),
                "difficulty": difficulty(outputs["attention"]),
            }

    return answers


def _said_otherwise(model: keras.Model) -> keras.Model:
    # Layers are shared, so weights are not copied; only how they are called changes.
    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=_call)


def _call(layer: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(layer, keras.Model):
        return _said_otherwise(layer)(*args, **kwargs)
    if isinstance(layer, PyramidPooling):
        return _MeansOfSlices(layer)(*args)
    if isinstance(layer, keras.layers.Conv2D) and _rows(layer, args[0]) > LARGEST_TEXTURE:
        return _SlicedConv(layer)(*args)
    if isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (1, 1) != layer.strides:
        return _StridedConv(layer)(*args)
    return layer(*args, **kwargs)


def _rows(conv: Any, x: Any) -> int:
    height, width = conv.kernel_size
    return int(height * width * x.shape[-1])


class _OtherConv(keras.layers.Layer):
    """A convolution with the weights of another, computed in other words."""

    def __init__(self, conv: keras.layers.Conv2D) -> None:
        super().__init__(name=conv.name, dtype=conv.dtype_policy)
        self.conv = conv
        self.built = True

    def _ended(self, found: tf.Tensor) -> tf.Tensor:
        """Returns a convolution with bias and activation where it has them."""
        if self.conv.use_bias:
            found = found + tf.convert_to_tensor(self.conv.bias)
        return self.conv.activation(found)


class _SlicedConv(_OtherConv):
    """A convolution [B, H, W, *] -> [B, h, w, C] as a chain of sums over slices of channels."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolution, with bias and activation where it has them."""
        conv, channels = self.conv, x.shape[-1]
        kernel = tf.convert_to_tensor(conv.kernel)
        total = None
        for start in range(0, channels, SLICE):
            some = tf.slice(x, [0, 0, 0, start], [-1, -1, -1, min(SLICE, channels - start)])
            part = tf.nn.conv2d(
                some,
                kernel[:, :, start : start + SLICE],
                conv.strides,
                conv.padding.upper(),
                dilations=conv.dilation_rate,
            )
            # A chain, since the GPU adds two at a time.
            total = part if total is None else total + part
        return self._ended(total)


class _StridedConv(_OtherConv):
    """A 1x1 convolution with strides, [B, H, W, *] -> [B, h, w, C]: first the places, then it."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolution, with bias and activation where it has them."""
        conv = self.conv
        rows, columns = conv.strides
        found = tf.nn.conv2d(x[:, ::rows, ::columns], tf.convert_to_tensor(conv.kernel), 1, "VALID")
        return self._ended(found)


class _MeansOfSlices(keras.layers.Layer):
    """`PyramidPooling` for a static size: rows first, then columns of what is left."""

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
