"""Metrics of a training step, computed from exact pixel counts.

Counts are int64, because float32 cannot count beyond 2^24. Every metric is updated with the counts
of a batch rather than with its pixels, so that the network counts once, and can omit a step that
it skips.

Shapes: C classes; arguments without a shape are scalars.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("ccfnet")
class PixelAccuracy(keras.metrics.Metric):
    """Fraction of labelled pixels that a head predicts correctly."""

    def __init__(self, name: str = "accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.right = self.add_weight(name="right", shape=(), initializer="zeros", dtype="int64")
        self.seen = self.add_weight(name="seen", shape=(), initializer="zeros", dtype="int64")

    def update_state(self, right: tf.Tensor, seen: tf.Tensor, sample_weight: None = None) -> None:
        """Adds the int64 numbers of correctly predicted pixels and of all labelled pixels."""
        self.right.assign_add(right)
        self.seen.assign_add(seen)

    def result(self) -> tf.Tensor:
        """Returns the accuracy in 0..1 as float32; 0 before the first labelled pixel."""
        right, seen = tf.cast(self.right, tf.float64), tf.cast(self.seen, tf.float64)
        return tf.cast(tf.math.divide_no_nan(right, seen), tf.float32)


@keras.saving.register_keras_serializable("ccfnet")
class MeanIoU(keras.metrics.Metric):
    """Mean IoU over the classes that occur in the labels, as in `evaluation.Confusion`.

    Args:
        classes: Number of classes C.
        name: Name in logs.
    """

    def __init__(self, classes: int, name: str = "mean_iou", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.classes = classes
        self.counts = self.add_weight(
            name="counts", shape=(classes, classes), initializer="zeros", dtype="int64"
        )

    def update_state(self, confusion: tf.Tensor, sample_weight: None = None) -> None:
        """Adds int64 [C, C] counts of labelled pixels; rows are labels, columns predictions."""
        self.counts.assign_add(confusion)

    def result(self) -> tf.Tensor:
        """Returns the mean IoU in 0..1 as float32; 0 before the first labelled pixel."""
        counts = tf.cast(self.counts, tf.float64)
        hits = tf.linalg.diag_part(counts)
        labelled = tf.reduce_sum(counts, 1)
        iou = tf.math.divide_no_nan(hits, labelled + tf.reduce_sum(counts, 0) - hits)
        present = tf.cast(labelled > 0, tf.float64)
        mean = tf.math.divide_no_nan(tf.reduce_sum(iou * present), tf.reduce_sum(present))
        return tf.cast(mean, tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "classes": self.classes}


@keras.saving.register_keras_serializable("ccfnet")
class SkippedSteps(keras.metrics.Metric):
    """Number of training steps skipped because a loss or a gradient was not finite.

    Attributes:
        names: Names of the losses and gradients checked in a step, in order. Set when the step is
            traced.
    """

    def __init__(self, name: str = "skipped_steps", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.names: list[str] = []
        # Every replica counts all steps, so the mean over replicas is the count.
        self.count = self.add_variable((), "zeros", aggregation="mean", name="count")
        self.latest = self.add_variable((), "zeros", aggregation="mean", name="latest")

    def update_state(self, first: tf.Tensor, sample_weight: None = None) -> None:
        """Adds a step.

        Args:
            first: Index in `names` of the first value that is not finite, int32; -1 if all are.
            sample_weight: Not used.
        """
        bad = first >= 0
        self.count.assign_add(tf.cast(bad, self.count.dtype))
        self.latest.assign(tf.where(bad, tf.cast(first, self.latest.dtype), self.latest))

    def result(self) -> tf.Tensor:
        """Returns the number of skipped steps, float32."""
        return tf.convert_to_tensor(self.count)

    def latest_name(self) -> str:
        """Returns the name of the value that was not finite in the latest skipped step.

        Every worker must call it, because the value is a mean over all workers.
        """
        return self.names[int(self.latest.numpy())]
