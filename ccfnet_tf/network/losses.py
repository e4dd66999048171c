"""The cascade's losses as sums over labelled pixels (paper section 3.2).

Shapes: B images, H x W pixels, C classes. Every loss here is a sum; the caller, who knows how many
labelled pixels the whole batch has, over all replicas, divides once. A mean per replica would
weigh a replica with little void like one with much, and two replicas would not equal one.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from ccfnet_tf.labels import EASY
from ccfnet_tf.network.heads import log_add_exp

FILE_VOID = 255
"""Void in index PNGs; labels straight from such files are understood too."""


class Target(NamedTuple):
    """What a batch is held against.

    Attributes:
        labels: [B, H, W] int32 class ids, 0 where void (so that they can index).
        valid: [B, H, W] bool, False where void.
    """

    labels: tf.Tensor
    valid: tf.Tensor


def split_void(labels: tf.Tensor, classes: int) -> Target:
    """Separates class ids from void: anything below 0, and 255 where it is not a class.

    Any other id outside 0..C-1 is left in, for the caller to refuse: an error in the labels must
    not pass as void.
    """
    labels = tf.cast(labels, tf.int32)
    if labels.shape.rank == 4:  # [B, H, W, 1], as Keras's own loaders give masks
        labels = tf.squeeze(labels, -1)
    void = labels < 0
    if classes <= FILE_VOID:
        void = tf.logical_or(void, tf.equal(labels, FILE_VOID))
    return Target(tf.where(void, 0, labels), tf.logical_not(void))


def attention_target(coarse: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns 1 (easy) where coarse's arg max equals the label, else 0 (hard).

    Args:
        coarse: [B, H, W, C] logits.
        labels: [B, H, W] int32 class ids.

    Returns:
        [B, H, W] int32; arg max has no gradient, so none flows through the target.
    """
    guess = tf.argmax(coarse, axis=-1, output_type=tf.int32)
    return tf.cast(tf.equal(guess, labels), tf.int32)


def cross_entropy(logits: tf.Tensor, target: Target) -> tf.Tensor:
    """Returns [B, H, W] float32 cross-entropy in nats, 0 where void."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=target.labels, logits=tf.cast(logits, tf.float32)
    )
    return tf.where(target.valid, losses, 0.0)


def gate_logs(attention: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log P(hard) and log P(easy), [B, H, W] each, from attention logits [B, H, W, 2].

    A softmax over two classes is a function of their difference; as one it takes a fifth of the
    time, with its gradient, on CPUs.
    """
    hard, easy = tf.unstack(tf.cast(attention, tf.float32), axis=-1)
    return -tf.nn.softplus(easy - hard), -tf.nn.softplus(hard - easy)


def attention_cross_entropy(attention: tf.Tensor, easy: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Returns [B, H, W] float32 cross-entropy of the attention head in nats, 0 where void.

    Args:
        attention: [B, H, W, 2] logits.
        easy: [B, H, W] int32 from `attention_target`.
        valid: [B, H, W] bool, False where void.
    """
    log_hard, log_easy = gate_logs(attention)
    losses = -tf.where(tf.equal(easy, EASY), log_easy, log_hard)
    return tf.where(valid, losses, 0.0)


def blend_cross_entropy(
    coarse: tf.Tensor, fine: tf.Tensor, attention: tf.Tensor, valid: tf.Tensor
) -> tf.Tensor:
    """Returns the cross-entropy of the blended answer from those of its two parts.

    The blend's probability of the true class needs no other class:
    `P(easy) exp(-coarse) + P(hard) exp(-fine)`. So the loss never builds the blend's C classes
    at full resolution, and needs no gradient through them.

    Args:
        coarse: [B, H, W] cross-entropy of the coarse head.
        fine: [B, H, W] cross-entropy of the fine head.
        attention: [B, H, W, 2] logits.
        valid: [B, H, W] bool, False where void.

    Returns:
        [B, H, W] float32 in nats, 0 where void.
    """
    log_hard, log_easy = gate_logs(attention)
    blend = -log_add_exp(log_easy - coarse, log_hard - fine)
    return tf.where(valid, blend, 0.0)


def blend_answer(coarse: tf.Tensor, fine: tf.Tensor, attention: tf.Tensor) -> tf.Tensor:
    """Returns the blended answer's class ids, int32 [B, H, W], from the heads' logits."""
    hard, easy = tf.unstack(attention, axis=-1)
    gate = tf.sigmoid(easy - hard)[..., None]
    blend = gate * tf.nn.softmax(coarse) + (1.0 - gate) * tf.nn.softmax(fine)
    return tf.argmax(blend, -1, output_type=tf.int32)


def count(mask: tf.Tensor) -> tf.Tensor:
    """Returns the number of true entries as float32.

    Counted in int64: float32 cannot count beyond 2^24 one by one, and two large images have
    more pixels than that.
    """
    return tf.cast(tf.math.count_nonzero(mask), tf.float32)


def balance(hard: tf.Tensor, easy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the weights of a hard and of an easy pixel that give both groups the same total.

    Args:
        hard: Number of hard pixels in the whole batch, scalar float32.
        easy: Number of easy pixels.

    Returns:
        Two scalars; the weights of all pixels add up to their number. A group that has every
        pixel gets weight 1.
    """
    both = hard + easy
    groups = tf.cast(hard > 0, tf.float32) + tf.cast(easy > 0, tf.float32)
    share = both / tf.maximum(groups, 1.0)
    return share / tf.maximum(hard, 1.0), share / tf.maximum(easy, 1.0)
