"""From the outputs of the heads to what users are given: labels, probabilities and three maps.

`KerasNetwork` and every export call `maps`. `evaluate` counts without TensorFlow:
`evaluation.pixel_scores` computes the same with NumPy, and a test compares the two.

Shapes: B images of height H and width W, C classes. `refine` holds log-probabilities [B, H, W, C],
`attention` logits [B, H, W, 2] of which the first is hard (paper 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.network.heads import HardGate, log_softmax
from ccfnet_tf.network.model import FINE_LAYER

PYRAMID = "pyramid_pooling"
"""First layer of the fine head."""


def with_fine(model: Any) -> keras.Model:
    """Returns a model that has the logits of the fine branch alone among its outputs.

    Args:
        model: A `CCFNet`.

    Returns:
        A model with the outputs of `model` and `fine`; it shares the weights.
    """
    fine = model.get_layer(FINE_LAYER).output
    return keras.Model(model.inputs, {**model.output, "fine": fine}, name="with_fine")


def with_features(model: Any) -> keras.Model:
    """Returns a model that has the features of the backbone among its outputs.

    Args:
        model: A `CCFNet`.

    Returns:
        A model with the outputs of `model` and `features` [B, h, w, F], the stride-8 features
        that the fine head reads; it shares the weights.
    """
    features = model.get_layer(PYRAMID).input
    return keras.Model(model.inputs, {**model.output, "features": features}, name="with_features")


def exported_heads(model: Any) -> keras.Model:
    """Returns a model from `images` to the outputs of a `CCFNet`, which shares the weights."""
    return keras.Model({"images": model.inputs[0]}, dict(model.output))


def hard_threshold(model: Any) -> float | None:
    """Returns the threshold of a hard blend as attention's logit; None for a soft blend."""
    if not isinstance(model, keras.Model):  # a function, in tests of converters
        return None
    gates = [layer for layer in model.layers if isinstance(layer, HardGate)]
    return gates[0].limit if gates else None


def set_hard_threshold(model: keras.Model, threshold: float) -> None:
    """Sets the threshold of a hard blend, before the model is traced.

    Args:
        model: A `CCFNet`; one with a soft blend stays as it is.
        threshold: P(hard), 0..1.
    """
    for layer in model.layers:
        if isinstance(layer, HardGate):
            layer.threshold = threshold


def labels(log_probabilities: tf.Tensor) -> tf.Tensor:
    """Returns class ids int32 [...] of [..., C]; of logits too."""
    return tf.argmax(log_probabilities, axis=-1, output_type=tf.int32)


def attention_logit(attention: tf.Tensor) -> tf.Tensor:
    """Returns attention's logit of P(coarse is wrong), float32 [...], of its logits [..., 2]."""
    attention = tf.cast(attention, tf.float32)
    # Not by indices: LiteRT's GPU path has no slice that drops an axis.
    return tf.reduce_sum(attention * tf.constant([1.0, -1.0]), axis=-1)


def log_probabilities(logits: tf.Tensor) -> tf.Tensor:
    """Returns float32 [..., C] of logits or of log-probabilities [..., C]."""
    return tf.nn.log_softmax(tf.cast(logits, tf.float32))


def calibrated(refine: tf.Tensor, calibration: Calibration) -> tf.Tensor:
    """Returns calibrated log-probabilities, float32 [..., C], of refine's [..., C]."""
    refine = tf.cast(refine, tf.float32)
    if calibration == UNCALIBRATED:
        return refine
    bias = calibration.bias or (0.0,)
    return log_softmax(refine * tf.constant(calibration.scale) + tf.constant(bias))


def calibrated_attention(attention: tf.Tensor, calibration: Calibration) -> tf.Tensor:
    """Returns the calibrated logit of P(coarse is wrong), float32 [...], of attention [..., 2]."""
    scale, bias = calibration.attention_scale, calibration.attention_bias
    return attention_logit(attention) * scale + bias


def other_classes(probabilities: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    """Returns 1 - P(label), float32 [...], as the sum over all other classes.

    Near 0 the sum is exact where a subtraction from 1 is not. It uses only operators that LiteRT
    runs on GPUs; with ties, exactly one class is left out.

    Args:
        probabilities: float32 [..., C].
        label: int32 [...], 0..C-1.
    """
    classes = tf.range(probabilities.shape[-1], dtype=tf.float32)
    distance = tf.abs(classes - tf.expand_dims(tf.cast(label, tf.float32), -1))
    return tf.reduce_sum(tf.minimum(distance, 1.0) * probabilities, axis=-1)


def maps(
    outputs: Mapping[str, tf.Tensor],
    calibration: Calibration = UNCALIBRATED,
    *,
    arg_max: Callable[[tf.Tensor], tf.Tensor] = labels,
) -> dict[str, tf.Tensor]:
    """Returns what users are given of the heads' outputs.

    Args:
        outputs: `coarse` [..., C] (logits or log-probabilities), `attention` [..., 2] (logits) and
            `refine` [..., C] (log-probabilities).
        calibration: Applied to probabilities, difficulty, risk and attention; never to labels.
        arg_max: How `labels` is computed, where a converter needs other operators.

    Returns:
        `labels` int32 [...]; `probabilities` float32 [..., C]; and three maps, float32 [...],
        0..1: `attention`, P(coarse is wrong) as the attention head sees it; `difficulty`, P(coarse
        is wrong) after fine was computed: 1 - refine's probability of coarse's label; `risk`,
        P(the label is wrong): 1 - its probability.
    """
    probabilities = tf.exp(calibrated(outputs["refine"], calibration))
    label = arg_max(outputs["refine"])
    return {
        "labels": label,
        "probabilities": probabilities,
        "attention": tf.sigmoid(calibrated_attention(outputs["attention"], calibration)),
        "difficulty": other_classes(probabilities, arg_max(outputs["coarse"])),
        "risk": other_classes(probabilities, label),
    }
