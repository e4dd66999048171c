"""Measures the accuracy that a quantised file loses, on labelled images outside training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ccfnet_tf.datasets.open_data_set import Parts
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import Prediction, Segmenter
from ccfnet_tf.runtimes.letterbox import Size, fit, unfit, unfit_labels

MAX_IMAGES = 200
"""Largest number of images; a larger split is sampled evenly."""


@dataclass(frozen=True)
class Accuracy:
    """Pixel accuracy of Keras and of a file: shares of correct labelled pixels, 0..1.

    Attributes:
        keras: Accuracy of Keras, on the same images at the same size.
        file: Accuracy of the file.
        images: Number of images.
        split: Name of their split: `val`, else `test`, else `train`.
    """

    keras: float
    file: float
    images: int
    split: str

    @property
    def loss(self) -> float:
        """Accuracy that the file loses, in points."""
        return 100.0 * (self.keras - self.file)

    def __str__(self) -> str:
        points = f"{abs(self.loss):.2f} points {'below' if self.loss > 0 else 'above'}"
        return (
            f"{100 * self.file:.2f} % of pixels correct, {points} Keras's "
            f"{100 * self.keras:.2f} % ({self.images} images of {self.split})"
        )


def measure_accuracy(
    keras: KerasNetwork,
    network: Segmenter,
    parts: Parts,
    size: Size,
    advance: Callable[[float], None],
) -> Accuracy:
    """Compares the pixel accuracy of Keras and of a file with a fixed image size.

    Args:
        keras: The run's network; it also runs at `size`, so that the loss excludes resizing.
        network: The file.
        parts: The run's data.
        size: Height and width of the file's input.
        advance: Called after each image with the fraction of the work that it was.
    """
    splits = {"val": parts.val, "test": parts.test, "train": parts.train}
    split, samples = next((name, predicted) for name, predicted in splits.items() if predicted)
    samples = samples[:: -(-len(samples) // MAX_IMAGES)]
    correct, pixels = np.zeros(2, np.int64), 0
    for sample in samples:
        image, truth = parts.load(sample)
        fitted = fit(image, size)
        expected, predicted = keras.predict(fitted.image), network.predict(image)
        if isinstance(predicted, Prediction):
            uncalibrated = keras.calibration.uncalibrated(expected.probabilities)
            labels_of_keras = unfit(uncalibrated, fitted).argmax(-1)
        else:
            # The file's labels are resized by the nearest pixel, so Keras's are too.
            labels_of_keras = unfit_labels(expected.labels, fitted)
        predictions = (labels_of_keras, predicted.labels)
        known = truth >= 0
        correct += [int((labels == truth)[known].sum()) for labels in predictions]
        pixels += int(known.sum())
        advance(1 / len(samples))
    shares = correct / max(pixels, 1)
    return Accuracy(float(shares[0]), float(shares[1]), len(samples), split)
