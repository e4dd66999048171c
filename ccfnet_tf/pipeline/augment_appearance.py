"""Augmentations that change the image but not its label: blur, colour jitter, cutout.

Shapes: S = `data.crop`. Random numbers are passed in as `draws`, in [0, 1), so that every function
is deterministic.
"""

from __future__ import annotations

import math

import tensorflow as tf

RECTANGLES = 4
"""Maximum number of cutout rectangles per image."""

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


def blur(image: tf.Tensor, draw: tf.Tensor, largest: float) -> tf.Tensor:
    """Applies a Gaussian blur to half of the images and leaves the others sharp.

    The standard deviation in pixels is uniform in [0, `largest`]. The kernel size depends on
    `largest` alone and covers three standard deviations on either side. The edges of the crop are
    reflected, so that they do not darken.

    Args:
        image: float32 [S, S, 3], S larger than three times `largest`. Pixels outside the image
            must repeat its edge; a fill colour would bleed into it.
        draw: float32 []. Values below 0.5 leave the image sharp; above, blur increases linearly.
        largest: Standard deviation in pixels at a draw of 1.

    Returns:
        float32 [S, S, 3].
    """

    def blurred() -> tf.Tensor:
        reach = math.ceil(3.0 * largest)
        away = tf.range(-reach, reach + 1, dtype=tf.float32)
        # Close to 0 the division below is undefined; 0.01 already gives the identity kernel.
        deviation = tf.maximum(largest * (2.0 * draw - 1.0), 0.01)
        kernel = tf.exp(-0.5 * tf.square(away / deviation))
        kernel = tf.tile((kernel / tf.reduce_sum(kernel))[:, None, None, None], [1, 1, 3, 1])
        x = tf.pad(image, [[reach, reach], [reach, reach], [0, 0]], "REFLECT")[None]
        x = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "VALID")
        return tf.nn.depthwise_conv2d(x, tf.transpose(kernel, [1, 0, 2, 3]), [1] * 4, "VALID")[0]

    return tf.cond(draw < 0.5, lambda: image, blurred)


def tint(image: tf.Tensor, inside: tf.Tensor, draws: tf.Tensor, strength: float) -> tf.Tensor:
    """Changes brightness, contrast and saturation, each by a factor within 1 +- `strength`.

    Args:
        image: float32 [S, S, 3].
        inside: bool [S, S], the pixels inside the image. Contrast changes around their mean.
        draws: float32 [3].
        strength: 0 (no change) to 1.

    Returns:
        float32 [S, S, 3], clipped to 0..255.
    """
    factors = 1.0 + strength * (2.0 * draws - 1.0)
    image = image * factors[0]
    weight = tf.cast(inside, tf.float32)
    grey = tf.reduce_sum(image * _GREY, axis=-1)  # [S, S]
    mean = tf.reduce_sum(grey * weight) / tf.maximum(tf.reduce_sum(weight), 1.0)
    image = (image - mean) * factors[1] + mean
    grey = ((grey - mean) * factors[1] + mean)[..., None]
    return tf.clip_by_value(grey + (image - grey) * factors[2], 0.0, 255.0)


def hidden(crop: int, draws: tf.Tensor, largest: float) -> tf.Tensor:
    """Returns the mask of 1 to `RECTANGLES` cutout rectangles.

    The share of the crop that they cover together is uniform in [0, `largest`], and lower where
    they overlap. All have about the same area, aspect ratios of 1:2 to 2:1, and are entirely
    inside the crop.

    Args:
        crop: S.
        draws: float32 [5, `RECTANGLES`]. The first entries of rows 0 and 1 choose the share and the
            number of rectangles; rows 2 to 4 the aspect ratio, top and left of each.
        largest: Largest share of the crop, 0 to 0.5.

    Returns:
        bool [S, S], true where a pixel is hidden.
    """
    number = tf.floor(1.0 + draws[1, 0] * RECTANGLES)
    area = draws[0, 0] * largest * crop**2 / number
    # Rounding down keeps the product of the sides at or below the requested area.
    height = tf.floor(tf.sqrt(area * 2.0 ** (2.0 * draws[2] - 1.0)))
    width = tf.minimum(tf.floor(area / tf.maximum(height, 1.0)), float(crop))
    height = tf.where(tf.range(RECTANGLES, dtype=tf.float32) < number, height, 0.0)
    sides = tf.stack([height, width])[..., None]  # [2, RECTANGLES, 1]
    start = tf.floor(draws[3:5, :, None] * (crop - sides + 1.0))
    along = tf.range(crop, dtype=tf.float32)
    covers = tf.cast((along >= start) & (along < start + sides), tf.float32)
    return tf.matmul(covers[0], covers[1], transpose_a=True) > 0.0
