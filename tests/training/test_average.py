"""The running average of the weights: what it is, and that the weights never become it."""

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
from ccfnet_tf.training.average import averaged
from ccfnet_tf.training.optimizer import make_optimizer

BATCH, STEPS, DECAY = 4, 5, 0.8
Values = list[np.ndarray]


def optimizer_of(model: Any, *, ema: float = DECAY, **settings: Any) -> Any:
    config = TrainConfig(ema=ema, **{"optimizer": "adamw", "learning_rate": 1e-2, **settings})
    return make_optimizer(config, steps=4 * STEPS, model=model)


def compiled(strategy: Any = None, **settings: Any) -> Any:
    """Two dense layers: the average knows nothing of what the network is."""
    keras.utils.set_random_seed(1)
    with (strategy or tf.distribute.get_strategy()).scope():
        inner = keras.Input((4,))
        body = keras.layers.Dense(3, name="body")(inner)
        backbone = keras.Model(
            inner, keras.layers.BatchNormalization(name="norm")(body), name="backbone"
        )
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


def weights(model: Any) -> Values:
    return [variable.numpy() for variable in model.trainable_variables]


def average(model: Any) -> Values:
    with averaged(model):
        return weights(model)


def assert_equal(one: Values, other: Values) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(one: Values, other: Values) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class Recorder(keras.callbacks.Callback):
    """Keeps the weights after each step that was not skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.after: list[Values] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.model.optimizer.iterations.numpy() > len(self.after):
            self.after.append(weights(self.model))


def by_hand(after: list[Values]) -> Values:
    found = after[0]
    for values in after[1:]:
        found = [DECAY * a + (1 - DECAY) * v for a, v in zip(found, values, strict=True)]
    return found


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_equals_a_recursion_over_the_weights(name: str) -> None:
    model, recorder = compiled(optimizer=name), Recorder()
    learn(model, batches(), callbacks=[recorder])
    assert len(recorder.after) == STEPS
    assert np.abs(average(model)[0] - weights(model)[0]).max() > 1e-3
    assert_close(average(model), by_hand(recorder.after))


def test_equals_it_in_the_cascade_on_two_replicas(
    toy: Callable[..., Any], two_replicas: Any
) -> None:
    """In parts, with scaled losses; a step that overflows does not move the average."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(STEPS, BATCH, 16, 16, 3)).astype(np.float32)
    images[2, -1] = np.inf
    labels = rng.integers(-1, 3, (STEPS, BATCH, 16, 16))
    with two_replicas.scope():
        model = toy(3)
        # An infinite picture would spoil the statistics of batch norm.
        model.get_layer("backbone").get_layer("body_norm").trainable = False
        model.compile(optimizer_of(model, precision="float16"), accumulate=2)
    recorder = Recorder()
    learn(model, tf.data.Dataset.from_tensor_slices((images, labels)), callbacks=[recorder])
    assert len(recorder.after) == STEPS - 1
    assert_close(average(model), by_hand(recorder.after))


def test_two_replicas_keep_the_average_of_one(two_replicas: Any) -> None:
    # Without batch norm's own statistics of each replica.
    models = [compiled(strategy, optimizer="sgd") for strategy in (None, two_replicas)]
    for model in models:
        model.get_layer("backbone").layers[-1].trainable = False
        learn(model, batches())
    assert_close(average(models[0]), average(models[1]))
    for variable in models[1].optimizer.variables:
        copies = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(*(copy.numpy() for copy in copies))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_fit_leaves_the_weights_alone(precision: str) -> None:
    plain, model = (compiled(ema=ema, precision=precision) for ema in (0.0, DECAY))
    for _ in range(2):
        learn(plain, batches())
        learn(model, batches())
    assert_equal(weights(model), weights(plain))


@pytest.mark.parametrize("replicas", [1, 2])
def test_weights_come_back_after_an_exception_too(replicas: int, two_replicas: Any) -> None:
    model = compiled(two_replicas if replicas == 2 else None)
    learn(model, batches())
    before = weights(model)
    with averaged(model):
        assert any((a != b).any() for a, b in zip(weights(model), before, strict=True))
    assert_equal(weights(model), before)
    with pytest.raises(KeyboardInterrupt), averaged(model):
        raise KeyboardInterrupt
    assert_equal(weights(model), before)


def test_the_answers_within_are_of_the_average() -> None:
    model = compiled()
    learn(model, batches())
    inputs, _ = next(iter(batches()))
    plain = model.predict_on_batch(inputs)
    with averaged(model):
        shown = model.predict_on_batch(inputs)
    assert np.abs(shown - plain).max() > 1e-3
    np.testing.assert_array_equal(model.predict_on_batch(inputs), plain)


@pytest.mark.parametrize("case", ["none kept", "no step yet"])
def test_nothing_happens_where_there_is_no_average(case: str) -> None:
    model = compiled(ema=0.0 if case == "none kept" else DECAY)
    if case == "none kept":
        learn(model, batches())
    before = weights(model)
    assert_equal(average(model), before)
    assert_equal(weights(model), before)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_resumed_run_goes_on_to_the_same_average(precision: str, tmp_path: Path) -> None:
    model = compiled(precision=precision)
    learn(model, batches())
    assert np.abs(average(model)[0] - weights(model)[0]).max() > 1e-3
    checkpoint.save_last(tmp_path / "last.npz", model, checkpoint.Progress(1, STEPS))
    resumed = compiled(precision=precision)
    checkpoint.restore(tmp_path / "last.npz", resumed)
    assert_equal(average(resumed), average(model))
    for each in (model, resumed):
        learn(each, batches())
    assert_equal(weights(resumed), weights(model))
    assert_equal(average(resumed), average(model))
