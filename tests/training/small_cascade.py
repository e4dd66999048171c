"""A network of six layers that `run_by_hand` can follow."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ccfnet_tf.network import heads
from ccfnet_tf.network.backbone_weights import named_variables
from ccfnet_tf.network.fast_layers import BatchNorm
from ccfnet_tf.network.model import CCFNet
from tests.network.by_hand import Weights


def cascade(
    classes: int, *, synchronized: bool = False, affine_gate: bool = False, **_: Any
) -> CCFNet:
    """A model with the outputs of CCFNet and every kind of variable, including `scale`."""
    layers = keras.layers
    images = keras.Input((None, None, 3), name="images")
    inner = keras.Input((None, None, 3))
    x = layers.Conv2D(6, 3, padding="same", name="body")(inner)
    # Ours normalises fewer than four images otherwise; by hand that would be another network.
    norm = BatchNorm if synchronized else layers.BatchNormalization
    x = layers.ReLU(name="body_relu")(norm(synchronized=synchronized, name="body_norm")(x))
    x = keras.Model(inner, x, name="backbone")(images)
    coarse = layers.Conv2D(classes, 1, name="coarse_logits")(x)
    attention = layers.Conv2D(2, 1, name="attention_small")(x)
    attention = heads.AddConfidence(name="attention_logits")([attention, coarse])
    fine = layers.Conv2D(classes, 3, padding="same", name="fine_logits")(x)
    logs = heads.LogSoftmax(name="coarse_log_probabilities")(coarse)
    gate = heads.AffineGate(name="gate")(attention) if affine_gate else attention
    refine = heads.Blend(name="refine")([logs, gate, fine])
    outputs = {"coarse": coarse, "attention": attention, "refine": refine}
    outputs |= {"gate": gate} if affine_gate else {}
    model = CCFNet(inputs=images, outputs=outputs, name="toy")
    rng = np.random.default_rng(2)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0.3, 0.2, variable.shape))
    return model


def values(model: Any) -> Weights:
    """Returns every variable in float64, under the names of `named_variables`."""
    return {name: v.numpy().astype(np.float64) for name, v in named_variables(model).items()}
