"""A run's network that also returns the features of its backbone, for ranking images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from ccfnet_tf.inference.segmenter_protocol import at_least, too_large
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED
from ccfnet_tf.network.labels_and_maps import maps, with_features
from ccfnet_tf.runs.run_folder import load_run, read_run

if TYPE_CHECKING:
    from ccfnet_tf.network.model import CCFNet


class View(NamedTuple):
    """What the network returns for one image.

    Attributes:
        labels: int32 [H, W]; class ids 0..C-1.
        risk: float32 [H, W]; P(the label is wrong), 0..1.
        features: float32 [F]; the mean of the stride-8 features of the backbone.
    """

    labels: np.ndarray
    risk: np.ndarray
    features: np.ndarray


class FeatureNetwork:
    """Predicts labels, risk and pooled features of one image at a time.

    Args:
        source: A run folder, whose calibration is applied, or a `CCFNet`.

    Raises:
        RunError: The run folder cannot be used.
    """

    def __init__(self, source: str | Path | CCFNet) -> None:
        if isinstance(source, str | Path):
            self._calibration = read_run(source).calibration()
            model = load_run(source, calibration=self._calibration)
        else:
            self._calibration = UNCALIBRATED
            model = source
        self._model = with_features(model)
        signature = [tf.TensorSpec([None, None, 3], tf.uint8)]
        self._graph = tf.function(self._forward, input_signature=signature, autograph=False)

    def view(self, image: np.ndarray) -> View:
        """Predicts an image, uint8 [H, W, 3] of any size.

        Raises:
            ImageTooLargeError: Memory runs out; a smaller image may still fit.
        """
        height, width = image.shape[:2]
        try:
            labels, risk, features = self._graph(tf.constant(at_least(image)))
            labels, risk = (each.numpy()[:height, :width] for each in (labels, risk))
            return View(labels, risk, features.numpy())
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise too_large(image) from error

    def _forward(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        outputs = self._model(tf.cast(image[tf.newaxis], tf.float32), training=False)
        found = maps(outputs, self._calibration)
        features = tf.reduce_mean(tf.cast(outputs["features"], tf.float32), axis=[0, 1, 2])
        return found["labels"][0], found["risk"][0], features
