"""SGD and AdamW with a slower backbone, and the rate's course over a run.

Scaling gradients would do nothing under Adam, so the rate itself is multiplied per variable, in
the update and in the decoupled weight decay alike.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from ccfnet_tf.config import TrainConfig
from ccfnet_tf.training.ema import KeepsAverage

MOMENTUM = 0.9
# Keras's own. With it two replicas equal one to 2e-5, with 1e-5 to 1e-7, since it amplifies the
# rounding of gradients that are nearly zero; but 1e-5 is as large as many gradients here.
ADAM_EPSILON = 1e-7
WEIGHT_DECAY = {"sgd": 1e-3, "adamw": 0.05}
"""`train.weight_decay auto`.

Decay is decoupled: kernels shrink by the rate times this in each step, over a run by about
`1 - exp(-decay * sum of rates)`. SGD's is the L2 penalty of 1e-4 of PSPNet and DeepLab divided by
`1 - momentum`, since a penalty's gradient goes through the momentum, which multiplies it by ten.
AdamW's is in the range of published fine-tuning (1e-2 to 1e-1); with the presets' 40 epochs on
Stanford Background (2560 steps of rate 1e-4, ten times that for the heads) kernels of the backbone
shrink by 0.7 %, those of the heads by 6.5 %; at 1e-4 that would be 1e-5 and 1e-4.
"""
# Weight decay is for kernels: batch norm and biases are scales and offsets, not filters.
# Keras matches the variable's own name, not its path.
NOT_DECAYED = ["gamma", "beta", "bias", "scale"]


@keras.saving.register_keras_serializable("ccfnet")
class PolyDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up times polynomial decay: `base * min(1, (t + 1) / w) * (1 - t / T) ** p`."""

    def __init__(self, base: float, steps: int, warmup_steps: int = 0, power: float = 0.9) -> None:
        self.base = base
        self.steps = steps
        self.warmup_steps = warmup_steps
        self.power = power
        # Steps that were taken before the optimizer began; above 0 where a run lost its state.
        self.begun = 0

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the rate of step t, 0 from T on."""
        step = tf.cast(step, tf.float32) + self.begun
        warm = tf.minimum(1.0, (step + 1.0) / max(self.warmup_steps, 1))
        left = tf.maximum(0.0, 1.0 - step / self.steps)
        return self.base * warm * left**self.power

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "base": self.base,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
            "power": self.power,
        }


class _RateByVariable:
    """Mixin for a Keras optimizer: the backbone learns at the rate, all else at a multiple."""

    def set_rates(self, backbone: list[keras.Variable], head_rate: float) -> None:
        """Says which variables keep the plain rate; call it before `build`."""
        self._backbone_ids = {id(variable) for variable in backbone}
        self._head_rate = head_rate

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:  # type: ignore[attr-defined]
            return
        super().build(variables)  # type: ignore[misc]
        self._multipliers = [
            1.0 if id(variable) in self._backbone_ids else self._head_rate for variable in variables
        ]

    def _multiplier(self, variable: keras.Variable) -> float:
        return float(self._multipliers[self._get_variable_index(variable)])  # type: ignore[attr-defined]

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        rate = learning_rate * self._multiplier(variable)
        super().update_step(gradient, variable, rate)  # type: ignore[misc]

    def _apply_weight_decay(self, variables: list[keras.Variable]) -> None:
        # Keras's own, but with each variable's rate; private, so a test holds it to NumPy's AdamW.
        decay = self.weight_decay  # type: ignore[attr-defined]
        if not decay:
            return

        def shrink_all(distribution: Any, variables: list[keras.Variable]) -> None:
            for variable in variables:
                if self._use_weight_decay(variable):  # type: ignore[attr-defined]
                    rate = tf.cast(self.learning_rate, variable.dtype)  # type: ignore[attr-defined]
                    factor = rate * decay * self._multiplier(variable)
                    distribution.extended.update(
                        variable.value, lambda v, f=factor: v.assign_sub(v * f), group=False
                    )

        tf.__internal__.distribute.interim.maybe_merge_call(
            shrink_all,
            self._distribution_strategy,  # type: ignore[attr-defined]
            variables,
        )


class CascadeSGD(_RateByVariable, KeepsAverage, keras.optimizers.SGD):
    """SGD with momentum, decoupled decay, and a rate per part."""


class CascadeAdamW(_RateByVariable, KeepsAverage, keras.optimizers.AdamW):
    """AdamW with a rate per part."""


def scaled_rate(config: TrainConfig) -> float:
    """Returns the backbone's rate at the start of the decay, for this run's batch.

    `learning_rate` is meant for batches of `rate_for_batch`. SGD's grows with the batch (Goyal et
    al. 2017, section 2.1), AdamW's with its square root (Malladi et al. 2022, of whose rule this
    is the rate alone: the betas and epsilon stay). Both hold for moderate growth, with warm-up.
    """
    if not config.rate_for_batch:
        return config.learning_rate
    growth = config.batch / config.rate_for_batch
    return config.learning_rate * (growth if config.optimizer == "sgd" else math.sqrt(growth))


def make_optimizer(config: TrainConfig, *, steps: int, model: keras.Model) -> Any:
    """Makes and builds the optimizer of a run.

    Args:
        config: Rates, decay, averaging, precision's loss scaling.
        steps: Steps of the whole run, where the rate reaches zero.
        model: Its `backbone` layer learns at the plain rate.

    Returns:
        A built Keras optimizer, wrapped for loss scaling when the model computes in float16. With
        `config.ema` its variables hold the running averages too, see `ema.RunningAverage`.
    """
    schedule = PolyDecay(
        scaled_rate(config), steps, round(config.warmup * steps), config.poly_power
    )
    decay = WEIGHT_DECAY[config.optimizer] if config.weight_decay == "auto" else config.weight_decay
    options: dict[str, Any] = {"weight_decay": decay}
    if config.optimizer == "sgd":
        optimizer = CascadeSGD(schedule, momentum=MOMENTUM, **options)
    else:
        optimizer = CascadeAdamW(schedule, epsilon=ADAM_EPSILON, **options)
    optimizer.set_rates(model.get_layer("backbone").trainable_variables, config.head_rate)
    if decay:
        optimizer.exclude_from_weight_decay(var_names=NOT_DECAYED)
    if config.ema:
        optimizer.set_average(config.ema, model)
    if config.precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer
