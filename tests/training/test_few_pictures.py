"""Training on single images, alone or by accumulation, is as accurate as on batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.config import TrainConfig
from ccfnet_tf.network import heads
from ccfnet_tf.network.backbones import LayerOptions
from ccfnet_tf.network.fast_layers import BatchNorm, Conv
from ccfnet_tf.network.model import CCFNet, LossWeights
from ccfnet_tf.network.normalise_pad_resize import ToImage
from ccfnet_tf.training.optimizer import make_optimizer

SIZE, CLASSES, PICTURES = 33, 3, 480
ROWS = [(8, 1), (8, 8), (1, 1)]  # batch and accumulate
COLOURS = np.array([[90, 110, 130], [130, 90, 110], [110, 130, 90]], np.float32)


def cascade(*, detail: bool) -> CCFNet:
    """The heads of CCFNet on a backbone of two convolutions."""
    style = heads.HeadStyle(channels=8, dropout=0.0, layers=LayerOptions(batch_norm_momentum=0.9))
    images = keras.Input((None, None, 3), name="images")
    inner = keras.Input((None, None, 3))
    x, maps = keras.layers.Rescaling(1 / 64, -2.0)(inner), []
    for filters, stride in ((8, 4), (12, 2)):
        x = Conv(filters, 5, strides=stride, padding="same", name=f"body_{stride}")(x)
        x = keras.layers.ReLU()(BatchNorm(momentum=0.9, name=f"body_{stride}_norm")(x))
        maps.append(x)
    fine_map, features = keras.Model(inner, maps, name="backbone")(images)

    def to_image(logits: Any, name: str, stride: int = 8) -> Any:
        return ToImage(stride, name=name)([logits, images])

    small = heads.head(features, CLASSES, "coarse", style)
    coarse = to_image(small, "coarse_logits")
    attention = to_image(heads.head(features, 2, "attention", style), "attention_logits")
    context, stride = heads.pyramid(features, style), 8
    if detail:
        context = heads.with_detail(context, heads.Judgement()(small), fine_map, style)
        stride = 4
    fine = to_image(heads.head(context, CLASSES, "fine", style), "fine_logits", stride)
    refine = heads.Blend(name="refine")([heads.LogSoftmax()(coarse), attention, fine])
    return CCFNet(
        inputs=images, outputs={"coarse": coarse, "attention": attention, "refine": refine}
    )


def draw_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Nine blocks of three colours with noise, each image with a different brightness."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, (count, 3, 3)).repeat(11, 1).repeat(11, 2)
    images = COLOURS[labels] + rng.normal(0, 8, (count, 1, 1, 3))
    images = images + rng.normal(0, 20, images.shape)
    return images.astype(np.float32), labels.astype(np.int32)


def train(batch: int, accumulate: int, *, detail: bool) -> dict[str, float]:
    """Returns the heads' accuracies on held-out images."""
    keras.utils.set_random_seed(1)
    epochs = 1 if batch == 1 else 4
    config = TrainConfig(optimizer="adamw", learning_rate=3e-3, head_rate=1.0, batch=batch)
    model = cascade(detail=detail)
    optimizer = make_optimizer(config, steps=epochs * PICTURES // batch, model=model)
    model.compile(optimizer, loss_weights=LossWeights(fine=0.5), accumulate=accumulate)
    data = tf.data.Dataset.from_tensor_slices(draw_images(PICTURES, seed=0))
    data = data.batch(batch, drop_remainder=True)
    model.fit(data, epochs=epochs, verbose=0, shuffle=False)
    held_out = tf.data.Dataset.from_tensor_slices(draw_images(200, seed=1)).batch(50)
    found = model.evaluate(held_out, verbose=0, return_dict=True)
    return {head: float(found[f"{head}_accuracy"]) for head in ("coarse", "fine", "refine")}


@pytest.mark.slow
@pytest.mark.parametrize("detail", [False, True], ids=["paper", "detail"])
def test_single_images_do_as_well_as_batches(
    detail: bool, record_property: Callable[[str, object], None]
) -> None:
    found = {row: train(*row, detail=detail) for row in ROWS}
    for (batch, accumulate), row in found.items():
        told = ", ".join(f"{head} {accuracy:.3f}" for head, accuracy in row.items())
        record_property(f"batch {batch}, accumulate {accumulate}", told)
    for head in ("coarse", "fine", "refine"):
        of_head = [row[head] for row in found.values()]
        assert min(of_head) > 0.85
        assert max(of_head) - min(of_head) < 0.02, head


@pytest.mark.parametrize("side", [1, 5])
def test_an_image_on_each_of_two_replicas_is_a_batch_of_two(side: int, two_replicas: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, (2, side, side, 4)).astype(np.float32)
    pull = rng.normal(size=x.shape).astype(np.float32)
    weights = [rng.uniform(0.5, 2.0, 4) for _ in range(4)]

    def layer_of(strategy: Any) -> BatchNorm:
        with strategy.scope():
            layer = BatchNorm(momentum=0.9, synchronized=True)
            layer.build((None, side, side, 4))
            layer.set_weights(weights)
        return layer

    def step(layer: BatchNorm, x: tf.Tensor, pull: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = layer(x, training=True)
            loss = tf.reduce_sum(output * pull)
        return output, tape.gradient(loss, x)

    one = layer_of(tf.distribute.get_strategy())
    expected = [value.numpy() for value in step(one, tf.constant(x), tf.constant(pull))]
    two = layer_of(two_replicas)
    shares = tf.data.Dataset.from_tensor_slices((x, pull)).batch(2, drop_remainder=True)
    share = next(iter(two_replicas.experimental_distribute_dataset(shares)))
    run = tf.function(lambda share: two_replicas.run(lambda *data: step(two, *data), args=share))
    for wanted, found in zip(expected, run(share), strict=True):
        parts = [part.numpy() for part in two_replicas.experimental_local_results(found)]
        np.testing.assert_allclose(np.concatenate(parts), wanted, atol=1e-5)
    for wanted, found in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
