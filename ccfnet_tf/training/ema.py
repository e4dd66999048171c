"""Exponential moving average of the weights and batch norm statistics (`train.ema`).

The average is updated in the optimizer's `apply`, so a skipped step does not change it. Its
variables belong to the optimizer, so they are saved and restored with it. Keras's own `use_ema`
starts with the full decay: after 100 steps at 0.999, its average is still dominated by the weights
of the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

# The decay of step t is at most t / (t + 9), so the average covers about the last t / 10 steps.
_WARM_UP = 9.0


class RunningAverage:
    """Averages of a model's weights and batch norm statistics.

    Step t, counted from 0, adds `(1 - d) * (value - average)` to each average, where d is the
    smaller of `decay` and t / (t + 9). After the first step the averages equal the values.

    Attributes:
        pairs: Pairs of an averaged variable of the model and its average.
    """

    def __init__(
        self, optimizer: Any, decay: float, weights: Sequence[Any], statistics: Sequence[Any]
    ) -> None:
        self.decay = decay
        self.pairs = [
            (variable, optimizer.add_variable_from_reference(variable, name="average"))
            for variable in (*weights, *statistics)
        ]
        self._weights = len(weights)

    def move(self, step: Any) -> None:
        """Updates the averages after step number `step`, identically on every replica."""
        step = tf.cast(step, tf.float32)
        share = 1.0 - tf.minimum(self.decay, step / (step + _WARM_UP))
        values = [tf.convert_to_tensor(variable) for variable, _ in self.pairs]
        # Weights are the same on all replicas, but batch norm statistics may differ.
        averages = [average for _, average in self.pairs]
        values[self._weights :] = _mean_over_replicas(
            values[self._weights :], averages[self._weights :]
        )
        for (_, average), value in zip(self.pairs, values, strict=True):
            average.assign(average + share * (value - average))


class KeepsAverage:
    """Mixin for a Keras optimizer that updates a `RunningAverage` after `set_average`."""

    built: bool
    average: RunningAverage | None = None
    _make_average: Callable[[], RunningAverage] | None = None

    def set_average(self, decay: float, model: keras.Model) -> None:
        """Enables averaging of the variables of `model`; must be called before `build`."""
        # A closure, because Keras would track variables in an attribute as the optimizer's own.
        self._make_average = lambda: RunningAverage(
            self, decay, model.trainable_variables, batch_norm_statistics(model)
        )

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the variables of the optimizer, the averages last."""
        if self.built:
            return
        super().build(variables)  # type: ignore[misc]
        if self._make_average is not None:
            self.average = self._make_average()

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Updates the variables, then the averages."""
        step = tf.identity(self.iterations)  # type: ignore[attr-defined]
        super().apply(grads, trainable_variables)  # type: ignore[misc]
        if self.average is not None:
            self.average.move(step)


@contextmanager
def averaged(model: Any) -> Iterator[None]:
    """Context manager that replaces weights and batch norm statistics by their running averages.

    On exit the values are restored bit by bit on every replica, also after an exception. It has no
    effect if the optimizer has no average, or before its first step. It must not be used inside
    `tf.function` or `strategy.run`.

    Args:
        model: A compiled model whose optimizer is built.
    """
    pairs = [
        (local, average.numpy())
        for variable, average in _pairs(model.optimizer)
        for local in model.distribute_strategy.experimental_local_results(variable.value)
    ]
    # Kept in host memory during validation.
    values = [local.numpy() for local, _ in pairs]
    try:
        for local, average in pairs:
            local.assign(average)
        yield
    finally:
        for (local, _), value in zip(pairs, values, strict=True):
            local.assign(value)


def batch_norm_statistics(model: keras.Model) -> list[keras.Variable]:
    """Returns the moving means and variances of all batch norm layers of the model."""
    return [
        statistic
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        for statistic in (layer.moving_mean, layer.moving_variance)
    ]


def _pairs(optimizer: Any) -> list[tuple[Any, Any]]:
    """Returns pairs of a variable and its average; empty if there are no averages yet."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # inside LossScaleOptimizer
    average = getattr(optimizer, "average", None)
    if average is None or not optimizer.iterations.numpy():
        return []
    return list(average.pairs)


def _mean_over_replicas(values: list[tf.Tensor], like: list[keras.Variable]) -> list[tf.Tensor]:
    """Averages values over replicas; `like` are variables with the same placement and shape."""
    context = tf.distribute.get_replica_context()
    if not values or context is None or context.num_replicas_in_sync == 1:
        return values

    # Not `context.all_reduce`: with several machines it cannot determine the device of a value
    # computed inside a conditional, as these are.
    def on_all(strategy: Any, values: list[Any]) -> Any:
        mean = tf.distribute.ReduceOp.MEAN
        pairs = zip(values, like, strict=True)
        return [strategy.extended.reduce_to(mean, value, target.value) for value, target in pairs]

    return list(context.merge_call(on_all, args=(values,)))
