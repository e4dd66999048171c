"""Layers that keep every output of the network aligned with the input image.

Feature k of a backbone at stride s is centred on pixel s*k (measured as the centre of mass of the
gradient). An image is therefore padded at the bottom and right to 8n+1 pixels (16n+1 if coarse
reads it at another size), which gives n+1 (2n+1) features. The outputs are resized from n+1 to
8n+1 with aligned corners and then cropped. A half-pixel resize, the default of TensorFlow and
Keras, would place feature k at 8k+3.5.

Legend: B images, H x W pixels, h x w features, C channels.
"""

from __future__ import annotations

from typing import Any, Literal

import keras
import tensorflow as tf

from ccfnet_tf.errors import DataError

STRIDE = 8
GRID_OF_TWO_SIZES = 16
"""Sides become this multiple plus 1 if coarse reads the image at another size: half of 16n+1 pixels
is 8n+1, one and a half times is 24n+1."""

MINIMUM_SIZE = 32

Normalisation = Literal["caffe", "symmetric", "lite"]
Shape = tuple[int | None, ...]

_CAFFE_MEAN = (103.939, 116.779, 123.68)  # ImageNet mean, BGR; there is no scaling


def size_of(x: tf.Tensor) -> tuple[Any, Any]:
    """Returns the height and width of `x` [B, H, W, C]: ints if static, else scalar tensors.

    Ints keep the shapes of a fixed-size graph static, which converters need.
    """
    dynamic = tf.shape(x)
    height, width = x.shape[1], x.shape[2]
    return (
        dynamic[1] if height is None else height,
        dynamic[2] if width is None else width,
    )


def resize_aligned(x: tf.Tensor, height: Any, width: Any) -> tf.Tensor:
    """Resizes `x` [B, h, w, C] bilinearly with aligned corners to float32 [B, height, width, C]."""
    # tf.image.resize cannot align corners, keras.ops.image.resize fails for dynamic sizes, and
    # tf.compat.v1.image.resize_bilinear, which wraps this op, logs a deprecation warning.
    x = tf.cast(x, tf.float32)
    return tf.raw_ops.ResizeBilinear(images=x, size=(height, width), align_corners=True)


def at_least_minimum(images: tf.Tensor) -> tf.Tensor:
    """Pads images [B, H, W, 3] by mirroring at the bottom and right to at least `MINIMUM_SIZE`.

    Graph version of `inference.segmenter_protocol.at_least`. The caller crops the outputs to H x W.
    """
    height, width = tf.unstack(tf.shape(images)[1:3])
    small = tf.logical_or(height < MINIMUM_SIZE, width < MINIMUM_SIZE)

    def mirrored() -> tf.Tensor:
        return tf.gather(tf.gather(images, _mirrored(height), axis=1), _mirrored(width), axis=2)

    return tf.cond(small, mirrored, lambda: images)


def _mirrored(side: tf.Tensor) -> tf.Tensor:
    """Returns the source index of each padded pixel: 0 1 2 2 1 0 0 1 ... for a side of 3."""
    index = tf.range(tf.maximum(side, MINIMUM_SIZE)) % (2 * tf.maximum(side, 1))
    return tf.where(index < side, index, 2 * side - 1 - index)


@keras.saving.register_keras_serializable("ccfnet")
class Normalise(keras.layers.Layer):
    """Normalises RGB images [B, H, W, 3] with values 0..255 to what the backbone expects (float32).

    Attributes:
        form: `caffe` (BGR, minus the mean: ResNet), `symmetric` (-1..1: MobileNetV2), or `lite`
            ((x - 127) / 128: EfficientNet-Lite).
    """

    def __init__(self, form: Normalisation, **options: Any) -> None:
        super().__init__(**options)
        self.form = form

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the normalised images."""
        images = tf.cast(images, tf.float32)
        if self.form == "symmetric":
            return images / 127.5 - 1.0
        if self.form == "lite":
            return (images - 127.0) / 128.0
        return tf.reverse(images, [-1]) - tf.constant(_CAFFE_MEAN)

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Returns the output shape of `call`."""
        return shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "form": self.form}


@keras.saving.register_keras_serializable("ccfnet")
class PadToGrid(keras.layers.Layer):
    """Pads [B, H, W, C] with zeros at the bottom and right to the next size 8n+1 of each side.

    After normalisation, zero is the mean colour. Images smaller than 32 pixels raise an error if
    their size is known when the graph is traced. If it is known only at run time, the caller pads
    them first (`at_least_minimum`).

    Attributes:
        stride: Sides become `stride` * n + 1; 16 if coarse reads the image at another size.
    """

    def __init__(self, stride: int = STRIDE, **options: Any) -> None:
        super().__init__(**options)
        self.stride = stride

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the padded images.

        Raises:
            DataError: A side is smaller than 32 pixels.
        """
        height, width = size_of(images)
        for side in (height, width):
            if isinstance(side, int) and side < MINIMUM_SIZE:
                raise _too_small(height, width)
        stride = self.stride
        below, right = ((stride - 1) - (side + stride - 2) % stride for side in (height, width))
        return tf.pad(images, [[0, 0], [0, below], [0, right], [0, 0]])

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Returns the output shape of `call`."""
        batch, height, width, channels = shape
        sides = (_next_on_grid(side, self.stride) for side in (height, width))
        return (batch, *sides, channels)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "stride": self.stride}


@keras.saving.register_keras_serializable("ccfnet")
class HalfSize(keras.layers.Layer):
    """Halves [B, 2n+1, 2m+1, C] to [B, n+1, m+1, C] with aligned corners.

    Pixel k of the result is centred on pixel 2k. It is the mean of 3x3 pixels with the weights
    1 2 1 in each direction, which attenuate the frequencies that half the pixels cannot show. The
    border is repeated by one pixel.
    """

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the images at half size."""
        line = tf.constant([0.25, 0.5, 0.25], images.dtype)
        kernel = tf.tile((line[:, None] * line)[..., None, None], [1, 1, images.shape[-1], 1])
        # Slices, because LiteRT's GPU path does not pad by repeating.
        rows = tf.concat([images[:, :1], images, images[:, -1:]], axis=1)
        padded = tf.concat([rows[:, :, :1], rows, rows[:, :, -1:]], axis=2)
        return tf.nn.depthwise_conv2d(padded, kernel, [1, 2, 2, 1], "VALID")

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Returns the output shape of `call`."""
        batch, height, width, channels = shape
        sides = (None if side is None else (side + 1) // 2 for side in (height, width))
        return (batch, *sides, channels)


@keras.saving.register_keras_serializable("ccfnet")
class Enlarge(keras.layers.Layer):
    """Enlarges [B, 2n+1, 2m+1, C] bilinearly to float32 [B, 3n+1, 3m+1, C] with aligned corners.

    Pixel 3k of the result is pixel 2k.
    """

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the images at one and a half times their size."""
        height, width = size_of(images)
        return resize_aligned(images, 3 * (height - 1) // 2 + 1, 3 * (width - 1) // 2 + 1)

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Returns the output shape of `call`."""
        batch, height, width, channels = shape
        sides = (None if side is None else 3 * (side - 1) // 2 + 1 for side in (height, width))
        return (batch, *sides, channels)


@keras.saving.register_keras_serializable("ccfnet")
class ToImage(keras.layers.Layer):
    """Upsamples logits [B, h, w, C] to the size of the images [B, H, W, 3]: float32 [B, H, W, C].

    Attributes:
        stride: Distance in pixels between features; feature k is placed on pixel `stride` * k.
        per: With `per` features in `stride` pixels, feature k is placed on `stride` * k / `per`.
    """

    def __init__(self, stride: int, per: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.stride = stride
        self.per = per

    def call(self, logits_and_images: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Returns the upsampled and cropped logits."""
        logits, images = logits_and_images
        rows, columns = size_of(logits)
        height, width = size_of(images)
        sides = ((side - 1) * self.stride // self.per + 1 for side in (rows, columns))
        logits = resize_aligned(logits, *sides)
        return logits[:, :height, :width]

    def compute_output_shape(self, shapes: list[Shape]) -> Shape:
        """Returns the output shape of `call`."""
        logits, images = shapes
        return (images[0], images[1], images[2], logits[3])

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "stride": self.stride, "per": self.per}


@keras.saving.register_keras_serializable("ccfnet")
class ResizeLike(keras.layers.Layer):
    """Resizes [B, h, w, C] with aligned corners to the height and width of another map.

    Exact for grids that share their corners, such as stride 8 (n+1) and stride 4 (2n+1).
    """

    def call(self, pair: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Returns the first map resized to the size of the second, in the layer's compute dtype."""
        x, like = pair
        return tf.cast(resize_aligned(x, *size_of(like)), self.compute_dtype)

    def compute_output_shape(self, shapes: list[Shape]) -> Shape:
        """Returns the output shape of `call`."""
        x, like = shapes
        return (x[0], like[1], like[2], x[3])


def _next_on_grid(side: int | None, stride: int) -> int | None:
    return None if side is None else -(-(side - 1) // stride) * stride + 1


def _too_small(height: Any, width: Any) -> DataError:
    error = DataError(
        f"image of {height} x {width} pixels: the network needs at least {MINIMUM_SIZE} on "
        "each side; enlarge it first"
    )
    # Otherwise Keras expands the one-line message with the arguments of every enclosing call.
    error._keras_call_info_injected = True  # type: ignore[attr-defined]
    return error
