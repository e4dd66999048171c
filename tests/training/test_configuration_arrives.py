"""Every key of `train` and `model` does what it says: none is lost on its way to the network.

Keys of `train` are seen in the weights: a few steps with the key must give what the same steps give
by hand (`run_by_hand`), and by far not what they give without it. A key without a row fails.

Which faults which test sees (a row is a case of `test_a_train_key_changes_the_steps_as_by_hand`):

    fine_loss_weight, clip_norm or balanced_attention not passed on    their rows
    coarse and attention weights swapped                               their rows
    batch_norm frozen that freezes nothing                             row batch_norm
    gamma or scale decayed                                             row weight_decay
    schedule one epoch too long                      every row; test_a_run_equals_the_one_by_hand
    synchronised batch norm never on                 test_batch_norm_over_two_replicas
    best chosen by coarse, best = latest             test_the_best_epoch_is_kept
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, TrainConfig, to_yaml
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.evaluation.evaluate import Evaluation, Evaluator
from ccfnet_tf.inference.checkpoint_file import read_arrays
from ccfnet_tf.network import backbones, heads
from ccfnet_tf.network.layers import BatchNorm
from ccfnet_tf.network.model import CCFNet
from ccfnet_tf.network.weights import named_variables
from ccfnet_tf.pipeline.batch import training_batches
from ccfnet_tf.training import build, checkpoint, epoch_end, fit
from ccfnet_tf.training.average import averaged
from ccfnet_tf.training.journal import write_classes
from ccfnet_tf.training.run_data import RunData, check_data
from tests.network import by_hand
from tests.network.by_hand import Weights
from tests.training import run_by_hand

STEPS, SIZE, TOLERANCE = 2, 12, 1e-4
DATA = DataConfig(format="scenes", scenes=10, scene_size=(32, 32), crop=33, val_share=0.2)
TRAIN = TrainConfig(
    epochs=2,
    batch=2,
    learning_rate=0.05,
    head_rate=2.0,
    weight_decay=0.5,
    warmup=0.5,
    batch_norm="trainable",
    precision="float32",
    strategy="none",
)
MODEL = ModelConfig(backbone="mobilenet_v2", backbone_weights="none", head_channels=4, dropout=0.0)
CONFIG = RunConfig(data=DATA, model=MODEL, train=TRAIN)
QUIET = Console(quiet=True)


def with_train(**keys: Any) -> RunConfig:
    return replace(CONFIG, train=replace(TRAIN, **keys))


def with_model(**keys: Any) -> RunConfig:
    return replace(CONFIG, model=replace(MODEL, **keys))


@pytest.fixture(scope="module")
def data() -> RunData:
    return check_data(CONFIG, QUIET)


def cascade(classes: int, *, synchronized: bool = False, **_: Any) -> CCFNet:
    """A small network with every kind of variable, attention's `scale` too, none of them at rest."""
    layers = keras.layers
    images = keras.Input((None, None, 3), name="images")
    inner = keras.Input((None, None, 3))
    x = layers.Conv2D(6, 3, padding="same", name="body")(inner)
    x = layers.ReLU(name="body_relu")(BatchNorm(synchronized=synchronized, name="body_norm")(x))
    x = keras.Model(inner, x, name="backbone")(images)
    coarse = layers.Conv2D(classes, 1, name="coarse_logits")(x)
    attention = layers.Conv2D(2, 1, name="attention_small")(x)
    attention = heads.AddConfidence(name="attention_logits")([attention, coarse])
    fine = layers.Conv2D(classes, 3, padding="same", name="fine_logits")(x)
    logs = heads.LogSoftmax(name="coarse_log_probabilities")(coarse)
    refine = heads.Blend(name="refine")([logs, attention, fine])
    outputs = {"coarse": coarse, "attention": attention, "refine": refine}
    model = CCFNet(inputs=images, outputs=outputs, name="toy")
    rng = np.random.default_rng(2)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0.3, 0.2, variable.shape))
    return model


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `fit` train the small network."""
    monkeypatch.setattr(build, "build_ccfnet", cascade)


def values(model: Any) -> Weights:
    return {name: v.numpy().astype(np.float64) for name, v in named_variables(model).items()}


def built(config: RunConfig, data: RunData, strategy: Any = None) -> CCFNet:
    strategy = strategy or tf.distribute.get_strategy()
    return build.build_model(config, strategy, data, STEPS, QUIET, fresh=True)


def drawn_batches(config: RunConfig, classes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches for a whole run, with void."""
    rng = np.random.default_rng(3)
    shape = (config.train.epochs * STEPS, config.train.batch, SIZE, SIZE)
    labels = rng.integers(-1, classes, shape)
    images = rng.normal(labels[..., None], 1.0, (*shape, 3))
    return list(zip(images.astype(np.float32), labels.astype(np.int32), strict=True))


# Keys that steps of the small network show, each with a value that is not `TRAIN`'s.
SEEN_IN_STEPS: dict[str, Any] = {
    "epochs": 3,
    "optimizer": "adamw",
    "learning_rate": 0.02,
    "head_rate": 5.0,
    "weight_decay": 0.05,
    "poly_power": 2.0,
    "warmup": 0.0,
    "clip_norm": 0.1,
    "batch_norm": "frozen",
    "coarse_loss_weight": 0.3,
    "attention_loss_weight": 0.3,
    "refine_loss_weight": 0.3,
    "fine_loss_weight": 0.8,
    "balanced_attention": True,
    "class_weights": "auto",
    "rate_for_batch": 8,
    "accumulate": 2,
}


def by_median_frequency(data: RunData) -> list[float]:
    labels = [data.parts.load(sample)[1] for sample in data.parts.train]
    shares = []
    for number in range(len(data.parts.taxonomy.names)):
        shown = [label for label in labels if (label == number).any()]
        labelled = sum((label >= 0).sum() for label in shown)
        shares.append(sum((label == number).sum() for label in shown) / labelled)
    return list(np.median(shares) / shares)


def ended(config: RunConfig, data: RunData) -> Weights:
    """Returns the weights at the end of the small network's run, by hand."""
    classes = len(data.parts.taxonomy.names)
    weighed = by_median_frequency(data) if config.train.class_weights == "auto" else None
    return run_by_hand.run(
        values(cascade(classes)),
        drawn_batches(config, classes),
        config.train,
        steps=config.train.epochs * STEPS,
        class_weights=weighed,
    )[-1][0]


@pytest.fixture(scope="module")
def ended_without(data: RunData) -> Weights:
    """The weights at the end of a run with none of the keys."""
    return ended(CONFIG, data)


@pytest.mark.parametrize("key", SEEN_IN_STEPS)
def test_a_train_key_changes_the_steps_as_by_hand(
    key: str, data: RunData, small_network: None, ended_without: Weights
) -> None:
    config = with_train(**{key: SEEN_IN_STEPS[key]})
    model = built(config, data)
    model.run_eagerly = True
    for batch in drawn_batches(config, len(data.parts.taxonomy.names)):
        model.train_on_batch(*batch)
    wanted = ended(config, data)
    assert max(np.abs(wanted[n] - ended_without[n]).max() for n in wanted) > 20 * TOLERANCE
    for name, value in values(model).items():
        np.testing.assert_allclose(value, wanted[name], atol=TOLERANCE, err_msg=name)
