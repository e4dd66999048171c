"""Changes of how an image looks that leave its label as it is: blur, colour, hidden parts.

Shapes: S = `data.crop`. `draws` are numbers in [0, 1), so that each function is without chance.
"""

from __future__ import annotations

import math

import tensorflow as tf

RECTANGLES = 4
"""At most so many rectangles hide parts of one image."""

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


def blur(image: tf.Tensor, draw: tf.Tensor, largest: float) -> tf.Tensor:
    """Leaves half of the images sharp; the others get a Gaussian blur.

    The deviation in pixels is uniform in 0 to `largest`. The kernel's size follows from `largest`
    alone, three deviations either way. The crop's edges are reflected, so that they do not darken.

    Args:
        image: float32 [S, S, 3], S above three times `largest`. What lies beside the image
            must hold the image's edge, not a fill colour.
        draw: float32 []: below 0.5 sharp, then ever more blur.
        largest: Deviation at a draw of 1.

    Returns:
        float32 [S, S, 3].
    """

    def blurred() -> tf.Tensor:
        reach = math.ceil(3.0 * largest)
        away = tf.range(-reach, reach + 1, dtype=tf.float32)
        # A draw just above a half: a deviation of 0.01 is a kernel of a single 1, and no 0 / 0.
        deviation = tf.maximum(largest * (2.0 * draw - 1.0), 0.01)
        kernel = tf.exp(-0.5 * tf.square(away / deviation))
        kernel = tf.tile((kernel / tf.reduce_sum(kernel))[:, None, None, None], [1, 1, 3, 1])
        x = tf.pad(image, [[reach, reach], [reach, reach], [0, 0]], "REFLECT")[None]
        x = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "VALID")
        return tf.nn.depthwise_conv2d(x, tf.transpose(kernel, [1, 0, 2, 3]), [1] * 4, "VALID")[0]

    return tf.cond(draw < 0.5, lambda: image, blurred)


def tint(image: tf.Tensor, inside: tf.Tensor, draws: tf.Tensor, strength: float) -> tf.Tensor:
    """Changes brightness, contrast and saturation, each by a factor in 1 +- strength.

    Args:
        image: float32 [S, S, 3].
        inside: bool [S, S]: the pixels whose mean stays under a change of contrast.
        draws: float32 [3].
        strength: 0 (no change) to 1.

    Returns:
        float32 [S, S, 3] within 0 to 255.
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
    """Returns the pixels that 1 to `RECTANGLES` rectangles hide, never more than `largest`.

    The share that they hide together is uniform in 0 to `largest`, less where they overlap.
    They are alike in area, with sides of 1:2 to 2:1, and lie wholly in the crop.

    Args:
        crop: S.
        draws: float32 [5, `RECTANGLES`]: of row 0 the first is the share and of row 1 the first
            the number; then the sides, top and left of each rectangle.
        largest: 0 to 0.5.

    Returns:
        bool [S, S].
    """
    number = tf.floor(1.0 + draws[1, 0] * RECTANGLES)
    area = draws[0, 0] * largest * crop**2 / number
    # Whole pixels, rounded down: the product of the sides is never above the area.
    height = tf.floor(tf.sqrt(area * 2.0 ** (2.0 * draws[2] - 1.0)))
    width = tf.minimum(tf.floor(area / tf.maximum(height, 1.0)), float(crop))
    height = tf.where(tf.range(RECTANGLES, dtype=tf.float32) < number, height, 0.0)
    sides = tf.stack([height, width])[..., None]  # [2, RECTANGLES, 1]
    start = tf.floor(draws[3:5, :, None] * (crop - sides + 1.0))
    along = tf.range(crop, dtype=tf.float32)
    covers = tf.cast((along >= start) & (along < start + sides), tf.float32)
    return tf.matmul(covers[0], covers[1], transpose_a=True) > 0.0
