"""Outputs of the heads as probabilities, which can be averaged, and back.

Averages over views and tiles are taken of probabilities: an average of logits would let one very
sure output outvote all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccfnet_tf.inference.segmenter_protocol import HeadOutputs

_SMALLEST = np.finfo(np.float32).tiny


def to_probabilities(outputs: HeadOutputs) -> list[np.ndarray]:
    """Returns probabilities of coarse, fine and refine [H, W, C] and of attention [H, W, 2].

    Attention's channels are P(coarse is wrong) and P(coarse is right). Both are kept because
    float32 cannot represent 1 - p for small p.
    """
    attention = np.stack([outputs.attention, -outputs.attention], axis=-1)
    heads = [np.exp(head) for head in (outputs.coarse, outputs.fine, outputs.refine)]
    return [*heads, np.exp(-np.logaddexp(np.float32(0), -attention))]


def to_outputs(probabilities: Sequence[np.ndarray]) -> HeadOutputs:
    """Returns the inverse of `to_probabilities`; zeros become the smallest normal float32."""
    coarse, fine, refine, attention = (np.log(np.maximum(p, _SMALLEST)) for p in probabilities)
    return HeadOutputs(coarse, fine, refine, attention[..., 0] - attention[..., 1])
