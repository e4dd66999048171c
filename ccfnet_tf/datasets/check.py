"""Reads a whole part before the first step, so that a bad file shows up now, by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.parts import load
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample


def check(
    samples: Sequence[Sample],
    data: DataConfig,
    classes: int,
    *,
    advance: Callable[[], None] = lambda: None,
) -> list[tuple[int, int]]:
    """Reads every picture and label once, in threads.

    Args:
        samples: What to read.
        data: Its layout.
        classes: Number of classes C.
        advance: Called after each sample, in the caller's thread.

    Returns:
        (H, W) of each sample, in order.

    Raises:
        DataError: The first bad sample in order, with a count of further ones.
    """
    if data.format == "scenes":  # drawn, not read: there is no file that could be bad
        for _ in samples:
            advance()
        return [data.scene_size] * len(samples)
    workers = data.workers or min(8, os.cpu_count() or 1)
    sizes: list[tuple[int, int]] = []
    faults: list[DataError] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="check") as pool:
        for result in pool.map(lambda sample: _size(sample, data, classes), samples):
            if isinstance(result, DataError):
                faults.append(result)
            else:
                sizes.append(result)
            advance()
    if faults:
        more = f" (and {len(faults) - 1} more files with faults)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]}{more}") from faults[0]
    return sizes


def _size(sample: Sample, data: DataConfig, classes: int) -> tuple[int, int] | DataError:
    """Only a DataError is an answer; memory that runs out, or a fault of ours, goes up."""
    try:
        height, width = load(sample, data, classes)[1].shape
    except DataError as error:
        return error
    return height, width
