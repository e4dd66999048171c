"""Reference implementation of a complete run of the toy network in float64, per `TrainConfig`.

Nothing of the package's training is used; `tests/network/by_hand.py` has the single step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from ccfnet_tf.config import TrainConfig
from tests.network import by_hand
from tests.network.by_hand import Learning, Step, Weights


def learning(train: TrainConfig, class_weights: Sequence[float] | None) -> Learning:
    """Returns what each step of a run minimises."""
    return Learning(
        coarse=train.coarse_loss_weight,
        attention=train.attention_loss_weight,
        refine=train.refine_loss_weight,
        fine=train.fine_loss_weight,
        ohem=train.ohem_share,
        of_hard=train.hard_pixel_weight,
        smoothing=train.label_smoothing,
        class_weights=class_weights,
        balanced=train.balanced_attention,
        clip_norm=train.clip_norm,
        parts=train.accumulate,
        frozen=train.batch_norm == "frozen",
    )


def rate(train: TrainConfig, step: int, steps: int) -> float:
    """Returns the backbone's learning rate of each of `steps` steps of a run."""
    base = train.learning_rate
    if train.rate_for_batch:
        growth = train.batch / train.rate_for_batch
        base *= growth if train.optimizer == "sgd" else math.sqrt(growth)
    warm = round(train.warmup * steps)
    base *= (step + 1) / warm if step < warm else 1.0
    return float(base * max(0.0, 1 - step / steps) ** train.poly_power)


def run(
    weights: Weights,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    train: TrainConfig,
    *,
    steps: int,
    class_weights: Sequence[float] | None = None,
) -> list[tuple[Weights, Step]]:
    """Returns the weights after each batch, and the results of its step.

    Args:
        weights: Those at the start.
        batches: Images [B, H, W, 3] and labels [B, H, W].
        train: How to learn.
        steps: Steps of the whole run.
        class_weights: [C]; None weighs all the same.
    """
    how = learning(train, class_weights)
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    after = []
    for number, (images, labels) in enumerate(batches):
        found = by_hand.step(weights, images, labels, how)
        now = rate(train, number, steps)
        weights = {**weights, **found.statistics}
        for name, gradient in found.gradients.items():
            of_part = now * (1.0 if name.startswith("body") else train.head_rate)
            value = weights[name]
            if name.endswith("kernel"):  # nothing else decays
                value = value - of_part * train.weight_decay * value
            if train.optimizer == "sgd":
                first[name] = 0.9 * first[name] - of_part * gradient
                weights[name] = value + first[name]
            else:
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                corrected = (
                    of_part * math.sqrt(1 - 0.999 ** (number + 1)) / (1 - 0.9 ** (number + 1))
                )
                weights[name] = value - corrected * first[name] / (np.sqrt(second[name]) + 1e-7)
        after.append((weights, found))
    return after
