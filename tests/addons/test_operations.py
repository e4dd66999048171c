"""This project's image operations and losses beside those of TensorFlow Addons.

`tfa.image` has more (sharpness, equalize, shear, sparse warps) and so has `tfa.losses`
(contrastive, GIoU, lifted structure, n-pairs, pinball, sparsemax, triplet, weighted kappa): this
project has no counterpart of those, and semantic segmentation needs none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_addons as tfa


def floats(image: np.ndarray) -> Any:
    return tf.constant(image, tf.float32)


def close(found: Any, expected: np.ndarray, largest: float = 1e-3) -> None:
    """Compares values of 0 to 255."""
    gap = np.abs(np.asarray(found) - expected)
    assert gap.max() <= largest, f"largest difference {gap.max():.3g}"


def test_a_turn_is_rotate(ours: Any) -> None:
    # tfa.image.rotate turns counter-clockwise in radians.
    angle = math.radians(-float(ours["turn/degrees"]))
    turned = tfa.image.rotate(
        floats(ours["image"]), angle, interpolation="bilinear", fill_mode="nearest"
    )
    close(turned, ours["turn/image"], 0.05)
    label = tfa.image.rotate(ours["label"], angle, interpolation="nearest", fill_mode="nearest")
    # Where a place falls on the edge of two pixels, rounding decides.
    assert (label.numpy() != ours["turn/label"]).mean() < 0.002


def test_a_crop_that_starts_elsewhere_is_translate(ours: Any) -> None:
    down, right = (float(value) for value in ours["shift/by"])
    moved = tfa.image.translate(
        floats(ours["image"]), [-right, -down], interpolation="bilinear", fill_mode="nearest"
    )
    close(moved, ours["shift/image"], 0.01)
    label = tfa.image.translate(
        ours["label"], [-right - 1e-3, -down], interpolation="nearest", fill_mode="nearest"
    )
    ties = tfa.image.translate(
        ours["label"], [-right + 1e-3, -down], interpolation="nearest", fill_mode="nearest"
    )
    # The move ends half a pixel beside: a tie, which may fall to either.
    either = (label.numpy() == ours["shift/label"]) | (ties.numpy() == ours["shift/label"])
    assert either.all()


def test_a_blur_is_gaussian_filter2d(ours: Any) -> None:
    blurred = tfa.image.gaussian_filter2d(
        floats(ours["image"]),
        filter_shape=2 * int(ours["blur/reach"]) + 1,
        sigma=float(ours["blur/deviation"]),
        padding="REFLECT",
    )
    close(blurred, ours["blur/image"])


def test_a_hidden_rectangle_is_cutout(ours: Any) -> None:
    rows, columns = np.nonzero(ours["hidden"])
    middle = [rows.min() + 6, columns.min() + 6]
    white = tf.ones((1, *ours["hidden"].shape, 1))
    cut = tfa.image.cutout(white, (12, 12), offset=middle, constant_values=0)
    np.testing.assert_array_equal(cut.numpy()[0, ..., 0] == 0.0, ours["hidden"])


def test_saturation_and_brightness_are_adjust_hsv_in_yiq(ours: Any) -> None:
    factor = float(ours["tint/factor"])
    image = floats(ours["tint/from"])
    # The scale of value is that of the whole pixel: brightness.
    close(tfa.image.adjust_hsv_in_yiq(image, 0.0, 1.0, factor), ours["tint/brightness"], 0.2)
    close(tfa.image.adjust_hsv_in_yiq(image, 0.0, factor, 1.0), ours["tint/saturation"], 0.2)


def test_contrast_is_blend(ours: Any) -> None:
    image = ours["tint/from"]
    grey = (image @ np.array([0.299, 0.587, 0.114], np.float32)).mean()
    found = tfa.image.blend(tf.fill(image.shape, grey), floats(image), float(ours["tint/factor"]))
    close(found, ours["tint/contrast"], 0.51)  # blend answers whole numbers


def test_opencv_stands_in_for_the_filters(ours: Any) -> None:
    image = floats(ours["image"])
    close(tfa.image.mean_filter2d(image, 3, padding="REFLECT"), ours["mean"])
    # OpenCV repeats the edge for a median: compared within it.
    median = tfa.image.median_filter2d(image, 3, padding="REFLECT")
    close(median[1:-1, 1:-1], ours["median"][1:-1, 1:-1])


def test_attention_loss_is_sigmoid_focal_cross_entropy_without_focus(ours: Any) -> None:
    logits = ours["attention"][..., 1] - ours["attention"][..., 0]
    found = tfa.losses.sigmoid_focal_crossentropy(
        ours["easy"][..., None], logits[..., None], alpha=0.0, gamma=0.0, from_logits=True
    )
    close(found, ours["attention/loss"], 1e-5)


def test_balanced_attention_loss_is_its_alpha(ours: Any) -> None:
    logits = ours["attention"][..., 1] - ours["attention"][..., 0]
    hard, easy = (float(value) for value in ours["attention/weights"])
    found = tfa.losses.sigmoid_focal_crossentropy(
        ours["easy"][..., None],
        logits[..., None],
        alpha=easy / (easy + hard),
        gamma=0.0,
        from_logits=True,
    )
    weights = np.where(ours["easy"] == 1, easy, hard)
    close(found * (easy + hard), weights * ours["attention/loss"], 1e-4)
    assert easy < 1.0 < hard  # so that the weights are at work


def test_cross_entropy_of_two_classes_is_it_too(ours: Any) -> None:
    logits = ours["two_classes"][..., 1] - ours["two_classes"][..., 0]
    found = tfa.losses.sigmoid_focal_crossentropy(
        ours["easy"][..., None], logits[..., None], alpha=0.0, gamma=0.0, from_logits=True
    )
    close(found, ours["two_classes/loss"], 1e-5)


def test_keras_focal_loss_stands_in_for_the_focal_loss(ours: Any) -> None:
    logits = ours["attention"][..., 1] - ours["attention"][..., 0]
    found = tfa.losses.sigmoid_focal_crossentropy(
        ours["easy"][..., None], logits[..., None], alpha=0.25, gamma=2.0, from_logits=True
    )
    close(found, ours["focal/keras"], 1e-5)


def test_keras_adamw_stands_in_for_adamw(ours: Any) -> None:
    """Beware: Keras multiplies the decay by the rate, TensorFlow Addons does not."""
    weight = tf.Variable(np.arange(4, dtype=np.float32))
    optimizer = tfa.optimizers.AdamW(weight_decay=0.1 * 0.01, learning_rate=0.01)
    for step, gradient in enumerate(ours["adamw/gradients"]):
        optimizer.apply_gradients([(tf.constant(gradient), weight)])
        close(weight, ours["adamw/steps"][step], 1e-6)


@pytest.mark.parametrize(
    ("metric", "formula"),
    [
        ("CohenKappa", "kappa"),
        ("MatthewsCorrelationCoefficient", "matthews"),
    ],
)
def test_the_confusion_matrix_stands_in_for_metrics(ours: Any, metric: str, formula: str) -> None:
    counts = ours["counts"].astype(np.float64)
    total, hit = counts.sum(), np.trace(counts)
    rows, columns = counts.sum(1), counts.sum(0)
    chance = rows @ columns
    expected = {
        "kappa": (hit / total - chance / total**2) / (1.0 - chance / total**2),
        "matthews": (hit * total - chance)
        / math.sqrt((total**2 - rows @ rows) * (total**2 - columns @ columns)),
    }
    options = {"sparse_labels": True} if metric == "CohenKappa" else {}
    found = getattr(tfa.metrics, metric)(num_classes=3, **options)
    truth, guess = ours["truth"], ours["guess"]
    if not options:
        truth, guess = (np.eye(3, dtype=np.float32)[ids] for ids in (truth, guess))
    found.update_state(truth, guess)
    close(found.result(), np.float64(expected[formula]), 1e-5)
