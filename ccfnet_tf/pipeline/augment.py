"""Seeded changes of one image and its label: zoom, turn, crop, flip, and how it looks.

Shapes: H, W of the image; S = `data.crop`; C classes. Places are (y, x).
"""

from __future__ import annotations

import math

import tensorflow as tf

from ccfnet_tf.config import DataConfig
from ccfnet_tf.labels import VOID
from ccfnet_tf.pipeline.appearance import RECTANGLES, blur, hidden, tint

PADDING = (124, 116, 104)
"""ImageNet's mean colour: what lies beside the image looks like nothing in particular."""

# Each key of `DataConfig` has its own stream of chance: switching one on leaves the others' draws.
_ROTATE, _RARE_CROP, _BLUR, _CUTOUT = 1, 2, 3, 4


def augment(
    image: tf.Tensor,
    label: tf.Tensor,
    seed: tf.Tensor,
    *,
    data: DataConfig,
    rarity: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Zooms, turns, crops, flips, blurs, tints and hides; the same seed gives the same result.

    Image and label go through one geometry in one resampling: image bilinear, label nearest, so
    that the label never gains a value. Where the crop reaches over the image (where the zoomed
    image is smaller than the crop, and at corners of a turned crop) the label is `VOID` and the
    image `PADDING`. Hidden rectangles (`data.cutout`) show `PADDING` too, but keep their label:
    the network must tell from what is around.

    Args:
        image: uint8 [H, W, 3].
        label: int32 [H, W].
        seed: int32 [2].
        data: `crop`, `scale`, `rotate`, `flip`, `colour`, `blur`, `cutout` and `rare_crop`.
        rarity: float32 [C]: how much `data.rare_crop` seeks a class, 0 never. Without it all
            crops are ordinary, as they are for a label that shows no class that is sought.

    Returns:
        image uint8 [S, S, 3], label int32 [S, S].
    """
    draws = tf.random.stateless_uniform([7], seed)
    size = tf.cast(tf.shape(label), tf.float32)  # H, W
    zoom = data.scale[0] + draws[0] * (data.scale[1] - data.scale[0])
    # Room is negative where the zoomed image is smaller: then it lies anywhere in the crop.
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
        around = _start_that_shows(
            pixel, draws[1:3], room=room, crop=data.crop, zoom=zoom, turn=turn
        )
        start = tf.where(pixel[0] < 0.0, start, around)
    layers = resample(image, label, crop=data.crop, zoom=zoom, start=start, turn=turn)
    if data.flip:
        layers = [tf.where(draws[3] < 0.5, tf.reverse(x, [1]), x) for x in layers]
    image, label, inside = layers
    if data.blur:
        image = blur(image, _draws(seed, _BLUR, []), data.blur)
    if data.colour:
        image = tint(image, inside, draws[4:7], data.colour)
    shown = inside
    if data.cutout:
        shown &= ~hidden(data.crop, _draws(seed, _CUTOUT, [5, RECTANGLES]), data.cutout)
    image = tf.where(shown[..., None], image, tf.constant(PADDING, tf.float32))
    return tf.cast(tf.round(image), tf.uint8), tf.where(inside, label, VOID)


def turn_by(draw: tf.Tensor, largest: float) -> tf.Tensor:
    """Returns float32 [2, 2], a turn of `largest` degrees clockwise at a `draw` of 1, back at 0.

    It takes a way in the crop to the same way in the zoomed image, both (y, x).
    """
    angle = math.radians(largest) * (2.0 * draw - 1.0)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    return tf.stack([tf.stack([cosine, -sine]), tf.stack([sine, cosine])])


def rare_pixel(label: tf.Tensor, rarity: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Draws a pixel: first its class, by `rarity` among those in the label, then evenly within it.

    Args:
        label: int32 [H, W].
        rarity: float32 [C].
        draws: float32 [2], in [0, 1): for the class and the pixel.

    Returns:
        float32 [2]: the pixel's row and column, or -1 and -1: no class that is sought is there.
    """
    weight = tf.cast(rarity, tf.float32)
    flat = tf.reshape(label, [-1])
    # Void counts as bin 0; the op refuses negative values.
    there = tf.raw_ops.DenseBincount(
        input=flat - VOID, size=tf.size(weight) + 1, weights=[0.0][:0], binary_output=True
    )
    mass = tf.cumsum(tf.where(there[1:] > 0.0, weight, 0.0))
    # The first class whose mass exceeds the draw; C, which no pixel has, where all masses are 0.
    chosen = tf.reduce_sum(tf.cast(mass <= draws[0] * mass[-1], tf.int32))
    places = tf.where(flat == chosen)[:, 0]
    number = tf.cast(tf.size(places), tf.float32)
    place = tf.concat([places, [-1]], 0)[tf.cast(draws[1] * number, tf.int32)]
    width = tf.shape(label, tf.int64)[1]
    return tf.cast(tf.stack([place // width, place % width]), tf.float32)


def _start_that_shows(
    pixel: tf.Tensor,
    draws: tf.Tensor,
    *,
    room: tf.Tensor,
    crop: int,
    zoom: tf.Tensor,
    turn: tf.Tensor | None,
) -> tf.Tensor:
    """Returns a start that shows `pixel`, evenly among those of ordinary crops that do.

    A turned crop in the image's corner does not reach that corner: where no ordinary start
    shows the pixel, the nearest one that does is taken.
    """
    half = (crop - 1) / 2.0
    turn = tf.eye(2) if turn is None else turn
    target = (pixel + 0.5) * zoom - crop / 2.0  # the start that shows it in the middle
    # However the crop is turned, it reaches so far along both axes of the image.
    reach = half / tf.reduce_sum(tf.abs(turn[0]))
    low = tf.clip_by_value(tf.minimum(room, 0.0), target - reach, target + reach)
    high = tf.clip_by_value(tf.maximum(room, 0.0), target - reach, target + reach)
    start = low + draws * (high - low)
    # Under a zoom below 1 the label shows only some pixels: move the crop by up to half a pixel
    # so that one of its pixels lies on the centre of this one.
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
    """Returns image float32 [S, S, 3], label [S, S], and bool [S, S]: inside the image.

    Pixels are squares with their centre at +0.5: output pixel k shows the image at
    (k + 0.5 + start) / zoom - 0.5, where that is turned about the crop's centre. Beside the
    image the image holds the image's edge.
    """
    size = tf.shape(label)
    step = 1.0 / zoom
    steps = step * (tf.eye(2) if turn is None else turn)  # image (y, x) a pixel down, right
    first = (0.5 + start) * step - 0.5  # y, x in the image of output pixel 0
    first += (crop - 1) / 2 * (step - tf.reduce_sum(steps, axis=1))  # nothing without a turn
    ways = (crop - 1) * steps
    # Cut the rows and columns that are needed before turning them to float32 (12 bytes a pixel).
    least = first + tf.reduce_sum(tf.minimum(ways, 0.0), axis=1)
    most = first + tf.reduce_sum(tf.maximum(ways, 0.0), axis=1)
    low = tf.clip_by_value(tf.cast(tf.floor(least), tf.int32), 0, size - 1)
    high = tf.clip_by_value(tf.cast(tf.math.ceil(most), tf.int32) + 1, 1, size)
    image, label = (x[low[0] : high[0], low[1] : high[1]] for x in (image, label))
    offset = first - tf.cast(low, tf.float32)
    rows = [steps[1, 1], steps[1, 0], offset[1], steps[0, 1], steps[0, 0], offset[0], 0.0, 0.0]
    matrix = tf.stack(rows)[None]  # the op counts (x, y), from the centre of pixel 0
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
    # Fill mode NEAREST: the image's edge must not be mixed with a fill colour; what lies
    # outside is masked by the caller.
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
