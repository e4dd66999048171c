"""Evaluation in the graph, for the end of an epoch.

Counts confusion matrices, the ranking by attention and difficulty, and the calibration of risk.

Runs on every replica of a strategy and counts little, so that validation is cheap compared with
training. The command `evaluate` counts with NumPy instead (`ccfnet_tf.evaluation.evaluate`); a test
compares the counts that both have.

The graph returns counts only, so memory is bounded by one batch, and the counts of batches,
replicas and machines add up.

Shapes: B images, H x W pixels, C classes, N labelled pixels of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import keras
import numpy as np
import tensorflow as tf

from ccfnet_tf.errors import DataError, NotFiniteError, ResourceError
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.evaluation.easy_hard import HEADS
from ccfnet_tf.evaluation.pixel_scores import SMALL
from ccfnet_tf.evaluation.reliability import BINS as RELIABILITY_BINS
from ccfnet_tf.evaluation.reliability import STEP, Reliability
from ccfnet_tf.evaluation.score_histogram import BINS, LIMIT, ONE, SHIFT, ScoreHistogram
from ccfnet_tf.labels import VOID, Taxonomy
from ccfnet_tf.network.labels_and_maps import attention_logit, labels, other_classes, with_fine
from ccfnet_tf.network.normalise_pad_resize import MINIMUM_SIZE, at_least_minimum
from ccfnet_tf.pipeline.batch import original_error

Batch = tuple[tf.Tensor, tf.Tensor]
"""Images float32 [B, H, W, 3] and labels int32 [B, H, W]."""


@dataclass(frozen=True, eq=False)
class EpochCounts:
    """Counts of one pass.

    Attributes:
        coarse: Confusion of the coarse head.
        fine: Confusion of the fine branch alone.
        refine: Confusion of the blend, the network's prediction.
        attention: Attention's logit on pixels that coarse gets wrong and right.
        difficulty: The logit of difficulty, not calibrated, on the same pixels.
        risk: Risk, not calibrated, and how often refine is wrong.
        pictures: Number of images evaluated.
    """

    coarse: Confusion
    fine: Confusion
    refine: Confusion
    attention: ScoreHistogram
    difficulty: ScoreHistogram
    risk: Reliability
    pictures: int


class Evaluator:
    """Evaluates a model any number of times; the graph is traced once for all image sizes.

    Args:
        model: A `CCFNet`; its layer `fine_logits` is read in addition to its outputs. Weights are
            read in each run, so the model may be trained in between.
        taxonomy: The C classes that `model` predicts.

    Raises:
        DataError: `model` predicts another number of classes.
    """

    def __init__(self, model: keras.Model, taxonomy: Taxonomy) -> None:
        classes = int(model.output["refine"].shape[-1])
        if len(taxonomy.names) != classes:
            raise DataError(
                f"the data have {len(taxonomy.names)} classes but the network predicts {classes}: "
                "evaluate it on data of the classes it was trained on"
            )
        self._taxonomy = taxonomy
        self._model = with_fine(model)
        self._strategy = model.distribute_strategy
        # With several machines each evaluates on one device, independently of the others.
        over_workers = isinstance(self._strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self._replicas = 1 if over_workers else int(self._strategy.num_replicas_in_sync)
        batch = [
            tf.TensorSpec([None, None, None, 3], tf.float32),
            tf.TensorSpec([None, None, None], tf.int32),
        ]
        self._count = tf.function(
            self._count_on_replicas, input_signature=batch * self._replicas, autograph=False
        )

    def run(
        self,
        batches: tf.data.Dataset,
        *,
        pictures: int | None = None,
        advance: Callable[[], None] = lambda: None,
        total: Callable[[Sequence[np.ndarray]], list[np.ndarray]] = list,
    ) -> EpochCounts:
        """Evaluates `batches` once, on every replica of the model's strategy in this process.

        Args:
            batches: Yields image [B, H, W, 3] RGB 0..255 and label int32 [B, H, W], 0..C-1 or
                `VOID`.
            pictures: Number of images in the batches without padding. If None, images with a
                labelled pixel are counted.
            advance: Called after each batch, for a progress bar.
            total: Sums counts over the workers, each of which evaluates some of the images.

        Raises:
            NotFiniteError: An output of the network is NaN.
            DataError: An image or label cannot be read.
            ResourceError: Memory runs out.
        """
        counts = self._no_counts()
        for group in _in_groups(_readable(batches), self._replicas):
            for found in self._counts_of(group):
                for key, value in found.items():
                    counts[key] = counts[key] + value
            for _ in group:
                advance()
        counts = dict(zip(counts, total(list(counts.values())), strict=True))
        return self._state(counts, pictures)

    def _no_counts(self) -> dict[str, np.ndarray]:
        classes = len(self._taxonomy.names)
        shapes = {
            **dict.fromkeys(HEADS, (classes, classes)),
            "attention": (2, BINS),
            "difficulty": (2, BINS),
            "risk": (3, RELIABILITY_BINS),
            **dict.fromkeys(("pictures", "nan"), ()),
        }
        return {key: np.zeros(shape, np.int64) for key, shape in shapes.items()}

    def _counts_of(self, group: Sequence[Batch]) -> list[dict[str, tf.Tensor]]:
        """Returns the counts of some batches, at most one for each replica."""
        # Replicas without a batch get an image of void, which is not counted.
        padded = [*group, *[_blank()] * (self._replicas - len(group))]
        try:
            counts = self._count(*(part for batch in padded for part in batch))
            return [{key: value.numpy() for key, value in each.items()} for each in counts]
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            batch, height, width = group[0][1].shape
            raise ResourceError(
                f"memory ran out on a batch of {batch} images of {width}x{height} pixels: "
                "lower the batch size, or shrink the images and their labels"
            ) from error

    def _count_on_replicas(self, *parts: tf.Tensor) -> list[dict[str, tf.Tensor]]:
        """Counts batches, one on each replica; the arguments are image, label, image, label, ..."""
        if self._replicas == 1:
            return [self._count_batch(*parts)]

        def on_replica() -> dict[str, tf.Tensor]:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            place = 2 * int(tf.get_static_value(replica))
            return self._count_batch(*parts[place : place + 2])

        found = self._strategy.run(on_replica)
        columns = {k: self._strategy.experimental_local_results(v) for k, v in found.items()}
        return [{k: each[i] for k, each in columns.items()} for i in range(self._replicas)]

    def _state(self, counts: dict[str, np.ndarray], pictures: int | None) -> EpochCounts:
        if counts["nan"]:
            raise NotFiniteError(
                f"the network's output is NaN on {counts['nan']} labelled pixels: its weights are "
                "damaged; use an earlier checkpoint or train again with a lower learning rate"
            )
        return EpochCounts(
            Confusion(counts["coarse"]),
            Confusion(counts["fine"]),
            Confusion(counts["refine"]),
            ScoreHistogram(counts["attention"]),
            ScoreHistogram(counts["difficulty"]),
            Reliability(counts["risk"]),
            int(counts["pictures"]) if pictures is None else pictures,
        )

    def _outputs(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the outputs [B, H, W, ...]; small images are mirrored, as in `KerasNetwork`."""
        size = tf.shape(image)
        found = self._model(at_least_minimum(image), training=False)
        return {name: value[:, : size[1], : size[2]] for name, value in found.items()}

    def _count_batch(self, image: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = self._outputs(image)
        labelled = tf.not_equal(label, VOID)  # [B, H, W]
        truth = tf.boolean_mask(label, labelled)  # [N]
        attention = attention_logit(tf.boolean_mask(outputs["attention"], labelled))  # [N]
        predicted = {head: tf.boolean_mask(labels(outputs[head]), labelled) for head in HEADS}
        refine = tf.cast(tf.boolean_mask(outputs["refine"], labelled), tf.float32)  # [N, C]
        risk = other_classes(tf.exp(refine), predicted["refine"])  # [N]
        difficulty = _wrong_logit(refine, predicted["coarse"])  # [N]
        coarse_wrong = tf.not_equal(predicted["coarse"], truth)
        nan = tf.math.is_nan(attention) | tf.reduce_any(tf.math.is_nan(refine), axis=-1)
        classes = len(self._taxonomy.names)
        return {
            **{head: _confusion(truth, predicted[head], classes) for head in HEADS},
            "attention": _histogram(attention, coarse_wrong),
            "difficulty": _histogram(difficulty, coarse_wrong),
            "risk": _reliability(risk, tf.not_equal(predicted["refine"], truth)),
            "pictures": _count_true(tf.reduce_any(labelled, axis=[1, 2])),
            "nan": _count_true(nan),
        }


def _in_groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Yields lists of `size` batches; the last may be shorter."""
    while group := list(islice(batches, size)):
        yield group


def _blank() -> Batch:
    image = tf.zeros([1, MINIMUM_SIZE, MINIMUM_SIZE, 3])
    return image, tf.fill([1, MINIMUM_SIZE, MINIMUM_SIZE], VOID)


def _readable(batches: tf.data.Dataset) -> Iterator[Batch]:
    """Yields the batches; raises the original error of a reader instead of TensorFlow's."""
    try:
        for image, label in batches:
            yield tf.cast(image, tf.float32), label
    except tf.errors.OpError as error:
        original = original_error(error)
        if original is None:
            raise
        raise original from error


def _confusion(truth: tf.Tensor, prediction: tf.Tensor, classes: int) -> tf.Tensor:
    """Returns int64 [C, C] of truth and prediction [N]."""
    cells = classes * classes
    counts = tf.math.bincount(
        truth * classes + prediction, minlength=cells, maxlength=cells, dtype=tf.int64
    )
    return tf.reshape(counts, [classes, classes])


def _wrong_logit(logs: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    """Returns the logit of 1 - P(label), float32 [N], of log-probabilities [N, C] and label [N]."""
    others = tf.maximum(other_classes(tf.exp(logs), label), SMALL)
    return tf.math.log(others) - tf.gather(logs, label, batch_dims=1)


def _histogram(logit: tf.Tensor, wrong: tf.Tensor) -> tf.Tensor:
    """Returns int64 [2, BINS] of logit [N]; the bins of `ScoreHistogram.of`."""
    # NaN is counted separately and ends the pass; here it must only not become an invalid index.
    logit = tf.where(tf.math.is_nan(logit), 0.0, logit)
    logit = tf.clip_by_value(logit, -LIMIT, LIMIT)
    away = tf.bitwise.right_shift(tf.bitcast(1.0 + tf.abs(logit), tf.int32) - ONE, SHIFT)
    away = tf.minimum(away, BINS // 2 - 1)
    column = tf.where(logit < 0.0, BINS // 2 - 1 - away, BINS // 2 + away)
    cell = tf.where(wrong, column, column + BINS)  # row 0 = wrong
    counts = tf.math.bincount(cell, minlength=2 * BINS, maxlength=2 * BINS, dtype=tf.int64)
    return tf.reshape(counts, [2, BINS])


def _reliability(probability: tf.Tensor, true: tf.Tensor) -> tf.Tensor:
    """Returns int64 [3, 15] of probability and true [N]; the counts of `Reliability.of`."""
    # NaN is counted separately and ends the pass; here it must only not become an invalid index.
    probability = tf.where(tf.math.is_nan(probability), 0.0, probability)
    bins = tf.minimum(probability * RELIABILITY_BINS, RELIABILITY_BINS - 1.0)
    steps = tf.cast(tf.round(probability * (1 / STEP)), tf.int64)
    columns = [tf.ones_like(steps), tf.cast(true, tf.int64), steps]
    counts = tf.math.unsorted_segment_sum(
        tf.stack(columns, axis=-1), tf.cast(bins, tf.int32), RELIABILITY_BINS
    )
    return tf.transpose(counts)


def _count_true(flags: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(flags, tf.int64))
