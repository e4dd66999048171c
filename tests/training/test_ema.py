"""The running average of weights and statistics, and that it does not change them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.config import TrainConfig
from ccfnet_tf.training import checkpoint
from ccfnet_tf.training.ema import averaged, batch_norm_statistics
from ccfnet_tf.training.optimizer import make_optimizer

BATCH, STEPS = 4, 5
DECAY = 0.25  # reached after the third step: 0, 1/10, 2/11, 1/4, 1/4
Values = list[np.ndarray]


def optimizer_of(model: Any, *, ema: float = DECAY, **settings: Any) -> Any:
    config = TrainConfig(ema=ema, **{"optimizer": "adamw", "learning_rate": 1e-2, **settings})
    return make_optimizer(config, steps=4 * STEPS, model=model)


def compiled(strategy: Any = None, **settings: Any) -> Any:
    """Two dense layers: the average does not depend on the architecture."""
    keras.utils.set_random_seed(1)
    with (strategy or tf.distribute.get_strategy()).scope():
        inner = keras.Input((4,))
        body = keras.layers.Dense(3, name="body")(inner)
        norm = keras.layers.BatchNormalization(momentum=0.5, name="norm")
        backbone = keras.Model(inner, norm(body), name="backbone")
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras.layers.Dense(2, name="head")(backbone(inputs)))
        model.compile(optimizer_of(model, **settings), loss="mse")
    return model


def batches() -> tf.data.Dataset:
    rng = np.random.default_rng(0)
    return tf.data.Dataset.from_tensor_slices(
        tuple(rng.normal(size=(STEPS, BATCH, n)).astype(np.float32) for n in (4, 2))
    )


def learn(model: Any, data: tf.data.Dataset, **options: Any) -> None:
    model.fit(data, verbose=0, shuffle=False, **options)


def state(model: Any) -> Values:
    """Returns all weights, then all statistics of batch norm."""
    variables = [*model.trainable_variables, *batch_norm_statistics(model)]
    return [variable.numpy() for variable in variables]


def average(model: Any) -> Values:
    with averaged(model):
        return state(model)


def assert_equal(one: Values, other: Values) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(one: Values, other: Values) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class Recorder(keras.callbacks.Callback):
    """Records the state after each step that was not skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.after: list[Values] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.model.optimizer.iterations.numpy() > len(self.after):
            self.after.append(state(self.model))


def by_hand(after: list[Values]) -> Values:
    found = after[0]
    for step, values in enumerate(after):
        decay = min(DECAY, step / (step + 9))
        found = [decay * a + (1 - decay) * v for a, v in zip(found, values, strict=True)]
    return found


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_equals_a_recursion_over_weights_and_statistics(name: str) -> None:
    model, recorder = compiled(optimizer=name), Recorder()
    learn(model, batches(), callbacks=[recorder])
    assert len(recorder.after) == STEPS
    found = average(model)
    assert len(found) == 6 + 2
    for one, now in zip(found[2:], state(model)[2:], strict=True):
        assert np.abs(one - now).max() > 1e-4
    assert_close(found, by_hand(recorder.after))


@pytest.mark.slow
def test_equals_the_recursion_in_the_cascade_on_two_replicas(
    toy: Callable[..., Any], two_replicas: Any
) -> None:
    """With accumulation and loss scaling; a step that overflows does not change the average."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(STEPS, BATCH, 16, 16, 3)).astype(np.float32)
    images[2, -1] = np.inf
    labels = rng.integers(-1, 3, (STEPS, BATCH, 16, 16))
    with two_replicas.scope():
        model = toy(3)
        # An infinite image would spoil the statistics of batch norm.
        model.get_layer("backbone").get_layer("body_norm").trainable = False
        model.compile(optimizer_of(model, precision="float16"), accumulate=2)
    recorder = Recorder()
    learn(model, tf.data.Dataset.from_tensor_slices((images, labels)), callbacks=[recorder])
    assert len(recorder.after) == STEPS - 1
    assert_close(average(model), by_hand(recorder.after))


@pytest.mark.slow
def test_two_replicas_keep_the_average_of_one(toy: Callable[..., Any], two_replicas: Any) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(STEPS, BATCH, 16, 16, 3)).astype(np.float32)
    labels = rng.integers(-1, 3, (STEPS, BATCH, 16, 16))
    found = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            model = toy(3, synchronized=True)
            model.compile(optimizer_of(model, optimizer="sgd"))
        learn(model, tf.data.Dataset.from_tensor_slices((images, labels)))
        found.append(average(model))
    assert_close(*found)
    assert_replicas_are_equal(model, two_replicas)


def assert_replicas_are_equal(model: Any, strategy: Any) -> None:
    for variable in model.optimizer.variables:
        copies = strategy.experimental_local_results(variable.value)
        np.testing.assert_array_equal(*(copy.numpy() for copy in copies))


def test_statistics_of_replicas_are_averaged_and_restored(two_replicas: Any) -> None:
    model = compiled(two_replicas)
    learn(model, batches().take(1))

    def copies() -> list[Values]:
        return [
            [copy.numpy() for copy in two_replicas.experimental_local_results(statistic.value)]
            for statistic in batch_norm_statistics(model)
        ]

    before = copies()
    with averaged(model):
        within = copies()
    for of_replicas, averages in zip(before, within, strict=True):
        assert np.abs(of_replicas[0] - of_replicas[1]).max() > 1e-3
        for one in averages:
            np.testing.assert_allclose(one, np.mean(of_replicas, 0), atol=1e-6)
    assert_replicas_are_equal(model, two_replicas)
    for one, other in zip(before, copies(), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_fit_does_not_change_the_weights(precision: str) -> None:
    plain, model = (compiled(ema=ema, precision=precision) for ema in (0.0, DECAY))
    for _ in range(2):
        learn(plain, batches())
        learn(model, batches())
    assert_equal(state(model), state(plain))


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_weights_are_restored_after_an_exception(replicas: int, two_replicas: Any) -> None:
    model = compiled(two_replicas if replicas == 2 else None)
    learn(model, batches())
    before = state(model)
    with averaged(model):
        assert any((a != b).any() for a, b in zip(state(model), before, strict=True))
    assert_equal(state(model), before)
    with pytest.raises(KeyboardInterrupt), averaged(model):
        raise KeyboardInterrupt
    assert_equal(state(model), before)


def test_predictions_inside_the_context_use_the_average() -> None:
    model = compiled()
    learn(model, batches())
    inputs, _ = next(iter(batches()))
    plain = model.predict_on_batch(inputs)
    with averaged(model):
        shown = model.predict_on_batch(inputs)
    assert np.abs(shown - plain).max() > 1e-3
    np.testing.assert_array_equal(model.predict_on_batch(inputs), plain)


@pytest.mark.parametrize("case", ["none kept", "no step yet"])
def test_without_an_average_the_context_has_no_effect(case: str) -> None:
    model = compiled(ema=0.0 if case == "none kept" else DECAY)
    if case == "none kept":
        learn(model, batches())
    before = state(model)
    assert_equal(average(model), before)
    assert_equal(state(model), before)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_resumed_run_reaches_the_same_average(precision: str, tmp_path: Path) -> None:
    model = compiled(precision=precision)
    learn(model, batches())
    assert np.abs(average(model)[0] - state(model)[0]).max() > 1e-3
    checkpoint.save_last(tmp_path / "last.npz", model, checkpoint.Progress(1, STEPS))
    resumed = compiled(precision=precision)
    checkpoint.restore(tmp_path / "last.npz", resumed)
    assert_equal(average(resumed), average(model))
    for each in (model, resumed):
        learn(each, batches())
    assert_equal(state(resumed), state(model))
    assert_equal(average(resumed), average(model))


def blocks(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four blocks of three colours, in noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (count, 2, 2)).repeat(8, 1).repeat(8, 2)
    images = 0.5 * np.eye(3)[labels] + rng.normal(0, 0.5, (*labels.shape, 3))
    return images.astype(np.float32), labels.astype(np.int32)


@pytest.mark.parametrize(
    "steps", [100, *(pytest.param(n, marks=pytest.mark.slow) for n in (500, 2000))]
)
def test_the_average_is_as_accurate_as_the_weights(
    steps: int, toy: Callable[..., Any], record_property: Callable[[str, object], None]
) -> None:
    keras.utils.set_random_seed(1)
    model = toy(3)
    config = TrainConfig(optimizer="adamw", learning_rate=1e-2, head_rate=1.0, ema=0.999)
    model.compile(make_optimizer(config, steps=steps, model=model))
    data = tf.data.Dataset.from_tensor_slices(blocks(400, seed=0)).batch(8).repeat()
    model.fit(data, steps_per_epoch=steps, verbose=0, shuffle=False)
    held_out = tf.data.Dataset.from_tensor_slices(blocks(100, seed=1)).batch(50)

    def accuracy() -> float:
        return float(model.evaluate(held_out, verbose=0, return_dict=True)["refine_accuracy"])

    raw = accuracy()
    with averaged(model):
        found = accuracy()
    record_property(f"accuracy after {steps} steps", f"weights {raw:.3f}, average {found:.3f}")
    assert raw > 0.9
    assert found > raw - 0.005
