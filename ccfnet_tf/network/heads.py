"""The branches on top of the backbone and what they tell each other (paper 3.1).

Legend: B images, H x W pixels, h x w features at stride 8, C classes, F feature channels.
Log-softmax is written out, since LiteRT's GPU path refuses LOG_SOFTMAX, and so is log-add-exp,
which Keras guards with a WHERE that it refuses too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import tensorflow as tf
from keras import KerasTensor, layers

from ccfnet_tf.network.backbones import LayerOptions
from ccfnet_tf.network.geometry import ResizeLike, Shape, size_of
from ccfnet_tf.network.layers import BatchNorm, Conv, Dropout

PYRAMID_BINS = (1, 2, 3, 6)
DETAIL_CHANNELS = 32

_CLOSEST = 1e-6  # how near to 0 and 1 a confidence may come before its logit is taken


@dataclass(frozen=True)
class HeadStyle:
    """What all heads share.

    Attributes:
        channels: Width of the hidden convolutions.
        dropout: Share of hidden features dropped before the classifier, in training.
        layers: How the layers compute; classifiers are always float32.
    """

    channels: int = 512
    dropout: float = 0.1
    layers: LayerOptions = field(default_factory=LayerOptions)

    @property
    def policy(self) -> str:
        """Keras dtype policy of the hidden layers."""
        return self.layers.policy


def log_softmax(logits: tf.Tensor) -> tf.Tensor:
    """Returns log-probabilities over the last axis, without the fused op."""
    # The largest logit cancels out of value and gradient; it only keeps exp in range.
    largest = tf.stop_gradient(tf.reduce_max(logits, -1, keepdims=True))
    total = tf.reduce_sum(tf.exp(logits - largest), -1, keepdims=True)
    # In this order: LiteRT's converter knows (logits - largest) - log(total) as LOG_SOFTMAX.
    return logits - (largest + tf.math.log(total))


def log_add_exp(u: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """Returns log(exp(u) + exp(v)), with the right gradient where u = v too."""
    # maximum + log(1 + exp(-abs(u - v))) has the same value, but at u = v its parts' gradients
    # add up to (1, 0) instead of (1/2, 1/2).
    largest = tf.stop_gradient(tf.maximum(u, v))
    return largest + tf.math.log(tf.exp(u - largest) + tf.exp(v - largest))


@keras.saving.register_keras_serializable("ccfnet")
class LogSoftmax(layers.Layer):
    """Logits [..., C] -> log-probabilities [..., C]."""

    def call(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the log-probabilities."""
        return log_softmax(logits)

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Returns the shape of `call`'s result."""
        return shape


@keras.saving.register_keras_serializable("ccfnet")
class Judgement(layers.Layer):
    """Coarse logits [B, h, w, C] -> its probabilities, without a way back for gradients."""

    def call(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the probabilities [B, h, w, C]."""
        return tf.stop_gradient(tf.nn.softmax(logits))

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Returns the shape of `call`'s result."""
        return shape


@keras.saving.register_keras_serializable("ccfnet")
class Entropy(layers.Layer):
    """Probabilities [B, h, w, C] -> entropy [B, h, w, 1] as a share of log C, in 0..1."""

    def call(self, probabilities: tf.Tensor) -> tf.Tensor:
        """Returns the entropy."""
        classes = probabilities.shape[-1]
        logs = tf.math.log(tf.maximum(probabilities, 1e-12))
        return -tf.reduce_sum(probabilities * logs, -1, keepdims=True) / math.log(classes)

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Returns the shape of `call`'s result."""
        return (*shape[:-1], 1)


@keras.saving.register_keras_serializable("ccfnet")
class AddConfidence(layers.Layer):
    """Adds coarse's own confidence to the attention logit, times a learned scale.

    Takes attention logits [B, H, W, 2] (0 hard, 1 easy) and coarse logits [B, H, W, C]; the logit
    of coarse's largest probability, times `scale` (1 at first), joins the easy logit. No gradient
    reaches coarse.
    """

    def build(self, shapes: list[Shape]) -> None:
        """Makes the scale."""
        del shapes
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(self, attention_and_coarse: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Returns the attention logits [B, H, W, 2]."""
        attention, coarse = attention_and_coarse
        surest = tf.reduce_max(tf.nn.softmax(tf.stop_gradient(coarse)), -1, keepdims=True)
        surest = tf.minimum(tf.maximum(surest, _CLOSEST), 1.0 - _CLOSEST)
        confidence = tf.math.log(surest) - tf.math.log(1.0 - surest)
        # Not by slices: their gradients are full-resolution copies.
        return attention + self.scale * confidence * tf.constant([0.0, 1.0])

    def compute_output_shape(self, shapes: list[Shape]) -> Shape:
        """Returns the shape of `call`'s result."""
        return shapes[0]


@keras.saving.register_keras_serializable("ccfnet")
class Blend(layers.Layer):
    """Refine = P(easy) softmax(coarse) + P(hard) softmax(fine), in log space (paper 3.1).

    Takes coarse log-probabilities [B, H, W, C], attention logits [B, H, W, 2] (0 hard, 1 easy)
    and fine logits [B, H, W, C]; returns log-probabilities [B, H, W, C] that add up to 1.
    """

    def call(self, parts: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Returns the blend."""
        coarse, attention, fine = parts
        gate = log_softmax(attention)
        return log_add_exp(gate[..., 1:2] + coarse, gate[..., 0:1] + log_softmax(fine))

    def compute_output_shape(self, shapes: list[Shape]) -> Shape:
        """Returns the shape of `call`'s result."""
        return shapes[0]


@keras.saving.register_keras_serializable("ccfnet")
class PyramidPooling(layers.Layer):
    """Means of [B, h, w, F] over grids of bins, exact for any size (PSPNet).

    Bin i of n covers rows floor(i h / n) to ceil((i + 1) h / n), so neighbours overlap where h is
    no multiple of n, and a bin is never empty. As products with pooling matrices this takes the
    fewest ops of the forms that converters accept.

    Attributes:
        bins: Bins along each side, one map for each.
    """

    def __init__(self, bins: tuple[int, ...] = PYRAMID_BINS, **options: Any) -> None:
        super().__init__(**options)
        self.bins = tuple(bins)

    def call(self, features: tf.Tensor) -> list[tf.Tensor]:
        """Returns a map [B, n, n, F] for each n of `bins`."""
        height, width = size_of(features)
        batch, channels = tf.shape(features)[0], features.shape[-1]
        # Rows of all maps in one pass over the features, then columns of what little is left. No
        # einsum: it transposes the features, which takes 15 times as long.
        rows = tf.concat([_pooling_matrix(n, height, features.dtype) for n in self.bins], 0)
        pooled = tf.matmul(rows, tf.reshape(features, [batch, height, width * channels]))
        maps = []
        for bins, x in zip(self.bins, tf.split(pooled, self.bins, 1), strict=True):
            x = tf.reshape(x, [batch, bins, width, channels])  # noqa: PLW2901
            maps.append(tf.matmul(_pooling_matrix(bins, width, features.dtype), x))
        return maps

    def compute_output_shape(self, shape: Shape) -> list[Shape]:
        """Returns the shapes of `call`'s results."""
        return [(shape[0], bins, bins, shape[3]) for bins in self.bins]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make this layer again."""
        return {**super().get_config(), "bins": self.bins}


def _pooling_matrix(bins: int, size: Any, dtype: Any) -> tf.Tensor:
    """Returns [bins, size]: row i holds 1 / its length inside bin i, 0 outside."""
    index = tf.range(bins)
    start = (index * size) // bins
    # Not -((-a) // n): ONNX's integer division truncates.
    end = ((index + 1) * size + bins - 1) // bins
    place = tf.range(size)[None]
    inside = tf.logical_and(place >= start[:, None], place < end[:, None])
    return tf.cast(inside, dtype) / tf.cast(end - start, dtype)[:, None]


def conv_norm_relu(
    x: KerasTensor, filters: int, size: int, name: str, style: HeadStyle
) -> KerasTensor:
    """Convolution without bias, batch norm, ReLU: [B, h, w, *] -> [B, h, w, filters]."""
    x = Conv(
        filters, size, padding="same", use_bias=False, dtype=style.policy, name=f"{name}_conv"
    )(x)
    x = BatchNorm(
        momentum=style.layers.batch_norm_momentum,
        synchronized=style.layers.synchronized,
        dtype=style.policy,
        name=f"{name}_norm",
    )(x)
    return layers.ReLU(dtype=style.policy, name=f"{name}_relu")(x)


def head(x: KerasTensor, classes: int, name: str, style: HeadStyle) -> KerasTensor:
    """The form all branches end in: 3x3 convolution, batch norm, ReLU, dropout, 1x1 convolution.

    Returns:
        float32 logits [B, h, w, classes]; upsampling and softmax are the caller's.
    """
    x = conv_norm_relu(x, style.channels, 3, name, style)
    x = Dropout(style.dropout, dtype=style.policy, name=f"{name}_dropout")(x)
    # float32 under mixed precision: half-precision logits saturate the loss.
    return Conv(classes, 1, dtype="float32", name=f"{name}_classifier")(x)


def judged(features: KerasTensor, probabilities: KerasTensor, style: HeadStyle) -> KerasTensor:
    """Joins coarse's probabilities and their entropy to the features attention looks at.

    Returns:
        [B, h, w, F + C + 1].
    """
    entropy = Entropy(dtype="float32", name="coarse_entropy")(probabilities)
    join = layers.Concatenate(dtype=style.policy, name="attention_join")
    return join([features, probabilities, entropy])


def pyramid(features: KerasTensor, style: HeadStyle) -> KerasTensor:
    """Pools the features over 1, 2, 3 and 6 bins a side and joins the results to them.

    Returns:
        [B, h, w, F + 4 * channels].
    """
    # float32: a mean over thousands of features should not be rounded at every addition, and batch
    # norm sees but B values of a channel in the coarsest bin. At these sizes it costs nothing.
    exact = replace(style, layers=replace(style.layers, policy="float32"))
    pooled = PyramidPooling(dtype="float32", name="pyramid_pooling")(features)
    joined = [features]
    for bins, x in zip(PYRAMID_BINS, pooled, strict=True):
        x = conv_norm_relu(x, style.channels, 1, f"pyramid_{bins}", exact)  # noqa: PLW2901
        joined.append(ResizeLike(dtype=style.policy, name=f"pyramid_{bins}_resize")([x, features]))
    return layers.Concatenate(dtype=style.policy, name="pyramid_join")(joined)


def with_detail(
    context: KerasTensor, probabilities: KerasTensor, detail: KerasTensor, style: HeadStyle
) -> KerasTensor:
    """Brings what the pyramid and coarse know to stride 4, where the detail is.

    Args:
        context: [B, h, w, *] from `pyramid`.
        probabilities: [B, h, w, C], coarse's.
        detail: The backbone's stride-4 features [B, 2h-1, 2w-1, D].
        style: What all heads share.

    Returns:
        [B, 2h-1, 2w-1, channels + C + 32].
    """
    context = conv_norm_relu(context, style.channels, 3, "pyramid_merge", style)
    context = layers.Concatenate(dtype=style.policy, name="pyramid_judged")(
        [context, probabilities]
    )
    context = ResizeLike(dtype=style.policy, name="pyramid_resize")([context, detail])
    detail = conv_norm_relu(detail, DETAIL_CHANNELS, 1, "detail", style)
    return layers.Concatenate(dtype=style.policy, name="detail_join")([context, detail])
