from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.config import TrainConfig
from ccfnet_tf.training.optimizer import ADAM_EPSILON, PolyDecay, make_optimizer, scaled_rate


@pytest.fixture
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    inner = keras.Input((4,))
    backbone = keras.Model(inner, keras.layers.Dense(5, name="body")(inner), name="backbone")
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(backbone(inputs)))


def test_poly_decay_by_hand() -> None:
    schedule = PolyDecay(1.0, steps=10, warmup_steps=2, power=2.0)
    rates = [float(schedule(step)) for step in (0, 1, 5, 10, 11)]
    np.testing.assert_allclose(rates, [0.5, 0.81, 0.25, 0.0, 0.0], rtol=1e-6)


def test_poly_decay_round_trips() -> None:
    schedule = PolyDecay(0.3, 7, 2, 0.9)
    again = PolyDecay.from_config(schedule.get_config())
    assert float(again(3)) == float(schedule(3))


def numpy_adamw(
    value: np.ndarray, gradients: list[np.ndarray], rates: list[float], decay: float
) -> np.ndarray:
    first, second = np.zeros_like(value), np.zeros_like(value)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        value = value - rate * decay * value
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        value = value - corrected * first / (np.sqrt(second) + ADAM_EPSILON)
    return value


def numpy_sgd(
    value: np.ndarray, gradients: list[np.ndarray], rates: list[float], decay: float
) -> np.ndarray:
    momentum = np.zeros_like(value)
    for gradient, rate in zip(gradients, rates, strict=True):
        value = value - rate * decay * value
        momentum = 0.9 * momentum - rate * gradient
        value = value + momentum
    return value


@pytest.mark.parametrize(("name", "by_hand"), [("adamw", numpy_adamw), ("sgd", numpy_sgd)])
def test_rates_and_decay_of_backbone_and_heads_equal_numpy(
    model: keras.Model, name: str, by_hand: object
) -> None:
    config = TrainConfig(
        optimizer=name,  # type: ignore[arg-type]
        learning_rate=1e-2,
        head_rate=10.0,
        weight_decay=0.1,
        warmup=0.0,
    )
    steps = 5
    optimizer = make_optimizer(config, steps=steps, model=model)
    before = {v.path: v.numpy().astype(np.float64) for v in model.trainable_variables}
    rng = np.random.default_rng(0)
    gradients = [
        {v.path: rng.normal(size=v.shape) for v in model.trainable_variables} for _ in range(steps)
    ]
    for step in gradients:
        optimizer.apply(
            [tf.constant(step[v.path], tf.float32) for v in model.trainable_variables],
            model.trainable_variables,
        )
    for variable in model.trainable_variables:
        rate = 1e-2 * (10.0 if variable.path.startswith("head") else 1.0)
        rates = [rate * (1 - step / steps) ** 0.9 for step in range(steps)]
        decay = 0.1 if variable.name == "kernel" else 0.0
        expected = by_hand(  # type: ignore[operator]
            before[variable.path], [g[variable.path] for g in gradients], rates, decay
        )
        np.testing.assert_allclose(variable.numpy(), expected, atol=2e-5, err_msg=variable.path)


def kernels_after(model: keras.Model, config: TrainConfig, steps: int) -> dict[str, float]:
    """Returns the remaining fraction of each kernel after steps with zero gradients."""
    optimizer = make_optimizer(config, steps=steps, model=model)
    variables = model.trainable_variables
    before = [np.linalg.norm(v.numpy()) for v in variables]
    zeros = [tf.zeros(v.shape) for v in variables]
    apply = tf.function(lambda: optimizer.apply(zeros, variables))
    for _ in range(steps):
        apply()
    left = zip(variables, before, strict=True)
    return {v.path: np.linalg.norm(v.numpy()) / b for v, b in left if v.name == "kernel"}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("decay", ["auto", 0.5])
def test_weight_decay_shrinks_kernels_as_documented(
    model: keras.Model, name: str, decay: str | float
) -> None:
    rate = {"adamw": 1e-4, "sgd": 1e-2}[name]
    config = TrainConfig(
        optimizer=name,  # type: ignore[arg-type]
        learning_rate=rate,
        weight_decay=decay,  # type: ignore[arg-type]
        warmup=0.0,
    )
    steps = 2560  # 40 epochs of Stanford Background
    rates = sum(rate * (1 - step / steps) ** 0.9 for step in range(steps))
    share = {"adamw": 0.05, "sgd": 1e-3}[name] if decay == "auto" else float(decay)
    for path, left in kernels_after(model, config, steps).items():
        of_part = rates * (10.0 if path.startswith("head") else 1.0)
        assert left == pytest.approx(np.exp(-share * of_part), rel=2e-2)
        assert left < 1 - 5e-3  # that much at least, or it does nothing


def test_sgd_decay_is_an_l2_penalty_of_a_tenth(model: keras.Model) -> None:
    config = TrainConfig(optimizer="sgd", learning_rate=1e-2, warmup=0.0, poly_power=0.0)
    left = kernels_after(model, config, 1000)
    value, momentum = 1.0, 0.0
    for _ in range(1000):  # the gradient of 1e-4 / 2 * value ** 2, through the momentum
        momentum = 0.9 * momentum - 1e-2 * 1e-4 * value
        value += momentum
    backbone = [share for path, share in left.items() if not path.startswith("head")]
    assert backbone == pytest.approx([value] * len(backbone), rel=1e-3)


def test_float16_scales_the_loss(model: keras.Model) -> None:
    optimizer = make_optimizer(TrainConfig(precision="float16"), steps=5, model=model)
    assert float(optimizer.scale_loss(tf.constant(1.0))) > 1.0


@pytest.mark.parametrize(
    ("name", "batch", "meant_for", "wanted"),
    [
        ("sgd", 64, 16, 0.04),
        ("sgd", 8, 16, 0.005),
        ("adamw", 64, 16, 0.02),
        ("adamw", 4, 16, 0.005),
        ("sgd", 64, 0, 0.01),
        ("adamw", 64, 64, 0.01),
    ],
)
def test_the_learning_rate_is_scaled_with_the_batch_size(
    model: keras.Model, name: str, batch: int, meant_for: int, wanted: float
) -> None:
    config = TrainConfig(
        optimizer=name,  # type: ignore[arg-type]
        batch=batch,
        rate_for_batch=meant_for,
        learning_rate=0.01,
        warmup=0.0,
    )
    assert scaled_rate(config) == pytest.approx(wanted)
    optimizer = make_optimizer(config, steps=5, model=model)
    assert float(optimizer.learning_rate) == pytest.approx(wanted)
