"""The running average of the weights (`train.ema`), with batch norm's statistics that go with it.

It moves in the optimizer's `apply`, so a step that is not applied leaves it alone, and its
variables are the optimizer's, so they are saved and restored with it. Keras's own `use_ema` begins
at its full decay: after 100 steps at 0.999 it is still the weights of the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

# The decay of step t is at most t / (t + 9): the average then looks back about t / 10 steps.
_WARM_UP = 9.0


class RunningAverage:
    """Averages of a model's weights and batch norm statistics.

    Step t, counted from 0, moves each by `(1 - d) * (value - average)`, where d is the smaller of
    `decay` and t / (t + 9): the average begins as what the first step leaves.

    Attributes:
        pairs: Each averaged variable of the model with its average.
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
        """Takes in what step number `step` has made of the variables, on every replica alike."""
        step = tf.cast(step, tf.float32)
        share = 1.0 - tf.minimum(self.decay, step / (step + _WARM_UP))
        values = [tf.convert_to_tensor(variable) for variable, _ in self.pairs]
        # Replicas hold the same weights; statistics may be of each its own.
        averages = [average for _, average in self.pairs]
        values[self._weights :] = _mean_over_replicas(
            values[self._weights :], averages[self._weights :]
        )
        for (_, average), value in zip(self.pairs, values, strict=True):
            average.assign(average + share * (value - average))


class KeepsAverage:
    """Mixin for a Keras optimizer: it keeps a `RunningAverage`, once `set_average` was called."""

    built: bool
    average: RunningAverage | None = None
    _make_average: Callable[[], RunningAverage] | None = None

    def set_average(self, decay: float, model: keras.Model) -> None:
        """Says what is averaged; call it before `build`."""
        # In a closure: Keras would take variables in an attribute for the optimizer's own.
        self._make_average = lambda: RunningAverage(
            self, decay, model.trainable_variables, batch_norm_statistics(model)
        )

    def build(self, variables: list[keras.Variable]) -> None:
        """Makes the optimizer's variables, the averages last."""
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
    """Within it the model's weights and batch norm statistics are the running averages of both.

    Afterwards they are bit for bit what they were on every replica, after an exception too. Nothing
    happens where the optimizer keeps no average, or before its first step. Not to be called inside
    `tf.function`, nor inside `strategy.run`.

    Args:
        model: A compiled model, its optimizer built.
    """
    pairs = [
        (mine, average.numpy())
        for variable, average in _pairs(model.optimizer)
        for mine in model.distribute_strategy.experimental_local_results(variable.value)
    ]
    # On the host: a network's weights, for as long as it is validated.
    kept = [mine.numpy() for mine, _ in pairs]
    try:
        for mine, average in pairs:
            mine.assign(average)
        yield
    finally:
        for (mine, _), value in zip(pairs, kept, strict=True):
            mine.assign(value)


def batch_norm_statistics(model: keras.Model) -> list[keras.Variable]:
    """Returns the moving means and variances of every batch norm in the model."""
    return [
        statistic
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        for statistic in (layer.moving_mean, layer.moving_variance)
    ]


def _pairs(optimizer: Any) -> list[tuple[Any, Any]]:
    """Returns each variable with its average; none where there are no averages yet."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # within the loss scaling
    average = getattr(optimizer, "average", None)
    if average is None or not optimizer.iterations.numpy():
        return []
    return list(average.pairs)


def _mean_over_replicas(values: list[tf.Tensor], like: list[keras.Variable]) -> list[tf.Tensor]:
    """Returns the means of values that have the places and shapes of variables."""
    context = tf.distribute.get_replica_context()
    if not values or context is None or context.num_replicas_in_sync == 1:
        return values

    # Not `context.all_reduce`: over several machines it finds no place for a value that is made
    # within a conditional, as this is.
    def on_all(strategy: Any, values: list[Any]) -> Any:
        mean = tf.distribute.ReduceOp.MEAN
        pairs = zip(values, like, strict=True)
        return [strategy.extended.reduce_to(mean, value, place.value) for value, place in pairs]

    return list(context.merge_call(on_all, args=(values,)))
