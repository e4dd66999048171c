"""The losses of the heads, per pixel (paper section 3.2).

The caller sums them and divides once by the number of labelled pixels of the complete batch, over
all replicas. A mean per replica would give replicas the same weight whatever their number of
labelled pixels, and two replicas would not be equivalent to one.

Shapes: B images, H x W pixels, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from ccfnet_tf.labels import EASY
from ccfnet_tf.network.heads import log_add_exp

FILE_VOID = 255
"""Void value of index PNGs; labels read directly from such files are accepted too."""


class Target(NamedTuple):
    """Labels of a batch, with void separated from the class ids.

    Attributes:
        labels: [B, H, W] int32 class ids, 0 where void (so that they are valid indices).
        valid: [B, H, W] bool, False where void.
    """

    labels: tf.Tensor
    valid: tf.Tensor


def split_void(labels: tf.Tensor, classes: int) -> Target:
    """Separates class ids from void. Negative ids are void, and 255 is too if it is not a class.

    Any other id outside 0..C-1 is kept, so that the caller can reject it: an error in the labels
    must not be treated as void.
    """
    labels = tf.cast(labels, tf.int32)
    if labels.shape.rank == 4:  # [B, H, W, 1], the shape of masks from Keras's loaders
        labels = tf.squeeze(labels, -1)
    void = labels < 0
    if classes <= FILE_VOID:
        void = tf.logical_or(void, tf.equal(labels, FILE_VOID))
    return Target(tf.where(void, 0, labels), tf.logical_not(void))


def attention_target(coarse: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns 1 (easy) where the argmax of the coarse logits equals the label, else 0 (hard).

    Args:
        coarse: [B, H, W, C] logits.
        labels: [B, H, W] int32 class ids.

    Returns:
        [B, H, W] int32. Argmax has no gradient, so none flows through the target.
    """
    prediction = tf.argmax(coarse, axis=-1, output_type=tf.int32)
    return tf.cast(tf.equal(prediction, labels), tf.int32)


def cross_entropy(logits: tf.Tensor, target: Target) -> tf.Tensor:
    """Returns [B, H, W] float32 cross-entropy in nats, 0 where void."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=target.labels, logits=tf.cast(logits, tf.float32)
    )
    return tf.where(target.valid, losses, 0.0)


def gate_logs(gate: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log P(hard) and log P(easy), [B, H, W] each, of logits [B, H, W, 2].

    A softmax over two classes depends only on the difference of the logits. Computed from it, the
    function and its gradient take a fifth of the time on CPUs.
    """
    hard, easy = tf.unstack(tf.cast(gate, tf.float32), axis=-1)
    return -tf.nn.softplus(easy - hard), -tf.nn.softplus(hard - easy)


def hardest(values: tf.Tensor, valid: tf.Tensor, share: float) -> tf.Tensor:
    """Keeps the largest losses, scaled so that their sum stands for all labelled pixels.

    Online hard example mining (Shrivastava et al., CVPR 2016) of pixels. With N labelled pixels,
    the k = ceil(share x N) largest losses are multiplied by N / k and the others by 0: the mean
    over N pixels becomes that over the k hardest. Pixels that tie for the last places share them
    equally, so the sum is exact and does not depend on the order of the pixels.

    Args:
        values: [B, H, W] losses of at least 0.
        valid: [B, H, W] bool, False where void.
        share: Fraction of the labelled pixels that is kept, above 0. They are chosen among the
            pixels given: those of one replica, or of one part of its batch.

    Returns:
        [B, H, W] float32, 0 where void. The choice has no gradient.
    """
    if share >= 1.0:
        return values
    labelled = tf.math.count_nonzero(valid, dtype=tf.int32)
    # In float64, because float32 cannot count beyond 2^24. Less than a pixel's worth is
    # subtracted, so that the rounding of a product such as .1 x 30 adds no pixel.
    kept = tf.cast(tf.math.ceil(share * tf.cast(labelled, tf.float64) - 1e-6), tf.int32)
    # A sort has a static shape, which `top_k` with a computed k has not: XLA needs one.
    flat = tf.where(valid, tf.stop_gradient(values), -1.0)
    last = tf.sort(tf.reshape(flat, [-1]), direction="DESCENDING")[tf.maximum(kept - 1, 0)]
    above, tied = tf.logical_and(flat > last, valid), tf.logical_and(tf.equal(flat, last), valid)
    places = tf.cast(kept, tf.float32) - count(above)
    weight = tf.where(above, 1.0, tf.where(tied, places / tf.maximum(count(tied), 1.0), 0.0))
    kept_float = tf.maximum(tf.cast(kept, tf.float32), 1.0)
    return values * weight * tf.cast(labelled, tf.float32) / kept_float


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
    coarse: tf.Tensor, fine: tf.Tensor, gate: tf.Tensor, valid: tf.Tensor
) -> tf.Tensor:
    """Returns the cross-entropy of the blended prediction from those of the two heads.

    The blended probability of the true class, `P(easy) exp(-coarse) + P(hard) exp(-fine)`, does
    not depend on the other classes. Without label smoothing, training therefore never computes the
    blend of all C classes at full resolution, nor its gradient.

    Args:
        coarse: [B, H, W] cross-entropy of the coarse head; or [B, H, W, C], with each class as the
            label, where `gate` and `valid` have another axis of size 1 for the classes.
        fine: Cross-entropy of the fine head, of the same shape.
        gate: [B, H, W, 2] logits of the weights of fine and coarse; those of attention in the
            paper.
        valid: [B, H, W] bool, False where void.

    Returns:
        float32 in nats of the shape of `coarse`, 0 where void.
    """
    log_hard, log_easy = gate_logs(gate)
    blend = -log_add_exp(log_easy - coarse, log_hard - fine)
    return tf.where(valid, blend, 0.0)


def head_cross_entropies(
    coarse: tf.Tensor, fine: tf.Tensor, gate: tf.Tensor, target: Target, *, smoothing: float = 0.0
) -> dict[str, tf.Tensor]:
    """Returns the cross-entropies of coarse, fine and refine with labels that may be smoothed.

    The target probability is 1 - `smoothing` for the label, plus `smoothing` / C for each class
    (Szegedy et al., CVPR 2016).

    Args:
        coarse: [B, H, W, C] logits.
        fine: [B, H, W, C] logits.
        gate: [B, H, W, 2] logits of the weights of fine and coarse in refine.
        target: Labels.
        smoothing: Weight of the uniform distribution in the target. Above 0, the blend of all
            classes is computed.

    Returns:
        [B, H, W] float32 in nats for each of `coarse`, `fine` and `refine`, 0 where void.
    """
    pixelwise = {"coarse": cross_entropy(coarse, target), "fine": cross_entropy(fine, target)}
    pixelwise["refine"] = blend_cross_entropy(**pixelwise, gate=gate, valid=target.valid)
    if not smoothing:
        return pixelwise
    uniform = _uniform_cross_entropies(coarse, fine, gate, target.valid)
    return {
        head: (1.0 - smoothing) * values + smoothing * uniform[head]
        for head, values in pixelwise.items()
    }


def _uniform_cross_entropies(
    coarse: tf.Tensor, fine: tf.Tensor, gate: tf.Tensor, valid: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Returns the mean over classes of -log p of coarse, fine and refine, 0 where void."""
    # In log space to the end: values and gradients stay finite where probabilities underflow.
    by_class = {
        "coarse": -tf.nn.log_softmax(tf.cast(coarse, tf.float32)),
        "fine": -tf.nn.log_softmax(tf.cast(fine, tf.float32)),
    }
    labelled = valid[..., None]
    by_class["refine"] = blend_cross_entropy(**by_class, gate=gate[..., None, :], valid=labelled)
    return {
        head: tf.reduce_mean(tf.where(labelled, values, 0.0), -1)
        for head, values in by_class.items()
    }


def hard_probability(logits: tf.Tensor) -> tf.Tensor:
    """Returns P(hard), or the weight of fine in the blend, [B, H, W] of logits [B, H, W, 2]."""
    hard, easy = tf.unstack(logits, axis=-1)
    return tf.sigmoid(hard - easy)


def blend_prediction(coarse: tf.Tensor, fine: tf.Tensor, gate: tf.Tensor) -> tf.Tensor:
    """Returns the class ids of the blended prediction, int32 [B, H, W], from the heads' logits."""
    hard = hard_probability(gate)[..., None]
    blend = (1.0 - hard) * tf.nn.softmax(coarse) + hard * tf.nn.softmax(fine)
    return tf.argmax(blend, -1, output_type=tf.int32)


def count(mask: tf.Tensor) -> tf.Tensor:
    """Returns the number of true entries as float32.

    Counts in int64, because float32 cannot count beyond 2^24, and two large images have more
    pixels than that.
    """
    return tf.cast(tf.math.count_nonzero(mask), tf.float32)


def balance(hard: tf.Tensor, easy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the weights of a hard and of an easy pixel that give both groups the same total.

    Args:
        hard: Number of hard pixels in the complete batch, scalar float32.
        easy: Number of easy pixels in the complete batch, scalar float32.

    Returns:
        Two scalars. The weights of all pixels sum to the number of pixels. If one group contains
        all pixels, its weight is 1.
    """
    both = hard + easy
    groups = tf.cast(hard > 0, tf.float32) + tf.cast(easy > 0, tf.float32)
    share = both / tf.maximum(groups, 1.0)
    return share / tf.maximum(hard, 1.0), share / tf.maximum(easy, 1.0)
