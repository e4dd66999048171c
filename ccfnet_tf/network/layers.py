"""Keras's layers with the same variables and the same answer, made of fewer and faster ops.

What Keras composes is right everywhere, and slow on CPUs: batch norm is a dozen passes over its
input in float32, a dilated convolution is cut into small images and back, and some gradients of
oneDNN take several times what other ops take for the same sum. docs/performance.md has the
figures. Every layer here is a subclass that changes `call` alone, so configurations, names and
weights fit either way; where it cannot do better it calls Keras.

Gradients of our own are only in the graph in training: what is exported holds plain ops.

Legend: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import keras
import tensorflow as tf

_LOW_PRECISION = (tf.bfloat16, tf.float16)
_WIDE = 1024  # input channels from which oneDNN's kernel gradient falls off in low precision
_SLICE = 512  # input channels at which it does not
_TILE = 32  # values of a row that oneDNN's low-precision kernels on AMX multiply at once
ENOUGH_PICTURES = 4  # from which a batch is normalised with its own statistics alone
_FEW_POSITIONS = 16  # below which batch norm's gradient over one image vanishes

Gradient = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@keras.saving.register_keras_serializable("ccfnet")
class BatchNorm(keras.layers.BatchNormalization):
    """Batch norm over all but the last axis of [B, H, W, C], in one op.

    Statistics are float32 in every precision. Synchronized over several replicas, it is Keras's.

    In training on fewer than 4 images (B, over all replicas where synchronized), statistics of
    the batch alone say little: one value is normalised to 0, two to -1 and 1, and the mean of one
    image takes its light away, while inference sees neither. There the input is normalised with
    `w * batch + (1 - w) * moving` statistics, where w grows from 0 for one image to 1 for four,
    so that training answers as inference does. The gradient is that of batch renormalization
    (Ioffe 2017): of the batch's own statistics, held to the others by a scale and an offset. Maps
    of fewer than 16 positions, where it would vanish, have the gradient of what is computed.
    The moving statistics then move by `momentum ** (B / 4)`: as far for each image as in a batch
    of four.
    """

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns the normalised input in its own type."""
        learn = bool(training and self.trainable)
        over_replicas = learn and self.synchronized and _replicas() > 1
        if learn and mask is None:
            pictures = _pictures(inputs, over_replicas=over_replicas)
            if not isinstance(pictures, int) or pictures < ENOUGH_PICTURES:
                return self._with_few_pictures(inputs, pictures)
        if mask is not None or over_replicas:
            return super().call(inputs, training=training, mask=mask)
        result, mean, variance = self._fused(inputs, self.gamma, self.beta, learn=learn)
        if learn:
            self._move(self.moving_mean, mean, self.momentum)
            self._move(self.moving_variance, variance, self.momentum)
        return result

    def _fused(
        self, inputs: tf.Tensor, scale: Any, offset: Any, *, learn: bool
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the result and, while it learns, mean and variance of the batch."""
        unused = tf.zeros([0])  # while it learns, the op takes no statistics
        result, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(scale),
            offset=tf.convert_to_tensor(offset),
            mean=unused if learn else tf.convert_to_tensor(self.moving_mean),
            variance=unused if learn else tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=learn,
        )
        if learn:
            # The op divides by n - 1, Keras by n.
            n = tf.cast(tf.size(inputs, tf.int64) // inputs.shape[-1], tf.float32)
            variance *= (n - 1.0) / n
        return result, mean, variance

    def _with_few_pictures(self, inputs: tf.Tensor, pictures: Any) -> tf.Tensor:
        """Normalises and learns with the moving statistics beside the batch's."""
        pictures = tf.minimum(tf.cast(pictures, tf.float32), float(ENOUGH_PICTURES))
        share = (pictures - 1.0) / (ENOUGH_PICTURES - 1.0)
        before = (
            tf.convert_to_tensor(self.moving_mean),
            tf.convert_to_tensor(self.moving_variance),
        )

        def blend(mean: tf.Tensor, variance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            mean = share * mean + (1.0 - share) * before[0]
            variance = share * variance + (1.0 - share) * before[1]
            return mean, tf.math.rsqrt(variance + self.epsilon)

        if _has_few_positions(inputs):
            values = tf.cast(inputs, tf.float32)
            mean, variance = self._moments(values, None)
            center, scale = blend(mean, variance)
            normal = (values - center) * scale
        else:
            normal, mean, variance = self._normalised(inputs)
            center, scale = blend(mean, variance)
            deviation = tf.sqrt(variance + self.epsilon)
            to_scale = tf.stop_gradient(deviation * scale)
            to_offset = tf.stop_gradient((mean - center) * scale)
            normal = tf.cast(normal, tf.float32) * to_scale + to_offset
        momentum = self.momentum ** (pictures / ENOUGH_PICTURES)
        # What one batch's mean is off by belongs to the variance of all.
        spread = (1.0 - share) * momentum * tf.square(mean - before[0])
        self._move(self.moving_mean, mean, momentum)
        self._move(self.moving_variance, variance + spread, momentum)
        return tf.cast(normal * self.gamma + self.beta, inputs.dtype)

    def _normalised(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the input normalised by its own statistics, their mean and their variance."""
        if not (self.synchronized and _replicas() > 1):
            channels = inputs.shape[-1]
            return self._fused(inputs, tf.ones([channels]), tf.zeros([channels]), learn=True)
        values = tf.cast(inputs, tf.float32)
        mean, variance = self._moments(values, None)
        return (values - mean) * tf.math.rsqrt(variance + self.epsilon), mean, variance

    def _move(self, statistic: keras.Variable, now: tf.Tensor, momentum: Any) -> None:
        statistic.assign(statistic * momentum + now * (1.0 - momentum))


@keras.saving.register_keras_serializable("ccfnet")
class Conv(keras.layers.Conv2D):
    """A convolution [B, H, W, *] -> [B, h, w, C]: dilated in one op, with gradients of our own.

    They are faster, and in low precision they keep oneDNN from reading beyond its buffers.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns the convolution, with bias and activation where the layer has them."""
        if not training or not own_gradients() or not self._has_own_gradient(inputs):
            return super().call(inputs)
        kernel = tf.convert_to_tensor(self.kernel)
        result = _conv_with_gradient(
            inputs, kernel, self.strides[0], self.padding.upper(), self.dilation_rate[0]
        )
        if self.use_bias:
            result = tf.nn.bias_add(result, tf.convert_to_tensor(self.bias))
        return self.activation(result)

    def convolution_op(self, inputs: tf.Tensor, kernel: keras.Variable) -> tf.Tensor:
        """Returns the convolution alone."""
        if max(self.dilation_rate) == 1 or not dilates_natively(inputs.dtype):
            return super().convolution_op(inputs, kernel)
        kernel, rate = tf.convert_to_tensor(kernel), self.dilation_rate
        return tf.nn.conv2d(inputs, kernel, 1, self.padding.upper(), dilations=rate)

    def _has_own_gradient(self, inputs: tf.Tensor) -> bool:
        if self.groups > 1:
            return False
        if self.kernel_size == (1, 1):
            return self.strides[0] == self.strides[1]
        plain = self.strides == (1, 1) and inputs.dtype in _LOW_PRECISION
        return plain and (self._is_wide(inputs) or self._overruns(inputs))

    def _is_wide(self, inputs: tf.Tensor) -> bool:
        return self.dilation_rate == (1, 1) and inputs.shape[-1] >= _WIDE

    def _overruns(self, inputs: tf.Tensor) -> bool:
        dilation, across = self.dilation_rate
        if dilation != across or (dilation > 1 and not dilates_natively(inputs.dtype)):
            return False
        reach = (self.kernel_size[1] - 1) * dilation
        width = inputs.shape[2]
        if width is None:  # the gradient looks when it knows
            return True
        columns = width - reach if self.padding == "valid" else width
        return columns > 0 and bool(overruns(columns, reach))


@keras.saving.register_keras_serializable("ccfnet")
class DepthwiseConv(keras.layers.DepthwiseConv2D):
    """A depthwise convolution [B, H, W, C] -> [B, h, w, C] with a faster gradient for stride 2."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns the convolution, with bias and activation where the layer has them."""
        strided = self.strides[0] == self.strides[1] > 1 and self.padding == "valid"
        if not (training and own_gradients() and strided and inputs.dtype in _LOW_PRECISION):
            return super().call(inputs)
        kernel = tf.convert_to_tensor(self.kernel)
        result = _depthwise_with_gradient(inputs, kernel, self.strides[0])
        if self.use_bias:
            result = tf.nn.bias_add(result, tf.convert_to_tensor(self.bias))
        return self.activation(result)


@keras.saving.register_keras_serializable("ccfnet")
class Dropout(keras.layers.Dropout):
    """Dropout whose state is saved with the weights, so that a loaded model goes on the same.

    Keras saves the state of its random numbers in no format.
    """

    def save_own_variables(self, store: Any) -> None:
        """Saves the state of the random numbers; a rate of 0 has none."""
        if self.rate > 0:
            store["seed"] = self.seed_generator.state.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Loads it; files of models with Keras's own dropout hold none."""
        if self.rate > 0 and "seed" in store:
            self.seed_generator.state.assign(store["seed"])


FASTER: dict[type[keras.layers.Layer], type[keras.layers.Layer]] = {
    keras.layers.BatchNormalization: BatchNorm,
    keras.layers.Conv2D: Conv,
    keras.layers.DepthwiseConv2D: DepthwiseConv,
}
"""What takes the place of Keras's layers in a backbone."""


@lru_cache
def dilates_natively(dtype: tf.DType) -> bool:
    """Returns whether a dilated convolution has a gradient here; on CPUs oneDNN brings it."""
    with tf.init_scope():
        x = tf.zeros([1, 5, 5, 1], dtype)
        try:
            _kernel_gradient(x, (3, 3, 1, 1), x, 1, "SAME", dilation=2)
        except tf.errors.OpError:
            return False
    return True


def own_gradients() -> bool:
    """Returns whether convolutions have gradients of our own: on CPUs, of which they are made."""
    return not tf.config.list_physical_devices("GPU")


def overruns(width: Any, reach: int) -> Any:
    """Returns whether oneDNN's kernel gradient in low precision reads past the end of a row.

    On CPUs with AMX, oneDNN 3.7 (and its main branch, August 2026) copies rows of features into
    scratch memory, each as long as a multiple of 32 has room for it and its padding. It reads them
    in pieces of equal, even length from every column of the kernel. What it reads behind the end
    is multiplied by zero; but behind the last row that was copied lies memory that was never
    written, and zero times NaN is NaN.

    Args:
        width: Columns of the convolution's result, an int or an int32 tensor.
        reach: Columns between the kernel's first and its last.
    """
    tiles = -(-width // _TILE)
    read = -(-width // (2 * tiles)) * (2 * tiles) + reach
    return read > -(-(width + reach) // _TILE) * _TILE


def _conv_with_gradient(
    x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str, dilation: int
) -> tf.Tensor:
    dilations = [1, dilation, dilation, 1]

    @tf.custom_gradient
    def conv(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        def gradient(out: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            back = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x),
                filter=kernel,
                out_backprop=out,
                strides=[1, stride, stride, 1],
                padding=padding,
                dilations=dilations,
            )
            if kernel.shape[:2] == (1, 1):
                return back, _product(x[:, ::stride, ::stride], out)
            return back, kernel_gradient(x, kernel.shape, out, padding, dilation)

        return tf.nn.conv2d(x, kernel, stride, padding, dilations=dilations), gradient

    return conv(x, kernel)


def _product(x: tf.Tensor, out: tf.Tensor) -> tf.Tensor:
    """Returns the kernel's gradient [1, 1, F, C] of a 1x1 convolution as one matrix product."""
    rows, columns = (tf.reshape(value, [-1, value.shape[-1]]) for value in (x, out))
    return tf.matmul(rows, columns, transpose_a=True)[None, None]


def kernel_gradient(
    x: tf.Tensor, shape: Any, out: tf.Tensor, padding: str, dilation: int
) -> tf.Tensor:
    """Returns the gradient of a kernel of stride 1: widened where rows are too short, by slices.

    Args:
        x: Features [B, H, W, F].
        shape: The kernel's, [k, k, F, C].
        out: Gradient of the convolution's result, [B, h, w, C].
        padding: `SAME` or `VALID`.
        dilation: The convolution's.
    """
    return _by_slices(*_widened(x, out, (shape[1] - 1) * dilation), shape, padding, dilation)


def _widened(x: tf.Tensor, out: tf.Tensor, reach: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Adds columns of zeros at the right of both, where rows would be read past their end.

    The gradient is the same, and a width that is a multiple of 32 leaves room for the reach. It
    costs the copies: oneDNN fills rows that are too short up to about this length anyway.
    """
    width = tf.shape(out)[2] if out.shape[2] is None else out.shape[2]
    missing = tf.where(overruns(width, reach), -width % _TILE, 0)
    columns = [[0, 0], [0, 0], [0, missing], [0, 0]]
    return tf.pad(x, columns), tf.pad(out, columns)


def _by_slices(x: tf.Tensor, out: tf.Tensor, shape: Any, padding: str, dilation: int) -> tf.Tensor:
    """Returns the kernel's gradient, input channels taken `_SLICE` at a time."""
    height, width, channels, filters = shape
    parts = []
    for first in range(0, channels, _SLICE):
        part = x[..., first : first + _SLICE]
        sizes = (height, width, part.shape[-1], filters)
        parts.append(_kernel_gradient(part, sizes, out, 1, padding, dilation=dilation))
    return tf.concat(parts, 2)


def _kernel_gradient(
    x: tf.Tensor,
    sizes: tuple[int, ...],
    out: tf.Tensor,
    stride: int,
    padding: str,
    *,
    dilation: int = 1,
) -> tf.Tensor:
    return tf.raw_ops.Conv2DBackpropFilter(
        input=x,
        filter_sizes=sizes,
        out_backprop=out,
        strides=[1, stride, stride, 1],
        padding=padding,
        dilations=[1, dilation, dilation, 1],
    )


def _depthwise_with_gradient(x: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    strides = [1, stride, stride, 1]

    @tf.custom_gradient
    def conv(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        def gradient(out: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            back = tf.nn.depthwise_conv2d(
                _spread(out, tf.shape(x), kernel.shape, stride),
                tf.reverse(kernel, [0, 1]),
                [1, 1, 1, 1],
                "VALID",
            )
            return back, tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=x,
                filter_sizes=kernel.shape,
                out_backprop=out,
                strides=strides,
                padding="VALID",
            )

        return tf.nn.depthwise_conv2d(x, kernel, strides, "VALID"), gradient

    return conv(x, kernel)


def _spread(out: tf.Tensor, target: tf.Tensor, kernel: Any, stride: int) -> tf.Tensor:
    """Puts a gradient [B, h, w, C] on every `stride`-th pixel of a zero map.

    Returns:
        [B, H + k - 1, W + k - 1, C] for a target [B, H, W, C] and a kernel of k pixels a side:
        a convolution of it, without stride and padding, has the size of the target.
    """
    size = tf.shape(out)
    gaps = [0, stride - 1]
    wide = tf.pad(out[:, :, None, :, None], [[0, 0], [0, 0], gaps, [0, 0], gaps, [0, 0]])
    wide = tf.reshape(wide, [size[0], stride * size[1], stride * size[2], out.shape[-1]])
    # The last real entry has stride - 1 zeros behind it, of which the target may have no use.
    rows, columns = target[1] + kernel[0] - 1, target[2] + kernel[1] - 1
    wide = tf.pad(wide, [[0, 0], [kernel[0] - 1, stride], [kernel[1] - 1, stride], [0, 0]])
    return wide[:, :rows, :columns]


def _pictures(x: tf.Tensor, *, over_replicas: bool) -> Any:
    """Returns how many images are normalised together: a number where the graph knows it.

    Replicas have batches of one size where their size is known, and maybe not where it is not.
    """
    if x.shape[0] is not None:
        return int(x.shape[0]) * (_replicas() if over_replicas else 1)
    count = tf.shape(x)[0]
    context = tf.distribute.get_replica_context()
    if not over_replicas or context is None:
        return count
    count = tf.cast(count, tf.float32)  # what every collective knows
    return tf.cast(context.all_reduce(tf.distribute.ReduceOp.SUM, count), tf.int32)


def _has_few_positions(x: tf.Tensor) -> bool:
    """Whether an image's map [H, W] is that small; of an unknown size it is a large one."""
    height, width = x.shape[1:3]
    return height is not None and width is not None and height * width < _FEW_POSITIONS


def _replicas() -> int:
    return int(tf.distribute.get_strategy().num_replicas_in_sync)
