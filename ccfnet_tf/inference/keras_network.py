"""Predicts images with a Keras network.

Shapes: an image is uint8 [H, W, 3] RGB of any size; C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from ccfnet_tf.inference.segmenter_protocol import (
    MAPS,
    HeadOutputs,
    Prediction,
    at_least,
    refuse_no_image,
    too_large,
)
from ccfnet_tf.io.read_images import read_image
from ccfnet_tf.labels import Taxonomy, distinct_colours
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.network.labels_and_maps import (
    attention_logit,
    hard_threshold,
    labels,
    log_probabilities,
    maps,
    with_fine,
)
from ccfnet_tf.runs.run_folder import Checkpoint, load_run, read_run

if TYPE_CHECKING:
    from ccfnet_tf.config import ComputeType
    from ccfnet_tf.network.model import CCFNet


class Heads(NamedTuple):
    """The labels of each branch for one image.

    Attributes:
        coarse: int32 [H, W]; class ids of the coarse head.
        fine: int32 [H, W]; class ids of the fine branch alone.
        refine: int32 [H, W]; class ids of the blend, the network's output.
        attention, difficulty, risk: float32 [H, W], 0..1; as in `Prediction`.
    """

    coarse: np.ndarray
    fine: np.ndarray
    refine: np.ndarray
    attention: np.ndarray
    difficulty: np.ndarray
    risk: np.ndarray


class KerasNetwork:
    """Predicts one image at a time with a Keras network; one graph is used for all sizes.

    Args:
        source: A run folder, or a `CCFNet`.
        taxonomy: Names and colours of the classes. If None, they are read from the run folder; for
            a `CCFNet` they are `class 0`, `class 1`, ...
        checkpoint: Which weights of a run folder; `best`, else `last`, if None.
        precision: Compute type of a run's network.
        calibration: Of probabilities and maps. If None, that of the run, and none for a `CCFNet`.

    Attributes:
        taxonomy: The classes.
        calibration: How probabilities and maps are calibrated.
        at_once: 1; TensorFlow uses all cores for one image.

    Raises:
        RunError: The run folder cannot be used.
    """

    at_once = 1

    def __init__(
        self,
        source: str | Path | CCFNet,
        *,
        taxonomy: Taxonomy | None = None,
        checkpoint: Checkpoint | None = None,
        precision: ComputeType = "float32",
        calibration: Calibration | None = None,
    ) -> None:
        if isinstance(source, str | Path):
            run = read_run(source)
            taxonomy = taxonomy or run.taxonomy
            calibration = calibration or run.calibration(checkpoint)
            model = load_run(
                source, checkpoint=checkpoint, precision=precision, calibration=calibration
            )
        else:
            model = source
        self.calibration = calibration or UNCALIBRATED
        classes = int(model.output["refine"].shape[-1])
        self.taxonomy = taxonomy or _nameless(classes)
        if len(self.taxonomy.names) != classes:
            raise ValueError(f"{len(self.taxonomy.names)} class names for {classes} classes")
        self._model = with_fine(model)
        signature = [tf.TensorSpec([None, None, 3], tf.uint8)]
        # Graphs are traced at their first call, so unused ones cost nothing.
        self._predict = tf.function(self._forward, input_signature=signature, autograph=False)
        self._heads = tf.function(self._forward_heads, input_signature=signature, autograph=False)
        self._head_outputs = tf.function(
            self._forward_head_outputs, input_signature=signature, autograph=False
        )

    @property
    def hard_threshold(self) -> float | None:
        """Logit of attention above which a hard blend uses fine; None for a soft blend."""
        return hard_threshold(self._model)

    def predict(self, image: str | Path | np.ndarray) -> Prediction:
        """Labels every pixel of an image.

        A side below 32 pixels is padded to 32 by mirroring at the bottom or right. The padding is
        cropped from the output, which always has the size of the image.

        Args:
            image: An image's path, or a uint8 array [H, W, 3], RGB.

        Raises:
            DataError: The file is not an image, or the array has another type or shape.
            ImageTooLargeError: Memory is exhausted; a smaller image may still fit.
        """
        return Prediction(*self._run(self._predict, image))

    def predict_all_heads(self, image: str | Path | np.ndarray) -> Heads:
        """Labels every pixel with each branch; arguments and errors as in `predict`."""
        return Heads(*self._run(self._heads, image))

    def head_outputs(self, image: str | Path | np.ndarray) -> HeadOutputs:
        """Computes the outputs of all heads; arguments and errors as in `predict`."""
        return HeadOutputs(*self._run(self._head_outputs, image))

    def prediction(self, outputs: HeadOutputs) -> Prediction:
        """Returns the prediction that follows from the outputs of the heads.

        The outputs may be averages over scales or joined from tiles.
        """
        attention = np.stack([outputs.attention, np.zeros_like(outputs.attention)], axis=-1)
        found = maps({**outputs._asdict(), "attention": attention}, self.calibration)
        return Prediction(*(found[name].numpy() for name in Prediction._fields))

    def _run(self, graph: Any, image: str | Path | np.ndarray) -> list[np.ndarray]:
        picture = _picture(image)
        height, width = picture.shape[:2]
        try:
            outputs = graph(tf.constant(at_least(picture)))
            return [output.numpy()[:height, :width] for output in outputs]
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise too_large(picture) from error

    def _outputs(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = self._model(tf.cast(image[tf.newaxis], tf.float32), training=False)
        return {name: output[0] for name, output in outputs.items()}

    def _forward(self, image: tf.Tensor) -> list[tf.Tensor]:
        found = maps(self._outputs(image), self.calibration)
        return [found[name] for name in Prediction._fields]

    def _forward_head_outputs(self, image: tf.Tensor) -> list[tf.Tensor]:
        outputs = self._outputs(image)
        return [
            log_probabilities(outputs["coarse"]),
            log_probabilities(outputs["fine"]),
            tf.cast(outputs["refine"], tf.float32),
            attention_logit(outputs["attention"]),
        ]

    def _forward_heads(self, image: tf.Tensor) -> list[tf.Tensor]:
        outputs = self._outputs(image)
        found = maps(outputs, self.calibration)
        heads = [labels(outputs[head]) for head in ("coarse", "fine", "refine")]
        return [*heads, *(found[name] for name in MAPS)]


def _picture(image: str | Path | np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W, 3]; raises DataError."""
    if isinstance(image, str | Path):
        return read_image(image)
    refuse_no_image(image)
    return image


def _nameless(classes: int) -> Taxonomy:
    return Taxonomy(tuple(f"class {index}" for index in range(classes)), distinct_colours(classes))
