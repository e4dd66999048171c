"""CCFNet as a Keras model: one end-to-end step for all heads (paper section 3.2).

Plain Keras from outside: `compile`, `fit`, `evaluate`, `predict` on any `tf.data` of
`(images [B, H, W, 3], labels [B, H, W])`, under `MirroredStrategy` too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.labels import EASY
from ccfnet_tf.network import losses
from ccfnet_tf.network.compile_options import (
    LABEL_RULE,
    PARTS_RULE,
    LossWeights,
    checked,
    class_weights_of,
    loss_weights_of,
    one_line_errors,
    refuse_class_weight,
    refuse_keras_arguments,
    refuse_no_label_map,
    sample_weight_map,
    warn_of_scaled_images,
)
from ccfnet_tf.network.metrics import MeanIoU, PixelAccuracy, SkippedSteps
from ccfnet_tf.network.multi_worker import MultiWorkerFit

FINE_LAYER = "fine_logits"
HEADS = ("coarse", "attention", "refine", "fine")


class _Batch(NamedTuple):
    """What a replica learns from at once, or a part of it.

    Attributes:
        images: [B, H, W, 3].
        target: Labels [B, H, W].
        mass: Weights of the pixels in the losses on the classes, [B, H, W], or one for all.
        sample: Weights of the pixels in all losses, [B, H, W] or [B, 1, 1], or one for all.
    """

    images: tf.Tensor
    target: losses.Target
    mass: tf.Tensor | float = 1.0
    sample: tf.Tensor | float = 1.0

    def split(self, parts: int) -> list[_Batch]:
        """Returns this batch in equal parts of its images.

        Raises:
            ConfigError: There is a part of an image left.
        """
        if parts == 1:
            return [self]
        pictures = self.images.shape[0]
        if pictures is not None and pictures % parts:
            raise ConfigError(
                f"train.accumulate is {parts}: the {pictures} images of a replica's batch must "
                "divide by it"
            )
        count = tf.shape(self.images)[0]
        whole = tf.equal(count % parts, 0)
        images = checked(self.images, whole, PARTS_RULE, "images", count, "accumulate", parts)

        def pieces(value: tf.Tensor | float) -> list[Any]:
            return [value] * parts if isinstance(value, float) else tf.split(value, parts)

        with tf.control_dependencies([images]):  # what cannot be split says less
            columns = [pieces(x) for x in (images, *self.target, self.mass, self.sample)]
        return [
            _Batch(picture, losses.Target(labels, valid), mass, sample)
            for picture, labels, valid, mass, sample in zip(*columns, strict=True)
        ]


class _Seen(NamedTuple):
    """What was seen of a batch, or of a part of it: scalars that add up.

    Attributes:
        sums: Each head's loss and their total, summed over labelled pixels.
        right: Labelled pixels that each head gets right, int64.
        pixels: Labelled pixels, int64.
        confusion: Refine's answers by true class, int64 [C, C].
    """

    sums: dict[str, tf.Tensor]
    right: dict[str, tf.Tensor]
    pixels: tf.Tensor
    confusion: tf.Tensor

    def plus(self, other: _Seen) -> _Seen:
        """Returns what was seen of both parts together."""
        return _Seen(*tf.nest.map_structure(tf.add, tuple(self), tuple(other)))

    def only_if(self, finite: tf.Tensor) -> _Seen:
        """Returns the same where `finite`, else zeros."""
        kept = [tf.nest.map_structure(lambda v: tf.where(finite, v, 0), part) for part in self]
        return _Seen(*kept)


@keras.saving.register_keras_serializable("ccfnet")
class CCFNet(MultiWorkerFit):
    """The cascade; `build_ccfnet` makes it.

    Called on images [B, H, W, 3] (RGB 0..255) it returns a dict of float32: `coarse` logits
    [B, H, W, C], `attention` logits [B, H, W, 2] (0 hard, 1 easy) and `refine`
    log-probabilities [B, H, W, C]. The layer `fine_logits` holds fine's logits.
    """

    def compile(
        self,
        optimizer: Any = "adamw",
        loss: None = None,
        loss_weights: LossWeights | Mapping[str, float] | None = None,
        metrics: None = None,
        weighted_metrics: None = None,
        *,
        clip_norm: float = 0.0,
        balanced_attention: bool = False,
        class_weights: Sequence[float] | None = None,
        accumulate: int = 1,
        **kwargs: Any,
    ) -> None:
        """Sets how `fit` learns.

        Args:
            optimizer: A Keras optimizer or its name.
            loss: None: the losses are the network's own.
            loss_weights: Weights of the heads' losses, as `LossWeights` or a dict such as
                `{"fine": 0.5}`; the paper's (1, 1, 1, fine 0) by default.
            metrics: None: the figures are the network's own.
            weighted_metrics: None.
            clip_norm: Largest global norm of the whole batch's gradient; 0 does not clip.
            balanced_attention: Give hard and easy pixels the same total weight; within each part
                of the batch where `accumulate` makes parts, since which pixels are hard is known
                only when coarse has answered.
            class_weights: [C], weight of a pixel of each class in the losses of coarse, fine and
                refine, which become weighted means; attention's stays as it is. `None`: all 1.
            accumulate: Equal parts that each replica's batch is learned in, one after another,
                which takes less memory where features take most of it, and as many times the
                time to trace. Losses, clipping, update and figures are those of the whole batch;
                batch norm takes its means over a part, and its moving statistics move once a part.
            **kwargs: `run_eagerly`, `steps_per_execution`, `jit_compile` as in Keras.

        Raises:
            ConfigError: An argument of Keras's that would be ignored was given, there are not as
                many class weights as classes, or `accumulate` is below 1. `fit` raises it where
                the batch of a replica is not a multiple of `accumulate`.
        """
        refuse_keras_arguments(loss=loss, metrics=metrics, weighted_metrics=weighted_metrics)
        # XLA was measured to bring nothing on CPU and cannot run under a strategy.
        kwargs.setdefault("jit_compile", False)
        super().compile(optimizer=optimizer, **kwargs)
        self.heads_weights = loss_weights_of(loss_weights)
        self.clip_norm = clip_norm
        self.balanced_attention = balanced_attention
        self.accumulate = accumulate
        self.classes = int(self.outputs_by_name["coarse"].shape[-1])
        if accumulate < 1:
            raise ConfigError(f"train.accumulate is {accumulate}: it must be at least 1")
        if class_weights is not None and len(class_weights) != self.classes:
            raise ConfigError(
                f"train.class_weights has {len(class_weights)} values: give one for each of the "
                f"{self.classes} classes"
            )
        self.class_weights = class_weights_of(class_weights)
        self.forward = self._forward_parts()
        if not hasattr(self, "skipped_steps"):  # Keras would list those of an earlier compile too
            self.loss_means = {
                f"{head}_loss": keras.metrics.Mean(name=f"{head}_loss") for head in HEADS
            }
            self.accuracies = {head: PixelAccuracy(name=f"{head}_accuracy") for head in HEADS}
            self.mean_iou = MeanIoU(self.classes, name="refine_mean_iou")
            self.skipped_steps = SkippedSteps()
        self.reset_metrics()

    def get_compile_config(self) -> dict[str, Any]:
        """Returns what `compile_from_config` needs to compile a loaded model alike."""
        if not self.compiled:
            return {}
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "loss_weights": asdict(self.heads_weights),
            "clip_norm": self.clip_norm,
            "balanced_attention": self.balanced_attention,
            "class_weights": self.class_weights and list(self.class_weights),
            "accumulate": self.accumulate,
            "run_eagerly": self.run_eagerly,
            "steps_per_execution": self.steps_per_execution,
            "jit_compile": self.jit_compile,
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the model that was saved, and makes the optimizer's variables."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(self, x: Any = None, *args: Any, class_weight: None = None, **kwargs: Any) -> Any:
        """Trains as Keras's `fit` does.

        `sample_weight` weighs the losses of an image [B] or of a pixel [B, H, W]; losses are
        means over labelled pixels, whatever their weight, and accuracies are not weighted.

        Raises:
            ConfigError: `class_weight` was given, or a batch does not divide by `accumulate`.
            DataError: A label is not a class, or no whole number.

        Warns:
            UserWarning: `x` is an array of images from 0 to 1 in place of 0 to 255.
        """
        refuse_class_weight(class_weight)
        warn_of_scaled_images(x)
        with one_line_errors():
            return super().fit(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as Keras's `evaluate` does; see `fit`."""
        warn_of_scaled_images(x)
        with one_line_errors():
            return super().evaluate(x, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Predicts as Keras's `predict` does."""
        warn_of_scaled_images(x)
        return super().predict(x, *args, **kwargs)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: None = None,
        return_dict: bool = False,
    ) -> Any:
        """Learns from one batch as Keras's `train_on_batch` does; see `fit`."""
        refuse_class_weight(class_weight)
        warn_of_scaled_images(x)
        with one_line_errors():
            return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates one batch as Keras's `test_on_batch` does; see `fit`."""
        with one_line_errors():
            return super().test_on_batch(*args, **kwargs)

    @property
    def outputs_by_name(self) -> dict[str, Any]:
        """The graph's symbolic outputs."""
        return dict(self._outputs_struct)

    def _forward_parts(self) -> Callable[..., dict[str, tf.Tensor]]:
        # Without the blend: its loss and its answer come from its parts, see `losses`.
        outputs = {head: self.outputs_by_name[head] for head in ("coarse", "attention")}
        twin = keras.Model(self.input, {**outputs, "fine": self.get_layer(FINE_LAYER).output})
        # In a closure, because an attribute would be tracked as a layer of this model.
        return lambda images, training: twin(images, training=training)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One backward pass through all heads; returns running means of losses and accuracies.

        A step with a loss or a gradient that is not finite, on any replica, is skipped on all:
        weights, optimizer, batch norm statistics and figures stay as they were, and
        `skipped_steps` counts it. Loss scaling (float16) skips gradients that overflow by itself
        and lowers its scale; that is how it finds its scale, so it counts only from a scale of 1
        down.
        """
        whole = self._unpack(data)
        pixels = losses.count(whole.target.valid)
        everywhere = _sum_over_replicas(pixels)
        whole = whole._replace(mass=self._pixel_weights(whole.target, everywhere))
        scale = tf.identity(self.optimizer.dynamic_scale) if self._scales_loss else None
        statistics = self._moving_statistics()
        before = [tf.identity(variable) for variable in statistics]
        # Divided by the labelled pixels of ALL replicas, and not by their number: the optimizer
        # adds the replicas' gradients up.
        gradients, seen = self._learn(whole, tf.maximum(everywhere, 1.0))
        variables = self.trainable_variables
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        gradients, variables = [g for g, _ in pairs], [v for _, v in pairs]
        head_losses = [f"{head}_loss" for head in HEADS]
        first = _first_not_finite([*(seen.sums[name] for name in head_losses), *gradients])
        finite = first < 0
        self._apply(finite, self._reduce_and_clip(gradients), variables)
        for variable, value in zip(statistics, before, strict=True):
            variable.assign(tf.where(finite, variable, value))
        self.skipped_steps.names = [*head_losses, *(v.path for v in variables)]
        self.skipped_steps.update_state(_counted(first, scale))
        self._note(seen.only_if(finite))
        return {**self._figures(), self.skipped_steps.name: self.skipped_steps.result()}

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """The same figures without learning."""
        batch = self._unpack(data)
        pixels = losses.count(batch.target.valid)
        mass = self._pixel_weights(batch.target, _sum_over_replicas(pixels))
        outputs = self.forward(batch.images, training=False)
        sums = self._sums(outputs, batch._replace(mass=mass))
        self._note(_seen(sums, outputs, batch.target))
        return self._figures()

    def _unpack(self, data: Any) -> _Batch:
        images, labels, weight = keras.utils.unpack_x_y_sample_weight(data)
        if labels is None:
            raise ConfigError("labels are missing: give batches of (images, labels)")
        refuse_no_label_map(labels, images)
        labels = self._class_ids(labels, images)
        target = losses.split_void(labels, self.classes)
        largest = tf.reduce_max(target.labels)
        inside = checked(
            target.labels,
            largest < self.classes,
            LABEL_RULE,
            "found label",
            largest,
            "where classes end at",
            self.classes - 1,
        )
        target = target._replace(labels=inside)
        if weight is None:
            return _Batch(images, target)
        return _Batch(images, target, sample=sample_weight_map(weight, target.labels))

    def _class_ids(self, labels: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Returns the labels, a whole number a pixel, also where their rank is not known."""
        labels = tf.convert_to_tensor(labels)
        if labels.shape.rank is None:  # Keras drops it where `fit` is called with other ranks
            labels = tf.reshape(labels, tf.shape(images)[:3])
        if not labels.dtype.is_floating:
            return labels
        broken = losses.count(tf.not_equal(labels, tf.round(labels)))
        return checked(
            labels,
            tf.equal(broken, 0.0),
            LABEL_RULE,
            "pixels whose label is not a whole number:",
            tf.cast(broken, tf.int32),
        )

    def _learn(self, whole: _Batch, divisor: tf.Tensor) -> tuple[list[tf.Tensor | None], _Seen]:
        """Returns this replica's gradients, scaled as the optimizer wants, and what was seen."""
        gradients: list[tf.Tensor | None] = []
        parts = []
        for part in whole.split(self.accumulate):
            # A part waits for the gradients of the one before: side by side, as a graph would run
            # them, they would take the memory of the whole batch.
            with tf.control_dependencies([g for g in gradients if g is not None]):
                images = tf.identity(part.images) if gradients else part.images
            with tf.GradientTape() as tape:
                outputs = self.forward(images, training=True)
                sums = self._sums(outputs, part)
                loss = sums["loss"] / divisor
                if self.losses:
                    loss += tf.add_n(self.losses) / (_replicas() * self.accumulate)
                scaled = self.optimizer.scale_loss(loss)
            gradients = _add(gradients, tape.gradient(scaled, self.trainable_variables))
            parts.append(_seen(sums, outputs, part.target))
        return gradients, reduce(_Seen.plus, parts)

    def _moving_statistics(self) -> list[keras.Variable]:
        """Returns the batch norm statistics that a step in training moves."""
        return [
            variable
            for layer in self._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            for variable in (layer.moving_mean, layer.moving_variance)
        ]

    @property
    def _scales_loss(self) -> bool:
        return getattr(self.optimizer, "dynamic_scale", None) is not None

    def _apply(
        self, finite: tf.Tensor, gradients: list[tf.Tensor], variables: list[keras.Variable]
    ) -> None:
        """Gives the optimizer a step's gradients where they are finite."""
        if not self.optimizer.built:  # in a conditional no variables can be made
            self.optimizer.build(self.trainable_variables)
        if self._scales_loss:  # which must see what overflows
            self.optimizer.apply(gradients, variables)
            return
        if not tf.distribute.has_strategy():
            tf.cond(finite, lambda: self.optimizer.apply(gradients, variables), lambda: None)
            return

        # An update across replicas cannot begin within a conditional of one of them, so the
        # conditional is made around all of them; they agree on `finite`.
        def on_all(strategy: Any, finite: Any, gradients: Any) -> None:
            def apply() -> None:
                strategy.extended.call_for_each_replica(
                    lambda own: self.optimizer.apply(own, variables), args=(gradients,)
                )

            tf.cond(strategy.experimental_local_results(finite)[0], apply, lambda: None)

        context = tf.distribute.get_replica_context()
        context.merge_call(on_all, args=(finite, gradients))

    def _sums(self, outputs: dict[str, tf.Tensor], batch: _Batch) -> dict[str, tf.Tensor]:
        """Returns the sums of each head's loss over labelled pixels, and of their total."""
        target = batch.target
        easy = losses.attention_target(outputs["coarse"], target.labels)
        pixelwise = {
            head: losses.cross_entropy(outputs[head], target) for head in ("coarse", "fine")
        }
        pixelwise["refine"] = losses.blend_cross_entropy(
            **pixelwise, attention=outputs["attention"], valid=target.valid
        )
        mass = batch.mass * batch.sample
        sums = {head: tf.reduce_sum(mass * values) for head, values in pixelwise.items()}
        sums["attention"] = self._attention_loss(outputs["attention"], batch, easy)
        weights = vars(self.heads_weights)
        total = tf.add_n([weight * sums[head] for head, weight in weights.items() if weight])
        return {"loss": total, **{f"{head}_loss": value for head, value in sums.items()}}

    def _pixel_weights(self, target: losses.Target, everywhere: tf.Tensor) -> tf.Tensor | float:
        """Returns [B, H, W] weights by class; they add up to `everywhere` over all replicas."""
        if self.class_weights is None:
            return 1.0
        weights = tf.gather(tf.constant(self.class_weights, tf.float32), target.labels)
        weights = tf.where(target.valid, weights, 0.0)
        whole = _sum_over_replicas(tf.reduce_sum(weights))
        return weights * tf.math.divide_no_nan(everywhere, whole)

    def _attention_loss(self, attention: tf.Tensor, batch: _Batch, easy: tf.Tensor) -> tf.Tensor:
        valid = batch.target.valid
        pixelwise = batch.sample * losses.attention_cross_entropy(attention, easy, valid)
        if not self.balanced_attention:
            return tf.reduce_sum(pixelwise)
        is_easy = tf.equal(easy, EASY)
        groups = [tf.logical_and(mask, valid) for mask in (tf.logical_not(is_easy), is_easy)]
        if isinstance(batch.sample, float):
            sizes = [losses.count(group) for group in groups]
        else:
            sizes = [tf.reduce_sum(tf.where(group, batch.sample, 0.0)) for group in groups]
        hard_weight, easy_weight = losses.balance(*map(_sum_over_replicas, sizes))
        return tf.reduce_sum(tf.where(is_easy, easy_weight, hard_weight) * pixelwise)

    def _reduce_and_clip(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """Clips by the norm of the whole batch's gradient; returns what `apply` adds up again.

        Keras would clip each replica's gradient before they are added up, and would look for
        non-finite values (float16) on the first replica alone; so gradients are reduced here.
        """
        loss_scale = getattr(self.optimizer, "dynamic_scale", None)
        if not self.clip_norm and loss_scale is None:
            return gradients
        whole = _sum_over_replicas(gradients)
        if self.clip_norm:
            scale = 1.0 if loss_scale is None else tf.cast(loss_scale, tf.float32)
            norm = tf.linalg.global_norm(whole) / scale
            factor = self.clip_norm / tf.maximum(norm, self.clip_norm)
            whole = [gradient * tf.cast(factor, gradient.dtype) for gradient in whole]
        return [gradient / _replicas() for gradient in whole]

    def _note(self, seen: _Seen) -> None:
        """Updates losses, accuracies and mean IoU."""
        pixels = tf.cast(seen.pixels, tf.float32)
        for name, value in seen.sums.items():
            mean = tf.math.divide_no_nan(value, pixels)
            self._mean_of(name).update_state(mean, sample_weight=pixels)
        for head, right in seen.right.items():
            self.accuracies[head].update_state(right, seen.pixels)
        self.mean_iou.update_state(seen.confusion)

    def _mean_of(self, name: str) -> keras.metrics.Mean:
        # Keras's own tracker: a second metric of its name would stand twice in Keras's lists.
        return self._loss_tracker if name == "loss" else self.loss_means[name]

    def _get_metrics_result_or_logs(self, logs: dict[str, Any]) -> dict[str, Any]:
        # Keras reads the figures over all replicas only where a step returned every metric, and
        # else takes the first replica's; a test step has no `skipped_steps`.
        whole = self.get_metrics_result()
        return {name: whole[name] for name in logs}

    def _figures(self) -> dict[str, tf.Tensor]:
        own = [self._loss_tracker, *self.loss_means.values(), *self.accuracies.values()]
        return {metric.name: metric.result() for metric in [*own, self.mean_iou]}


def _add(one: list[tf.Tensor | None], other: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
    """Adds gradients up; variables that a loss does not reach have none."""
    if not one:
        return other
    return [a if b is None else a + b for a, b in zip(one, other, strict=True)]


def _seen(
    sums: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor], target: losses.Target
) -> _Seen:
    """Counts what the heads get right, beside the sums of their losses."""
    answers = {
        head: tf.argmax(outputs[head], -1, output_type=tf.int32) for head in ("coarse", "fine")
    }
    answers["refine"] = losses.blend_answer(**outputs)
    right = {head: tf.equal(answer, target.labels) for head, answer in answers.items()}
    right["attention"] = _judges_right(outputs["attention"], right["coarse"])
    return _Seen(
        sums,
        {head: tf.math.count_nonzero(hit & target.valid) for head, hit in right.items()},
        tf.math.count_nonzero(target.valid),
        _confusion(answers["refine"], target, int(outputs["coarse"].shape[-1])),
    )


def _judges_right(attention: tf.Tensor, coarse_right: tf.Tensor) -> tf.Tensor:
    """Returns where attention says easy and coarse is right, or hard and wrong, bool [B, H, W]."""
    hard, easy = tf.unstack(attention, axis=-1)
    return tf.equal(easy > hard, coarse_right)


def _confusion(answer: tf.Tensor, target: losses.Target, classes: int) -> tf.Tensor:
    """Returns int64 [C, C] numbers of labelled pixels; rows truth, columns answer."""
    cells = classes * classes  # and one more, for void
    cell = tf.where(target.valid, target.labels * classes + answer, cells)
    # Of tf.math.bincount XLA does not know the size.
    counts = tf.raw_ops.DenseBincount(
        input=tf.reshape(cell, [-1]), size=cells + 1, weights=tf.constant([], tf.int64)
    )
    return tf.reshape(counts[:cells], [classes, classes])


def _first_not_finite(values: list[tf.Tensor]) -> tf.Tensor:
    """Returns the index of the first value that is not finite on some replica; -1 if all are.

    A value so large that the sum over replicas could overflow counts as not finite.
    """
    replicas = _replicas()

    def is_good(value: tf.Tensor) -> tf.Tensor:
        return tf.reduce_all(tf.abs(value) <= value.dtype.max / replicas)  # false for NaN

    # Not a logical not of the comparison: TensorFlow rewrites that to `>`, false for NaN too.
    bad = 1.0 - tf.cast(tf.stack([is_good(value) for value in values]), tf.float32)
    bad = _sum_over_replicas(bad) > 0
    return tf.where(tf.reduce_any(bad), tf.argmax(bad, output_type=tf.int32), -1)


def _counted(first: tf.Tensor, loss_scale: tf.Tensor | None) -> tf.Tensor:
    """Returns `first`, but -1 for a gradient that loss scaling (float16) can still make smaller."""
    if loss_scale is None:
        return first
    overflows = tf.logical_and(first >= len(HEADS), loss_scale > 1.0)
    return tf.where(overflows, -1, first)


def _replicas() -> int:
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def _sum_over_replicas(value: Any) -> Any:
    """Adds a tensor, or each of a list, up over the replicas."""
    context = tf.distribute.get_replica_context()
    if context is None or _replicas() == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
