"""Accuracy of coarse, fine and refine on easy and on hard pixels separately.

The caller decides which pixels are hard: by the paper's target (coarse wrong = hard; section 3.2),
for which coarse's own accuracy is 1 and 0 by definition, or by the output of attention.

Shapes: counts [2, 4] int64; rows `HARD`, `EASY`; columns pixels, then right by each of `HEADS`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ccfnet_tf.evaluation.confusion import ratio
from ccfnet_tf.labels import EASY, HARD

HEADS = ("coarse", "fine", "refine")


@dataclass(frozen=True, eq=False)
class GroupAccuracy:
    """Correct predictions on hard and on easy pixels; merges by addition.

    Attributes:
        counts: int64 [2, 4]; rows `HARD` and `EASY`, columns pixels, coarse, fine, refine right.
    """

    counts: np.ndarray

    @classmethod
    def empty(cls) -> GroupAccuracy:
        """Returns the state before the first pixel."""
        return cls(np.zeros((2, 1 + len(HEADS)), np.int64))

    @classmethod
    def of(cls, hard: np.ndarray, right: np.ndarray) -> GroupAccuracy:
        """Counts labelled pixels.

        Args:
            hard: bool [N].
            right: bool [3, N], whether coarse, fine and refine are right.
        """
        columns = np.concatenate([np.ones((1, hard.size), bool), right])
        among_hard = np.count_nonzero(columns & hard, axis=1)
        among_all = np.count_nonzero(columns, axis=1)
        return cls(np.stack([among_hard, among_all - among_hard]).astype(np.int64))

    def merge(self, other: GroupAccuracy) -> GroupAccuracy:
        """Returns the state of both parts together."""
        return GroupAccuracy(self.counts + other.counts)

    def to_json(self) -> dict[str, dict[str, float | None]]:
        """Returns for `easy` and `hard`: share of pixels, accuracy of each head, fractions 0..1.

        An accuracy is None where the group has no pixel.
        """
        pixels = int(self.counts[:, 0].sum())
        groups: dict[str, dict[str, float | None]] = {}
        for group, row in (("easy", EASY), ("hard", HARD)):
            size, *right = self.counts[row].tolist()
            accuracies = {head: ratio(hits, size) for head, hits in zip(HEADS, right, strict=True)}
            groups[group] = {"share": ratio(size, pixels), **accuracies}
        return groups
