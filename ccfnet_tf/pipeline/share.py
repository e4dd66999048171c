"""Which samples of a batch a worker reads, where several train together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.labels import Sample

OfWorker = Callable[[int], Sequence[int]]
"""Indices of the samples that worker w may take."""


@dataclass(frozen=True)
class Share:
    """What one worker reads.

    Attributes:
        steps: Batches in a pass over the training part, the same for every worker.
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
        samples: The training part.
        batch: Samples in a batch, over all workers, which divide it evenly.
        worker: Which worker, from 0.
        workers: How many there are.

    Raises:
        ConfigError: There are fewer samples than a batch holds.
    """
    if len(samples) < batch:
        raise ConfigError(
            f"train.batch is {batch}: the training part has {len(samples)} pictures; "
            "lower train.batch or add pictures"
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
