"""The coarse, attention and fine heads on top of the backbone, and their blend (paper 3.1).

Log-softmax and log-add-exp are composed of elementary operators, because LiteRT's GPU delegate
supports neither LOG_SOFTMAX nor the WHERE operator in Keras's implementation of log-add-exp.

Legend: B images, H x W pixels, h x w features at stride 8, C classes, F feature channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import tensorflow as tf
from keras import KerasTensor, layers

from ccfnet_tf.network.backbones import LayerOptions
from ccfnet_tf.network.fast_layers import BatchNorm, Conv, Dropout
from ccfnet_tf.network.normalise_pad_resize import ResizeLike, Shape, size_of

PYRAMID_BINS = (1, 2, 3, 6)
DETAIL_CHANNELS = 32

_GATE_START = 0.1  # k of the affine gate in a new network
_GATE_STEP = 10.0
_CERTAIN = 25.0  # the other branch adds exp(-50) of its probability

_EPSILON = 1e-6  # smallest odds of an error of coarse
_STEEP = 1e4  # below the largest float16, with which GPUs may compute


@dataclass(frozen=True)
class HeadStyle:
    """Options shared by all heads.

    Attributes:
        channels: Number of channels of the hidden convolutions.
        dropout: Dropout rate before the classifier.
        layers: Precision and batch norm options of the layers. Classifiers are always float32.
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
    # The largest logit cancels out of the value and the gradient. It only prevents overflow.
    largest = tf.stop_gradient(tf.reduce_max(logits, -1, keepdims=True))
    total = tf.reduce_sum(tf.exp(logits - largest), -1, keepdims=True)
    # In this order: LiteRT's converter fuses (logits - largest) - log(total) into LOG_SOFTMAX.
    return logits - (largest + tf.math.log(total))


def log_add_exp(u: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """Returns log(exp(u) + exp(v)), with the correct gradient also where u = v."""
    # maximum + log(1 + exp(-abs(u - v))) has the same value, but its gradient at u = v is (1, 0)
    # instead of (1/2, 1/2).
    largest = tf.stop_gradient(tf.maximum(u, v))
    return largest + tf.math.log(tf.exp(u - largest) + tf.exp(v - largest))


@keras.saving.register_keras_serializable("ccfnet")
class LogSoftmax(layers.Layer):
    """Converts logits [..., C] to log-probabilities [..., C]."""

    def call(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the log-probabilities."""
        return log_softmax(logits)

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Returns the output shape of `call`."""
        return shape


@keras.saving.register_keras_serializable("ccfnet")
class Judgement(layers.Layer):
    """Converts the coarse logits [B, h, w, C] to probabilities and stops their gradient."""

    def call(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the probabilities [B, h, w, C]."""
        return tf.stop_gradient(tf.nn.softmax(logits))

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Returns the output shape of `call`."""
        return shape


@keras.saving.register_keras_serializable("ccfnet")
class Entropy(layers.Layer):
    """Computes the entropy [B, h, w, 1] of probabilities [B, h, w, C], divided by log C (0..1)."""

    def call(self, probabilities: tf.Tensor) -> tf.Tensor:
        """Returns the entropy."""
        classes = probabilities.shape[-1]
        logs = tf.math.log(tf.maximum(probabilities, 1e-12))
        return -tf.reduce_sum(probabilities * logs, -1, keepdims=True) / math.log(classes)

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Returns the output shape of `call`."""
        return (*shape[:-1], 1)


@keras.saving.register_keras_serializable("ccfnet")
class AddConfidence(layers.Layer):
    """Adds the confidence of the coarse head, times a learned scale, to the easy logit.

    Takes attention logits [B, H, W, 2] (0 hard, 1 easy) and coarse logits [B, H, W, C]. The
    confidence is the logit of the largest coarse probability. The scale is initialised to 1. No
    gradient reaches the coarse head.
    """

    def build(self, shapes: list[Shape]) -> None:
        """Creates the scale."""
        del shapes
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(self, attention_and_coarse: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Returns the attention logits [B, H, W, 2]."""
        attention, coarse = attention_and_coarse
        confidence = -tf.math.log(tf.maximum(_odds_of_error(tf.stop_gradient(coarse)), _EPSILON))
        # Without slices, whose gradients would be full-resolution copies.
        return attention + self.scale * confidence * tf.constant([0.0, 1.0])

    def compute_output_shape(self, shapes: list[Shape]) -> Shape:
        """Returns the output shape of `call`."""
        return shapes[0]


def _odds_of_error(logits: tf.Tensor) -> tf.Tensor:
    """Returns (1 - p) / p of the largest probability p, [..., 1], of logits [..., C].

    It is the sum of exp(logit - largest logit) over all other classes. Computed as 1 - p, float32
    would lose all digits where p is close to 1, and exported files would differ from Keras there.
    """
    below = tf.reduce_max(logits, -1, keepdims=True) - logits
    # 0 for the largest logit and 1 for the others, with operators that GPUs of LiteRT have. Of
    # several largest ones, all but one count.
    other = tf.minimum(_STEEP * below, 1.0)
    more = tf.reduce_sum(1.0 - other, -1, keepdims=True) - 1.0
    return tf.reduce_sum(other * tf.exp(-below), -1, keepdims=True) + more


@keras.saving.register_keras_serializable("ccfnet")
class AffineGate(layers.Layer):
    """Derives the weights of fine and coarse from the attention logits: sigmoid(k a + b).

    a is the logit of P(hard). k and b are learned through the loss of refine alone. Attention says
    how likely coarse is wrong, which is not how much better fine is: a blend by attention gives
    coarse a weight of about 0.85, also where fine is better. The weights start close to 1/2.

    The variables are k and b divided by `_GATE_STEP`, so that optimizers which change each value by
    about the learning rate (Adam) can move two numbers as far as the other weights together.
    """

    def build(self, shape: Shape) -> None:
        """Creates the two variables."""
        del shape
        start = keras.initializers.Constant(_GATE_START / _GATE_STEP)
        self.scale = self.add_weight(name="scale", shape=(), initializer=start)
        self.bias = self.add_weight(name="bias", shape=(), initializer="zeros")

    def call(self, attention: tf.Tensor) -> tf.Tensor:
        """Returns the logits of the gate [B, H, W, 2] (0 fine, 1 coarse)."""
        # Without slices, whose gradients would be full-resolution copies. A softmax depends on the
        # difference of the two logits only, so each takes half of the bias.
        half = tf.constant([0.5, -0.5])
        return _GATE_STEP * (self.scale * attention + self.bias * half)

    def coefficients(self) -> dict[str, float]:
        """Returns k as `scale` and b as `bias`."""
        return {
            "scale": _GATE_STEP * float(self.scale.numpy()),
            "bias": _GATE_STEP * float(self.bias.numpy()),
        }

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Returns the output shape of `call`."""
        return shape


@keras.saving.register_keras_serializable("ccfnet")
class HardGate(layers.Layer):
    """Chooses fine where P(hard) exceeds a threshold, and coarse elsewhere, without a gradient.

    Attributes:
        threshold: P(hard) above which fine is used, in 0..1 (both excluded).
    """

    def __init__(self, threshold: float, **options: Any) -> None:
        super().__init__(**options)
        self.threshold = threshold

    @property
    def limit(self) -> float:
        """The threshold as a logit."""
        return math.log(self.threshold) - math.log(1.0 - self.threshold)

    def call(self, attention: tf.Tensor) -> tf.Tensor:
        """Returns the logits of the gate [B, H, W, 2] (0 fine, 1 coarse): 25 and -25."""
        hard = tf.reduce_sum(attention * tf.constant([1.0, -1.0]), -1, keepdims=True)
        fine = tf.cast(tf.stop_gradient(hard) > self.limit, tf.float32)
        return _CERTAIN * (2.0 * fine - 1.0) * tf.constant([1.0, -1.0])

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Returns the output shape of `call`."""
        return shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "threshold": self.threshold}


@keras.saving.register_keras_serializable("ccfnet")
class Blend(layers.Layer):
    """Computes P(easy) softmax(coarse) + P(hard) softmax(fine) in log space (paper 3.1).

    Takes coarse log-probabilities [B, H, W, C], the logits of the gate [B, H, W, 2] (0 fine, 1
    coarse; those of attention in the paper) and fine logits [B, H, W, C]. Returns the `refine`
    log-probabilities [B, H, W, C].
    """

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Returns the blended log-probabilities."""
        coarse, gate, fine = inputs
        gate = log_softmax(gate)
        return log_add_exp(gate[..., 1:2] + coarse, gate[..., 0:1] + log_softmax(fine))

    def compute_output_shape(self, shapes: list[Shape]) -> Shape:
        """Returns the output shape of `call`."""
        return shapes[0]


@keras.saving.register_keras_serializable("ccfnet")
class PyramidPooling(layers.Layer):
    """Average-pools [B, h, w, F] over grids of bins, exactly for any size (PSPNet).

    Bin i of n covers rows floor(i h / n) to ceil((i + 1) h / n). Neighbouring bins overlap if h
    is not a multiple of n, and a bin is never empty. The layer multiplies by pooling matrices: of
    the forms that converters accept, this one needs the fewest ops.

    Attributes:
        bins: Numbers of bins along each side; each gives one map.
    """

    def __init__(self, bins: tuple[int, ...] = PYRAMID_BINS, **options: Any) -> None:
        super().__init__(**options)
        self.bins = tuple(bins)

    def call(self, features: tf.Tensor) -> list[tf.Tensor]:
        """Returns a map [B, n, n, F] for each n of `bins`."""
        height, width = size_of(features)
        batch, channels = tf.shape(features)[0], features.shape[-1]
        # Pools the rows of all maps in one pass over the features, then the columns of the small
        # results. einsum would transpose the features, which takes 15 times as long.
        rows = tf.concat([_pooling_matrix(n, height, features.dtype) for n in self.bins], 0)
        pooled = tf.matmul(rows, tf.reshape(features, [batch, height, width * channels]))
        maps = []
        for bins, x in zip(self.bins, tf.split(pooled, self.bins, 1), strict=True):
            x = tf.reshape(x, [batch, bins, width, channels])  # noqa: PLW2901
            maps.append(tf.matmul(_pooling_matrix(bins, width, features.dtype), x))
        return maps

    def compute_output_shape(self, shape: Shape) -> list[Shape]:
        """Returns the output shapes of `call`."""
        return [(shape[0], bins, bins, shape[3]) for bins in self.bins]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "bins": self.bins}


def _pooling_matrix(bins: int, size: Any, dtype: Any) -> tf.Tensor:
    """Returns a matrix [bins, size] whose row i is 1 / (length of bin i) inside bin i, else 0."""
    index = tf.range(bins)
    start = (index * size) // bins
    # Not -((-a) // n): ONNX's integer division truncates.
    end = ((index + 1) * size + bins - 1) // bins
    position = tf.range(size)[None]
    inside = tf.logical_and(position >= start[:, None], position < end[:, None])
    return tf.cast(inside, dtype) / tf.cast(end - start, dtype)[:, None]


def conv_norm_relu(
    x: KerasTensor, filters: int, size: int, name: str, style: HeadStyle
) -> KerasTensor:
    """Applies a convolution without bias, batch norm and ReLU.

    Returns:
        [B, h, w, filters].
    """
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
    """Applies a head: 3x3 convolution, batch norm, ReLU, dropout, 1x1 convolution.

    Returns:
        float32 logits [B, h, w, classes]. The caller applies upsampling and softmax.
    """
    x = conv_norm_relu(x, style.channels, 3, name, style)
    x = Dropout(style.dropout, dtype=style.policy, name=f"{name}_dropout")(x)
    # float32 under mixed precision too: half-precision logits saturate the loss.
    return Conv(classes, 1, dtype="float32", name=f"{name}_classifier")(x)


def judged(features: KerasTensor, probabilities: KerasTensor, style: HeadStyle) -> KerasTensor:
    """Concatenates the coarse probabilities and their entropy to the attention head's features.

    Returns:
        [B, h, w, F + C + 1].
    """
    entropy = Entropy(dtype="float32", name="coarse_entropy")(probabilities)
    join = layers.Concatenate(dtype=style.policy, name="attention_join")
    return join([features, probabilities, entropy])


def pyramid(features: KerasTensor, style: HeadStyle) -> KerasTensor:
    """Pools the features over 1, 2, 3 and 6 bins per side and concatenates the results to them.

    Returns:
        [B, h, w, F + 4 * channels].
    """
    # float32, because a mean over thousands of features should not be rounded at every addition,
    # and batch norm sees only B values per channel in the coarsest bin. The cost is negligible at
    # these sizes.
    float32_style = replace(style, layers=replace(style.layers, policy="float32"))
    pooled = PyramidPooling(dtype="float32", name="pyramid_pooling")(features)
    joined = [features]
    for bins, x in zip(PYRAMID_BINS, pooled, strict=True):
        x = conv_norm_relu(x, style.channels, 1, f"pyramid_{bins}", float32_style)  # noqa: PLW2901
        joined.append(ResizeLike(dtype=style.policy, name=f"pyramid_{bins}_resize")([x, features]))
    return layers.Concatenate(dtype=style.policy, name="pyramid_join")(joined)


def with_detail(
    context: KerasTensor, probabilities: KerasTensor | None, detail: KerasTensor, style: HeadStyle
) -> KerasTensor:
    """Resizes pyramid features and coarse probabilities to stride 4 and adds the detail features.

    Args:
        context: [B, h, w, *] from `pyramid`.
        probabilities: Coarse probabilities [B, h, w, C], or None to leave them out.
        detail: Stride-4 features of the backbone, [B, 2h-1, 2w-1, D].
        style: Options shared by all heads.

    Returns:
        [B, 2h-1, 2w-1, channels + C + 32], or without C.
    """
    context = conv_norm_relu(context, style.channels, 3, "pyramid_merge", style)
    if probabilities is not None:
        join = layers.Concatenate(dtype=style.policy, name="pyramid_judged")
        context = join([context, probabilities])
    context = ResizeLike(dtype=style.policy, name="pyramid_resize")([context, detail])
    detail = conv_norm_relu(detail, DETAIL_CHANNELS, 1, "detail", style)
    return layers.Concatenate(dtype=style.policy, name="detail_join")([context, detail])
