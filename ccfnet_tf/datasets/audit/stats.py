"""What a data set looks like in figures: classes, sizes, colours.

Shapes: C classes. Counts are exact integers and add up: those of a set are the sum of its parts'.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.audit.scan import in_threads
from ccfnet_tf.datasets.base import Load
from ccfnet_tf.labels import Sample, Taxonomy

_ROWS = 256


@dataclass(frozen=True)
class Stats:
    """What was counted over some samples.

    Attributes:
        census: Counts over the labels.
        sizes: (H, W) -> number of images.
        sums: Sum of all pixels' red, green and blue, 0..255 each.
        squares: Sum of their squares.
    """

    census: Census
    sizes: Mapping[tuple[int, int], int]
    sums: tuple[int, int, int]
    squares: tuple[int, int, int]

    @classmethod
    def empty(cls, classes: int) -> Stats:
        """Returns the figures of no sample."""
        return cls(Census.empty(classes), {}, (0, 0, 0), (0, 0, 0))

    @classmethod
    def of(cls, image: np.ndarray, label: np.ndarray, classes: int) -> Stats:
        """Counts one sample: uint8 [H, W, 3] RGB and int32 [H, W]."""
        levels = np.zeros((3, 256), np.int64)  # how often each value occurs: exact, and quick
        for top in range(0, len(image), _ROWS):  # a band at a time: counting takes 8 bytes a value
            for channel in range(3):
                values = image[top : top + _ROWS, :, channel].ravel()
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
        """Pixels of all images."""
        return sum(height * width * count for (height, width), count in self.sizes.items())

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean red, green and blue over all pixels, 0..255; 0 where there is no image."""
        return tuple(total / max(self.pixels, 1) for total in self.sums)

    @property
    def deviation(self) -> tuple[float, ...]:
        """Standard deviation of red, green and blue over all pixels."""
        count = max(self.pixels, 1)
        # In whole numbers up to the root: the difference of two large floats would be inexact.
        variances = [
            count * square - total**2 for total, square in zip(self.sums, self.squares, strict=True)
        ]
        return tuple(math.sqrt(variance) / count for variance in variances)

    @property
    def void_share(self) -> float:
        """Share of the pixels that have no label, 0..1."""
        return self.census.void / max(self.census.void + int(self.census.pixels.sum()), 1)

    def to_json(self, taxonomy: Taxonomy) -> dict[str, Any]:
        """Returns plain values: counts, shares 0..1, suggested weights, colours 0..255."""
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
        """Returns ((H, W), number of images), the most frequent size first."""
        return sorted(self.sizes.items(), key=lambda row: (-row[1], row[0]))


def survey(
    samples: Sequence[Sample],
    load: Load,
    taxonomy: Taxonomy,
    *,
    workers: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Stats:
    """Reads every sample once, in threads, and counts.

    Args:
        samples: What to read.
        load: Reads one, `Parts.load`.
        taxonomy: The classes.
        workers: Threads; 0 takes one a core, 8 at most.
        advance: Called after each sample, in the caller's thread.

    Raises:
        DataError: The first sample, in order, that cannot be used.
    """
    classes = len(taxonomy.names)
    total = Stats.empty(classes)
    sizes: Counter[tuple[int, int]] = Counter()  # beside: adding up mappings that grow takes long
    for stats in in_threads(lambda s: Stats.of(*load(s), classes), samples, workers):
        sizes.update(stats.sizes)
        total += replace(stats, sizes={})
        advance()
    return replace(total, sizes=dict(sizes))


def _three(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = values.tolist()
    return red, green, blue
