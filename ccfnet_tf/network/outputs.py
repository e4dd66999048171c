"""From the outputs of the heads to what users are given: labels, probabilities, difficulty, risk.

The one place that says so: `KerasNetwork`, `evaluate` and every export call it.

Shapes: B images of height H and width W, C classes. `refine` holds log-probabilities [B, H, W, C],
`attention` logits [B, H, W, 2] of which the first is hard (paper 3.1).
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

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
