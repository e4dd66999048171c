"""From one image to labels, difficulty and probabilities.

Shapes: an image [H, W, 3] uint8 RGB of any size, at its own resolution; C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from ccfnet_tf.inference.segmenter import (
    HeadOutputs,
    Prediction,
    at_least,
    refuse_no_picture,
    too_large,
)
from ccfnet_tf.io.images import read_image
from ccfnet_tf.labels import Taxonomy, distinct_colours
from ccfnet_tf.network.outputs import (
    difficulty,
    difficulty_logit,
    labels,
    log_probabilities,
    probabilities,
    with_fine,
)
from ccfnet_tf.runs.run_folder import Checkpoint, load_run, read_run

if TYPE_CHECKING:
    from ccfnet_tf.config import ComputeType
    from ccfnet_tf.network.model import CCFNet


class Heads(NamedTuple):
    """What each branch says about one image, for looking at the cascade.

    Attributes:
        coarse: int32 [H, W]; class ids of the coarse head.
        fine: int32 [H, W]; class ids of the fine branch alone.
        refine: int32 [H, W]; class ids of the blend, the network's answer.
        difficulty: float32 [H, W]; P(coarse is wrong), 0..1.
    """

    coarse: np.ndarray
    fine: np.ndarray
    refine: np.ndarray
    difficulty: np.ndarray


class KerasNetwork:
    """A network of Keras that answers one image at a time; one graph serves all sizes.

    Args:
        source: A run folder, or a `CCFNet`.
        taxonomy: Names and colours of the classes; a run folder brings its own, and a bare
            `CCFNet` gets `class 0`, `class 1`, ... where None.
        checkpoint: Which weights of a run folder; `best`, else `last`, if None.
        precision: What a run's network computes in.

    Attributes:
        taxonomy: The classes.
        at_once: 1; TensorFlow takes all cores for one image.

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
    ) -> None:
        if isinstance(source, str | Path):
            taxonomy = taxonomy or read_run(source).taxonomy
            model = load_run(source, checkpoint=checkpoint, precision=precision)
        else:
            model = source
        classes = int(model.output["refine"].shape[-1])
        self.taxonomy = taxonomy or _nameless(classes)
        if len(self.taxonomy.names) != classes:
            raise ValueError(f"{len(self.taxonomy.names)} class names for {classes} classes")
        self._model = with_fine(model)
        signature = [tf.TensorSpec([None, None, 3], tf.uint8)]
        # Graphs are traced when first called: the heads cost nothing unless they are asked for.
        self._answer = tf.function(self._forward, input_signature=signature, autograph=False)
        self._heads = tf.function(self._forward_heads, input_signature=signature, autograph=False)
        self._head_outputs = tf.function(
            self._forward_head_outputs, input_signature=signature, autograph=False
        )

    def predict(self, image: str | Path | np.ndarray) -> Prediction:
        """Labels every pixel of an image.

        A side under 32 pixels is mirrored at the bottom or right up to 32 and cropped off again,
        so the answer always has the image's own size.

        Args:
            image: An image's path, or a uint8 array [H, W, 3], RGB.

        Raises:
            DataError: The file is not an image, or the array is none of that kind.
            PictureTooLargeError: Memory runs out; a smaller image may still fit.
        """
        return Prediction(*self._run(self._answer, image))

    def predict_all_heads(self, image: str | Path | np.ndarray) -> Heads:
        """Labels every pixel of an image by each branch; arguments and errors as in `predict`."""
        return Heads(*self._run(self._heads, image))

    def head_outputs(self, image: str | Path | np.ndarray) -> HeadOutputs:
        """Computes the outputs of all heads; arguments and errors as in `predict`."""
        return HeadOutputs(*self._run(self._head_outputs, image))

    def prediction(self, outputs: HeadOutputs) -> Prediction:
        """Returns the prediction that follows from the outputs of the heads.

        For outputs of other origin than one pass over an image: averages over scales, tiles.
        """
        probability = tf.sigmoid(outputs.attention).numpy()
        found = labels(outputs.refine), probability, probabilities(outputs.refine)
        return Prediction(*(np.asarray(each) for each in found))

    def _run(self, graph: Any, image: str | Path | np.ndarray) -> list[np.ndarray]:
        picture = _picture(image)
        height, width = picture.shape[:2]
        try:
            answer = graph(tf.constant(at_least(picture)))
            return [part.numpy()[:height, :width] for part in answer]
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise too_large(picture) from error

    def _forward(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        outputs = self._model(tf.cast(image[tf.newaxis], tf.float32), training=False)
        return (
            labels(outputs["refine"][0]),
            difficulty(outputs["attention"])[0],
            probabilities(outputs["refine"][0]),
        )

    def _forward_head_outputs(self, image: tf.Tensor) -> list[tf.Tensor]:
        outputs = self._model(tf.cast(image[tf.newaxis], tf.float32), training=False)
        return [
            log_probabilities(outputs["coarse"][0]),
            log_probabilities(outputs["fine"][0]),
            tf.cast(outputs["refine"][0], tf.float32),
            difficulty_logit(outputs["attention"][0]),
        ]

    def _forward_heads(self, image: tf.Tensor) -> list[tf.Tensor]:
        outputs = self._model(tf.cast(image[tf.newaxis], tf.float32), training=False)
        heads = [labels(outputs[head][0]) for head in Heads._fields[:3]]
        return [*heads, difficulty(outputs["attention"])[0]]


def _picture(image: str | Path | np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W, 3]; raises DataError."""
    if isinstance(image, str | Path):
        return read_image(image)
    refuse_no_picture(image)
    return image


def _nameless(classes: int) -> Taxonomy:
    return Taxonomy(tuple(f"class {index}" for index in range(classes)), distinct_colours(classes))
