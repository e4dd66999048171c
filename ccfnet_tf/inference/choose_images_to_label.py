"""Chooses the unlabelled images that should be labelled next.

An image is worth labelling where the network is wrong. The expected number of wrong pixels is the
sum of risk, which needs no label (uncertainty sampling: Lewis and Gale, SIGIR 1994). The images
with the largest sums are often alike, so images are chosen one after the other, each time the one
with the largest gain:

    gain(i) = sum_c [sqrt(W_c + w_ic) - sqrt(W_c)] * min_j (1 - max(0, cos(f_i, f_j)))

- w_ic is the expected number of wrong pixels that image i has in class c, by the predicted class,
  and W_c its sum over the images chosen so far. The square root makes each further wrong pixel of
  a class worth less, so that a frequent class does not take all places. It is the diversity reward
  of Lin and Bilmes (ACL 2011), with classes as clusters.
- f_i are backbone features, averaged over the image, minus their mean over all images. The minimum
  runs over the images j chosen so far. It is the distance of greedy k-centre selection (core sets:
  Sener and Savarese, ICLR 2018), as a factor of the gain, so that no weight has to be tuned.

Both factors fall as more images are chosen, so gains fall with the rank. Near-duplicates of a
chosen image, by their thumbnails, are dropped: frames of a video show the same objects again.

Labelled images are not among the centres: risk is already low where an image resembles them.

Shapes: N images, C classes, F features, P values of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ccfnet_tf.datasets.audit.sequences import alike, thumbnail

AT_RISK = 0.5
"""Risk above which a pixel is more likely wrong than right."""


@dataclass(frozen=True)
class Candidate:
    """Figures of one unlabelled image, a few kilobytes.

    Attributes:
        wrong: float64 [C]; expected number of wrong pixels by predicted class.
        share_at_risk: Share of the pixels whose risk is above `AT_RISK`.
        features: float32 [F]; mean of the backbone features.
        thumbnail: float32 [P]; as in `datasets.audit.sequences.thumbnail`.
    """

    wrong: np.ndarray
    share_at_risk: float
    features: np.ndarray
    thumbnail: np.ndarray


@dataclass(frozen=True)
class Choice:
    """A chosen image.

    Attributes:
        index: Index of the candidate.
        score: Its gain divided by the largest gain, 0..1; falls with the rank.
        near_duplicates: Indices of candidates that were dropped as near-duplicates of it.
    """

    index: int
    score: float
    near_duplicates: tuple[int, ...]


def candidate(
    image: np.ndarray, labels: np.ndarray, risk: np.ndarray, features: np.ndarray, *, classes: int
) -> Candidate:
    """Returns the figures of an image.

    Args:
        image: uint8 [H, W, 3].
        labels: int32 [H, W]; predicted class ids 0..C-1.
        risk: float32 [H, W]; P(the label is wrong).
        features: float32 [F].
        classes: Number of classes C.
    """
    wrong = np.bincount(labels.ravel(), risk.ravel().astype(np.float64), minlength=classes)
    return Candidate(wrong, float((risk > AT_RISK).mean()), features, thumbnail(image))


def choose(candidates: Sequence[Candidate], count: int) -> list[Choice]:
    """Chooses up to `count` images in the order in which they should be labelled.

    Fewer are returned if there are fewer candidates without near-duplicates.
    """
    if not candidates:
        return []
    wrong = np.stack([each.wrong for each in candidates])
    features = _directions(np.stack([each.features for each in candidates]))
    thumbnails = np.stack([each.thumbnail for each in candidates])
    chosen_wrong = np.zeros(wrong.shape[1])
    distance = np.ones(len(candidates))
    left = np.arange(len(candidates))
    choices: list[tuple[int, float, tuple[int, ...]]] = []
    while len(left) and len(choices) < count:
        by_class = np.sqrt(chosen_wrong + wrong[left]) - np.sqrt(chosen_wrong)
        gains = by_class.sum(axis=1) * distance[left]
        best = int(left[gains.argmax()])
        near = alike(thumbnails[best : best + 1], thumbnails[left]) | (left == best)
        copies = tuple(index for index in left[near].tolist() if index != best)
        choices.append((best, float(gains.max()), copies))
        chosen_wrong += wrong[best]
        similarity = np.maximum(features @ features[best], 0.0)
        distance = np.minimum(distance, np.maximum(1.0 - similarity, 0.0))
        left = left[~near]
    largest = choices[0][1] or 1.0
    return [Choice(index, gain / largest, copies) for index, gain, copies in choices]


def _directions(features: np.ndarray) -> np.ndarray:
    """Returns features minus their mean, of length 1; zeros where nothing is left."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
