"""Runs a SavedModel in this process, with the outputs that TensorFlow Serving would return."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import tensorflow as tf

from ccfnet_tf.errors import RunError, first_line
from ccfnet_tf.inference.segmenter_protocol import (
    MAPS,
    Maps,
    Prediction,
    refuse_no_image,
    refuse_other_prediction,
    too_large,
    with_probabilities,
)
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runtimes.allowed_ops import refuse_harmful_graph
from ccfnet_tf.runtimes.manifest import LEVELS, PROBABILITIES

Found = TypeVar("Found", Maps, Prediction)


class SavedModelNetwork:
    """Segments images with the signature `serving_default`, which does not return probabilities.

    These have a signature of their own, `probabilities`, which runs the network again.

    Args:
        folder: The folder that contains `saved_model.pb`.
        taxonomy: The model's classes.
        calibration: Of its probabilities.

    Attributes:
        taxonomy: The classes.
        at_once: 1; TensorFlow uses all cores for one image.
        calibration: Of its probabilities.

    Raises:
        RunError: The graph contains operators that are not allowed, or TensorFlow cannot load it.
    """

    at_once = 1

    def __init__(
        self, folder: Path, taxonomy: Taxonomy, calibration: Calibration = UNCALIBRATED
    ) -> None:
        self.taxonomy = taxonomy
        self.calibration = calibration
        self._folder = folder
        refuse_harmful_graph(folder)
        try:
            # Stored because signatures alone do not keep the variables alive.
            self._loaded = tf.saved_model.load(str(folder))
            self._signature = self._loaded.signatures["serving_default"]
        except Exception as error:  # a damaged graph raises errors of any type
            reason = first_line(error)
            raise RunError(f"{folder}: TensorFlow {tf.__version__}: {reason}") from error

    def predict(self, image: np.ndarray) -> Maps:
        """Labels every pixel of an image.

        Args:
            image: uint8 [H, W, 3], RGB, upright, any size.

        Raises:
            DataError: The array is not an image.
            ImageTooLargeError: Memory runs out; a smaller image may still fit.
            RunError: The graph's outputs are not a prediction.
        """
        return self._checked(self._maps, image)

    def predict_with_probabilities(self, image: np.ndarray) -> Prediction:
        """Labels every pixel, with probabilities; takes twice the time of `predict`.

        Argument and errors as in `predict`.

        Raises:
            RunError: The SavedModel has no signature `probabilities`.
        """
        if PROBABILITIES not in self._loaded.signatures:
            raise RunError(
                f"{self._folder}: has no signature '{PROBABILITIES}', which --tta needs: export "
                "the run again"
            )
        return self._checked(self._prediction, image)

    def _maps(self, images: tf.Tensor) -> Maps:
        outputs = self._signature(images=images)
        labels = outputs["labels"][0].numpy().astype(np.int32)
        planes = [outputs[name][0].numpy().astype(np.float32) / LEVELS for name in MAPS]
        return Maps(labels, *planes)

    def _prediction(self, images: tf.Tensor) -> Prediction:
        outputs = self._loaded.signatures[PROBABILITIES](images=images)
        return with_probabilities(self._maps(images), outputs[PROBABILITIES][0].numpy())

    def _checked(self, predict: Callable[[tf.Tensor], Found], image: np.ndarray) -> Found:
        """Returns what a function of images uint8 [1, H, W, 3] returns, checked."""
        refuse_no_image(image)
        try:
            found = predict(tf.constant(image[np.newaxis]))
            refuse_other_prediction(found, image, len(self.taxonomy.names))
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise too_large(image) from error
        except (tf.errors.OpError, LookupError, ValueError, TypeError) as error:
            reason = first_line(error)
            raise RunError(f"{self._folder}: cannot segment an image ({reason})") from error
        return found
