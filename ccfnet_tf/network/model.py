"""CCFNet as a Keras model: one end-to-end step for all heads (paper section 3.2).

Plain Keras from outside: `compile`, `fit`, `evaluate`, `predict` on any `tf.data` of
`(images [B, H, W, 3], labels [B, H, W])`, under `MirroredStrategy` too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.network import losses
from ccfnet_tf.network.multi_worker import MultiWorkerFit

FINE_LAYER = "fine_logits"
HEADS = ("coarse", "attention", "refine", "fine")


@dataclass(frozen=True)
class LossWeights:
    """Weights of the cross-entropies that add up to the loss; fine's is 0 in the paper."""

    coarse: float = 1.0
    attention: float = 1.0
    refine: float = 1.0
    fine: float = 0.0


class _Batch(NamedTuple):
    """What a replica learns from at once, or a part of it.

    Attributes:
        images: [B, H, W, 3].
        target: Labels [B, H, W].
        mass: Weights of the pixels in the losses on the classes, [B, H, W], or one for all.
    """

    images: tf.Tensor
    target: losses.Target
    mass: tf.Tensor | float = 1.0

    def split(self, parts: int) -> list[_Batch]:
        """Returns this batch in equal parts of its pictures.

        Raises:
            ConfigError: There is a part of a picture left.
        """
        if parts == 1:
            return [self]
        pictures = self.images.shape[0]
        if pictures is not None and pictures % parts:
            raise ConfigError(
                f"train.accumulate is {parts}: the {pictures} pictures of a replica's batch must "
                "divide by it"
            )
        images, labels, valid = (tf.split(x, parts) for x in (self.images, *self.target))
        mass = [self.mass] * parts if isinstance(self.mass, float) else tf.split(self.mass, parts)
        targets = map(losses.Target, labels, valid)
        return [_Batch(*part) for part in zip(images, targets, mass, strict=True)]


class _Seen(NamedTuple):
    """What was seen of a batch, or of a part of it: scalars that add up.

    Attributes:
        sums: Each head's loss and their total, summed over labelled pixels.
        right: Labelled pixels that coarse, fine and refine get right, int64.
        pixels: Labelled pixels, int64.
    """

    sums: dict[str, tf.Tensor]
    right: dict[str, tf.Tensor]
    pixels: tf.Tensor

    def plus(self, other: _Seen) -> _Seen:
        """Returns what was seen of both parts together."""
        return _Seen(*tf.nest.map_structure(tf.add, tuple(self), tuple(other)))

    def only_if(self, finite: tf.Tensor) -> _Seen:
        """Returns the same where `finite`, else zeros."""
        kept = [tf.nest.map_structure(lambda v: tf.where(finite, v, 0), part) for part in self]
        return _Seen(*kept)


@keras.saving.register_keras_serializable("ccfnet")
class PixelAccuracy(keras.metrics.Metric):
    """Share of labelled pixels that a head gets right, exact over any number of pixels."""

    def __init__(self, name: str = "accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        # int64: a float32 count stops growing at 2^24.
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
        *,
        loss_weights: LossWeights | None = None,
        clip_norm: float = 0.0,
        balanced_attention: bool = False,
        class_weights: Sequence[float] | None = None,
        accumulate: int = 1,
        **kwargs: Any,
    ) -> None:
        """Sets how `fit` learns.

        Args:
            optimizer: A Keras optimizer or its name.
            loss_weights: Weights of the heads' losses; the paper's (1, 1, 1, fine 0) by default.
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
            ConfigError: There are not as many class weights as classes, or `accumulate` is below
                1. The first step raises it where the batch of a replica is no multiple of
                `accumulate`.
        """
        # XLA was measured to bring nothing on CPU and cannot run under a strategy.
        kwargs.setdefault("jit_compile", False)
        super().compile(optimizer=optimizer, **kwargs)
        self.heads_weights = loss_weights or LossWeights()
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
        self.class_weights = None if class_weights is None else list(class_weights)
        self.forward = self._forward_parts()
        self.loss_means = {
            name: keras.metrics.Mean(name=name)
            for name in ["loss", *(f"{head}_loss" for head in HEADS)]
        }
        self.accuracies = {
            head: PixelAccuracy(name=f"{head}_accuracy") for head in ["coarse", "refine", "fine"]
        }
        self.skipped_steps = SkippedSteps()

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
        `skipped_steps` counts it. Loss scaling (float16) skips gradients that overflow by itself,
        without being counted, since that is how it finds its scale.
        """
        whole = self._unpack(data)
        pixels = losses.count(whole.target.valid)
        everywhere = _sum_over_replicas(pixels)
        whole = whole._replace(mass=self._pixel_weights(whole.target, everywhere))
        statistics = self._moving_statistics()
        before = [tf.identity(variable) for variable in statistics]
        # Divided by the labelled pixels of ALL replicas, and not by their number: the optimizer
        # adds the replicas' gradients up.
        gradients, seen = self._learn(whole, tf.maximum(everywhere, 1.0))
        variables = self.trainable_variables
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        gradients, variables = [g for g, _ in pairs], [v for _, v in pairs]
        looked_at = {f"{head}_loss": seen.sums[f"{head}_loss"] for head in HEADS}
        if not self._scales_loss:
            looked_at |= {v.path: g for g, v in pairs}
        first = _first_not_finite(list(looked_at.values()))
        finite = first < 0
        self._apply(finite, self._reduce_and_clip(gradients), variables)
        for variable, value in zip(statistics, before, strict=True):
            variable.assign(tf.where(finite, variable, value))
        self.skipped_steps.names = list(looked_at)
        self.skipped_steps.update_state(first)
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
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        return _Batch(images, losses.split_void(labels, self.classes))

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
        if _replicas() == 1:
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
        sums = {head: tf.reduce_sum(batch.mass * values) for head, values in pixelwise.items()}
        sums["attention"] = self._attention_loss(outputs["attention"], target, easy)
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

    def _attention_loss(
        self, attention: tf.Tensor, target: losses.Target, easy: tf.Tensor
    ) -> tf.Tensor:
        pixelwise = losses.attention_cross_entropy(attention, easy, target.valid)
        if not self.balanced_attention:
            return tf.reduce_sum(pixelwise)
        is_easy = tf.equal(easy, losses.EASY)
        easy_pixels = losses.count(tf.logical_and(is_easy, target.valid))
        hard_pixels = losses.count(tf.logical_and(tf.logical_not(is_easy), target.valid))
        hard_weight, easy_weight = losses.balance(
            _sum_over_replicas(hard_pixels), _sum_over_replicas(easy_pixels)
        )
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
        """Updates the means of losses and accuracies."""
        pixels = tf.cast(seen.pixels, tf.float32)
        for name, value in seen.sums.items():
            mean = tf.math.divide_no_nan(value, pixels)
            self.loss_means[name].update_state(mean, sample_weight=pixels)
        for head, right in seen.right.items():
            self.accuracies[head].update_state(right, seen.pixels)

    def _get_metrics_result_or_logs(self, logs: dict[str, Any]) -> dict[str, Any]:
        # Keras reads the figures over all replicas only where a step returned every metric, and
        # else takes the first replica's; a test step has no `skipped_steps`.
        whole = self.get_metrics_result()
        return {name: whole[name] for name in logs}

    def _figures(self) -> dict[str, tf.Tensor]:
        shown = {**self.loss_means, **{m.name: m for m in self.accuracies.values()}}
        return {name: metric.result() for name, metric in shown.items()}


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
    right = {
        head: tf.math.count_nonzero(tf.logical_and(tf.equal(answer, target.labels), target.valid))
        for head, answer in answers.items()
    }
    return _Seen(sums, right, tf.math.count_nonzero(target.valid))


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


def _replicas() -> int:
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def _sum_over_replicas(value: Any) -> Any:
    """Adds a tensor, or each of a list, up over the replicas."""
    context = tf.distribute.get_replica_context()
    if context is None or _replicas() == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
