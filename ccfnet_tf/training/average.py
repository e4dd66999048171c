"""The running average of the weights, which the optimizer keeps (`train.ema`), in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def averaged(model: Any) -> Iterator[None]:
    """Within it the model's trainable variables hold the running average of their values.

    Afterwards they are bit for bit what they were, after an exception too. Batch norm's moving
    statistics, running averages themselves, stay as they are. Nothing happens where the optimizer
    keeps no average, or before its first step. Not to be called inside `tf.function`, nor inside
    `strategy.run`; every worker of several must call it.

    Args:
        model: A compiled model, its optimizer built.
    """
    pairs = _pairs(model.optimizer)
    # On the host: a network's weights, for as long as it is validated.
    kept = [variable.numpy() for variable, _ in pairs]
    try:
        for variable, average in pairs:
            variable.assign(average.numpy())
        yield
    finally:
        for (variable, _), value in zip(pairs, kept, strict=True):
            variable.assign(value)


def _pairs(optimizer: Any) -> list[tuple[Any, Any]]:
    """Returns each variable with its average; none where there are no averages yet."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # within the loss scaling
    # Keras fills its averages at the first step; until then they are zeros.
    if not optimizer.use_ema or not optimizer.built or not optimizer.iterations.numpy():
        return []
    # Private, since Keras offers them through `finalize_variable_values` alone, for good.
    averages = optimizer._model_variables_moving_average
    return list(zip(optimizer._trainable_variables, averages, strict=True))
