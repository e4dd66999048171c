"""SGD and AdamW with a lower learning rate for the backbone, and the learning rate schedule.

Scaling gradients has no effect with Adam. The learning rate is therefore multiplied per variable,
both in the update and in the decoupled weight decay.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from ccfnet_tf.config import TrainConfig
from ccfnet_tf.training.ema import KeepsAverage

MOMENTUM = 0.9
# The default of Keras. With it, two replicas agree with one to 2e-5, because a small epsilon
# amplifies the rounding of gradients near zero. With 1e-5 they would agree to 1e-7, but 1e-5 is as
# large as many gradients of this network.
ADAM_EPSILON = 1e-7
WEIGHT_DECAY = {"sgd": 1e-3, "adamw": 0.05}
"""Values for `train.weight_decay: auto`.

Weight decay is decoupled: each step shrinks the kernels by the learning rate times this value, a
run by about `1 - exp(-decay * sum of rates)`. The value for SGD is the L2 penalty of 1e-4 of PSPNet
and DeepLab divided by `1 - momentum`, because the gradient of a penalty passes through the
momentum, which multiplies it by ten. The value for AdamW is in the range of published fine-tuning
(1e-2 to 1e-1). In the presets' 40 epochs on Stanford Background (2560 steps at rate 1e-4, ten times
that for the heads) it shrinks the kernels of the backbone by 0.7 % and those of the heads by 6.5 %;
a value of 1e-4 would shrink them by fractions of 1e-5 and 1e-4.
"""
# Only kernels are decayed: the parameters of batch norm and biases are scales and offsets.
# Keras matches the name of the variable, not its path.
NOT_DECAYED = ["gamma", "beta", "bias", "scale"]


@keras.saving.register_keras_serializable("ccfnet")
class PolyDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up times polynomial decay: `base * min(1, (t + 1) / w) * (1 - t / T) ** p`.

    Args:
        base: Learning rate after warm-up, before decay.
        steps: Number of steps T after which the rate is 0.
        warmup_steps: Number of warm-up steps w.
        power: Exponent p of the decay.
    """

    def __init__(self, base: float, steps: int, warmup_steps: int = 0, power: float = 0.9) -> None:
        self.base = base
        self.steps = steps
        self.warmup_steps = warmup_steps
        self.power = power
        # Steps made before the optimizer was created; above 0 if a run lost its optimizer state.
        self.first_step = 0

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the learning rate of step t, which is 0 from step T on."""
        step = tf.cast(step, tf.float32) + self.first_step
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
    """Mixin for a Keras optimizer that multiplies the learning rate outside of the backbone."""

    def set_rates(self, backbone: list[keras.Variable], head_rate: float) -> None:
        """Sets the variables that keep the base rate; must be called before `build`."""
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
        # Like Keras's private method, but with the rate of each variable. A test compares it with
        # an AdamW written in NumPy.
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
    """SGD with momentum, decoupled weight decay, and separate rates for backbone and heads."""


class CascadeAdamW(_RateByVariable, KeepsAverage, keras.optimizers.AdamW):
    """AdamW with separate rates for backbone and heads."""


def scaled_rate(config: TrainConfig) -> float:
    """Returns the initial learning rate of the backbone, scaled to the batch size of the run.

    `learning_rate` refers to batches of `rate_for_batch` images. The rate of SGD is scaled linearly
    with the batch size (Goyal et al. 2017, section 2.1), that of AdamW with its square root
    (Malladi et al. 2022; only the rate is scaled, the betas and epsilon are not). Both rules hold
    for moderate factors, with warm-up.
    """
    if not config.rate_for_batch:
        return config.learning_rate
    growth = config.batch / config.rate_for_batch
    return config.learning_rate * (growth if config.optimizer == "sgd" else math.sqrt(growth))


def make_optimizer(config: TrainConfig, *, steps: int, model: keras.Model) -> Any:
    """Creates and builds the optimizer of a run.

    Args:
        config: Optimizer, learning rates, weight decay, averaging and precision.
        steps: Total number of steps of the run, after which the rate is zero.
        model: The model to train. Its `backbone` layer uses the base rate.

    Returns:
        A built Keras optimizer, wrapped in `LossScaleOptimizer` for float16. With `config.ema` its
        variables include the running averages; see `ema.RunningAverage`.
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
