"""One pass over a part: every figure of `evaluation.json`.

The graph returns counts only, so memory is bounded by one batch, and states of parts (batches,
replicas, machines) add up.

Shapes: B images, H x W pixels, C classes, N labelled pixels of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ccfnet_tf.errors import DataError, NotFiniteError, ResourceError
from ccfnet_tf.evaluation.confusion import ABSENT_RULE, MEANS, Confusion
from ccfnet_tf.evaluation.difficulty import BINS, LIMIT, ONE, SHIFT, ScoreHistogram
from ccfnet_tf.evaluation.easy_hard import HEADS, GroupAccuracy
from ccfnet_tf.labels import VOID, Taxonomy
from ccfnet_tf.network.geometry import MINIMUM_SIZE, at_least_minimum
from ccfnet_tf.network.outputs import difficulty_logit, labels, with_fine
from ccfnet_tf.pipeline.batch import original_error

Batch = tuple[tf.Tensor, tf.Tensor]
"""Images float32 [B, H, W, 3] and labels int32 [B, H, W]."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one pass counted; merges by addition.

    Attributes:
        taxonomy: The C classes.
        coarse: Confusion of the coarse head.
        fine: Confusion of the fine branch alone.
        refine: Confusion of the blend, the network's answer.
        difficulty: Attention's logit (hard - easy) on pixels that coarse gets wrong and right.
        max_softmax: The same of the free baseline, coarse's own doubt: logit of 1 - max softmax.
        by_target: Accuracies where hard means that coarse is wrong (the paper's target).
        by_attention: Accuracies where hard means that attention says P(hard) > 1/2.
        pictures: How many images were looked at.
        split: Which part of the data; for the record.
    """

    taxonomy: Taxonomy
    coarse: Confusion
    fine: Confusion
    refine: Confusion
    difficulty: ScoreHistogram
    max_softmax: ScoreHistogram
    by_target: GroupAccuracy
    by_attention: GroupAccuracy
    pictures: int = 0
    split: str = "test"

    @classmethod
    def empty(cls, taxonomy: Taxonomy, *, split: str = "test") -> Evaluation:
        """Returns the state before the first image."""
        none = Confusion.empty(len(taxonomy.names))
        scores, groups = ScoreHistogram.empty(), GroupAccuracy.empty()
        return cls(taxonomy, none, none, none, scores, scores, groups, groups, 0, split)

    def merge(self, other: Evaluation) -> Evaluation:
        """Returns the state of both parts together.

        Raises:
            ValueError: They are of different classes or splits.
        """
        if self.taxonomy != other.taxonomy or self.split != other.split:
            raise ValueError("evaluations of different classes or splits do not add up")
        return Evaluation(
            self.taxonomy,
            self.coarse.merge(other.coarse),
            self.fine.merge(other.fine),
            self.refine.merge(other.refine),
            self.difficulty.merge(other.difficulty),
            self.max_softmax.merge(other.max_softmax),
            self.by_target.merge(other.by_target),
            self.by_attention.merge(other.by_attention),
            self.pictures + other.pictures,
            self.split,
        )

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the classes that labels contain."""
        pixels = self.refine.counts.sum(axis=1)
        return tuple(n for n, count in zip(self.taxonomy.names, pixels, strict=True) if count)

    @property
    def warning(self) -> str | None:
        """Why the figures say little: the labels contain one class alone; else None."""
        if len(self.shown) != 1:
            return None
        others = len(self.taxonomy.names) - 1
        return (
            f"The labels contain '{self.shown[0]}' alone. All figures are over that one class: a "
            f"network that answers nothing else gets 100 %. "
            f"The other {others} {'class is' if others == 1 else 'classes are'} not measured."
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `evaluation.json`: fractions 0..1, None where there is none."""
        return {
            "split": self.split,
            "pictures": self.pictures,
            "pixels": self.refine.pixels,
            "classes_in_labels": list(self.shown),
            **({"warning": self.warning} if self.warning else {}),
            **{head: self._head(getattr(self, head)) for head in HEADS},
            "difficulty": {
                "auroc": self.difficulty.auroc,
                "auroc_of_max_softmax": self.max_softmax.auroc,
                "hard_share": self.difficulty.hard_share,
                "by_target": self.by_target.to_json(),
                "by_attention": self.by_attention.to_json(),
            },
            "means": MEANS,
            "rule": ABSENT_RULE,
        }

    def _head(self, confusion: Confusion) -> dict[str, Any]:
        return {
            "pixel_accuracy": confusion.pixel_accuracy,
            "class_accuracy": confusion.class_accuracy,
            "class_accuracy_all": confusion.class_accuracy_all,
            "mean_iou": confusion.mean_iou_present,
            "mean_iou_present": confusion.mean_iou_present,
            "mean_iou_union": confusion.mean_iou_union,
            "mean_iou_all": confusion.mean_iou_all,
            "iou": dict(zip(self.taxonomy.names, confusion.iou, strict=True)),
        }


def evaluate(
    model: keras.Model,
    batches: tf.data.Dataset,
    taxonomy: Taxonomy,
    *,
    pictures: int | None = None,
    advance: Callable[[], None] = lambda: None,
    split: str = "test",
) -> Evaluation:
    """Evaluates once; see `Evaluator.run`, which can be called again without a second trace."""
    return Evaluator(model, taxonomy).run(
        batches,
        pictures=pictures,
        advance=advance,
        split=split,
    )


class Evaluator:
    """Evaluates a model as often as wanted; the graph is traced once for all sizes.

    Args:
        model: A `CCFNet` (its layer `fine_logits` is read beside its outputs). Weights are read
            at each run, so training may go on in between.
        taxonomy: The C classes that `model` answers with.

    Raises:
        DataError: `model` answers with another number of classes.
    """

    def __init__(self, model: keras.Model, taxonomy: Taxonomy) -> None:
        classes = int(model.output["refine"].shape[-1])
        if len(taxonomy.names) != classes:
            raise DataError(
                f"the data have {len(taxonomy.names)} classes but the network answers with "
                f"{classes}: evaluate it on data of the classes it was trained on"
            )
        self._taxonomy = taxonomy
        self._model = with_fine(model)
        self._strategy = model.distribute_strategy
        # Over several machines each goes its own way, on one device: nothing keeps them in step.
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
        split: str = "test",
        total: Callable[[Sequence[np.ndarray]], list[np.ndarray]] = list,
    ) -> Evaluation:
        """Goes once over `batches`, on every replica of the model's strategy in this process.

        Args:
            batches: Yields image [B, H, W, 3] RGB 0..255 and label int32 [B, H, W], 0..C-1 or
                `VOID`.
            pictures: How many images the batches hold without padding. Where None they are
                counted: those with a labelled pixel.
            advance: Called after each batch, for a progress bar.
            split: For the record.
            total: Adds counts up over the workers that each go over a part.

        Raises:
            NotFiniteError: The network answers with NaN.
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
        evaluation = self._state(counts, split)
        return evaluation if pictures is None else replace(evaluation, pictures=pictures)

    def _no_counts(self) -> dict[str, np.ndarray]:
        classes = len(self._taxonomy.names)
        shapes = {
            **dict.fromkeys(HEADS, (classes, classes)),
            **dict.fromkeys(("difficulty", "max_softmax"), (2, BINS)),
            **dict.fromkeys(("by_target", "by_attention"), (2, 1 + len(HEADS))),
            **dict.fromkeys(("pictures", "nan"), ()),
        }
        return {key: np.zeros(shape, np.int64) for key, shape in shapes.items()}

    def _counts_of(self, group: Sequence[Batch]) -> list[dict[str, tf.Tensor]]:
        """Returns the counts of some batches, at most one for each replica."""
        # Replicas that are left without a batch get an image of void, which counts nowhere.
        whole = [*group, *[_blank()] * (self._replicas - len(group))]
        try:
            counts = self._count(*(part for batch in whole for part in batch))
            return [{key: value.numpy() for key, value in each.items()} for each in counts]
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            batch, height, width = group[0][1].shape
            raise ResourceError(
                f"memory ran out on a batch of {batch} images of {width}x{height} pixels: "
                "lower the batch (evaluate --batch), or shrink the images and their labels"
            ) from error

    def _count_on_replicas(self, *parts: tf.Tensor) -> list[dict[str, tf.Tensor]]:
        """Counts image, label, image, label, ...: a batch on each replica."""
        if self._replicas == 1:
            return [self._count_batch(*parts)]

        def on_replica() -> dict[str, tf.Tensor]:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            place = 2 * int(tf.get_static_value(replica))
            return self._count_batch(*parts[place : place + 2])

        found = self._strategy.run(on_replica)
        columns = {k: self._strategy.experimental_local_results(v) for k, v in found.items()}
        return [{k: each[i] for k, each in columns.items()} for i in range(self._replicas)]

    def _state(self, counts: dict[str, np.ndarray], split: str) -> Evaluation:
        if counts["nan"]:
            raise NotFiniteError(
                f"the network answers NaN on {counts['nan']} labelled pixels: its weights are "
                "damaged; use an earlier checkpoint or train anew at a lower rate"
            )
        return Evaluation(
            self._taxonomy,
            Confusion(counts["coarse"]),
            Confusion(counts["fine"]),
            Confusion(counts["refine"]),
            ScoreHistogram(counts["difficulty"]),
            ScoreHistogram(counts["max_softmax"]),
            GroupAccuracy(counts["by_target"]),
            GroupAccuracy(counts["by_attention"]),
            int(counts["pictures"]),
            split,
        )

    def _outputs(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the outputs [B, H, W, ...]; a small image is mirrored, as by `KerasNetwork`."""
        size = tf.shape(image)
        found = self._model(at_least_minimum(image), training=False)
        return {name: value[:, : size[1], : size[2]] for name, value in found.items()}

    def _count_batch(self, image: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = self._outputs(image)
        labelled = tf.not_equal(label, VOID)  # [B, H, W]
        truth = tf.boolean_mask(label, labelled)  # [N]
        coarse = tf.boolean_mask(tf.cast(outputs["coarse"], tf.float32), labelled)  # [N, C]
        difficulty = difficulty_logit(tf.boolean_mask(outputs["attention"], labelled))  # [N]
        answers = {head: tf.boolean_mask(labels(outputs[head]), labelled) for head in HEADS}
        right = tf.stack([tf.equal(answers[head], truth) for head in HEADS])  # [3, N]
        wrong = tf.logical_not(right[0])
        refine_nan = tf.reduce_any(tf.math.is_nan(outputs["refine"]), axis=-1)
        nan = tf.math.is_nan(difficulty) | tf.boolean_mask(refine_nan, labelled)
        classes = len(self._taxonomy.names)
        return {
            **{head: _confusion(truth, answers[head], classes) for head in HEADS},
            "difficulty": _histogram(difficulty, wrong),
            "max_softmax": _histogram(_doubt(coarse), wrong),
            "by_target": _groups(wrong, right),
            "by_attention": _groups(difficulty > 0.0, right),
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
    """Yields the batches; a reader's own error comes out instead of TensorFlow's."""
    try:
        for image, label in batches:
            yield tf.cast(image, tf.float32), label
    except tf.errors.OpError as error:
        ours = original_error(error)
        if ours is None:
            raise
        raise ours from error


def _confusion(truth: tf.Tensor, prediction: tf.Tensor, classes: int) -> tf.Tensor:
    """Returns int64 [C, C] of truth and prediction [N]."""
    cells = classes * classes
    counts = tf.math.bincount(
        truth * classes + prediction, minlength=cells, maxlength=cells, dtype=tf.int64
    )
    return tf.reshape(counts, [classes, classes])


def _histogram(logit: tf.Tensor, hard: tf.Tensor) -> tf.Tensor:
    """Returns int64 [2, BINS] of logit [N]; the bins of `ScoreHistogram.of`."""
    # NaN is counted apart and ends the pass; here it must only not become a wild index.
    logit = tf.where(tf.math.is_nan(logit), 0.0, logit)
    logit = tf.clip_by_value(logit, -LIMIT, LIMIT)
    away = tf.bitwise.right_shift(tf.bitcast(1.0 + tf.abs(logit), tf.int32) - ONE, SHIFT)
    away = tf.minimum(away, BINS // 2 - 1)
    column = tf.where(logit < 0.0, BINS // 2 - 1 - away, BINS // 2 + away)
    cell = tf.where(hard, column, column + BINS)  # row 0 = hard
    counts = tf.math.bincount(cell, minlength=2 * BINS, maxlength=2 * BINS, dtype=tf.int64)
    return tf.reshape(counts, [2, BINS])


def _groups(hard: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Returns int64 [2, 4] of hard [N] and right [3, N]; as `GroupAccuracy.of`."""
    columns = tf.cast(tf.concat([tf.ones_like(right[:1]), right], axis=0), tf.int64)  # [4, N]
    mask = tf.cast(hard, tf.int64)
    return tf.stack([tf.reduce_sum(columns * mask, 1), tf.reduce_sum(columns * (1 - mask), 1)])


def _doubt(logits: tf.Tensor) -> tf.Tensor:
    """Returns the logit of 1 - max softmax [N] of logits [N, C]: log of (all others / largest).

    The others are added up without the largest: beside its 1, float32 loses what is below 1e-7.
    """
    largest = tf.one_hot(tf.argmax(logits, -1), logits.shape[-1], True, False, dtype=tf.bool)
    others = tf.where(largest, -np.inf, logits)
    return tf.reduce_logsumexp(others, axis=-1) - tf.reduce_max(logits, axis=-1)


def _count_true(flags: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(flags, tf.int64))
