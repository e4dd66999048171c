"""The training and test step, compared with NumPy, and their effect."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.network.ccfnet import build_ccfnet
from ccfnet_tf.network.model import LossWeights, PixelAccuracy

CLASSES = 3


Toy = Callable[..., Any]


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 40, 48, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (2, 40, 48)).astype(np.int32)
    labels[0, :30] = -1
    return images, labels


def numpy_losses(outputs: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
    valid = labels >= 0

    def mean_nll(logits: np.ndarray, truth: np.ndarray) -> float:
        logits = logits.astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return float(-np.take_along_axis(logs, truth[..., None], -1)[..., 0][valid].mean())

    truth = np.where(valid, labels, 0)
    easy = (outputs["coarse"].argmax(-1) == truth).astype(int)
    expected = {f"{head}_loss": mean_nll(outputs[head], truth) for head in ("coarse", "refine")}
    return {**expected, "attention_loss": mean_nll(outputs["attention"], easy)}


def test_losses_and_accuracy_equal_numpy(toy: Toy, batch: tuple[np.ndarray, np.ndarray]) -> None:
    model = toy(CLASSES)
    model.compile(loss_weights=LossWeights(1.0, 0.5, 2.0))
    images, labels = batch
    outputs = {key: value.numpy() for key, value in model(images).items()}
    found = model.evaluate(images, labels, batch_size=2, verbose=0, return_dict=True)
    expected = numpy_losses(outputs, labels)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    total = (
        expected["coarse_loss"] + 0.5 * expected["attention_loss"] + 2.0 * expected["refine_loss"]
    )
    assert found["loss"] == pytest.approx(total, rel=1e-5)
    right = (outputs["refine"].argmax(-1) == labels)[labels >= 0].mean()
    assert found["refine_accuracy"] == pytest.approx(right, rel=1e-6)


def test_class_weights_make_weighted_means(toy: Toy, batch: tuple[np.ndarray, np.ndarray]) -> None:
    weights = np.array([0.5, 4.0, 0.0])
    model = toy(CLASSES)
    model.compile(class_weights=weights.tolist())
    images, labels = batch
    outputs = {key: value.numpy() for key, value in model(images).items()}
    found = model.evaluate(images, labels, batch_size=2, verbose=0, return_dict=True)
    valid = labels >= 0
    truth = np.where(valid, labels, 0)
    share = np.where(valid, weights[truth], 0.0)
    for head in ("coarse", "refine"):
        logits = outputs[head].astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses = -np.take_along_axis(logs, truth[..., None], -1)[..., 0]
        wanted = (losses * share).sum() / share.sum()
        assert found[f"{head}_loss"] == pytest.approx(wanted, rel=1e-5)
    plain = numpy_losses(outputs, labels)
    assert found["attention_loss"] == pytest.approx(plain["attention_loss"], rel=1e-5)


def test_a_batch_of_classes_with_weight_zero_changes_no_weights(toy: Toy) -> None:
    model = toy(CLASSES)
    model.compile(optimizer="sgd", class_weights=[1.0, 0.0, 1.0],
                  loss_weights=LossWeights(attention=0.0))  # fmt: skip
    before = [v.numpy() for v in model.trainable_variables]
    found = model.train_on_batch(
        np.full((1, 32, 32, 3), 9.0, np.float32), np.ones((1, 32, 32), int), return_dict=True
    )
    assert np.isfinite(found["loss"])
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_the_number_of_class_weights_is_checked(toy: Toy) -> None:
    with pytest.raises(ConfigError, match=r"train\.class_weights has 2 values"):
        toy(CLASSES).compile(class_weights=[1.0, 1.0])


@pytest.mark.parametrize("key", ["ohem_share", "fine_threshold"])
def test_shares_outside_their_range_are_refused(toy: Toy, key: str) -> None:
    excluded = 0.0 if key == "ohem_share" else 1.0
    for value in (-0.1, excluded, 1.1, math.nan):
        with pytest.raises(ConfigError, match=rf"^{key} is {value}: it must be in 0\.\.1"):
            toy(CLASSES).compile(**{key: value})


def test_a_hard_pixel_weight_below_0_is_refused(toy: Toy) -> None:
    for value in (-0.1, math.inf, math.nan):
        with pytest.raises(
            ConfigError, match=rf"^hard_pixel_weight is {value}: it must be at least"
        ):
            toy(CLASSES).compile(hard_pixel_weight=value)


def test_label_smoothing_outside_its_range_is_refused(toy: Toy) -> None:
    for value in (-0.1, 0.6, math.nan):
        with pytest.raises(ConfigError, match=rf"^label_smoothing is {value}: it must be in 0\.\."):
            toy(CLASSES).compile(label_smoothing=value)


def test_evaluation_reports_losses_without_smoothing(
    toy: Toy, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    model = toy(CLASSES)
    found = []
    for smoothing in (0.0, 0.5):
        model.compile(label_smoothing=smoothing, run_eagerly=True)
        found.append(model.evaluate(*batch, batch_size=2, verbose=0, return_dict=True))
    assert found[0] == found[1]


def test_metrics_do_not_depend_on_batching(
    toy: Toy,
    batch: tuple[np.ndarray, np.ndarray],
) -> None:
    model = toy(CLASSES)
    model.compile()
    images, labels = batch  # the first image is mostly void
    together = model.evaluate(images, labels, batch_size=2, verbose=0, return_dict=True)
    apart = model.evaluate(images, labels, batch_size=1, verbose=0, return_dict=True)
    for name, value in together.items():
        assert apart[name] == pytest.approx(value, rel=1e-5), name


def test_a_batch_of_void_changes_no_weights(toy: Toy) -> None:
    model = toy(CLASSES)
    model.compile(optimizer=keras.optimizers.SGD(1.0))
    before = [variable.numpy() for variable in model.trainable_variables]
    images = np.full((1, 40, 40, 3), 90.0, np.float32)
    history = model.fit(images, np.full((1, 40, 40), -1), verbose=0).history
    assert history["loss"] == [0.0]
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_balanced_attention_gives_both_groups_the_same_weight(
    toy: Toy,
    batch: tuple[np.ndarray, np.ndarray],
) -> None:
    model = toy(CLASSES)
    model.compile(balanced_attention=True)
    images, labels = batch
    outputs = model(images)
    valid = labels >= 0
    easy = (outputs["coarse"].numpy().argmax(-1) == labels)[valid]
    logs = tf.nn.log_softmax(outputs["attention"]).numpy()[valid]
    nll = -np.where(easy, logs[:, 1], logs[:, 0])
    expected = (nll[easy].mean() + nll[~easy].mean()) / 2
    found = model.evaluate(images, labels, batch_size=2, verbose=0, return_dict=True)
    assert found["attention_loss"] == pytest.approx(expected, rel=1e-4)


def test_clipping_bounds_the_step(toy: Toy, batch: tuple[np.ndarray, np.ndarray]) -> None:
    model = toy(CLASSES)
    rate, norm = 0.1, 0.01
    model.compile(optimizer=keras.optimizers.SGD(rate), clip_norm=norm)
    before = [variable.numpy() for variable in model.trainable_variables]
    model.fit(*batch, batch_size=2, verbose=0)
    moved = [new.numpy() - old for old, new in zip(before, model.trainable_variables, strict=True)]
    assert np.sqrt(sum((m.astype(np.float64) ** 2).sum() for m in moved)) == pytest.approx(
        rate * norm, rel=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"attention_input": "features_and_coarse", "fine_input": "pyramid_and_detail"}],
    ids=["paper", "sees_more"],
)
def test_the_network_can_overfit_one_batch(options: dict[str, Any]) -> None:
    keras.utils.set_random_seed(0)
    model = build_ccfnet(
        CLASSES,
        backbone="mobilenet_v2",
        backbone_weights=None,
        head_channels=8,
        dropout=0.0,
        batch_norm_momentum=0.5,
        **options,
    )
    model.compile(optimizer=keras.optimizers.Adam(3e-3))
    labels = np.zeros((2, 49, 49), np.int32)
    labels[0, :, 24:] = 1
    labels[1, 24:] = 2
    labels[1, :5] = -1
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]], np.float32)
    images = colours[np.maximum(labels, 0)]
    data = tf.data.Dataset.from_tensors((images, labels)).repeat(20)
    for _ in range(8):
        model.fit(data, verbose=0, shuffle=False)
        found = model.evaluate(images, labels, batch_size=2, verbose=0, return_dict=True)
        if found["refine_accuracy"] > 0.99:
            break
    assert found["refine_accuracy"] > 0.99, found


def first_losses(jit_compile: bool) -> list[dict[str, float]]:
    """Returns the running means of the losses of three steps on one batch."""
    keras.utils.set_random_seed(0)
    model = build_ccfnet(
        CLASSES, backbone="mobilenet_v2", backbone_weights=None, head_channels=8, dropout=0.0
    )
    # Small steps, because with random weights rounding alone changes the gradient: a change of
    # 1e-7 in the weights was seen to change it by 3 %.
    model.compile(keras.optimizers.SGD(3e-6), jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    data = (rng.integers(0, 256, (4, 65, 65, 3)), rng.integers(-1, CLASSES, (4, 65, 65)))
    found = [model.train_on_batch(*data, return_dict=True) for _ in range(3)]
    return [{key: float(value) for key, value in logs.items() if "loss" in key} for logs in found]


@pytest.mark.slow
def test_training_with_xla_is_the_same() -> None:
    plain, compiled = first_losses(jit_compile=False), first_losses(jit_compile=True)
    assert plain[-1]["loss"] < plain[0]["loss"] * (1 - 5e-4)  # so that a wrong gradient shows
    for one, other in zip(plain, compiled, strict=True):
        for name, value in one.items():
            # Rounding may turn an easy pixel of 16900 into a hard one, worth 5e-5 of that loss.
            bound = 5e-4 if name == "attention_loss" else 1e-4
            assert other[name] == pytest.approx(value, rel=bound), name


@pytest.mark.slow
def test_xla_compiles_all_training_options(toy: Toy, batch: tuple[np.ndarray, np.ndarray]) -> None:
    found = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        model = toy(CLASSES)
        model.compile(
            keras.optimizers.SGD(1e-3),
            clip_norm=0.1,
            class_weights=[0.5, 2.0, 1.0],
            label_smoothing=0.1,
            balanced_attention=True,
            accumulate=2,
            jit_compile=jit_compile,
        )
        model.train_on_batch(*batch)
        found.append(model.train_on_batch(*batch, return_dict=True))
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-4), name


def test_pixel_accuracy_is_exact_beyond_the_range_of_float32() -> None:
    metric = PixelAccuracy()
    metric.right.assign(2**24)
    metric.seen.assign(2**25)
    metric.update_state(tf.constant(1, tf.int64), tf.constant(1, tf.int64))
    assert int(metric.right.numpy()) == 2**24 + 1
