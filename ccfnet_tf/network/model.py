"""CCFNet as a Keras model: one end-to-end step for all heads (paper section 3.2).

Plain Keras from outside: `compile`, `fit`, `evaluate`, `predict` on any `tf.data` of
`(images [B, H, W, 3], labels [B, H, W])`, under `MirroredStrategy` too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.network import losses

FINE_LAYER = "fine_logits"


@dataclass(frozen=True)
class LossWeights:
    """Weights of the cross-entropies that add up to the loss; fine's is 0 in the paper."""

    coarse: float = 1.0
    attention: float = 1.0
    refine: float = 1.0
    fine: float = 0.0


@keras.saving.register_keras_serializable("ccfnet")
class PixelAccuracy(keras.metrics.Metric):
    """Share of labelled pixels that a head gets right, exact over any number of pixels."""

    def __init__(self, name: str = "accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        # int64: a float32 count stops growing at 2^24.
        self.right = self.add_weight(name="right", shape=(), initializer="zeros", dtype="int64")
        self.seen = self.add_weight(name="seen", shape=(), initializer="zeros", dtype="int64")

    def update_state(
        self, answer: tf.Tensor, target: losses.Target, sample_weight: None = None
    ) -> None:
        """Counts class ids [B, H, W] against the target."""
        hit = tf.equal(answer, target.labels)
        self.right.assign_add(tf.math.count_nonzero(tf.logical_and(hit, target.valid)))
        self.seen.assign_add(tf.math.count_nonzero(target.valid))

    def result(self) -> tf.Tensor:
        """Returns the share in 0..1 as float32; 0 before any labelled pixel was seen."""
        right, seen = tf.cast(self.right, tf.float64), tf.cast(self.seen, tf.float64)
        return tf.cast(tf.math.divide_no_nan(right, seen), tf.float32)


@keras.saving.register_keras_serializable("ccfnet")
class CCFNet(keras.Model):
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
        **kwargs: Any,
    ) -> None:
        """Sets how `fit` learns.

        Args:
            optimizer: A Keras optimizer or its name.
            loss_weights: Weights of the heads' losses; the paper's (1, 1, 1, fine 0) by default.
            clip_norm: Largest global norm of the whole batch's gradient; 0 does not clip.
            balanced_attention: Give hard and easy pixels the same total weight.
            class_weights: [C], weight of a pixel of each class in the losses of coarse, fine and
                refine, which become weighted means; attention's stays as it is. `None`: all 1.
            **kwargs: `run_eagerly`, `steps_per_execution`, `jit_compile` as in Keras.

        Raises:
            ConfigError: There are not as many class weights as classes.
        """
        # XLA was measured to bring nothing on CPU and cannot run under a strategy.
        kwargs.setdefault("jit_compile", False)
        super().compile(optimizer=optimizer, **kwargs)
        self.heads_weights = loss_weights or LossWeights()
        self.clip_norm = clip_norm
        self.balanced_attention = balanced_attention
        self.classes = int(self.outputs_by_name["coarse"].shape[-1])
        if class_weights is not None and len(class_weights) != self.classes:
            raise ConfigError(
                f"train.class_weights has {len(class_weights)} values: give one for each of the "
                f"{self.classes} classes"
            )
        self.class_weights = None if class_weights is None else list(class_weights)
        self.forward = self._forward_parts()
        heads = ["coarse", "attention", "refine", "fine"]
        self.loss_means = {
            name: keras.metrics.Mean(name=name)
            for name in ["loss", *(f"{head}_loss" for head in heads)]
        }
        self.accuracies = {
            head: PixelAccuracy(name=f"{head}_accuracy") for head in ["coarse", "refine", "fine"]
        }

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
        """One backward pass through all heads; returns running means of losses and accuracies."""
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        target = losses.split_void(labels, self.classes)
        with tf.GradientTape() as tape:
            outputs = self.forward(images, training=True)
            loss = self._measure(outputs, target)
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        gradients = tape.gradient(scaled, variables)
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        reduced = self._reduce_and_clip([g for g, _ in pairs])
        self.optimizer.apply(reduced, [v for _, v in pairs])
        return self._results(outputs, target)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """The same figures without learning."""
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        outputs = self.forward(images, training=False)
        target = losses.split_void(labels, self.classes)
        self._measure(outputs, target)
        return self._results(outputs, target)

    def _measure(self, outputs: dict[str, tf.Tensor], target: losses.Target) -> tf.Tensor:
        """Updates the means of the losses; returns this replica's share of the batch's loss."""
        easy = losses.attention_target(outputs["coarse"], target.labels)
        pixels = losses.count(target.valid)
        pixelwise = {
            head: losses.cross_entropy(outputs[head], target) for head in ("coarse", "fine")
        }
        pixelwise["refine"] = losses.blend_cross_entropy(
            **pixelwise, attention=outputs["attention"], valid=target.valid
        )
        mass = self._pixel_weights(target, pixels)
        sums = {head: tf.reduce_sum(mass * values) for head, values in pixelwise.items()}
        sums["attention"] = self._attention_loss(outputs["attention"], target, easy)

        weights = vars(self.heads_weights)
        total = tf.add_n([weight * sums[head] for head, weight in weights.items() if weight])
        for head, value in [("", total), *sums.items()]:
            name = f"{head}_loss" if head else "loss"
            mean = tf.math.divide_no_nan(value, pixels)
            self.loss_means[name].update_state(mean, sample_weight=pixels)

        # Divided by the labelled pixels of ALL replicas, and not by their number: the optimizer
        # adds the replicas' gradients up.
        loss = total / tf.maximum(_sum_over_replicas(pixels), 1.0)
        if self.losses:
            loss += tf.add_n(self.losses) / _replicas()
        return loss

    def _pixel_weights(self, target: losses.Target, pixels: tf.Tensor) -> tf.Tensor | float:
        """Returns [B, H, W] weights by class that add up to the labelled pixels of all replicas."""
        if self.class_weights is None:
            return 1.0
        weights = tf.gather(tf.constant(self.class_weights, tf.float32), target.labels)
        weights = tf.where(target.valid, weights, 0.0)
        whole = _sum_over_replicas(tf.reduce_sum(weights))
        return weights * tf.math.divide_no_nan(_sum_over_replicas(pixels), whole)

    def _attention_loss(
        self, attention: tf.Tensor, target: losses.Target, easy: tf.Tensor
    ) -> tf.Tensor:
        pixelwise = losses.cross_entropy(attention, losses.Target(easy, target.valid))
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

    def _results(
        self, outputs: dict[str, tf.Tensor], target: losses.Target
    ) -> dict[str, tf.Tensor]:
        """Counts what the heads get right; returns all figures so far."""
        answers = {
            head: tf.argmax(outputs[head], -1, output_type=tf.int32) for head in ("coarse", "fine")
        }
        answers["refine"] = losses.blend_answer(**outputs)
        for head, answer in answers.items():
            self.accuracies[head].update_state(answer, target)
        shown = {**self.loss_means, **{m.name: m for m in self.accuracies.values()}}
        return {name: metric.result() for name, metric in shown.items()}


def _replicas() -> int:
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def _sum_over_replicas(value: Any) -> Any:
    """Adds a tensor, or each of a list, up over the replicas."""
    context = tf.distribute.get_replica_context()
    if context is None or _replicas() == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
