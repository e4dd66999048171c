"""Statistics of a data set: class frequencies, image sizes, mean colour.

Shapes: C classes. Counts are exact integers and additive: those of a set are the sum over its
splits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.samples import Load
from ccfnet_tf.io.in_threads import in_threads
from ccfnet_tf.labels import Sample, Taxonomy

_BAND_ROWS = 256


@dataclass(frozen=True)
class Stats:
    """Statistics over a number of samples.

    Attributes:
        census: Class counts over the labels.
        sizes: (H, W) -> number of images.
        sums: Sums of red, green and blue over all pixels, 0..255 each.
        squares: Sums of their squares.
    """

    census: Census
    sizes: Mapping[tuple[int, int], int]
    sums: tuple[int, int, int]
    squares: tuple[int, int, int]

    @classmethod
    def empty(cls, classes: int) -> Stats:
        """Returns statistics with all counts zero."""
        return cls(Census.empty(classes), {}, (0, 0, 0), (0, 0, 0))

    @classmethod
    def of(cls, image: np.ndarray, label: np.ndarray, classes: int) -> Stats:
        """Counts one sample: image uint8 [H, W, 3] RGB and label int32 [H, W]."""
        levels = np.zeros((3, 256), np.int64)  # histogram: exact and fast
        for top in range(
            0, len(image), _BAND_ROWS
        ):  # in bands, because bincount needs 8 bytes per value
            for channel in range(3):
                values = image[top : top + _BAND_ROWS, :, channel].ravel()
                levels[channel] += np.bincount(values, minlength=256)
        sums, squares = levels @ np.arange(256), levels @ np.arange(256) ** 2
        size = (image.shape[0], image.shape[1])
        return cls(Census.of(label, classes), {size: 1}, _three(sums), _three(squares))

    def __add__(self, other: Stats) -> Stats:
        return Stats(
            self.census + other.census,
            dict(Counter(self.sizes) + Counter(other.sizes)),
            _three(np.add(self.sums, other.sums)),
            _three(np.add(self.squares, other.squares)),
        )

    @property
    def pixels(self) -> int:
        """Number of pixels of all images."""
        return sum(height * width * count for (height, width), count in self.sizes.items())

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean red, green and blue over all pixels, 0..255; 0 if there are no images."""
        return tuple(total / max(self.pixels, 1) for total in self.sums)

    @property
    def deviation(self) -> tuple[float, ...]:
        """Standard deviation of red, green and blue over all pixels."""
        count = max(self.pixels, 1)
        # Integers up to the square root: the difference of two large floats would lose precision.
        variances = [
            count * square - total**2 for total, square in zip(self.sums, self.squares, strict=True)
        ]
        return tuple(math.sqrt(variance) / count for variance in variances)

    @property
    def void_share(self) -> float:
        """Share of pixels without a label, 0..1."""
        return self.census.void / max(self.census.void + int(self.census.pixels.sum()), 1)

    def to_json(self, taxonomy: Taxonomy) -> dict[str, Any]:
        """Returns JSON values: counts, shares 0..1, suggested weights, colours 0..255."""
        columns = {
            "pixels": self.census.pixels,
            "share": self.census.shares(),
            "pictures": self.census.pictures,
            "median_frequency": self.census.median_frequency(),
            "inverse_log": self.census.inverse_log(),
        }
        lists = {key: values.tolist() for key, values in columns.items()}
        return {
            "samples": self.census.samples,
            "void_share": self.void_share,
            "classes": [
                {"name": name} | {key: values[index] for key, values in lists.items()}
                for index, name in enumerate(taxonomy.names)
            ],
            "sizes": [
                {"height": height, "width": width, "pictures": count}
                for (height, width), count in self.by_count()
            ],
            "mean": list(self.mean),
            "deviation": list(self.deviation),
        }

    def by_count(self) -> list[tuple[tuple[int, int], int]]:
        """Returns pairs of (H, W) and number of images, the most frequent size first."""
        return sorted(self.sizes.items(), key=lambda row: (-row[1], row[0]))


def survey(
    samples: Sequence[Sample],
    load: Load,
    taxonomy: Taxonomy,
    *,
    workers: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Stats:
    """Computes statistics; reads every sample once, in threads.

    Args:
        samples: Samples to read.
        load: Loads a sample, as `Parts.load` does.
        taxonomy: The classes.
        workers: Number of threads; 0 uses one per core, at most 8.
        advance: Called after each sample, in the thread of the caller.

    Raises:
        DataError: The error of the first sample in order that cannot be used.
    """
    classes = len(taxonomy.names)
    total = Stats.empty(classes)
    sizes: Counter[tuple[int, int]] = Counter()  # kept separately: adding growing mappings is slow
    for stats in in_threads(lambda s: Stats.of(*load(s), classes), samples, workers):
        sizes.update(stats.sizes)
        total += replace(stats, sizes={})
        advance()
    return replace(total, sizes=dict(sizes))


def _three(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = values.tolist()
    return red, green, blue
