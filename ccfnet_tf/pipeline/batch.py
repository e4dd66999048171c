"""tf.data assembly: which sample comes when, and batches of one shape.

The position in training is one number, so a run goes on anywhere without iterator state. Datasets
are deterministic (`data.deterministic`), with reading in parallel and ahead of the step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from ccfnet_tf import errors
from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.base import Load
from ccfnet_tf.errors import CCFNetError
from ccfnet_tf.labels import VOID, Sample
from ccfnet_tf.pipeline.augment import PADDING, augment
from ccfnet_tf.pipeline.worker_sharding import Share, by_example, epoch_order

Example = tuple[tf.Tensor, tf.Tensor]
"""Image uint8 [H, W, 3] and label int32 [H, W]."""


def training_batches(
    samples: Sequence[Sample],
    load: Load,
    data: DataConfig,
    *,
    batch: int,
    seed: int,
    first_step: int = 0,
    rarity: np.ndarray | None = None,
    share: Share | None = None,
    replicas: int = 1,
) -> tf.data.Dataset:
    """Returns an endless tf.data.Dataset of augmented batches.

    Step n has the same content whatever `first_step` was: the order of an epoch, a uniform
    permutation, comes from (seed, epoch), the augmentation of a sample from (seed, epoch, sample).
    An epoch visits different samples only; the uneven rest is left out.

    Args:
        samples: The training split.
        load: Reads one of them, `Parts.load`.
        data: Augmentation, readers in parallel, determinism.
        batch: Samples in a batch B, over all replicas.
        seed: Seed of order and augmentation.
        first_step: Steps already done.
        rarity: float [C], how much `data.rare_crop` seeks each class; `None` turns it off.
        share: What this process reads of every batch; all of it where `None`.
        replicas: Replicas of this process; its part of a batch comes in so many elements.

    Returns:
        Dataset of (image uint8 [b, S, S, 3], label int32 [b, S, S]) with S = `data.crop` and
        b = B / workers / replicas.

    Raises:
        ConfigError: There are fewer samples than a batch holds.
    """
    part = share or by_example(samples, batch)
    mine = batch // part.workers
    read = reader(samples, load)
    sought = None if rarity is None else tf.constant(rarity, tf.float32)

    def visits(epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        index = tf.numpy_function(order, [epoch], tf.int64, stateful=False)
        index = tf.ensure_shape(index, [part.steps * mine])
        return tf.fill([part.steps * mine], epoch), index

    def order(epoch: np.ndarray) -> np.ndarray:
        return epoch_order(part, len(samples), batch=batch, seed=seed, epoch=int(epoch))

    def example(epoch: tf.Tensor, index: tf.Tensor) -> Example:
        key = tf.cast(tf.stack([tf.constant(seed, tf.int64), epoch]), tf.int32)
        key = tf.random.experimental.stateless_fold_in(key, tf.cast(index, tf.int32))
        picture, mask = read(index)
        image, label = augment(picture, mask, key, data=data, rarity=sought)
        side = data.crop
        return tf.ensure_shape(image, [side, side, 3]), tf.ensure_shape(label, [side, side])

    epochs = tf.data.Dataset.counter(first_step // part.steps)
    visited = epochs.map(visits).unbatch().skip(first_step % part.steps * mine)
    examples = visited.map(example, _workers(data), deterministic=data.deterministic)
    return _finish(examples, mine // replicas, deterministic=data.deterministic)


def evaluation_batches(
    samples: Sequence[Sample],
    sizes: Sequence[tuple[int, int]],
    load: Load,
    data: DataConfig,
    *,
    batch: int,
) -> tuple[tf.data.Dataset, int]:
    """Returns every sample once, at its own resolution, in batches of one size each.

    The last batch of each size is filled up with samples that are all `VOID`, so that every
    batch has B samples and no metric changes.

    Args:
        samples: The part.
        sizes: (H, W) of each, as `datasets.audit.scan.check` returns them.
        load: Reads one of them, `Parts.load`.
        data: Readers in parallel.
        batch: Samples in a batch B, over all replicas.

    Returns:
        Dataset of (image uint8 [B, H, W, 3], label int32 [B, H, W]), H and W differ between
        batches; and the number of batches.

    Raises:
        ValueError: `samples` and `sizes` differ in length.
    """
    rows: list[tuple[int, int, int]] = []
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (_, size) in enumerate(zip(samples, sizes, strict=True)):
        groups.setdefault(size, []).append(index)
    for (height, width), members in groups.items():
        filled = members + [-1] * (-len(members) % batch)
        rows.extend((index, height, width) for index in filled)
    read = reader(samples, load)

    def example(row: tf.Tensor) -> Example:
        image, label = tf.cond(row[0] < 0, lambda: _blank(row[1:]), lambda: read(row[0]))
        return tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(label, [None, None])

    table = tf.data.Dataset.from_tensor_slices(np.array(rows, np.int64).reshape(-1, 3))
    examples = table.map(example, _workers(data), deterministic=True)
    return _finish(examples, batch, deterministic=True), len(rows) // batch


def original_error(error: BaseException) -> CCFNetError | None:
    """Returns the error that a reader raised inside tf.data, or `None` if it was another.

    TensorFlow turns an exception of a Python function into one of `tf.errors` whose message
    holds `<module>.<class>: <text>` and a traceback.
    """
    if not isinstance(error, tf.errors.OpError):
        return None
    for match in re.finditer(r"(?:^|\s)(?:[\w.]+\.)?(\w+): (.+)", str(error.message)):
        kind = getattr(errors, match[1], None)
        if isinstance(kind, type) and issubclass(kind, CCFNetError):
            return kind(match[2])
    return None


def reader(samples: Sequence[Sample], load: Load) -> Callable[[tf.Tensor], Example]:
    """Returns a function from a sample's index (a tensor) to image [H, W, 3] and label [H, W]."""
    fixed = tuple(samples)

    def arrays(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return load(fixed[int(index)])

    def read(index: tf.Tensor) -> Example:
        image, label = tf.numpy_function(arrays, [index], [tf.uint8, tf.int32], stateful=False)
        return tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(label, [None, None])

    return read


def _blank(size: tf.Tensor) -> Example:
    image = tf.broadcast_to(
        tf.constant(PADDING, tf.uint8), tf.concat([size, tf.constant([3], tf.int64)], 0)
    )
    return image, tf.fill(size, tf.constant(VOID, tf.int32))


def _workers(data: DataConfig) -> int:
    return data.workers or int(tf.data.AUTOTUNE)


def _finish(dataset: tf.data.Dataset, batch: int, *, deterministic: bool) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = deterministic
    return (
        dataset.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE).with_options(options)
    )
