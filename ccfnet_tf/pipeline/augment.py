"""Seeded augmentation of one image and its label: geometry in one resampling, then appearance.

Shapes: H, W of the image; S = `data.crop`; C classes. Coordinates are (y, x).
"""

from __future__ import annotations

import math

import tensorflow as tf

from ccfnet_tf.config import DataConfig
from ccfnet_tf.labels import VOID
from ccfnet_tf.pipeline.augment_appearance import RECTANGLES, blur, hidden, tint

PADDING = (124, 116, 104)
"""Fill colour outside the image: the mean colour of ImageNet, a neutral value."""

# Each option of `DataConfig` has its own random stream: enabling one does not change the others.
_ROTATE, _RARE_CROP, _BLUR, _CUTOUT = 1, 2, 3, 4


def augment(
    image: tf.Tensor,
    label: tf.Tensor,
    seed: tf.Tensor,
    *,
    data: DataConfig,
    rarity: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scales, rotates, crops, flips, blurs, jitters colours and applies cutout.

    The same seed gives the same result. Image and label are resampled once, by the same transform:
    the image bilinearly, the label by nearest neighbour, so that no new label values appear. Where
    the crop extends beyond the image (the scaled image is smaller than the crop, or a corner of a
    rotated crop is outside), the label is `VOID` and the image `PADDING`. Cutout rectangles
    (`data.cutout`) are filled with `PADDING` too but keep their label, so that the network learns
    to use the context.

    Args:
        image: uint8 [H, W, 3].
        label: int32 [H, W].
        seed: int32 [2].
        data: `crop`, `scale`, `rotate`, `flip`, `colour`, `blur`, `cutout` and `rare_crop`.
        rarity: float32 [C], sampling weight of each class for `data.rare_crop`; 0 excludes a class.
            Crops are uniform if it is `None`, and for labels without a class of positive weight.

    Returns:
        image uint8 [S, S, 3], label int32 [S, S].
    """
    draws = tf.random.stateless_uniform([7], seed)
    size = tf.cast(tf.shape(label), tf.float32)  # H, W
    zoom = data.scale[0] + draws[0] * (data.scale[1] - data.scale[0])
    # Negative where the scaled image is smaller than the crop: it is then placed anywhere in it.
    room = size * zoom - data.crop
    start = draws[1:3] * room
    turn = turn_by(_draws(seed, _ROTATE, []), data.rotate) if data.rotate else None
    if data.rare_crop and rarity is not None:
        chances = _draws(seed, _RARE_CROP, [3])
        pixel = tf.cond(
            chances[0] < data.rare_crop,
            lambda: rare_pixel(label, rarity, chances[1:]),
            lambda: tf.constant([-1.0, -1.0]),
        )
        around = _start_containing(
            pixel, draws[1:3], room=room, crop=data.crop, zoom=zoom, turn=turn
        )
        start = tf.where(pixel[0] < 0.0, start, around)
    arrays = resample(image, label, crop=data.crop, zoom=zoom, start=start, turn=turn)
    if data.flip:
        arrays = [tf.where(draws[3] < 0.5, tf.reverse(x, [1]), x) for x in arrays]
    image, label, inside = arrays
    if data.blur:
        image = blur(image, _draws(seed, _BLUR, []), data.blur)
    if data.colour:
        image = tint(image, inside, draws[4:7], data.colour)
    visible = inside
    if data.cutout:
        visible &= ~hidden(data.crop, _draws(seed, _CUTOUT, [5, RECTANGLES]), data.cutout)
    image = tf.where(visible[..., None], image, tf.constant(PADDING, tf.float32))
    return tf.cast(tf.round(image), tf.uint8), tf.where(inside, label, VOID)


def turn_by(draw: tf.Tensor, largest: float) -> tf.Tensor:
    """Returns the rotation matrix of a crop.

    Args:
        draw: float32 [], 0 for `largest` degrees anticlockwise to 1 for `largest` clockwise.
        largest: Largest angle in degrees.

    Returns:
        float32 [2, 2], maps a (y, x) offset in the crop to that in the scaled image.
    """
    angle = math.radians(largest) * (2.0 * draw - 1.0)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    return tf.stack([tf.stack([cosine, -sine]), tf.stack([sine, cosine])])


def rare_pixel(label: tf.Tensor, rarity: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Draws a class of the label by its weight in `rarity`, then one of its pixels uniformly.

    Args:
        label: int32 [H, W].
        rarity: float32 [C], weights of the classes.
        draws: float32 [2], in [0, 1): for the class and the pixel.

    Returns:
        float32 [2], row and column of the pixel; (-1, -1) if the label has no class of positive
        weight.
    """
    weight = tf.cast(rarity, tf.float32)
    flat = tf.reshape(label, [-1])
    # Bin 0 is void: the op rejects negative values.
    there = tf.raw_ops.DenseBincount(
        input=flat - VOID, size=tf.size(weight) + 1, weights=[0.0][:0], binary_output=True
    )
    mass = tf.cumsum(tf.where(there[1:] > 0.0, weight, 0.0))
    # The first class whose cumulative weight exceeds the draw; C, which is no pixel's class, if all
    # weights are 0.
    chosen = tf.reduce_sum(tf.cast(mass <= draws[0] * mass[-1], tf.int32))
    indices = tf.where(flat == chosen)[:, 0]
    number = tf.cast(tf.size(indices), tf.float32)
    place = tf.concat([indices, [-1]], 0)[tf.cast(draws[1] * number, tf.int32)]
    width = tf.shape(label, tf.int64)[1]
    return tf.cast(tf.stack([place // width, place % width]), tf.float32)


def _start_containing(
    pixel: tf.Tensor,
    draws: tf.Tensor,
    *,
    room: tf.Tensor,
    crop: int,
    zoom: tf.Tensor,
    turn: tf.Tensor | None,
) -> tf.Tensor:
    """Returns a crop start, uniform among the starts of ordinary crops that contain `pixel`.

    A rotated crop at a corner of the image does not contain that corner. If no ordinary start
    contains the pixel, the nearest start that does is returned.
    """
    half = (crop - 1) / 2.0
    turn = tf.eye(2) if turn is None else turn
    target = (pixel + 0.5) * zoom - crop / 2.0  # centres the crop on the pixel
    # Half-width that the crop covers along both axes of the image at this rotation.
    reach = half / tf.reduce_sum(tf.abs(turn[0]))
    low = tf.clip_by_value(tf.minimum(room, 0.0), target - reach, target + reach)
    high = tf.clip_by_value(tf.maximum(room, 0.0), target - reach, target + reach)
    start = low + draws * (high - low)
    # At a scale below 1, nearest neighbour skips label pixels: shift the crop by up to half a pixel
    # so that one of its pixels falls on the centre of the chosen one.
    place = tf.floor(tf.linalg.matvec(turn, target - start, transpose_a=True) + half + 0.5)
    return target - tf.linalg.matvec(turn, place - half)


def resample(
    image: tf.Tensor,
    label: tf.Tensor,
    *,
    crop: int,
    zoom: tf.Tensor,
    start: tf.Tensor,
    turn: tf.Tensor | None,
) -> list[tf.Tensor]:
    """Resamples one crop of image and label.

    Pixel centres are at +0.5: output pixel k samples the image at (k + 0.5 + start) / zoom - 0.5,
    rotated about the centre of the crop. Outside the image, its edge pixels are repeated.

    Returns:
        Image float32 [S, S, 3], label [S, S], and bool [S, S], true inside the image.
    """
    size = tf.shape(label)
    step = 1.0 / zoom
    steps = step * (
        tf.eye(2) if turn is None else turn
    )  # columns: (y, x) step in the image per pixel down and per pixel right
    first = (0.5 + start) * step - 0.5  # (y, x) in the image of output pixel 0
    first += (crop - 1) / 2 * (step - tf.reduce_sum(steps, axis=1))  # zero without a rotation
    extent = (crop - 1) * steps
    # Slice the required region before the cast to float32, which takes 12 bytes per pixel.
    least = first + tf.reduce_sum(tf.minimum(extent, 0.0), axis=1)
    most = first + tf.reduce_sum(tf.maximum(extent, 0.0), axis=1)
    low = tf.clip_by_value(tf.cast(tf.floor(least), tf.int32), 0, size - 1)
    high = tf.clip_by_value(tf.cast(tf.math.ceil(most), tf.int32) + 1, 1, size)
    image, label = (x[low[0] : high[0], low[1] : high[1]] for x in (image, label))
    offset = first - tf.cast(low, tf.float32)
    rows = [steps[1, 1], steps[1, 0], offset[1], steps[0, 1], steps[0, 0], offset[0], 0.0, 0.0]
    matrix = tf.stack(rows)[None]  # the op uses (x, y), with the origin at the centre of pixel 0
    image = _transform(tf.cast(image, tf.float32)[None], matrix, crop, "BILINEAR")[0]
    label = _transform(label[None, ..., None], matrix, crop, "NEAREST")[0, ..., 0]
    down = tf.range(crop, dtype=tf.float32)[:, None]
    y, x = first[0] + down * steps[0, 0], first[1] + tf.transpose(down) * steps[1, 1]
    if turn is not None:
        y, x = y + tf.transpose(down) * steps[0, 1], x + down * steps[1, 0]
    height, width = tf.unstack(tf.cast(size, tf.float32))
    within = (y >= -0.5) & (y < height - 0.5), (x >= -0.5) & (x < width - 0.5)
    return [image, label, within[0] & within[1]]


def _transform(images: tf.Tensor, matrix: tf.Tensor, crop: int, interpolation: str) -> tf.Tensor:
    # NEAREST repeats the edge, so that no fill colour is interpolated into it. The caller masks
    # pixels outside the image.
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=matrix,
        output_shape=[crop, crop],
        fill_value=0.0,
        interpolation=interpolation,
        fill_mode="NEAREST",
    )


def _draws(seed: tf.Tensor, stream: int, shape: list[int]) -> tf.Tensor:
    key = tf.random.experimental.stateless_fold_in(seed, stream)
    return tf.random.stateless_uniform(shape, key)
