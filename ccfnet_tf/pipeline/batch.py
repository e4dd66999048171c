"""tf.data pipelines for training and evaluation.

The position in training is a single step number, so that a run can resume at any step without
saved iterator state. Datasets are deterministic (`data.deterministic`), read in parallel and
prefetch batches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from ccfnet_tf import errors
from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.samples import Load
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
    """Returns an infinite tf.data.Dataset of augmented batches.

    The content of step n does not depend on `first_step`: the order of an epoch, a uniform
    permutation, is derived from (seed, epoch), and the augmentation of a sample from (seed, epoch,
    sample). An epoch visits no sample twice; samples that do not fill a batch are dropped.

    Args:
        samples: The training split.
        load: Reads one sample, as `Parts.load` does.
        data: Augmentation, number of parallel readers, determinism.
        batch: Global batch size B, over all workers and replicas.
        seed: Seed of the sample order and of augmentation.
        first_step: Number of steps already done.
        rarity: float [C], sampling weights of the classes for `data.rare_crop`; `None` disables it.
        share: The samples of each batch that this process reads; all of them if `None`.
        replicas: Number of replicas in this process. Its share of a batch is split into this many
            elements of the dataset.

    Returns:
        Dataset of (image uint8 [b, S, S, 3], label int32 [b, S, S]) with S = `data.crop` and
        b = B / workers / replicas.

    Raises:
        ConfigError: There are fewer samples than the batch size.
    """
    part = share or by_example(samples, batch)
    local_batch = batch // part.workers
    read = reader(samples, load)
    weights = None if rarity is None else tf.constant(rarity, tf.float32)

    def visits(epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        index = tf.numpy_function(order, [epoch], tf.int64, stateful=False)
        index = tf.ensure_shape(index, [part.steps * local_batch])
        return tf.fill([part.steps * local_batch], epoch), index

    def order(epoch: np.ndarray) -> np.ndarray:
        return epoch_order(part, len(samples), batch=batch, seed=seed, epoch=int(epoch))

    def example(epoch: tf.Tensor, index: tf.Tensor) -> Example:
        key = tf.cast(tf.stack([tf.constant(seed, tf.int64), epoch]), tf.int32)
        key = tf.random.experimental.stateless_fold_in(key, tf.cast(index, tf.int32))
        pixels, mask = read(index)
        image, label = augment(pixels, mask, key, data=data, rarity=weights)
        side = data.crop
        return tf.ensure_shape(image, [side, side, 3]), tf.ensure_shape(label, [side, side])

    epochs = tf.data.Dataset.counter(first_step // part.steps)
    visited = epochs.map(visits).unbatch().skip(first_step % part.steps * local_batch)
    examples = visited.map(example, _workers(data), deterministic=data.deterministic)
    return _finish(examples, local_batch // replicas, deterministic=data.deterministic)


def evaluation_batches(
    samples: Sequence[Sample],
    sizes: Sequence[tuple[int, int]],
    load: Load,
    data: DataConfig,
    *,
    batch: int,
) -> tuple[tf.data.Dataset, int]:
    """Returns every sample once, at its own resolution, in batches of equal image size.

    The last batch of each size is padded with samples that are entirely `VOID`: every batch has B
    samples, and metrics are unaffected.

    Args:
        samples: The samples of the split.
        sizes: (H, W) of each sample, as `datasets.audit.check_split.check` returns them.
        load: Reads one sample, as `Parts.load` does.
        data: Number of parallel readers.
        batch: Global batch size B, over all replicas.

    Returns:
        Dataset of (image uint8 [B, H, W, 3], label int32 [B, H, W]), where H and W differ between
        batches, and the number of batches.

    Raises:
        ValueError: `samples` and `sizes` differ in length.
    """
    rows: list[tuple[int, int, int]] = []
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (_, size) in enumerate(zip(samples, sizes, strict=True)):
        groups.setdefault(size, []).append(index)
    for (height, width), members in groups.items():
        padded = members + [-1] * (-len(members) % batch)
        rows.extend((index, height, width) for index in padded)
    read = reader(samples, load)

    def example(row: tf.Tensor) -> Example:
        image, label = tf.cond(row[0] < 0, lambda: _blank(row[1:]), lambda: read(row[0]))
        return tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(label, [None, None])

    table = tf.data.Dataset.from_tensor_slices(np.array(rows, np.int64).reshape(-1, 3))
    examples = table.map(example, _workers(data), deterministic=True)
    return _finish(examples, batch, deterministic=True), len(rows) // batch


def original_error(error: BaseException) -> CCFNetError | None:
    """Returns the package error that a reader raised inside tf.data, `None` for other errors.

    TensorFlow converts an exception of a Python function into one of `tf.errors` whose message
    contains `<module>.<class>: <text>` and a traceback.
    """
    if not isinstance(error, tf.errors.OpError):
        return None
    for match in re.finditer(r"(?:^|\s)(?:[\w.]+\.)?(\w+): (.+)", str(error.message)):
        kind = getattr(errors, match[1], None)
        if isinstance(kind, type) and issubclass(kind, CCFNetError):
            return kind(match[2])
    return None


def reader(samples: Sequence[Sample], load: Load) -> Callable[[tf.Tensor], Example]:
    """Returns a function from a sample index (a tensor) to image [H, W, 3] and label [H, W]."""
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
