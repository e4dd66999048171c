"""Reads a whole split before the first step, so that a bad file shows up now, by name."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.base import Load, label_fingerprint
from ccfnet_tf.errors import DamagedRecordError, DataError
from ccfnet_tf.labels import Sample

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Checked:
    """What a part was seen to hold.

    Attributes:
        sizes: (H, W) of each sample, in order.
        census: Counts over their labels.
        labels: A digest of each label, in order; empty texts where a record is left out.
        damaged: Records of shards that are left out.
    """

    sizes: list[tuple[int, int]]
    census: Census
    labels: list[str]
    damaged: tuple[DamagedRecordError, ...] = ()


def check(
    samples: Sequence[Sample],
    load: Load,
    classes: int,
    *,
    leave_out: bool = False,
    workers: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Checked:
    """Reads every image and label once, in threads.

    Args:
        samples: What to read.
        load: Reads one, `Parts.load`.
        classes: Number of classes C.
        leave_out: A damaged record of a shard is counted as void, and is not a fault.
        workers: Threads; 0 takes one a core, 8 at most.
        advance: Called after each sample, in the caller's thread.

    Raises:
        DataError: The first bad sample in order, with a count of further ones.
    """

    def look(sample: Sample) -> tuple[tuple[int, int], Census, str] | DataError:
        # Only a DataError is an answer; memory that runs out, or a fault of ours, goes up.
        try:
            label = load(sample)[1]
        except DataError as error:
            return error
        size = (label.shape[0], label.shape[1])
        return size, Census.of(label, classes), label_fingerprint(label)

    sizes: list[tuple[int, int]] = []
    census = Census.empty(classes)
    labels: list[str] = []
    damaged: list[DamagedRecordError] = []
    faults: list[DataError] = []
    for answer in in_threads(look, samples, workers):
        if isinstance(answer, DamagedRecordError) and leave_out:
            damaged.append(answer)
            sizes.append(answer.size)
            labels.append("")
        elif isinstance(answer, DataError):
            faults.append(answer)
        else:
            sizes.append(answer[0])
            census += answer[1]
            labels.append(answer[2])
        advance()
    if faults:
        more = f" (and {len(faults) - 1} more files with faults)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]}{more}", kind=faults[0].kind) from faults[0]
    return Checked(sizes, census, labels, tuple(damaged))


def in_threads(
    function: Callable[[Item], Answer], items: Iterable[Item], workers: int = 0
) -> Iterator[Answer]:
    """Yields `function` of each item, in order; decoders leave Python's lock to other threads.

    Args:
        function: What to do with an item.
        items: Taken a few ahead of the answers, so that memory stays flat.
        workers: Threads; 0 takes one a core, 8 at most.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    waiting: deque[Future[Answer]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
