"""Counts over labels: how often each class occurs, and the class weights that follow from it.

Shapes: C classes. Counts add up, so the census of a part is the sum of its images'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ccfnet_tf.labels import VOID


@dataclass(frozen=True)
class Census:
    """What was counted over some labels.

    Attributes:
        pixels: int64 [C], labelled pixels of each class.
        pictures: int64 [C], images that show the class.
        within: int64 [C], labelled pixels, of any class, in the images that show the class.
        void: Pixels without a label.
        samples: Labels counted.
    """

    pixels: np.ndarray
    pictures: np.ndarray
    within: np.ndarray
    void: int
    samples: int

    @classmethod
    def empty(cls, classes: int) -> Census:
        """Returns the census of no label."""
        zeros = np.zeros(classes, np.int64)
        return cls(zeros, zeros, zeros, 0, 0)

    @classmethod
    def of(cls, label: np.ndarray, classes: int) -> Census:
        """Counts one label, int32 [H, W] with ids 0..C-1 or `VOID`."""
        counts = np.bincount(label.ravel() - VOID, minlength=classes + 1).astype(np.int64)
        void, pixels = int(counts[0]), counts[1:]
        shown = (pixels > 0).astype(np.int64)
        return cls(pixels, shown, shown * pixels.sum(), void, 1)

    def __add__(self, other: Census) -> Census:
        return Census(
            self.pixels + other.pixels,
            self.pictures + other.pictures,
            self.within + other.within,
            self.void + other.void,
            self.samples + other.samples,
        )

    def shares(self) -> np.ndarray:
        """Returns float64 [C], the share of labelled pixels of each class; adds up to 1."""
        return self.pixels / max(int(self.pixels.sum()), 1)

    def median_frequency(self) -> np.ndarray:
        """Returns float64 [C], median(f) / f with f the share of a class where it occurs.

        Median frequency balancing (Eigen and Fergus, ICCV 2015): f of a class is its pixels over
        all labelled pixels of the images that show it. A class that never occurs has weight 0.
        """
        frequency = self.pixels / np.maximum(self.within, 1)
        seen = frequency > 0
        weights = np.zeros(len(frequency))
        if seen.any():
            weights[seen] = np.median(frequency[seen]) / frequency[seen]
        return weights

    def inverse_log(self) -> np.ndarray:
        """Returns float64 [C], 1 / ln(1.02 + share) as in ENet (Paszke et al., 2016): 1.4 to 50."""
        return 1.0 / np.log(1.02 + self.shares())
