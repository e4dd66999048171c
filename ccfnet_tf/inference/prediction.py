"""What a network says about a picture, and the face that whatever can say it has.

NumPy alone: a client of a server needs no TensorFlow.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from ccfnet_tf.errors import ResourceError
from ccfnet_tf.labels import Taxonomy


class PictureTooLargeError(ResourceError):
    """Memory ran out on one picture."""


class Prediction(NamedTuple):
    """What the network says about one picture.

    Attributes:
        labels: int32 [H, W]; class ids 0..C-1, arg max of `probabilities`.
        difficulty: float32 [H, W]; P(coarse is wrong) = attention's P(hard), 0..1.
        probabilities: float32 [H, W, C]; refine, sums to 1 over the classes.
    """

    labels: np.ndarray
    difficulty: np.ndarray
    probabilities: np.ndarray


class Maps(NamedTuple):
    """The same where the probabilities stay behind: a server, a file that answers labels.

    Attributes:
        labels: int32 [H, W]; class ids 0..C-1.
        difficulty: float32 [H, W]; P(coarse is wrong), a multiple of 1/255.
    """

    labels: np.ndarray
    difficulty: np.ndarray


class Network(Protocol):
    """Answers pictures: a run, an exported file, a server."""

    @property
    def taxonomy(self) -> Taxonomy:
        """The classes."""

    @property
    def at_once(self) -> int:
        """How many threads may call `predict` at a time."""

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        """Labels every pixel of a picture.

        Args:
            image: uint8 [H, W, 3], RGB, upright, any size.

        Raises:
            DataError: The picture cannot be answered.
            PictureTooLargeError: Memory runs out; a smaller picture may still fit.
            ResourceError: Nothing can be answered any more.
        """
