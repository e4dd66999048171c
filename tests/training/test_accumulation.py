"""Gradient accumulation gives the weights and metrics of the complete batch, with uneven void."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.config import TrainConfig
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.network.model import LossWeights
from ccfnet_tf.training.optimizer import make_optimizer

SIZE, CLASSES, BATCH, STEPS = 16, 3, 8, 5
VOID_SHARES = [0.99, 0.9, 0.5, 0.0, 0.95, 0.05, 1.0, 0.3]  # of the images of each batch
CONVOLUTIONS = 4  # of the toy network
Toy = Callable[..., Any]


def batches() -> tf.data.Dataset:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(STEPS, BATCH, SIZE, SIZE, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (STEPS, BATCH, SIZE, SIZE)).astype(np.int32)
    labels[rng.random(labels.shape) < np.reshape(VOID_SHARES, (BATCH, 1, 1))] = -1
    return tf.data.Dataset.from_tensor_slices((images, labels))


def compiled(toy: Toy, precision: str = "float32", **options: Any) -> Any:
    """A toy without batch norm, whose statistics differ between micro-batch and batch."""
    model = toy(CLASSES)
    model.get_layer("backbone").get_layer("body_norm").trainable = False
    config = TrainConfig(
        optimizer="sgd",
        learning_rate=0.05,
        precision=precision,  # type: ignore[arg-type]
    )
    model.compile(
        make_optimizer(config, steps=2 * STEPS, model=model),
        loss_weights=LossWeights(fine=0.5),
        **options,
    )
    return model


Learned = tuple[dict[str, np.ndarray], dict[str, list[float]]]


def train(toy: Toy, strategy: Any, *, regularised: bool = False, **options: Any) -> Learned:
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = compiled(toy, **options)
    if regularised:
        model.get_layer("fine_logits").kernel.regularizer = keras.regularizers.L2(0.5)
    history = model.fit(batches(), epochs=2, verbose=0, shuffle=False).history
    return {v.path: v.numpy() for v in model.trainable_variables}, history


# What is compiled, then (replicas, parts) that must equal one replica that learns it whole.
CASES: dict[str, tuple[dict[str, Any], list[tuple[int, int]]]] = {
    "plain": ({}, [(1, 4), (2, 4)]),
    "all": (
        {
            "class_weights": [0.2, 3.0, 1.0],
            "label_smoothing": 0.2,
            "clip_norm": 0.05,
            "regularised": True,
        },
        [(2, 2)],
    ),
    # Loss scaling multiplies by powers of two: exact here, where the layers are float32.
    "scaled": ({"precision": "float16", "clip_norm": 0.05}, [(2, 2)]),
}


@pytest.mark.parametrize(
    "case", ["all", *(pytest.param(c, marks=pytest.mark.slow) for c in ("plain", "scaled"))]
)
def test_accumulation_equals_the_complete_batch(case: str, toy: Toy, two_replicas: Any) -> None:
    options, trials = CASES[case]
    one = tf.distribute.get_strategy()
    keras.utils.set_random_seed(1)
    start = {v.path: v.numpy() for v in compiled(toy).trainable_variables}
    weights, figures = train(toy, one, **options)
    assert max(np.abs(weights[path] - start[path]).max() for path in weights) > 0.01
    for replicas, parts in trials:
        strategy = one if replicas == 1 else two_replicas
        in_parts, of_parts = train(toy, strategy, accumulate=parts, **options)
        told = f"{parts} parts on {replicas}: "
        for path, value in weights.items():
            np.testing.assert_allclose(in_parts[path], value, atol=1e-6, err_msg=told + path)
        assert set(figures) - set(of_parts) <= {"gradient_norm"}  # none of several replicas
        for name, values in of_parts.items():
            np.testing.assert_allclose(values, figures[name], rtol=2e-5, err_msg=told + name)


@pytest.mark.slow
def test_balanced_attention_balances_each_micro_batch(toy: Toy) -> None:
    # Two parts that are alike: balanced each for itself they are balanced together.
    images, labels = next(iter(batches().as_numpy_iterator()))
    twice = (np.concatenate([images, images]), np.concatenate([labels, labels]))
    found = []
    for accumulate in (1, 2):
        keras.utils.set_random_seed(1)
        model = compiled(toy, balanced_attention=True, accumulate=accumulate)
        found.append(model.train_on_batch(*twice, return_dict=True))
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-5), name


def test_a_micro_batch_waits_for_the_gradients_of_the_previous_one(toy: Toy) -> None:
    """In parallel, micro-batches would need the memory of the complete batch."""
    parts = 2
    model = compiled(toy, accumulate=parts)
    step = tf.function(lambda *data: model.train_step(data))
    graph = step.get_concrete_function(*next(iter(batches()))).graph
    forward = [op for op in graph.get_operations() if op.type == "Conv2D"]
    before = [sum(op.type == "Conv2DBackpropFilter" for op in ancestors(conv)) for conv in forward]
    assert sorted(before) == [n * CONVOLUTIONS for n in range(parts) for _ in range(CONVOLUTIONS)]


def ancestors(operation: tf.Operation) -> set[tf.Operation]:
    found: set[tf.Operation] = set()
    left = [operation]
    while left:
        now = left.pop()
        new = {tensor.op for tensor in now.inputs} | set(now.control_inputs)
        left += new - found
        found |= new
    return found


def test_a_batch_not_divisible_by_accumulate_is_refused(toy: Toy, two_replicas: Any) -> None:
    wanted = r"train\.accumulate is 3: the batch of a replica has 8 images, which must be divisible"
    with pytest.raises(ConfigError, match=wanted) as raised:
        compiled(toy, accumulate=3).fit(batches(), verbose=0, shuffle=False)
    assert "\n" not in str(raised.value)
    with two_replicas.scope():
        model = compiled(toy, accumulate=8)
    with pytest.raises(ConfigError, match="the batch of a replica has 4 images"):
        model.fit(batches(), verbose=0, shuffle=False)


def test_accumulate_below_one_is_refused(toy: Toy) -> None:
    with pytest.raises(ConfigError, match=r"train\.accumulate is 0"):
        compiled(toy, accumulate=0)
