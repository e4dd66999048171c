"""Runs a SavedModel in this process, with the outputs that TensorFlow Serving would return."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from ccfnet_tf.errors import RunError, first_line
from ccfnet_tf.inference.segmenter_protocol import (
    MAPS,
    Maps,
    refuse_no_image,
    refuse_other_prediction,
    too_large,
)
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runtimes.allowed_ops import refuse_harmful_graph
from ccfnet_tf.runtimes.manifest import LEVELS


class SavedModelNetwork:
    """Segments images with the signature `serving_default`, which does not return probabilities.

    Args:
        folder: The folder that contains `saved_model.pb`.
        taxonomy: The model's classes.

    Attributes:
        taxonomy: The classes.
        at_once: 1; TensorFlow uses all cores for one image.

    Raises:
        RunError: The graph contains operators that are not allowed, or TensorFlow cannot load it.
    """

    at_once = 1

    def __init__(self, folder: Path, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
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
        refuse_no_image(image)
        try:
            outputs = self._signature(images=tf.constant(image[np.newaxis]))
            labels = outputs["labels"][0].numpy().astype(np.int32)
            planes = [outputs[name][0].numpy().astype(np.float32) / LEVELS for name in MAPS]
            maps = Maps(labels, *planes)
            refuse_other_prediction(maps, image, len(self.taxonomy.names))
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise too_large(image) from error
        except (tf.errors.OpError, LookupError, ValueError, TypeError) as error:
            reason = first_line(error)
            raise RunError(f"{self._folder}: cannot segment an image ({reason})") from error
        return maps
