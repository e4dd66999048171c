"""Faster versions of Keras layers, with the same variables and the same outputs.

Keras's layers are correct on every device, but slow on CPUs: batch norm makes a dozen passes over
its input in float32, a dilated convolution is split into small images and reassembled, and some
gradients of oneDNN take several times as long as other ops that compute the same sum.
docs/performance.md reports the measurements. Every layer here is a subclass that overrides only
`call`, so configurations, names and weights are interchangeable. It calls Keras's implementation
where it is not faster.

Custom gradients are in the graph only in training; exported graphs contain standard ops.

Legend: B images, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import keras
import tensorflow as tf

_LOW_PRECISION = (tf.bfloat16, tf.float16)
_WIDE = 1024  # input channels from which oneDNN's low-precision kernel gradient becomes slow
_SLICE = 512  # input channels for which it is fast
_TILE = 32  # values of a row that oneDNN's low-precision AMX kernels multiply at a time
ENOUGH_IMAGES = 4  # batch size from which batch norm uses only the statistics of the batch
_FEW_POSITIONS = 16  # map size below which batch norm's gradient over one image vanishes

Gradient = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@keras.saving.register_keras_serializable("ccfnet")
class BatchNorm(keras.layers.BatchNormalization):
    """Batch norm over all but the last axis of [B, H, W, C], in one op.

    Statistics are float32 in every precision. If it is synchronized over several replicas, Keras's
    implementation is used.

    With fewer than 4 images in training (B, over all replicas if synchronized), the statistics of
    the batch are unreliable: a single value is normalised to 0, two values to -1 and 1, and
    subtracting the mean of one image removes its brightness, which inference does not do. The
    input is then normalised with `w * batch + (1 - w) * moving` statistics, where w grows from 0
    for one image to 1 for four, so that training matches inference. The gradient is that of batch
    renormalization (Ioffe 2017): the input is normalised with the statistics of the batch, then
    mapped to the blended statistics by a scale and an offset that are treated as constants. For
    maps of fewer than 16 positions, where this gradient would vanish, the exact gradient is used.
    The moving statistics are updated with the momentum `momentum ** (B / 4)`, so that each image
    counts as much as in a batch of four.
    """

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns the normalised input in its dtype."""
        learn = bool(training and self.trainable)
        over_replicas = learn and self.synchronized and _replicas() > 1
        if learn and mask is None:
            images = _count_images(inputs, over_replicas=over_replicas)
            if not isinstance(images, int) or images < ENOUGH_IMAGES:
                return self._with_few_images(inputs, images)
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
        """Returns the result and, if `learn`, the mean and variance of the batch."""
        unused = tf.zeros([0])  # in training, the op takes no statistics
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
            # The variance of the op is divided by n - 1, that of Keras by n.
            n = tf.cast(tf.size(inputs, tf.int64) // inputs.shape[-1], tf.float32)
            variance *= (n - 1.0) / n
        return result, mean, variance

    def _with_few_images(self, inputs: tf.Tensor, images: Any) -> tf.Tensor:
        """Normalises with a blend of batch and moving statistics, and updates the latter."""
        images = tf.minimum(tf.cast(images, tf.float32), float(ENOUGH_IMAGES))
        share = (images - 1.0) / (ENOUGH_IMAGES - 1.0)
        moving = (
            tf.convert_to_tensor(self.moving_mean),
            tf.convert_to_tensor(self.moving_variance),
        )

        def blend(mean: tf.Tensor, variance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            mean = share * mean + (1.0 - share) * moving[0]
            variance = share * variance + (1.0 - share) * moving[1]
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
        momentum = self.momentum ** (images / ENOUGH_IMAGES)
        # The deviation of the batch mean contributes to the overall variance.
        spread = (1.0 - share) * momentum * tf.square(mean - moving[0])
        self._move(self.moving_mean, mean, momentum)
        self._move(self.moving_variance, variance + spread, momentum)
        return tf.cast(normal * self.gamma + self.beta, inputs.dtype)

    def _normalised(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the input normalised with its own statistics, its mean and its variance."""
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
    """2D convolution [B, H, W, *] -> [B, h, w, C] with native dilation and custom gradients.

    The custom gradients are faster. In low precision they also prevent oneDNN from reading beyond
    its buffers.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns the convolution, with bias and activation if the layer has them."""
        if not training or not own_gradients():
            return super().call(inputs)
        if self._has_own_gradient(inputs):
            kernel = tf.convert_to_tensor(self.kernel)
            result = _conv_with_gradient(
                inputs, kernel, self.strides[0], self.padding.upper(), self.dilation_rate[0]
            )
        else:
            result = self.convolution_op(inputs, self.kernel)
        return self.activation(_with_bias(result, self))

    def convolution_op(self, inputs: tf.Tensor, kernel: keras.Variable) -> tf.Tensor:
        """Returns the convolution without bias and activation."""
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
        if width is None:  # checked at run time by the gradient
            return True
        columns = width - reach if self.padding == "valid" else width
        return columns > 0 and bool(overruns(columns, reach))


@keras.saving.register_keras_serializable("ccfnet")
class DepthwiseConv(keras.layers.DepthwiseConv2D):
    """Depthwise convolution [B, H, W, C] -> [B, h, w, C] with a faster gradient for stride 2."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns the convolution, with bias and activation if the layer has them."""
        low = inputs.dtype in _LOW_PRECISION
        if not (training and own_gradients() and low):
            return super().call(inputs)
        if self.strides[0] == self.strides[1] > 1 and self.padding == "valid":
            kernel = tf.convert_to_tensor(self.kernel)
            result = _depthwise_with_gradient(inputs, kernel, self.strides[0])
        else:
            result = keras.ops.depthwise_conv(
                inputs,
                self.kernel,
                strides=self.strides,
                padding=self.padding,
                dilation_rate=self.dilation_rate,
            )
        return self.activation(_with_bias(result, self))


@keras.saving.register_keras_serializable("ccfnet")
class Dropout(keras.layers.Dropout):
    """Dropout whose random state is saved with the weights, so that resumed training is the same.

    Keras does not save the state of its random number generators in any format.
    """

    def save_own_variables(self, store: Any) -> None:
        """Saves the random state; a layer with rate 0 has none."""
        if self.rate > 0:
            store["seed"] = self.seed_generator.state.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Loads the random state, if the file contains it; Keras's own dropout does not save it."""
        if self.rate > 0 and "seed" in store:
            self.seed_generator.state.assign(store["seed"])


FASTER: dict[type[keras.layers.Layer], type[keras.layers.Layer]] = {
    keras.layers.BatchNormalization: BatchNorm,
    keras.layers.Conv2D: Conv,
    keras.layers.DepthwiseConv2D: DepthwiseConv,
}
"""Replacements for Keras's layers in a backbone."""


def _with_bias(x: tf.Tensor, layer: keras.layers.Layer) -> tf.Tensor:
    """Adds the bias of a layer, if it has one."""
    if not layer.use_bias:
        return x
    bias = tf.convert_to_tensor(layer.bias)
    return _add_bias(x, bias) if x.dtype in _LOW_PRECISION else tf.nn.bias_add(x, bias)


@tf.custom_gradient
def _add_bias(x: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
    """Adds a bias [C] with an exact gradient.

    On CPUs the gradient of `tf.nn.bias_add`, which Keras uses too, is summed in bfloat16: over the
    positions of a training batch it was off by 4 to 84 %. A matrix product accumulates in float32
    (oneDNN), or in parts that are off by less than 1 % (Eigen).
    """

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = tf.reshape(upstream, [-1, upstream.shape[-1]])
        ones = tf.ones([1, tf.shape(rows)[0]], rows.dtype)
        return upstream, tf.matmul(ones, rows)[0]

    return tf.nn.bias_add(x, bias), gradient


@lru_cache
def dilates_natively(dtype: tf.DType) -> bool:
    """Returns whether a dilated convolution has a gradient here; on CPUs oneDNN provides it."""
    with tf.init_scope():
        x = tf.zeros([1, 5, 5, 1], dtype)
        try:
            _kernel_gradient(x, (3, 3, 1, 1), x, 1, "SAME", dilation=2)
        except tf.errors.OpError:
            return False
    return True


def own_gradients() -> bool:
    """Returns whether convolutions use the custom gradients, which are written for CPUs."""
    return not tf.config.list_physical_devices("GPU")


def overruns(width: Any, reach: int) -> Any:
    """Returns whether oneDNN's kernel gradient in low precision reads past the end of a row.

    On CPUs with AMX, oneDNN 3.7 (and its main branch, August 2026) copies rows of features into
    scratch memory. The length of a row with its padding is rounded up to a multiple of 32. It
    reads the rows in pieces of equal, even length from every column of the kernel. Values read
    past the end of a row are multiplied by zero. After the last copied row, however, the memory is
    uninitialised, and zero times NaN is NaN.

    Args:
        width: Number of columns of the convolution's output, an int or an int32 tensor.
        reach: Number of columns between the first and the last column of the kernel.
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
    """Returns the kernel gradient of a convolution with stride 1.

    Pads rows that oneDNN would read past their end, and processes the input channels in slices.

    Args:
        x: Features [B, H, W, F].
        shape: Shape of the kernel, [k, k, F, C].
        out: Gradient of the convolution's output, [B, h, w, C].
        padding: `SAME` or `VALID`.
        dilation: Dilation rate of the convolution.
    """
    return _by_slices(*_widened(x, out, (shape[1] - 1) * dilation), shape, padding, dilation)


def _widened(x: tf.Tensor, out: tf.Tensor, reach: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Pads both with columns of zeros at the right if rows would be read past their end.

    The gradient does not change, and a width that is a multiple of 32 leaves room for the reach.
    The cost is that of the copies, because oneDNN pads short rows to about this length anyway.
    """
    width = tf.shape(out)[2] if out.shape[2] is None else out.shape[2]
    missing = tf.where(overruns(width, reach), -width % _TILE, 0)
    columns = [[0, 0], [0, 0], [0, missing], [0, 0]]
    return tf.pad(x, columns), tf.pad(out, columns)


def _by_slices(x: tf.Tensor, out: tf.Tensor, shape: Any, padding: str, dilation: int) -> tf.Tensor:
    """Returns the kernel gradient, computed for `_SLICE` input channels at a time."""
    height, width, channels, filters = shape
    gradients = []
    for first in range(0, channels, _SLICE):
        features = x[..., first : first + _SLICE]
        sizes = (height, width, features.shape[-1], filters)
        gradients.append(_kernel_gradient(features, sizes, out, 1, padding, dilation=dilation))
    return tf.concat(gradients, 2)


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
    """Places a gradient [B, h, w, C] on every `stride`-th pixel of a map of zeros.

    Returns:
        [B, H + k - 1, W + k - 1, C] for a target [B, H, W, C] and a kernel of k x k pixels. Its
        convolution without stride and padding has the size of the target.
    """
    size = tf.shape(out)
    gaps = [0, stride - 1]
    wide = tf.pad(out[:, :, None, :, None], [[0, 0], [0, 0], gaps, [0, 0], gaps, [0, 0]])
    wide = tf.reshape(wide, [size[0], stride * size[1], stride * size[2], out.shape[-1]])
    # Up to k - 1 pixels of the target follow those of the entries, whose last gap may exceed it.
    rows, columns = target[1] + kernel[0] - 1, target[2] + kernel[1] - 1
    around = [[kernel[0] - 1] * 2, [kernel[1] - 1] * 2]
    wide = tf.pad(wide, [[0, 0], *around, [0, 0]])
    return wide[:, :rows, :columns]


def _count_images(x: tf.Tensor, *, over_replicas: bool) -> Any:
    """Returns the number of images that are normalised together: an int if known at trace time.

    Replicas have equal batch sizes if the size is static. They may differ if it is not.
    """
    if x.shape[0] is not None:
        return int(x.shape[0]) * (_replicas() if over_replicas else 1)
    count = tf.shape(x)[0]
    context = tf.distribute.get_replica_context()
    if not over_replicas or context is None:
        return count
    count = tf.cast(count, tf.float32)  # supported by all collectives
    return tf.cast(context.all_reduce(tf.distribute.ReduceOp.SUM, count), tf.int32)


def _has_few_positions(x: tf.Tensor) -> bool:
    """Returns whether a map is smaller than `_FEW_POSITIONS`; unknown sizes count as large."""
    height, width = x.shape[1:3]
    return height is not None and width is not None and height * width < _FEW_POSITIONS


def _replicas() -> int:
    return int(tf.distribute.get_strategy().num_replicas_in_sync)
