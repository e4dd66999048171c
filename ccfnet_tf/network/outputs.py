"""From the outputs of the heads to what users are given: labels, probabilities, difficulty, risk.

The one place that says so: `KerasNetwork`, `evaluate` and every export call it.

Shapes: B images of height H and width W, C classes. `refine` holds log-probabilities [B, H, W, C],
`attention` logits [B, H, W, 2] of which the first is hard (paper 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from ccfnet_tf.network.calibration import UNCALIBRATED, Calibration
from ccfnet_tf.network.model import FINE_LAYER


def with_fine(model: Any) -> keras.Model:
    """Returns a model that has the logits of the fine branch alone among its outputs.

    Args:
        model: A `CCFNet`.

    Returns:
        A model with outputs `coarse`, `attention`, `refine` and `fine`; it shares the weights.
    """
    fine = model.get_layer(FINE_LAYER).output
    return keras.Model(model.inputs, {**model.output, "fine": fine}, name="with_fine")


def exported_heads(model: Any) -> keras.Model:
    """Returns a model from `images` to `attention` and `refine` alone, which shares the weights."""
    wanted = {name: model.output[name] for name in ("attention", "refine")}
    return keras.Model({"images": model.inputs[0]}, wanted)


def labels(log_probabilities: tf.Tensor) -> tf.Tensor:
    """Returns class ids int32 [...] of [..., C]; of logits too."""
    return tf.argmax(log_probabilities, axis=-1, output_type=tf.int32)


def probabilities(refine: tf.Tensor) -> tf.Tensor:
    """Returns float32 [..., C], which sum to 1 over the classes."""
    return tf.exp(tf.cast(refine, tf.float32))


def difficulty(attention: tf.Tensor) -> tf.Tensor:
    """Returns P(coarse is wrong), float32 [B, H, W], 0..1, of attention's logits."""
    hard = tf.nn.softmax(tf.cast(attention, tf.float32))
    # A slice that keeps the axis: LiteRT's GPU path has none that drops it.
    hard = tf.slice(hard, [0, 0, 0, 0], [-1, -1, -1, 1])
    shape = attention.shape[:3]
    return tf.reshape(hard, shape if shape.is_fully_defined() else tf.shape(attention)[:3])


def difficulty_logit(attention: tf.Tensor) -> tf.Tensor:
    """Returns the logit of `difficulty`, float32 [...], of attention's logits [..., 2]."""
    attention = tf.cast(attention, tf.float32)
    return attention[..., 0] - attention[..., 1]


def risk(probability: tf.Tensor) -> tf.Tensor:
    """Returns 1 - the largest probability, [...] of [..., C]."""
    return 1.0 - tf.reduce_max(probability, axis=-1)


def log_probabilities(logits: tf.Tensor) -> tf.Tensor:
    """Returns float32 [..., C] of logits or of log-probabilities [..., C]."""
    return tf.nn.log_softmax(tf.cast(logits, tf.float32))


def calibrated(refine: tf.Tensor, calibration: Calibration) -> tf.Tensor:
    """Returns calibrated log-probabilities, float32 [..., C], of refine's [..., C]."""
    refine = tf.cast(refine, tf.float32)
    if calibration == UNCALIBRATED:
        return refine
    bias = calibration.bias or (0.0,)
    return tf.nn.log_softmax(refine * tf.constant(calibration.scale) + tf.constant(bias))


def calibrated_attention(attention: tf.Tensor, calibration: Calibration) -> tf.Tensor:
    """Returns the calibrated logit of P(coarse is wrong), float32 [...], of attention [..., 2]."""
    scale, bias = calibration.attention_scale, calibration.attention_bias
    return difficulty_logit(attention) * scale + bias


def wrong_logit(log_probabilities: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    """Returns the logit of 1 - P(label), float32 [...]: log of (all other classes / that class).

    The other classes are added up without that one: beside a probability near 1, float32 loses
    what is below 1e-7.

    Args:
        log_probabilities: [..., C].
        label: Integer [...], 0..C-1.
    """
    chosen = tf.one_hot(label, log_probabilities.shape[-1], True, False, dtype=tf.bool)
    others = tf.reduce_logsumexp(tf.where(chosen, -float("inf"), log_probabilities), axis=-1)
    return others - tf.reduce_sum(tf.where(chosen, log_probabilities, 0.0), axis=-1)


def maps(
    outputs: Mapping[str, tf.Tensor], calibration: Calibration = UNCALIBRATED
) -> dict[str, tf.Tensor]:
    """Returns what users are given of the heads' outputs.

    Args:
        outputs: `coarse` [..., C] (logits or log-probabilities), `attention` [..., 2] (logits) and
            `refine` [..., C] (log-probabilities).
        calibration: Applied to probabilities, difficulty, risk and attention; never to labels.

    Returns:
        `labels` int32 [...]; `probabilities` float32 [..., C]; and three maps, float32 [...],
        0..1: `attention`, P(coarse is wrong) as the attention head sees it; `difficulty`, P(coarse
        is wrong) after fine was computed: 1 - refine's probability of coarse's label; `risk`,
        P(the label is wrong): 1 - its probability.
    """
    refine = calibrated(outputs["refine"], calibration)
    label = labels(outputs["refine"])
    return {
        "labels": label,
        "probabilities": tf.exp(refine),
        "attention": tf.sigmoid(calibrated_attention(outputs["attention"], calibration)),
        "difficulty": tf.sigmoid(wrong_logit(refine, labels(outputs["coarse"]))),
        "risk": tf.sigmoid(wrong_logit(refine, label)),
    }
