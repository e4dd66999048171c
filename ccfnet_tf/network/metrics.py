"""The figures of a training step: counts over pixels, exact over any number of them.

Counts are int64: float32 stops counting at 2^24. Each takes counts of a batch, not its pixels, so
that the network can count them once and leave out a step that it skips.

Shapes: C classes; scalars without a shape.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("ccfnet")
class PixelAccuracy(keras.metrics.Metric):
    """Share of labelled pixels that a head gets right."""

    def __init__(self, name: str = "accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.right = self.add_weight(name="right", shape=(), initializer="zeros", dtype="int64")
        self.seen = self.add_weight(name="seen", shape=(), initializer="zeros", dtype="int64")

    def update_state(self, right: tf.Tensor, seen: tf.Tensor, sample_weight: None = None) -> None:
        """Adds int64 numbers of pixels: those the head gets right, and all labelled ones."""
        self.right.assign_add(right)
        self.seen.assign_add(seen)

    def result(self) -> tf.Tensor:
        """Returns the share in 0..1 as float32; 0 before any labelled pixel was seen."""
        right, seen = tf.cast(self.right, tf.float64), tf.cast(self.seen, tf.float64)
        return tf.cast(tf.math.divide_no_nan(right, seen), tf.float32)


@keras.saving.register_keras_serializable("ccfnet")
class MeanIoU(keras.metrics.Metric):
    """Mean IoU over the classes that labels contain, as `evaluation.Confusion` has it.

    Args:
        classes: C.
        name: Name in logs.
    """

    def __init__(self, classes: int, name: str = "mean_iou", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.classes = classes
        self.counts = self.add_weight(
            name="counts", shape=(classes, classes), initializer="zeros", dtype="int64"
        )

    def update_state(self, confusion: tf.Tensor, sample_weight: None = None) -> None:
        """Adds int64 [C, C] numbers of labelled pixels; rows truth, columns prediction."""
        self.counts.assign_add(confusion)

    def result(self) -> tf.Tensor:
        """Returns the mean in 0..1 as float32; 0 before any labelled pixel was seen."""
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
    """Steps that were not learned from, because a loss or a gradient was not finite.

    Attributes:
        names: What is looked at in a step, in order; set when the step is traced.
    """

    def __init__(self, name: str = "skipped_steps", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.names: list[str] = []
        # Every replica counts all steps, so their mean is the count.
        self.count = self.add_variable((), "zeros", aggregation="mean", name="count")
        self.latest = self.add_variable((), "zeros", aggregation="mean", name="latest")

    def update_state(self, first: tf.Tensor, sample_weight: None = None) -> None:
        """Takes a step's first bad place in `names`, int32; -1 where all was finite."""
        bad = first >= 0
        self.count.assign_add(tf.cast(bad, self.count.dtype))
        self.latest.assign(tf.where(bad, tf.cast(first, self.latest.dtype), self.latest))

    def result(self) -> tf.Tensor:
        """Returns the number of skipped steps, float32."""
        return tf.convert_to_tensor(self.count)

    def latest_name(self) -> str:
        """Returns what was not finite in the latest skipped step; every worker must ask."""
        return self.names[int(self.latest.numpy())]
