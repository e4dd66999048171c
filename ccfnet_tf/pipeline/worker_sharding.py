"""Assigns samples to workers in multi-worker training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.labels import Sample

_ORDER = 2
"""Random stream of the sample order; stream 1 draws the `data.val_share` split."""

OfWorker = Callable[[int], Sequence[int]]
"""Maps a worker number to the indices of the samples that it may read."""


@dataclass(frozen=True)
class Share:
    """The samples that one worker reads.

    Attributes:
        steps: Batches per epoch, the same for every worker.
        worker: Index of this worker, from 0.
        workers: Number of workers.
        members: Indices of the samples that this worker reads, if each worker has its own files.
            `None` if all workers see the same order and each reads its slice of every batch.
    """

    steps: int
    worker: int = 0
    workers: int = 1
    members: tuple[int, ...] | None = None


def by_example(samples: Sequence[Sample], batch: int, worker: int = 0, workers: int = 1) -> Share:
    """Returns the share of a worker that may read any sample.

    Args:
        samples: The training split.
        batch: Global batch size; a multiple of the number of workers.
        worker: Index of the worker, from 0.
        workers: Number of workers.

    Raises:
        ConfigError: There are fewer samples than the batch size.
    """
    if len(samples) < batch:
        raise ConfigError(
            f"train.batch is {batch}: the training split has {len(samples)} images; "
            "lower train.batch or add images"
        )
    return Share(len(samples) // batch, worker, workers)


def by_file(of_worker: OfWorker, batch: int, worker: int, workers: int) -> Share:
    """Returns the share of a worker that reads only its own files.

    The worker with the fewest samples determines the length of an epoch, so that no worker sees a
    sample twice in it.

    Args:
        of_worker: Maps a worker to the samples in its files.
        batch: Global batch size; a multiple of the number of workers.
        worker: Index of the worker, from 0.
        workers: Number of workers.

    Raises:
        ConfigError: A worker has fewer samples than its share of a batch.
    """
    members = [tuple(of_worker(each)) for each in range(workers)]
    local_batch, fewest = batch // workers, min(map(len, members))
    if fewest < local_batch:
        raise ConfigError(
            f"train.batch is {batch}, {local_batch} for each of {workers} workers: one worker has "
            f"shards with {fewest} samples; lower train.batch, or convert with a larger --shards"
        )
    return Share(fewest // local_batch, worker, workers, members[worker])


def epoch_order(share: Share, samples: int, *, batch: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the samples that a worker reads in an epoch, in order.

    All orders are equally likely, and so are all choices of the samples that an epoch drops.
    Workers that share the data by example draw the same order, and each takes its slice of every
    batch. Workers with their own files draw independent orders; otherwise the same samples would
    always be batched together.

    Args:
        share: The share of the worker.
        samples: Number of samples in the training split, over all workers.
        batch: Global batch size; a multiple of the number of workers.
        seed: Seed of the run, 0 or more.
        epoch: Number of the epoch, from 0.

    Returns:
        int64 [steps * batch / workers], distinct sample indices.
    """
    if share.members is None:
        order = np.random.default_rng([seed, _ORDER, epoch]).permutation(samples)
        batches = order[: share.steps * batch].reshape(share.steps, share.workers, -1)
        return batches[:, share.worker].reshape(-1)
    generator = np.random.default_rng([seed, _ORDER, epoch, share.worker])
    order = generator.permutation(np.array(share.members, np.int64))
    return order[: share.steps * (batch // share.workers)]
