"""Outputs of a network that nobody trained, for images of any size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ccfnet_tf.inference.segmenter_protocol import HeadOutputs
from ccfnet_tf.labels import VOID

Draw = Callable[..., tuple[np.ndarray, HeadOutputs]]


@pytest.fixture(scope="session")
def draw() -> Draw:
    """Draws a label and outputs that are often right, with the arguments of `drawn`."""
    return drawn


def drawn(
    seed: int,
    *,
    classes: int = 3,
    size: tuple[int, int] = (24, 30),
    void: float = 0.1,
    block: int = 6,
) -> tuple[np.ndarray, HeadOutputs]:
    """Returns a label of square blocks, with single pixels of void, and outputs for it."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, classes, (-(-size[0] // block), -(-size[1] // block)))
    label = blocks.repeat(block, 0).repeat(block, 1)[: size[0], : size[1]].astype(np.int32)
    hint = np.eye(classes)[label]
    heads = [
        log_softmax(rng.normal(size=hint.shape) * 2 + strength * hint) for strength in (2, 3, 4)
    ]
    wrong = heads[0].argmax(-1) != label
    attention = rng.normal(size=size) + wrong - 1
    label = np.where(rng.random(size) < void, VOID, label).astype(np.int32)
    return label, HeadOutputs(*heads, attention.astype(np.float32))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(-1, keepdims=True)
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
