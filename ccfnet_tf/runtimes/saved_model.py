"""A SavedModel that answers in this process, as it would behind TF Serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from ccfnet_tf.errors import RunError, first_line
from ccfnet_tf.inference.segmenter import Maps, refuse_no_picture, refuse_other_answer, too_large
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runtimes.graph_ops import refuse_harmful_graph
from ccfnet_tf.runtimes.manifest import LEVELS


class SavedModelNetwork:
    """Answers by `serving_default`, which leaves the probabilities in the graph.

    Args:
        folder: The folder that holds `saved_model.pb`.
        taxonomy: Its classes.

    Attributes:
        taxonomy: The classes.
        at_once: 1; TensorFlow takes all cores for one image.

    Raises:
        RunError: It holds operators that are refused, or TensorFlow cannot load it.
    """

    at_once = 1

    def __init__(self, folder: Path, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self._folder = folder
        refuse_harmful_graph(folder)
        try:
            # Kept: signatures alone do not hold the variables.
            self._loaded = tf.saved_model.load(str(folder))
            self._answer = self._loaded.signatures["serving_default"]
        except Exception as error:  # of a damaged graph, TensorFlow raises errors of any kind
            reason = first_line(error)
            raise RunError(f"{folder}: TensorFlow {tf.__version__}: {reason}") from error

    def predict(self, image: np.ndarray) -> Maps:
        """Labels every pixel of an image.

        Args:
            image: uint8 [H, W, 3], RGB, upright, any size.

        Raises:
            DataError: The array is not an image.
            PictureTooLargeError: Memory runs out; a smaller image may still fit.
            RunError: The graph answers what is not an answer.
        """
        refuse_no_picture(image)
        try:
            found = self._answer(images=tf.constant(image[np.newaxis]))
            labels, difficulty = (found[name][0].numpy() for name in ("labels", "difficulty"))
            answer = Maps(labels.astype(np.int32), difficulty.astype(np.float32) / LEVELS)
            refuse_other_answer(answer, image, len(self.taxonomy.names))
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise too_large(image) from error
        except (tf.errors.OpError, LookupError, ValueError, TypeError) as error:
            reason = first_line(error)
            raise RunError(f"{self._folder}: does not answer an image ({reason})") from error
        return answer
