"""Bands around the boundaries between classes, and the pixels that Boundary IoU counts.

Void is not a class, so there is no boundary where a class meets void.

Shapes: label maps integer [H, W], 0..C-1 or `VOID`.
"""

from __future__ import annotations

import cv2
import numpy as np

from ccfnet_tf.labels import VOID

BANDS = (1, 2, 4, 8, 16)
"""Widths in pixels, on each side of a boundary."""

RINGS = len(BANDS) + 1
"""The innermost band, what each further band adds, and everything outside of all bands."""

DILATION = 0.02
"""Width of the band of Boundary IoU, as a share of the image's diagonal (Cheng et al. 2021)."""


def ring_of(label: np.ndarray) -> np.ndarray:
    """Returns how near each pixel is to a boundary, int64 [H, W], 0 to RINGS - 1.

    The band of width r holds the pixels whose Euclidean distance from the nearest border pixel is
    below r. Border pixels are the labelled pixels of which one of the 4 neighbours is labelled as
    another class. So the band of width 1 is one pixel on each side of a boundary. Ring 0 is the
    first of `BANDS`, ring i what the next one adds, and the last ring is outside of all.
    """
    border = np.zeros(label.shape, bool)
    for one, other in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        meets = (label[one] != label[other]) & (label[one] != VOID) & (label[other] != VOID)
        border[one] |= meets
        border[other] |= meets
    if not border.any():
        return np.full(label.shape, RINGS - 1)
    away = np.where(border, 0, 1).astype(np.uint8)
    distance = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.digitize(distance, BANDS)


def boundary_counts(label: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts the pixels of Boundary IoU (Cheng et al., CVPR 2021).

    A pixel counts for the label if its distance to the edge of its region or of the image, in rows
    and in columns, is at most `DILATION` of the image's diagonal; for the prediction likewise.
    Void does not count and has no edge, in the label and in the prediction.

    Args:
        label: [H, W].
        predictions: [P, H, W], `VOID` where the label is.
        classes: C.

    Returns:
        int64 [P, 3, C]: pixels near the edge of each class of the label, of the prediction, and
        those of both that agree.
    """
    at_edge = near_edge(label)
    true = np.bincount(label[at_edge], minlength=classes)
    counts = []
    for prediction in predictions:
        also = near_edge(prediction)
        predicted = np.bincount(prediction[also], minlength=classes)
        both = at_edge & also & (label == prediction)
        counts.append([true, predicted, np.bincount(label[both], minlength=classes)])
    return np.array(counts, np.int64)


def near_edge(label: np.ndarray) -> np.ndarray:
    """Returns the labelled pixels near the edge of their region, bool [H, W]."""
    height, width = label.shape
    radius = max(1, round(DILATION * float(np.hypot(height, width))))
    window = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    void = label == VOID
    # Void agrees with any class: it is larger than all ids in the search for the smallest id of a
    # window, and smaller than all in the search for the largest, as is the outside of the image.
    ids = (label + 1).astype(np.uint16)  # void is 0
    above = np.where(void, np.uint16(2**16 - 1), ids)
    least = cv2.erode(above, window, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    largest = cv2.dilate(ids, window, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return ~void & (least != largest)
