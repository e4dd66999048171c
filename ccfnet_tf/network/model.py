"""CCFNet as a Keras model whose heads are trained together, end to end (paper section 3.2).

`compile`, `fit`, `evaluate` and `predict` work as in Keras, on any `tf.data` dataset of
`(images [B, H, W, 3], labels [B, H, W])`, and also under `MirroredStrategy`.
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
from ccfnet_tf.network.check_compile_arguments import (
    LABEL_RULE,
    PARTS_RULE,
    LossWeights,
    check_label_map,
    checked,
    class_weights_of,
    loss_weights_of,
    one_line_errors,
    refuse_class_weight,
    refuse_keras_arguments,
    sample_weight_map,
    warn_of_scaled_images,
)
from ccfnet_tf.network.metrics import MeanIoU, PixelAccuracy, SkippedSteps
from ccfnet_tf.network.multi_worker_fit import MultiWorkerFit

FINE_LAYER = "fine_logits"
GATE = "gate"
"""Output with the weights of fine and coarse, if they are not those of attention."""

HEADS = ("coarse", "attention", "refine", "fine")

MEAN_ATTENTION = "mean_attention"
"""Metric: mean of P(hard) over labelled pixels, next to the share that is hard."""

MEAN_GATE = "mean_gate"
"""Metric: mean weight of fine in the blend over labelled pixels; `mean_attention` if attention is
the gate, as in the paper."""


class _Batch(NamedTuple):
    """The batch of a replica, or a micro-batch of it.

    Attributes:
        images: [B, H, W, 3].
        target: Labels [B, H, W].
        mass: Pixel weights in the losses of coarse, refine and fine, [B, H, W] or a float.
        sample: Pixel weights in all losses, [B, H, W], [B, 1, 1] or a float.
    """

    images: tf.Tensor
    target: losses.Target
    mass: tf.Tensor | float = 1.0
    sample: tf.Tensor | float = 1.0

    def split(self, parts: int) -> list[_Batch]:
        """Splits the batch into micro-batches of equal size.

        Raises:
            ConfigError: The number of images is not divisible by `parts`.
        """
        if parts == 1:
            return [self]
        size = self.images.shape[0]
        if size is not None and size % parts:
            raise ConfigError(
                f"train.accumulate is {parts}: the batch of a replica has {size} images, which "
                "must be divisible by it"
            )
        count = tf.shape(self.images)[0]
        divisible = tf.equal(count % parts, 0)
        images = checked(self.images, divisible, PARTS_RULE, "images", count, "accumulate", parts)

        def pieces(value: tf.Tensor | float) -> list[Any]:
            return [value] * parts if isinstance(value, float) else tf.split(value, parts)

        with tf.control_dependencies([images]):  # the assertion's message is clearer than split's
            columns = [pieces(x) for x in (images, *self.target, self.mass, self.sample)]
        return [
            _Batch(image, losses.Target(labels, valid), mass, sample)
            for image, labels, valid, mass, sample in zip(*columns, strict=True)
        ]


class _Counts(NamedTuple):
    """Losses and pixel counts of a batch or micro-batch; they are additive.

    Attributes:
        sums: Loss of each head and total loss, summed over labelled pixels.
        right: Number of labelled pixels that each head predicts correctly, int64.
        pixels: Number of labelled pixels, int64.
        confusion: Confusion matrix of refine, int64 [C, C]; rows are labels, columns predictions.
    """

    sums: dict[str, tf.Tensor]
    right: dict[str, tf.Tensor]
    pixels: tf.Tensor
    confusion: tf.Tensor

    def plus(self, other: _Counts) -> _Counts:
        """Returns the sum of both."""
        return _Counts(*tf.nest.map_structure(tf.add, tuple(self), tuple(other)))

    def only_if(self, finite: tf.Tensor) -> _Counts:
        """Returns the same values if `finite`, else zeros."""
        values = [tf.nest.map_structure(lambda v: tf.where(finite, v, 0), field) for field in self]
        return _Counts(*values)


@keras.saving.register_keras_serializable("ccfnet")
class CCFNet(MultiWorkerFit):
    """The CCFNet model; create it with `build_ccfnet`.

    Called on RGB images [B, H, W, 3] with values 0..255, it returns a dict of float32 tensors:
    `coarse` logits [B, H, W, C], `attention` logits [B, H, W, 2] (0 hard, 1 easy) and `refine`
    log-probabilities [B, H, W, C]; and `gate` logits [B, H, W, 2] (0 fine, 1 coarse) if the blend
    is not weighted by attention itself. Its layer `fine_logits` outputs the logits of the fine
    head.
    """

    def compile(
        self,
        optimizer: Any = "adamw",
        loss: None = None,
        loss_weights: LossWeights | Mapping[str, float] | None = None,
        metrics: None = None,
        weighted_metrics: None = None,
        *,
        ohem_share: float = 1.0,
        hard_pixel_weight: float = 0.0,
        label_smoothing: float = 0.0,
        clip_norm: float = 0.0,
        balanced_attention: bool = False,
        class_weights: Sequence[float] | None = None,
        accumulate: int = 1,
        fine_threshold: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Configures the model for training.

        Args:
            optimizer: A Keras optimizer or its name.
            loss: Must be None; the model defines its own losses.
            loss_weights: Weights of the heads' losses, as `LossWeights` or a dict such as
                `{"fine": 0.5}`. The default is that of the paper: 1 for coarse, attention and
                refine, 0 for fine.
            metrics: Must be None; the model defines its own metrics.
            weighted_metrics: Must be None.
            ohem_share: Share of the labelled pixels, those with the largest losses, that is in the
                minimised losses of coarse and fine; their metrics are of all pixels. The pixels are
                chosen on each replica, and with `accumulate` in each micro-batch; class weights do
                not affect the choice, label smoothing does. 1 disables it.
            hard_pixel_weight: Weight w of difficult pixels in the minimised losses of fine and
                refine: a pixel counts 1 + w P(hard), with P(hard) as attention sees it; no gradient
                reaches attention through the weight. Sums are divided by the number of labelled
                pixels. Of the metrics, only `loss`, the sum that is minimised, is weighted. 0
                disables it.
            label_smoothing: Weight s of the uniform distribution in the targets of coarse, fine and
                refine: 1 - s for the label, plus s / C for each of the C classes. The target of
                attention is not smoothed. `class_weights` weight the smoothed loss of a pixel by
                the class of its label, as Keras's `sample_weight` would; PyTorch weights the
                uniform part by the weights of all classes instead. The losses that `fit` reports
                are smoothed, as in Keras; those of `evaluate` and of validation are not, so that
                they can be compared between values. 0 disables it.
            clip_norm: Maximum global norm of the gradient of the complete batch. 0 disables
                clipping.
            balanced_attention: Give hard and easy pixels the same total weight in the attention
                loss. With `accumulate`, they are balanced within each micro-batch, because which
                pixels are hard is known only after the coarse head has made its prediction.
            class_weights: Weights [C] of the pixels of each class in the losses of coarse, fine
                and refine, which become weighted means. The attention loss is not weighted. None
                gives all classes the weight 1.
            accumulate: Number of micro-batches that each replica's batch is split into for
                gradient accumulation. More micro-batches take less memory where activations
                dominate, and proportionally more time to trace. Losses, clipping, update and
                metrics are those of the complete batch. Batch norm computes its statistics per
                micro-batch and updates its moving statistics once per micro-batch.
            fine_threshold: Pixels whose P(hard) is not above it are left out of the minimised loss
                of fine: training for a hard blend, which uses fine only above a threshold. The sum
                is divided by all labelled pixels, and the metric `fine_loss` is of all pixels. 0
                leaves out none.
            **kwargs: `run_eagerly`, `steps_per_execution` and `jit_compile`, as in Keras.

        Raises:
            ConfigError: An argument of Keras that would be ignored was given, the number of class
                weights is not the number of classes, `accumulate` is less than 1, `ohem_share` is
                0, it or `fine_threshold` is outside 0..1, `hard_pixel_weight` is negative or
                infinite, or `label_smoothing` is outside 0..0.5.
                `fit` raises it if the batch size of a replica is not a multiple of `accumulate`.
        """
        refuse_keras_arguments(loss=loss, metrics=metrics, weighted_metrics=weighted_metrics)
        # XLA gave no measurable speed-up on CPUs, and cannot run under a strategy.
        kwargs.setdefault("jit_compile", False)
        super().compile(optimizer=optimizer, **kwargs)
        self.heads_weights = loss_weights_of(loss_weights)
        self.ohem_share = ohem_share
        self.hard_pixel_weight = hard_pixel_weight
        self.label_smoothing = label_smoothing
        self.clip_norm = clip_norm
        self.balanced_attention = balanced_attention
        self.accumulate = accumulate
        self.fine_threshold = fine_threshold
        self.classes = int(self.outputs_by_name["coarse"].shape[-1])
        if not 0.0 < ohem_share <= 1.0:
            raise ConfigError(f"ohem_share is {ohem_share}: it must be in 0..1, 0 excluded")
        if not 0.0 <= hard_pixel_weight < float("inf"):
            raise ConfigError(
                f"hard_pixel_weight is {hard_pixel_weight}: it must be at least 0 and finite"
            )
        if not 0.0 <= label_smoothing <= 0.5:
            raise ConfigError(f"label_smoothing is {label_smoothing}: it must be in 0..0.5")
        if not 0.0 <= fine_threshold < 1.0:
            raise ConfigError(f"fine_threshold is {fine_threshold}: it must be in 0..1, 1 excluded")
        if accumulate < 1:
            raise ConfigError(f"train.accumulate is {accumulate}: it must be at least 1")
        if class_weights is not None and len(class_weights) != self.classes:
            raise ConfigError(
                f"train.class_weights has {len(class_weights)} values: expected one for each of "
                f"the {self.classes} classes"
            )
        self.class_weights = class_weights_of(class_weights)
        self.forward = self._forward_parts()
        if not hasattr(self, "skipped_steps"):  # else Keras lists those of an earlier compile too
            names = [*(f"{head}_loss" for head in HEADS), MEAN_ATTENTION, MEAN_GATE]
            self.pixel_means = {name: keras.metrics.Mean(name=name) for name in names}
            self.gradient_norm = keras.metrics.Mean(name="gradient_norm")
            self.accuracies = {head: PixelAccuracy(name=f"{head}_accuracy") for head in HEADS}
            self.mean_iou = MeanIoU(self.classes, name="refine_mean_iou")
            self.skipped_steps = SkippedSteps()
        self.reset_metrics()

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments with which `compile_from_config` compiles a loaded model."""
        if not self.compiled:
            return {}
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "loss_weights": asdict(self.heads_weights),
            "ohem_share": self.ohem_share,
            "hard_pixel_weight": self.hard_pixel_weight,
            "label_smoothing": self.label_smoothing,
            "clip_norm": self.clip_norm,
            "balanced_attention": self.balanced_attention,
            "class_weights": self.class_weights and list(self.class_weights),
            "accumulate": self.accumulate,
            "fine_threshold": self.fine_threshold,
            "run_eagerly": self.run_eagerly,
            "steps_per_execution": self.steps_per_execution,
            "jit_compile": self.jit_compile,
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model as it was when saved, and creates the optimizer's variables."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(self, x: Any = None, *args: Any, class_weight: None = None, **kwargs: Any) -> Any:
        """Trains the model; see `keras.Model.fit`.

        `sample_weight` weights the losses per image [B] or per pixel [B, H, W]. The losses are
        divided by the number of labelled pixels, whatever their weights. Accuracies are not
        weighted.

        Raises:
            ConfigError: `class_weight` was given, or a batch size is not divisible by
                `accumulate`.
            DataError: A label is not a class id, or not an integer.

        Warns:
            UserWarning: `x` is an array of images with values 0..1 instead of 0..255.
        """
        refuse_class_weight(class_weight)
        warn_of_scaled_images(x)
        with one_line_errors():
            return super().fit(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates the model; see `keras.Model.evaluate` and `fit`."""
        warn_of_scaled_images(x)
        with one_line_errors():
            return super().evaluate(x, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns predictions; see `keras.Model.predict`."""
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
        """Trains the model on one batch; see `keras.Model.train_on_batch` and `fit`."""
        refuse_class_weight(class_weight)
        warn_of_scaled_images(x)
        with one_line_errors():
            return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates the model on one batch; see `keras.Model.test_on_batch` and `fit`."""
        with one_line_errors():
            return super().test_on_batch(*args, **kwargs)

    @property
    def outputs_by_name(self) -> dict[str, Any]:
        """Symbolic outputs of the graph by name."""
        return dict(self._outputs_struct)

    def _forward_parts(self) -> Callable[..., dict[str, tf.Tensor]]:
        # Without the blend, whose loss and prediction are computed from the heads; see `losses`.
        outputs = {head: self.outputs_by_name[head] for head in ("coarse", "attention")}
        # A network of the paper has no such output: attention is the gate.
        outputs[GATE] = self.outputs_by_name.get(GATE, outputs["attention"])
        twin = keras.Model(self.input, {**outputs, "fine": self.get_layer(FINE_LAYER).output})
        # A closure, because Keras would track an attribute as a layer of this model.
        return lambda images, training: twin(images, training=training)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Runs one training step over all heads; returns running means of losses and accuracies.

        If a loss or a gradient is not finite on any replica, the step is skipped on all replicas:
        weights, optimizer, batch norm statistics and metrics do not change, and `skipped_steps`
        is incremented. Loss scaling (float16) skips overflowing gradients by itself and lowers its
        scale. That is how it finds its scale, so such steps count only once the scale is 1 or
        less.
        """
        batch = self._unpack(data)
        pixels = losses.count(batch.target.valid)
        total_pixels = _sum_over_replicas(pixels)
        batch = batch._replace(mass=self._pixel_weights(batch.target, total_pixels))
        scale = tf.identity(self.optimizer.dynamic_scale) if self._scales_loss else None
        statistics = self._moving_statistics()
        before = [tf.identity(variable) for variable in statistics]
        # Divided by the labelled pixels of all replicas, and not by the number of replicas,
        # because the optimizer sums the gradients over replicas.
        gradients, counts = self._learn(batch, tf.maximum(total_pixels, 1.0))
        variables = self.trainable_variables
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        gradients, variables = [g for g, _ in pairs], [v for _, v in pairs]
        head_losses = [f"{head}_loss" for head in HEADS]
        first = _first_not_finite([*(counts.sums[name] for name in head_losses), *gradients])
        finite = first < 0
        gradients, norm = self._reduce_and_clip(gradients)
        self._apply(finite, gradients, variables)
        for variable, value in zip(statistics, before, strict=True):
            variable.assign(tf.where(finite, variable, value))
        self.skipped_steps.names = [*head_losses, *(v.path for v in variables)]
        self.skipped_steps.update_state(_counted(first, scale))
        self._update_metrics(counts.only_if(finite))
        of_steps = [self.skipped_steps]
        if norm is not None:
            counts_too = finite & tf.math.is_finite(norm)  # squares of finite values may overflow
            self.gradient_norm.update_state(
                tf.where(counts_too, norm, 0.0), sample_weight=tf.cast(counts_too, tf.float32)
            )
            of_steps.append(self.gradient_norm)
        return {**self._metric_results(), **{each.name: each.result() for each in of_steps}}

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Returns the metrics of `train_step`, except `skipped_steps`, without training.

        The losses are without label smoothing.
        """
        batch = self._unpack(data)
        pixels = losses.count(batch.target.valid)
        mass = self._pixel_weights(batch.target, _sum_over_replicas(pixels))
        outputs = self.forward(batch.images, training=False)
        sums = self._sums(outputs, batch._replace(mass=mass), smoothing=0.0)
        self._update_metrics(_count_pixels(sums, outputs, batch.target))
        return self._metric_results()

    def _unpack(self, data: Any) -> _Batch:
        images, labels, weight = keras.utils.unpack_x_y_sample_weight(data)
        if labels is None:
            raise ConfigError("labels are missing: pass batches of (images, labels)")
        check_label_map(labels, images)
        labels = self._class_ids(labels, images)
        target = losses.split_void(labels, self.classes)
        largest = tf.reduce_max(target.labels)
        inside = checked(
            target.labels,
            largest < self.classes,
            LABEL_RULE,
            "found label",
            largest,
            "but the largest class id is",
            self.classes - 1,
        )
        target = target._replace(labels=inside)
        if weight is None:
            return _Batch(images, target)
        return _Batch(images, target, sample=sample_weight_map(weight, target.labels))

    def _class_ids(self, labels: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Checks that labels are integers, and restores their shape if their rank is unknown."""
        labels = tf.convert_to_tensor(labels)
        if labels.shape.rank is None:  # Keras relaxes it if `fit` was called with other ranks
            labels = tf.reshape(labels, tf.shape(images)[:3])
        if not labels.dtype.is_floating:
            return labels
        broken = losses.count(tf.not_equal(labels, tf.round(labels)))
        return checked(
            labels,
            tf.equal(broken, 0.0),
            LABEL_RULE,
            "pixels whose label is not an integer:",
            tf.cast(broken, tf.int32),
        )

    def _learn(self, batch: _Batch, divisor: tf.Tensor) -> tuple[list[tf.Tensor | None], _Counts]:
        """Returns this replica's gradients, with loss scaling applied, and its pixel counts."""
        gradients: list[tf.Tensor | None] = []
        parts = []
        for part in batch.split(self.accumulate):
            # A micro-batch waits for the gradients of the previous one. The graph would otherwise
            # run them in parallel and need the memory of the complete batch.
            with tf.control_dependencies([g for g in gradients if g is not None]):
                images = tf.identity(part.images) if gradients else part.images
            with tf.GradientTape() as tape:
                outputs = self.forward(images, training=True)
                sums = self._sums(outputs, part, smoothing=self.label_smoothing)
                loss = sums["loss"] / divisor
                if self.losses:
                    loss += tf.add_n(self.losses) / (_replicas() * self.accumulate)
                scaled = self.optimizer.scale_loss(loss)
            gradients = _add(gradients, tape.gradient(scaled, self.trainable_variables))
            parts.append(_count_pixels(sums, outputs, part.target))
        return gradients, reduce(_Counts.plus, parts)

    def _moving_statistics(self) -> list[keras.Variable]:
        """Returns the batch norm statistics that a training step updates."""
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
        """Applies the gradients of a step if they are finite."""
        if not self.optimizer.built:  # a conditional cannot create variables
            self.optimizer.build(self.trainable_variables)
        if self._scales_loss:  # loss scaling handles overflowing gradients itself
            self.optimizer.apply(gradients, variables)
            return
        if not tf.distribute.has_strategy():
            tf.cond(finite, lambda: self.optimizer.apply(gradients, variables), lambda: None)
            return

        # An update across replicas cannot start inside a conditional of a single replica. The
        # conditional therefore encloses all replicas, which agree on `finite`.
        def on_all(strategy: Any, finite: Any, gradients: Any) -> None:
            def apply() -> None:
                strategy.extended.call_for_each_replica(
                    lambda own: self.optimizer.apply(own, variables), args=(gradients,)
                )

            tf.cond(strategy.experimental_local_results(finite)[0], apply, lambda: None)

        context = tf.distribute.get_replica_context()
        context.merge_call(on_all, args=(finite, gradients))

    def _sums(
        self, outputs: dict[str, tf.Tensor], batch: _Batch, *, smoothing: float
    ) -> dict[str, tf.Tensor]:
        """Returns the loss of each head and the total loss, summed over labelled pixels."""
        target = batch.target
        easy = losses.attention_target(outputs["coarse"], target.labels)
        branches = {head: outputs[head] for head in ("coarse", "fine")}
        pixelwise = losses.head_cross_entropies(
            **branches, gate=outputs[GATE], target=target, smoothing=smoothing
        )
        mass = batch.mass * batch.sample
        sums = {head: tf.reduce_sum(mass * values) for head, values in pixelwise.items()}
        sums["attention"] = self._attention_loss(outputs["attention"], batch, easy)
        minimised = dict(sums)
        chosen = {head: pixelwise[head] for head in ("coarse", "fine", "refine")}
        hard = tf.stop_gradient(losses.hard_probability(outputs["attention"]))
        if self.fine_threshold:
            chosen["fine"] = tf.where(hard > self.fine_threshold, chosen["fine"], 0.0)
        for head, values in chosen.items():
            kept = values
            if head != "refine":
                kept = losses.hardest(kept, target.valid, self.ohem_share)
            if head != "coarse" and self.hard_pixel_weight:
                kept = (1.0 + self.hard_pixel_weight * hard) * kept
            if kept is not pixelwise[head]:
                minimised[head] = tf.reduce_sum(mass * kept)
        weights = vars(self.heads_weights)
        total = tf.add_n([weight * minimised[head] for head, weight in weights.items() if weight])
        return {"loss": total, **{f"{head}_loss": value for head, value in sums.items()}}

    def _pixel_weights(self, target: losses.Target, total_pixels: tf.Tensor) -> tf.Tensor | float:
        """Returns [B, H, W] weights by class; they sum to `total_pixels` over all replicas."""
        if self.class_weights is None:
            return 1.0
        weights = tf.gather(tf.constant(self.class_weights, tf.float32), target.labels)
        weights = tf.where(target.valid, weights, 0.0)
        total_weight = _sum_over_replicas(tf.reduce_sum(weights))
        return weights * tf.math.divide_no_nan(total_pixels, total_weight)

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

    def _reduce_and_clip(
        self, gradients: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], tf.Tensor | None]:
        """Clips by the norm of the complete batch's gradient.

        Keras would clip the gradient of each replica before summing them, and would check for
        non-finite values (float16) on the first replica only, so gradients are reduced here. If
        neither is needed, they are left to the optimizer, which reduces them once.

        Returns:
            The reduced gradients divided by the number of replicas, because `apply` sums them
            over replicas again; and their global norm before clipping, without loss scaling, or
            None if several replicas leave the reduction to the optimizer.
        """
        loss_scale = getattr(self.optimizer, "dynamic_scale", None)
        scale = 1.0 if loss_scale is None else tf.cast(loss_scale, tf.float32)
        if not self.clip_norm and loss_scale is None:
            return gradients, tf.linalg.global_norm(gradients) if _replicas() == 1 else None
        reduced = _sum_over_replicas(gradients)
        norm = tf.linalg.global_norm(reduced) / scale
        if self.clip_norm:
            factor = self.clip_norm / tf.maximum(norm, self.clip_norm)
            reduced = [gradient * tf.cast(factor, gradient.dtype) for gradient in reduced]
        return [gradient / _replicas() for gradient in reduced], norm

    def _update_metrics(self, counts: _Counts) -> None:
        """Updates the losses, the accuracies and the mean IoU."""
        pixels = tf.cast(counts.pixels, tf.float32)
        for name, value in counts.sums.items():
            mean = tf.math.divide_no_nan(value, pixels)
            self._mean_of(name).update_state(mean, sample_weight=pixels)
        for head, right in counts.right.items():
            self.accuracies[head].update_state(right, counts.pixels)
        self.mean_iou.update_state(counts.confusion)

    def _mean_of(self, name: str) -> keras.metrics.Mean:
        # Keras's own tracker: a second metric of this name would be listed twice by Keras.
        return self._loss_tracker if name == "loss" else self.pixel_means[name]

    def _get_metrics_result_or_logs(self, logs: dict[str, Any]) -> dict[str, Any]:
        # Keras reads the metrics over all replicas only if the step returned every metric, and
        # else uses those of the first replica. A test step does not return `skipped_steps`.
        results = self.get_metrics_result()
        return {name: results[name] for name in logs}

    def _metric_results(self) -> dict[str, tf.Tensor]:
        metrics = [self._loss_tracker, *self.pixel_means.values(), *self.accuracies.values()]
        return {metric.name: metric.result() for metric in [*metrics, self.mean_iou]}


def _add(one: list[tf.Tensor | None], other: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
    """Adds two lists of gradients; variables that the loss does not depend on have None."""
    if not one:
        return other
    return [a if b is None else a + b for a, b in zip(one, other, strict=True)]


def _count_pixels(
    sums: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor], target: losses.Target
) -> _Counts:
    """Counts the correctly predicted pixels of each head, and adds the sums of the losses."""
    predictions = {
        head: tf.argmax(outputs[head], -1, output_type=tf.int32) for head in ("coarse", "fine")
    }
    branches = {head: outputs[head] for head in ("coarse", "fine")}
    predictions["refine"] = losses.blend_prediction(**branches, gate=outputs[GATE])
    right = {head: tf.equal(prediction, target.labels) for head, prediction in predictions.items()}
    right["attention"] = _judges_right(outputs["attention"], right["coarse"])
    means = {
        name: tf.reduce_sum(tf.where(target.valid, losses.hard_probability(outputs[output]), 0.0))
        for name, output in ((MEAN_ATTENTION, "attention"), (MEAN_GATE, GATE))
    }
    return _Counts(
        {**sums, **means},
        {head: tf.math.count_nonzero(hit & target.valid) for head, hit in right.items()},
        tf.math.count_nonzero(target.valid),
        _confusion(predictions["refine"], target, int(outputs["coarse"].shape[-1])),
    )


def _judges_right(attention: tf.Tensor, coarse_right: tf.Tensor) -> tf.Tensor:
    """Returns where attention predicts correctly whether coarse is right, bool [B, H, W]."""
    hard, easy = tf.unstack(attention, axis=-1)
    return tf.equal(easy > hard, coarse_right)


def _confusion(prediction: tf.Tensor, target: losses.Target, classes: int) -> tf.Tensor:
    """Returns int64 [C, C] counts of labelled pixels; rows are labels, columns predictions."""
    cells = classes * classes  # void is counted in one more cell
    cell = tf.where(target.valid, target.labels * classes + prediction, cells)
    # XLA cannot determine the output size of tf.math.bincount.
    counts = tf.raw_ops.DenseBincount(
        input=tf.reshape(cell, [-1]), size=cells + 1, weights=tf.constant([], tf.int64)
    )
    return tf.reshape(counts[:cells], [classes, classes])


def _first_not_finite(values: list[tf.Tensor]) -> tf.Tensor:
    """Returns the index of the first value that is not finite on any replica; -1 if all are.

    A value so large that the sum over replicas could overflow counts as not finite.
    """
    replicas = _replicas()

    def is_good(value: tf.Tensor) -> tf.Tensor:
        return tf.reduce_all(tf.abs(value) <= value.dtype.max / replicas)  # false for NaN

    # Not a logical_not of the comparison: TensorFlow rewrites that to `>`, false for NaN too.
    bad = 1.0 - tf.cast(tf.stack([is_good(value) for value in values]), tf.float32)
    bad = _sum_over_replicas(bad) > 0
    return tf.where(tf.reduce_any(bad), tf.argmax(bad, output_type=tf.int32), -1)


def _counted(first: tf.Tensor, loss_scale: tf.Tensor | None) -> tf.Tensor:
    """Returns `first`, or -1 for an overflow that loss scaling (float16) can still prevent."""
    if loss_scale is None:
        return first
    overflows = tf.logical_and(first >= len(HEADS), loss_scale > 1.0)
    return tf.where(overflows, -1, first)


def _replicas() -> int:
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def _sum_over_replicas(value: Any) -> Any:
    """Sums a tensor, or each tensor of a list, over the replicas."""
    context = tf.distribute.get_replica_context()
    if context is None or _replicas() == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
