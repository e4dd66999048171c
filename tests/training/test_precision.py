"""Training works in every precision, and outputs, losses and metrics are float32."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.config import TrainConfig
from ccfnet_tf.network import heads
from ccfnet_tf.network.backbones import LayerOptions
from ccfnet_tf.network.model import FINE_LAYER, CCFNet, LossWeights
from ccfnet_tf.network.normalise_pad_resize import Normalise
from ccfnet_tf.training.optimizer import make_optimizer

CLASSES, SIZE, BATCH, STEPS = 3, 16, 4, 30
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
COLOURS = np.array([[180, 80, 80], [80, 180, 80], [80, 80, 180]], np.float32)


def cascade(policy: str) -> CCFNet:
    """The heads of CCFNet on a single convolution, at its resolution."""
    keras.utils.set_random_seed(0)
    style = heads.HeadStyle(8, dropout=0.0, layers=LayerOptions(policy, batch_norm_momentum=0.8))
    images = keras.Input((SIZE, SIZE, 3), name="images")
    inner = keras.Input((SIZE, SIZE, 3))
    body = keras.Model(inner, heads.conv_norm_relu(inner, 8, 3, "body", style), name="backbone")
    features = body(Normalise("symmetric", dtype="float32", name="normalise")(images))
    coarse = heads.head(features, CLASSES, "coarse", style)
    opinion = heads.Judgement(dtype="float32", name="coarse_probabilities")(coarse)
    attention = heads.head(heads.judged(features, opinion, style), 2, "attention", style)
    fine = heads.head(heads.pyramid(features, style), CLASSES, "fine", style)
    fine = keras.layers.Activation("linear", dtype="float32", name=FINE_LAYER)(fine)
    logs = heads.LogSoftmax(dtype="float32", name="coarse_logs")(coarse)
    refine = heads.Blend(dtype="float32", name="refine")([logs, attention, fine])
    return CCFNet(images, {"coarse": coarse, "attention": attention, "refine": refine})


def compiled(precision: str) -> CCFNet:
    model = cascade(POLICIES[precision])
    config = TrainConfig(
        optimizer="adamw",
        learning_rate=1e-2,
        head_rate=1.0,
        precision=precision,  # type: ignore[arg-type]
    )
    optimizer = make_optimizer(config, steps=STEPS, model=model)
    model.compile(optimizer, loss_weights=LossWeights(fine=0.5))
    return model


def blobs(steps: int, seed: int) -> tf.data.Dataset:
    """Discs of two colours on a third, with noise; their rims are void."""
    rng = np.random.default_rng(seed)
    count = steps * BATCH
    centre = rng.uniform(4, SIZE - 4, (count, 2, 2, 1, 1))
    place = np.stack(np.mgrid[:SIZE, :SIZE])
    away = np.sqrt(((place - centre) ** 2).sum(2))  # [images, 2, SIZE, SIZE]
    labels = np.zeros((count, SIZE, SIZE), np.int32)
    for disc in (0, 1):
        labels[away[:, disc] < 4] = disc + 1
    images = COLOURS[labels] + rng.normal(0, 40, (*labels.shape, 3)).astype(np.float32)
    labels[(np.abs(away - 4) < 0.5).any(1)] = -1
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)


def learned(precision: str) -> dict[str, float]:
    """Returns each head's accuracy on held-out images."""
    model = compiled(precision)
    model.fit(blobs(STEPS, seed=0), verbose=0, shuffle=False)
    figures = model.evaluate(blobs(8, seed=1), verbose=0, return_dict=True)
    return {name: float(value) for name, value in figures.items() if name.endswith("accuracy")}


@pytest.mark.slow
def test_every_precision_is_as_accurate() -> None:
    # Over three seeds the precisions came within .0005 of each other; a seed moves them by .02.
    wanted = learned("float32")
    assert min(wanted.values()) > 0.95
    for precision in ("bfloat16", "float16"):
        for name, value in learned(precision).items():
            assert value == pytest.approx(wanted[name], abs=0.005), (precision, name)


@pytest.mark.parametrize("precision", POLICIES)
def test_outputs_losses_and_metrics_are_float32(precision: str) -> None:
    model = compiled(precision)
    assert model.get_layer("coarse_conv").compute_dtype == precision
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    images, labels = next(iter(blobs(1, seed=0)))
    outputs = {**model(images), **model.forward(images, training=True)}
    assert set(outputs) == {"coarse", "attention", "refine", "fine", "gate"}
    assert {value.dtype for value in outputs.values()} == {tf.float32}
    total = tf.reduce_sum(tf.exp(outputs["refine"]), -1).numpy()
    np.testing.assert_allclose(total, 1.0, atol=1e-5)  # half precision would be off by 1e-3
    scaled: list[Any] = []
    scale_loss = model.optimizer.scale_loss
    model.optimizer.scale_loss = lambda loss: scaled.append(loss.dtype) or scale_loss(loss)
    figures = model.train_step((images, labels))
    assert scaled == [tf.float32]
    assert {value.dtype for value in figures.values()} == {tf.float32}


def test_an_overflow_halves_the_loss_scale_and_skips_the_step() -> None:
    model = compiled("float16")
    scale = float(model.optimizer.dynamic_scale.numpy())
    before = [variable.numpy() for variable in model.trainable_variables]
    images, labels = next(iter(blobs(1, seed=0)))
    model.train_step((images * 1e9, labels))
    assert float(model.optimizer.dynamic_scale.numpy()) == scale / 2
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(new.numpy(), old)
    assert model.optimizer.iterations.numpy() == 0
