"""Evaluates a network in one pass over images.

Memory is bounded by two images with their outputs, since one is counted while the network predicts
the next, and by a few images that are read ahead.

Shapes: an image [H, W, 3] uint8, its label int32 [H, W].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ccfnet_tf.datasets.samples import Load
from ccfnet_tf.errors import DataError
from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.inference.segmenter_protocol import CascadeSegmenter, HeadOutputs
from ccfnet_tf.io.in_threads import in_threads
from ccfnet_tf.labels import Sample
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration

Numbered = tuple[int, Sample]
"""Index of a sample in the split, and the sample."""


def evaluate(
    network: CascadeSegmenter,
    samples: Sequence[Sample],
    load: Load,
    *,
    split: str = "test",
    wrapping: str = "",
    calibration: Calibration = UNCALIBRATED,
    shard: tuple[int, int] = (1, 1),
    advance: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluates a network on images at their own resolution.

    Args:
        network: A network that returns the outputs of its heads, such as `KerasNetwork`.
        samples: A split, such as `Parts.test`.
        load: Reads a sample, `Parts.load`; class ids of labels are those of the network.
        split: Name of the split; recorded.
        wrapping: Options of views and tiles that `network` applies; recorded.
        calibration: Calibration of the network; see `ccfnet_tf.network.calibration_parameters`.
        shard: (k, n) evaluates every n-th sample from the k-th on; the n parts add up to exactly
            what one pass over all samples gives.
        advance: Called after each image, for a progress bar.

    Raises:
        NotFiniteError: An output of the network is NaN.
        DataError: An image or label cannot be read, or has a class that the network lacks.
        ResourceError: Memory runs out.
    """
    first, step = shard
    numbered = list(enumerate(samples))[first - 1 :: step]
    taxonomy = network.taxonomy

    def count(item: Numbered, label: np.ndarray, outputs: HeadOutputs) -> Evaluation:
        index, sample = item
        if label.size and label.max() >= len(taxonomy.names):
            raise DataError(
                f"{sample.label}: contains class {label.max()}, but the network has "
                f"{len(taxonomy.names)} classes: evaluate it on data of its own classes"
            )
        return Evaluation.of(
            label,
            outputs,
            taxonomy,
            calibration=calibration,
            split=split,
            wrapping=wrapping,
            index=index,
            name=sample.name,
        )

    def parts() -> Iterator[Evaluation]:
        for part in _pipelined(network, numbered, load, count):
            yield part
            advance()

    return Evaluation.total(parts(), taxonomy, split=split, wrapping=wrapping)


def _pipelined(
    network: CascadeSegmenter,
    numbered: Iterable[Numbered],
    load: Load,
    count: Callable[[Numbered, np.ndarray, HeadOutputs], Evaluation],
) -> Iterator[Evaluation]:
    """Yields the counts of each image, in order; reads and counts while the network predicts."""
    loaded = in_threads(lambda item: (item, *load(item[1])), numbered, 1)
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[Evaluation] | None = None
        for item, image, label in loaded:
            outputs = network.head_outputs(image)
            if waiting is not None:
                yield waiting.result()
            waiting = pool.submit(count, item, label, outputs)
        if waiting is not None:
            yield waiting.result()
