"""What a network says about an image, and the protocol that every segmenter implements.

NumPy alone: a client of a server needs no TensorFlow.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from ccfnet_tf.errors import DataError, ResourceError
from ccfnet_tf.labels import Taxonomy

SMALLEST = 32
"""The network's smallest side in pixels; smaller images are mirrored up to it."""


class PictureTooLargeError(ResourceError):
    """Memory ran out on one image, or it has more pixels than are taken."""


class Prediction(NamedTuple):
    """What the network says about one image.

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


class HeadOutputs(NamedTuple):
    """The outputs of all heads for one image, from which every map follows.

    Attributes:
        coarse: float32 [H, W, C]; log-probabilities of the coarse head.
        fine: float32 [H, W, C]; log-probabilities of the fine branch alone.
        refine: float32 [H, W, C]; log-probabilities of the blend.
        attention: float32 [H, W]; logit of P(coarse is wrong) as the attention head sees it.
    """

    coarse: np.ndarray
    fine: np.ndarray
    refine: np.ndarray
    attention: np.ndarray


class Network(Protocol):
    """Answers images: a run, an exported file, a server."""

    @property
    def taxonomy(self) -> Taxonomy:
        """The classes."""

    @property
    def at_once(self) -> int:
        """How many threads may call `predict` at a time."""

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        """Labels every pixel of an image.

        Args:
            image: uint8 [H, W, 3], RGB, upright, any size.

        Raises:
            DataError: The image cannot be answered.
            PictureTooLargeError: Memory runs out; a smaller image may still fit.
            ResourceError: Nothing can be answered any more.
        """


@runtime_checkable
class CascadeNetwork(Network, Protocol):
    """A network whose heads can be read, such as a run; not an exported file or a server."""

    def head_outputs(self, image: np.ndarray, /) -> HeadOutputs:
        """Computes the outputs of all heads; argument and errors as in `predict`."""

    def prediction(self, outputs: HeadOutputs, /) -> Prediction:
        """Returns the prediction that follows from the outputs of the heads."""


def refuse_no_picture(image: object) -> None:
    """Refuses what is not uint8 [H, W, 3] with at least one pixel.

    Raises:
        DataError: It is no NumPy array, or one of another kind.
    """
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"an object of type {type(image).__name__} is not an image: expected a path, a NumPy "
            "array (uint8 [H, W, 3], RGB 0..255) or an image of Pillow"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(
            f"an array of {image.dtype} {list(image.shape)} is not an image: expected uint8 "
            "[H, W, 3], RGB 0..255"
        )


def refuse_other_answer(found: Prediction | Maps, image: np.ndarray, classes: int) -> None:
    """Refuses what a network answered where it is not an answer to this image.

    Raises:
        ValueError: Another size, a class that has no name, or a difficulty that is not finite.
    """
    size = image.shape[:2]
    arrays = {"labels": found.labels, "difficulty": found.difficulty}
    for name, array in arrays.items():
        if array.shape != size:
            raise ValueError(f"{name} of shape {list(array.shape)} for an image of {list(size)}")
    if not 0 <= found.labels.min() <= found.labels.max() < classes:
        raise ValueError(f"class ids outside 0..{classes - 1}")
    if not np.isfinite(found.difficulty).all():
        raise ValueError("a difficulty that is not finite")
    if isinstance(found, Prediction) and found.probabilities.shape != (*size, classes):
        raise ValueError(f"probabilities of shape {list(found.probabilities.shape)}")


def at_least(image: np.ndarray, side: int = SMALLEST) -> np.ndarray:
    """Returns [H, W, 3], mirrored at the bottom and right up to `side` pixels where smaller."""
    missing = [max(0, side - size) for size in image.shape[:2]]
    if not any(missing):
        return np.ascontiguousarray(image)
    # `symmetric` repeats itself as often as needed, down to a single pixel.
    return np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="symmetric")


def too_large(image: np.ndarray) -> PictureTooLargeError:
    """Returns the error of an image [H, W, 3] on which memory ran out."""
    height, width = image.shape[:2]
    return PictureTooLargeError(
        f"memory ran out on an image of {width}x{height} pixels: make it smaller (--size 1024), "
        "predict it in tiles (--tile 512), or use a machine with more memory"
    )
