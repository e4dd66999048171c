"""Seeded changes of one picture and its label: zoom, crop, flip, colour.

Shapes: H, W of the picture; S = `data.crop`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ccfnet_tf.config import DataConfig
from ccfnet_tf.labels import VOID

PADDING = (124, 116, 104)
"""ImageNet's mean colour: what lies beside the picture looks like nothing in particular."""

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


def augment(image: Any, label: Any, seed: Any, *, data: DataConfig) -> tuple[Any, Any]:
    """Zooms, crops, flips and tints; the same seed gives the same result.

    Image and label go through one geometry: image bilinear, label nearest, so that the label
    never gains a value. Where the crop reaches over the zoomed picture (only where that is
    smaller than the crop) the label is `VOID` and the image `PADDING`.

    Args:
        image: uint8 [H, W, 3].
        label: int32 [H, W].
        seed: int32 [2].
        data: `crop`, `scale`, `flip` and `colour`.

    Returns:
        image uint8 [S, S, 3], label int32 [S, S].
    """
    draws = tf.random.stateless_uniform([7], seed)
    size = tf.cast(tf.shape(label), tf.float32)  # H, W
    zoom = data.scale[0] + draws[0] * (data.scale[1] - data.scale[0])
    # Room is negative where the zoomed picture is smaller: then it lies anywhere in the crop.
    start = draws[1:3] * (size * zoom - data.crop)
    layers = _resample(image, label, crop=data.crop, zoom=zoom, start=start)
    if data.flip:
        layers = [tf.where(draws[3] < 0.5, tf.reverse(x, [1]), x) for x in layers]
    image, label, inside = layers
    image = _tint(image, inside, draws[4:7], data.colour)
    image = tf.where(inside[..., None], image, tf.constant(PADDING, tf.float32))
    return tf.cast(tf.round(image), tf.uint8), tf.where(inside, label, VOID)


def _resample(image: Any, label: Any, *, crop: int, zoom: Any, start: Any) -> list[Any]:
    """Returns image float32 [S, S, 3], label [S, S], and bool [S, S]: inside the picture.

    Pixels are squares with their centre at +0.5: output pixel k shows the picture at
    (k + 0.5 + start) / zoom - 0.5. The op counts coordinates from the centre of pixel 0.
    """
    size = tf.shape(label)
    step = 1.0 / zoom
    first = (0.5 + start) * step - 0.5  # y, x in the picture of output pixel 0
    last = first + (crop - 1) * step
    # Cut the rows and columns that are needed before turning them to float32 (12 bytes a pixel).
    low = tf.clip_by_value(tf.cast(tf.floor(first), tf.int32), 0, size - 1)
    high = tf.clip_by_value(tf.cast(tf.math.ceil(last), tf.int32) + 1, 1, size)
    image, label = (x[low[0] : high[0], low[1] : high[1]] for x in (image, label))
    offset = first - tf.cast(low, tf.float32)
    matrix = tf.stack([step, 0.0, offset[1], 0.0, step, offset[0], 0.0, 0.0])[None]
    image = _transform(tf.cast(image, tf.float32)[None], matrix, crop, "BILINEAR")[0]
    label = _transform(label[None, ..., None], matrix, crop, "NEAREST")[0, ..., 0]
    grid = first + tf.range(crop, dtype=tf.float32)[:, None] * step  # [S, 2]
    within = (grid >= -0.5) & (grid < tf.cast(size, tf.float32) - 0.5)
    return [image, label, within[:, 0][:, None] & within[:, 1][None, :]]


def _transform(images: Any, matrix: Any, crop: int, interpolation: str) -> Any:
    # Fill mode NEAREST: the picture's edge must not be mixed with a fill colour; what lies
    # outside is masked by the caller.
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=matrix,
        output_shape=[crop, crop],
        fill_value=0.0,
        interpolation=interpolation,
        fill_mode="NEAREST",
    )


def _tint(image: Any, inside: Any, draws: Any, strength: float) -> Any:
    """Changes brightness, contrast and saturation, each by a factor in 1 +- strength."""
    if strength == 0.0:
        return image
    factors = 1.0 + strength * (2.0 * draws - 1.0)
    image = image * factors[0]
    weight = tf.cast(inside, tf.float32)
    grey = tf.reduce_sum(image * _GREY, axis=-1)  # [S, S]
    mean = tf.reduce_sum(grey * weight) / tf.maximum(tf.reduce_sum(weight), 1.0)
    image = (image - mean) * factors[1] + mean
    grey = ((grey - mean) * factors[1] + mean)[..., None]
    return tf.clip_by_value(grey + (image - grey) * factors[2], 0.0, 255.0)
