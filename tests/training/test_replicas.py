"""Two replicas give the same weights as one on the same global batch, with uneven void."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.config import TrainConfig
from ccfnet_tf.network.model import LossWeights
from ccfnet_tf.training import optimizer as optimizers

SIZE, CLASSES, BATCH, STEPS = 24, 3, 4, 6
Toy = Callable[..., Any]


def batches() -> tf.data.Dataset:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(STEPS * BATCH, SIZE, SIZE, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (STEPS * BATCH, SIZE, SIZE)).astype(np.int32)
    # Of each global batch the first replica sees 5 % labelled pixels, the second 95 %.
    void = rng.random(labels.shape) < np.repeat([0.95, 0.05], BATCH // 2).repeat(1)[
        np.arange(STEPS * BATCH) % BATCH
    ].reshape(-1, 1, 1)
    labels[void] = -1
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH, drop_remainder=True)


def train(
    toy: Toy, strategy: Any, config: TrainConfig, **compiled: Any
) -> tuple[dict[str, Any], Any]:
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = toy(CLASSES, synchronized=True)
        model.compile(
            optimizer=optimizers.make_optimizer(config, steps=2 * STEPS, model=model),
            loss_weights=LossWeights(fine=0.5),
            **compiled,
        )
    history = model.fit(batches(), epochs=2, verbose=0, shuffle=False).history
    found = model.evaluate(batches(), verbose=0, return_dict=True)
    weights = {v.path: v.numpy() for v in model.variables if "seed" not in v.path}
    return weights, (history, found)


CASES: dict[str, tuple[TrainConfig, dict[str, Any], float]] = {
    "sgd": (TrainConfig(optimizer="sgd", learning_rate=0.05), {}, 1e-5),
    "adamw": (TrainConfig(optimizer="adamw", learning_rate=1e-3, weight_decay=0.01), {}, 1e-5),
    "clipped": (TrainConfig(optimizer="sgd", learning_rate=0.05), {"clip_norm": 0.05}, 1e-5),
    "balanced": (
        TrainConfig(optimizer="sgd", learning_rate=0.05),
        {"balanced_attention": True},
        1e-5,
    ),
    "weighted": (
        TrainConfig(optimizer="sgd", learning_rate=0.05),
        {"class_weights": [0.2, 3.0, 1.0]},
        1e-5,
    ),
    # Loss scaling multiplies by powers of two: exact here, where the layers are float32.
    "scaled": (
        TrainConfig(optimizer="sgd", learning_rate=0.05, precision="float16"),
        {"clip_norm": 0.05},
        1e-5,
    ),
}


@pytest.mark.parametrize(
    "case",
    # "scaled" clips too.
    [
        "adamw",
        *(
            pytest.param(c, marks=pytest.mark.slow)
            for c in ("sgd", "balanced", "scaled", "clipped", "weighted")
        ),
    ],
)
def test_two_replicas_equal_one(
    case: str, toy: Toy, two_replicas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Adam divides rounding by the size of nearly-zero gradients; a larger epsilon bounds that.
    monkeypatch.setattr(optimizers, "ADAM_EPSILON", 1e-5)
    config, compiled, tolerance = CASES[case]
    keras.utils.set_random_seed(1)
    start = {v.path: v.numpy() for v in toy(CLASSES, synchronized=True).variables}
    single, figures_of_one = train(toy, tf.distribute.get_strategy(), config, **compiled)
    double, figures_of_two = train(toy, two_replicas, config, **compiled)
    moved = 0.0
    for path, value in single.items():
        np.testing.assert_allclose(double[path], value, atol=tolerance, err_msg=path)
        moved = max(moved, float(np.abs(value - start[path]).max()))
    assert moved > 0.01
    # Without clipping, the gradient of all replicas exists only inside the optimizer.
    missing = set() if "clip_norm" in compiled else {"gradient_norm"}
    assert set(figures_of_one[0]) - set(figures_of_two[0]) == missing
    for one, two in zip(figures_of_one, figures_of_two, strict=True):
        for name in two:
            value = one[name]
            np.testing.assert_allclose(two[name], value, rtol=1e-4, err_msg=name)


@pytest.fixture
def second_replica_overflows() -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    def spoil(dataset: tf.data.Dataset) -> tf.data.Dataset:
        # Infinite images on the SECOND replica alone: Keras's own check looks at the first.
        mask = np.ones((BATCH, 1, 1, 1), np.float32)
        mask[-1] = np.inf
        return dataset.map(lambda images, labels: (images * mask, labels))

    return spoil


def test_an_overflow_on_any_replica_skips_the_step(
    toy: Toy,
    two_replicas: Any,
    second_replica_overflows: Callable[[tf.data.Dataset], tf.data.Dataset],
) -> None:
    config = TrainConfig(optimizer="sgd", precision="float16")
    keras.utils.set_random_seed(1)
    with two_replicas.scope():
        model = toy(CLASSES, synchronized=False)
        optimizer = optimizers.make_optimizer(config, steps=10, model=model)
        model.compile(optimizer=optimizer)
    before = [variable.numpy() for variable in model.trainable_variables]
    scale = float(optimizer.dynamic_scale.numpy())
    model.fit(second_replica_overflows(batches().take(1)), verbose=0, shuffle=False)
    assert float(optimizer.dynamic_scale.numpy()) == scale / 2
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())
