"""Which samples of a batch a worker reads, where several train together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.labels import Sample

_ORDER = 2
"""Stream of chance of the order; that of `data.val_share` is 1."""

OfWorker = Callable[[int], Sequence[int]]
"""Indices of the samples that worker w may take."""


@dataclass(frozen=True)
class Share:
    """What one worker reads.

    Attributes:
        steps: Batches in a pass over the training split, the same for every worker.
        worker: Which worker, from 0.
        workers: How many there are.
        members: Indices of the samples that this worker takes, where each has files of its own;
            `None` where the workers' parts together are the batch that one would read.
    """

    steps: int
    worker: int = 0
    workers: int = 1
    members: tuple[int, ...] | None = None


def by_example(samples: Sequence[Sample], batch: int, worker: int = 0, workers: int = 1) -> Share:
    """Returns the share of a worker that may read any sample.

    Args:
        samples: The training split.
        batch: Samples in a batch, over all workers, which divide it evenly.
        worker: Which worker, from 0.
        workers: How many there are.

    Raises:
        ConfigError: There are fewer samples than a batch holds.
    """
    if len(samples) < batch:
        raise ConfigError(
            f"train.batch is {batch}: the training split has {len(samples)} images; "
            "lower train.batch or add images"
        )
    return Share(len(samples) // batch, worker, workers)


def by_file(of_worker: OfWorker, batch: int, worker: int, workers: int) -> Share:
    """Returns the share of a worker that reads files of its own.

    A pass is as long as the worker with the fewest samples can go without seeing one twice.

    Args:
        of_worker: Which samples are in the files of each worker.
        batch: Samples in a batch, over all workers, which divide it evenly.
        worker: Which worker, from 0.
        workers: How many there are.

    Raises:
        ConfigError: A worker has fewer samples than its part of a batch.
    """
    members = [tuple(of_worker(each)) for each in range(workers)]
    mine, fewest = batch // workers, min(map(len, members))
    if fewest < mine:
        raise ConfigError(
            f"train.batch is {batch}, {mine} for each of {workers} workers: one of them has shards "
            f"with {fewest} samples; lower train.batch, or convert with a larger --shards"
        )
    return Share(fewest // mine, worker, workers, members[worker])


def epoch_order(share: Share, samples: int, *, batch: int, seed: int, epoch: int) -> np.ndarray:
    """Returns which samples a worker reads in an epoch, in order.

    Every order has the same chance, and so has every choice of the samples that an epoch leaves
    out. Workers that read by example draw the same order and take their parts of its batches;
    those with files of their own draw one each, else the same samples would always meet.

    Args:
        share: What the worker reads.
        samples: Samples in the training split, of all workers.
        batch: Samples in a batch, over all workers, which divide it evenly.
        seed: 0 or more.
        epoch: Which pass over the training split, from 0.

    Returns:
        int64 [steps * batch / workers], indices of different samples.
    """
    if share.members is None:
        order = np.random.default_rng([seed, _ORDER, epoch]).permutation(samples)
        batches = order[: share.steps * batch].reshape(share.steps, share.workers, -1)
        return batches[:, share.worker].reshape(-1)
    generator = np.random.default_rng([seed, _ORDER, epoch, share.worker])
    order = generator.permutation(np.array(share.members, np.int64))
    return order[: share.steps * (batch // share.workers)]
