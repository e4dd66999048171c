"""What a quantised file loses in accuracy, on labelled images that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ccfnet_tf.datasets.splits import Parts
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter import Network, Prediction
from ccfnet_tf.runtimes.letterbox import Size, fit, unfit, unfit_labels

MOST = 200
"""Images that are measured; of a larger part, evenly spread ones."""


@dataclass(frozen=True)
class Accuracy:
    """Shares of labelled pixels that are right, 0..1.

    Attributes:
        keras: By Keras, on the same images at the same size.
        file: By the file.
        pictures: How many.
        part: Of `val`, else `test`, else `train`.
    """

    keras: float
    file: float
    pictures: int
    part: str

    @property
    def loss(self) -> float:
        """What the file loses, in points."""
        return 100.0 * (self.keras - self.file)

    def __str__(self) -> str:
        return (
            f"{100 * self.file:.2f} % of pixels right, {self.loss:.2f} points below Keras's "
            f"{100 * self.keras:.2f} % ({self.pictures} images of {self.part})"
        )


def measure_accuracy(
    keras: KerasNetwork,
    network: Network,
    parts: Parts,
    size: Size,
    advance: Callable[[float], None],
) -> Accuracy:
    """Answers labelled images by Keras and by a file of one size.

    Args:
        keras: The run's network; it answers at `size` too, so that size is not a part of the loss.
        network: The file.
        parts: The run's data.
        size: Height and width that the file takes.
        advance: Told the share that each image is of the whole.
    """
    named = {"val": parts.val, "test": parts.test, "train": parts.train}
    part, samples = next((name, found) for name, found in named.items() if found)
    samples = samples[:: -(-len(samples) // MOST)]
    right, pixels = np.zeros(2, np.int64), 0
    for sample in samples:
        image, truth = parts.load(sample)
        fitted = fit(image, size)
        wanted, found = keras.predict(fitted.image), network.predict(image)
        if isinstance(found, Prediction):
            labels_of_keras = unfit(wanted.probabilities, fitted).argmax(-1)
        else:
            # Labels are enlarged by the nearest pixel: Keras's too, or that would be a loss.
            labels_of_keras = unfit_labels(wanted.labels, fitted)
        answers = (labels_of_keras, found.labels)
        known = truth >= 0
        right += [int((labels == truth)[known].sum()) for labels in answers]
        pixels += int(known.sum())
        advance(1 / len(samples))
    shares = right / max(pixels, 1)
    return Accuracy(float(shares[0]), float(shares[1]), len(samples), part)
