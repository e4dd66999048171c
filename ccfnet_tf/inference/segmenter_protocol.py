"""Predictions, and the protocol that every segmenter implements.

Depends on NumPy only: the client of a server needs no TensorFlow.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np

from ccfnet_tf.errors import DataError, ResourceError
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import Calibration

SMALLEST = 32
"""Smallest input side of the network in pixels; smaller images are padded by mirroring."""


class ImageTooLargeError(ResourceError):
    """One image exhausts the memory, or has more pixels than are accepted."""


class Prediction(NamedTuple):
    """The prediction for one image.

    Attributes:
        labels: int32 [H, W]; class ids 0..C-1, arg max of refine before calibration.
        attention: float32 [H, W]; P(coarse is wrong) as the attention head sees it, 0..1.
        difficulty: float32 [H, W]; P(coarse is wrong) = 1 - probability of coarse's label, 0..1.
        risk: float32 [H, W]; P(the label is wrong) = 1 - its probability, 0..1.
        probabilities: float32 [H, W, C]; refine, calibrated, sums to 1 over the classes.
    """

    labels: np.ndarray
    attention: np.ndarray
    difficulty: np.ndarray
    risk: np.ndarray
    probabilities: np.ndarray


class Maps(NamedTuple):
    """A prediction without probabilities, as SavedModels, servers and exports of labels return it.

    Attributes:
        labels: int32 [H, W]; class ids 0..C-1.
        attention, difficulty, risk: float32 [H, W]; as in `Prediction`, multiples of 1/255.
    """

    labels: np.ndarray
    attention: np.ndarray
    difficulty: np.ndarray
    risk: np.ndarray


MapName = Literal["attention", "difficulty", "risk"]
MAPS: tuple[MapName, ...] = get_args(MapName)
"""The three maps of every prediction."""


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


class Segmenter(Protocol):
    """Predicts images: a run, an exported file, or a server."""

    @property
    def taxonomy(self) -> Taxonomy:
        """The classes."""

    @property
    def at_once(self) -> int:
        """How many threads may call `predict` concurrently."""

    @property
    def calibration(self) -> Calibration:
        """How the probabilities of a `Prediction` are calibrated; of no meaning for `Maps`."""

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        """Labels every pixel of an image.

        Args:
            image: uint8 [H, W, 3], RGB, upright, any size.

        Raises:
            DataError: The image cannot be predicted.
            ImageTooLargeError: Memory is exhausted; a smaller image may still fit.
            ResourceError: No further image can be predicted.
        """


@runtime_checkable
class ProbabilitySegmenter(Segmenter, Protocol):
    """A network whose `predict` returns `Maps`, and that computes probabilities on request.

    This is a SavedModel or a server: they are other outputs, which cost a second computation.
    """

    def predict_with_probabilities(self, image: np.ndarray, /) -> Prediction:
        """Labels every pixel; argument and errors as in `predict`.

        Raises:
            RunError, ConfigError: The network was exported without probabilities.
        """


@runtime_checkable
class CascadeSegmenter(Segmenter, Protocol):
    """A network that gives access to its heads: a run, not an exported file or a server."""

    def head_outputs(self, image: np.ndarray, /) -> HeadOutputs:
        """Computes the outputs of all heads; argument and errors as in `predict`."""

    def prediction(self, outputs: HeadOutputs, /) -> Prediction:
        """Returns the prediction that follows from the outputs of the heads."""


def refuse_no_image(image: object) -> None:
    """Refuses anything but a uint8 array [H, W, 3] with at least one pixel.

    Raises:
        DataError: The object is not a NumPy array, or has another type or shape.
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


def refuse_other_prediction(found: Prediction | Maps, image: np.ndarray, classes: int) -> None:
    """Refuses a prediction that does not fit the image or the classes.

    Raises:
        ValueError: The size differs, a class id is out of range, or a map is not finite.
    """
    size = image.shape[:2]
    for name in ("labels", *MAPS):
        if (array := getattr(found, name)).shape != size:
            raise ValueError(f"{name} of shape {list(array.shape)} for an image of {list(size)}")
    if not 0 <= found.labels.min() <= found.labels.max() < classes:
        raise ValueError(f"class ids outside 0..{classes - 1}")
    for name in MAPS:
        if not np.isfinite(getattr(found, name)).all():
            raise ValueError(f"{name} that is not finite")
    if isinstance(found, Prediction) and found.probabilities.shape != (*size, classes):
        raise ValueError(f"probabilities of shape {list(found.probabilities.shape)}")


def with_probabilities(maps: Maps, probabilities: np.ndarray) -> Prediction:
    """Returns the prediction of maps and probabilities [H, W, C] that were computed separately.

    Labels, attention and difficulty are those of the maps; risk follows from the probabilities.
    """
    labels = maps.labels
    risk = risk_of(labels, probabilities)
    return Prediction(labels, maps.attention, maps.difficulty, risk, probabilities)


def risk_of(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns 1 - the probability of each label, float32 [H, W], of probabilities [H, W, C]."""
    return 1 - np.take_along_axis(probabilities, labels[..., np.newaxis], axis=-1)[..., 0]


def at_least(image: np.ndarray, side: int = SMALLEST) -> np.ndarray:
    """Pads an image [H, W, 3] to at least `side` pixels by mirroring at the bottom and right."""
    missing = [max(0, side - size) for size in image.shape[:2]]
    if not any(missing):
        return np.ascontiguousarray(image)
    # `symmetric` repeats as often as needed, even for a single pixel.
    return np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="symmetric")


def too_large(image: np.ndarray) -> ImageTooLargeError:
    """Returns the error for an image [H, W, 3] that exhausted the memory."""
    height, width = image.shape[:2]
    return ImageTooLargeError(
        f"memory ran out on an image of {width}x{height} pixels: make it smaller (--size 1024), "
        "predict it in tiles (--tile 512), or use a machine with more memory"
    )
