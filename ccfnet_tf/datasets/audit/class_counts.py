"""Pixel and image counts per class, and the class weights computed from them.

Shapes: C classes. Counts are additive: the census of a split is the sum over its images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ccfnet_tf.labels import VOID


@dataclass(frozen=True)
class Census:
    """Class counts over a number of labels.

    Attributes:
        pixels: int64 [C], pixels of each class.
        pictures: int64 [C], images that contain the class.
        within: int64 [C], labelled pixels of all classes in the images that contain the class.
        void: Number of pixels without a label.
        samples: Number of labels.
    """

    pixels: np.ndarray
    pictures: np.ndarray
    within: np.ndarray
    void: int
    samples: int

    @classmethod
    def empty(cls, classes: int) -> Census:
        """Returns a census with all counts zero."""
        zeros = np.zeros(classes, np.int64)
        return cls(zeros, zeros, zeros, 0, 0)

    @classmethod
    def of(cls, label: np.ndarray, classes: int) -> Census:
        """Counts one label, int32 [H, W] with ids 0..C-1 or `VOID`."""
        counts = np.bincount(label.ravel() - VOID, minlength=classes + 1).astype(np.int64)
        void, pixels = int(counts[0]), counts[1:]
        present = (pixels > 0).astype(np.int64)
        return cls(pixels, present, present * pixels.sum(), void, 1)

    def __add__(self, other: Census) -> Census:
        return Census(
            self.pixels + other.pixels,
            self.pictures + other.pictures,
            self.within + other.within,
            self.void + other.void,
            self.samples + other.samples,
        )

    def shares(self) -> np.ndarray:
        """Returns float64 [C], the share of each class in the labelled pixels; sums to 1."""
        return self.pixels / max(int(self.pixels.sum()), 1)

    def median_frequency(self) -> np.ndarray:
        """Returns the weights of median frequency balancing (Eigen and Fergus, ICCV 2015).

        The frequency f of a class is the number of its pixels divided by the number of labelled
        pixels in the images that contain it.

        Returns:
            float64 [C], median(f) / f; 0 for classes that do not occur.
        """
        frequency = self.pixels / np.maximum(self.within, 1)
        occurs = frequency > 0
        weights = np.zeros(len(frequency))
        if occurs.any():
            weights[occurs] = np.median(frequency[occurs]) / frequency[occurs]
        return weights

    def inverse_log(self) -> np.ndarray:
        """Returns float64 [C], 1 / ln(1.02 + share) as in ENet (Paszke et al., 2016): 1.4 to 50."""
        return 1.0 / np.log(1.02 + self.shares())
