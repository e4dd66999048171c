"""Reads a complete split before training starts, so that a bad file is reported immediately."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.samples import Load, label_fingerprint
from ccfnet_tf.errors import DamagedRecordError, DataError
from ccfnet_tf.io.in_threads import in_threads
from ccfnet_tf.labels import Sample


@dataclass(frozen=True)
class Checked:
    """Result of reading a split.

    Attributes:
        sizes: (H, W) of each sample, in order.
        census: Class counts over the labels.
        labels: Digest of each label, in order; an empty string for a skipped record.
        damaged: Errors of the damaged shard records that were skipped.
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
        samples: Samples to read.
        load: Loads a sample, as `Parts.load` does.
        classes: Number of classes C.
        leave_out: Whether to treat damaged shard records as void instead of raising.
        workers: Number of threads; 0 uses one per core, at most 8.
        advance: Called after each sample, in the thread of the caller.

    Raises:
        DataError: The error of the first bad sample in order, with the number of others.
    """

    def inspect_sample(sample: Sample) -> tuple[tuple[int, int], Census, str] | DataError:
        # Only a DataError is a result; out-of-memory errors and bugs propagate.
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
    for result in in_threads(inspect_sample, samples, workers):
        if isinstance(result, DamagedRecordError) and leave_out:
            damaged.append(result)
            sizes.append(result.size)
            labels.append("")
        elif isinstance(result, DataError):
            faults.append(result)
        else:
            sizes.append(result[0])
            census += result[1]
            labels.append(result[2])
        advance()
    if faults:
        more = f" (and {len(faults) - 1} more bad files)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]}{more}", kind=faults[0].kind) from faults[0]
    return Checked(sizes, census, labels, tuple(damaged))
