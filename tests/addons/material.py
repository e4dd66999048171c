"""Makes what the addons lane is held against: `python tests/addons/material.py FOLDER`.

Runs in the project's own environment: TensorFlow 2.20 or later and Keras 3. Writes

    saved_model/          a small network with the signatures that TF Serving offers
    <quantize>.tflite     the same network
    answers.npz           what both answer here
    operations.npz        inputs and results of image operations, losses and optimizers
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import tensorflow as tf

from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.exporters.litert.writer import LiteRTOptions, write_litert
from ccfnet_tf.exporters.saved_model.writer import write_saved_model
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.ccfnet import build_ccfnet
from ccfnet_tf.network.losses import attention_cross_entropy, balance, cross_entropy, split_void
from ccfnet_tf.pipeline.augment import resample, turn_by
from ccfnet_tf.pipeline.augment_appearance import blur, hidden, tint
from ccfnet_tf.runtimes.litert import LiteRTNetwork

SIZE = (64, 96)
CROP = 48
QUANTIZATIONS = ("none", "fp16", "int8")

Arrays = dict[str, np.ndarray]


def write_networks(folder: Path) -> None:
    """Writes the SavedModel, the LiteRT files and what they answer."""
    keras.utils.set_random_seed(0)
    taxonomy = Taxonomy(("sky", "tree", "road"), ((0, 0, 255), (0, 255, 0), (90, 90, 90)))
    model = build_ccfnet(
        3, backbone="mobilenet_v2", backbone_weights=None, head_channels=16, dropout=0.0
    )
    picture = smooth_picture(*SIZE)
    write_saved_model(model, taxonomy, folder / "saved_model")
    arrays: Arrays = {"picture": picture}
    signatures = tf.saved_model.load(str(folder / "saved_model")).signatures
    for name in ("serving_default", "probabilities"):
        for key, value in signatures[name](images=tf.constant(picture[None])).items():
            arrays[f"{name}/{key}"] = value.numpy()
    for quantize in QUANTIZATIONS:
        path = folder / f"{quantize}.tflite"
        options = LiteRTOptions(size=SIZE, quantize=quantize)
        write_litert(model, taxonomy, path, options, [picture, picture[::-1]])
        found = LiteRTNetwork(path, taxonomy, threads=1).predict(picture)
        arrays |= {f"{quantize}/{name}": each for name, each in found._asdict().items()}
    np.savez(folder / "answers.npz", allow_pickle=False, **arrays)


def smooth_picture(height: int, width: int) -> np.ndarray:
    """Returns uint8 [height, width, 3] with slopes and edges."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def image_operations() -> Arrays:
    """Returns inputs and results of this project's image operations."""
    image = smooth_picture(CROP, CROP)
    label = (image[..., 0] // 64).astype(np.int32)
    given = {"crop": CROP, "zoom": tf.constant(1.0)}
    turn = turn_by(tf.constant(0.8), 15.0)  # 15 x (2 x 0.8 - 1) = 9 degrees clockwise
    turned = resample(tf.constant(image), label, start=tf.zeros(2), turn=turn, **given)
    shift = tf.constant([3.25, -5.5])
    shifted = resample(tf.constant(image), label, start=shift, turn=None, **given)
    # One rectangle: an eighth of a half of the crop is hidden, by sides of 1:1.
    draws = np.full((5, 4), 0.5, np.float32)
    draws[0], draws[1] = 0.125, 0.0
    everywhere = np.ones((CROP, CROP), bool)
    pixels = tf.constant(image, tf.float32) * 0.5 + 50.0  # no result of `tint` is cut off
    return {
        "image": image,
        "label": label,
        "turn/degrees": np.float32(9.0),
        "turn/image": turned[0].numpy(),
        "turn/label": turned[1].numpy(),
        "shift/by": shift.numpy(),
        "shift/image": shifted[0].numpy(),
        "shift/label": shifted[1].numpy(),
        "blur/deviation": np.float32(1.2),
        "blur/reach": np.int32(math.ceil(3.0 * 2.0)),
        "blur/image": blur(tf.constant(image, tf.float32), tf.constant(0.8), 2.0).numpy(),
        "hidden": hidden(CROP, tf.constant(draws), 0.5).numpy(),
        "tint/from": pixels.numpy(),
        # Of brightness, contrast and saturation one factor each, the others 1.
        "tint/brightness": tint(pixels, everywhere, tf.constant([0.3, 0.5, 0.5]), 0.5).numpy(),
        "tint/contrast": tint(pixels, everywhere, tf.constant([0.5, 0.3, 0.5]), 0.5).numpy(),
        "tint/saturation": tint(pixels, everywhere, tf.constant([0.5, 0.5, 0.3]), 0.5).numpy(),
        "tint/factor": np.float32(0.8),
    }


def losses() -> Arrays:
    """Returns inputs and results of this project's losses, and of Keras's focal loss."""
    rng = np.random.default_rng(1)
    attention = rng.normal(0.0, 3.0, (2, 8, 9, 2)).astype(np.float32)
    easy = rng.integers(0, 2, (2, 8, 9)).astype(np.int32)
    easy[0, :6] = 1  # so that the groups are not alike
    valid = np.ones(easy.shape, bool)
    loss = attention_cross_entropy(tf.constant(attention), tf.constant(easy), tf.constant(valid))
    hard_weight, easy_weight = balance(
        tf.constant(float((easy == 0).sum())), tf.constant(float((easy == 1).sum()))
    )
    logits = rng.normal(0.0, 3.0, (2, 8, 9, 2)).astype(np.float32)
    focal = keras.losses.BinaryFocalCrossentropy(
        apply_class_balancing=True, alpha=0.25, gamma=2.0, from_logits=True, reduction=None
    )
    difference = attention[..., 1] - attention[..., 0]
    target = split_void(tf.constant(easy), 2)
    return {
        "attention": attention,
        "easy": easy,
        "attention/loss": loss.numpy(),
        "attention/weights": np.array([hard_weight, easy_weight], np.float32),
        "two_classes": logits,
        "two_classes/loss": cross_entropy(tf.constant(logits), target).numpy(),
        "focal/keras": np.asarray(focal(easy[..., None].astype(np.float32), difference[..., None])),
    }


def adamw() -> Arrays:
    """Returns a weight after each of five steps of Keras's AdamW, and its running average."""
    gradients = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
    weight = keras.Variable(np.arange(4, dtype=np.float32))
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    steps = []
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)], [weight])
        steps.append(keras.ops.convert_to_numpy(weight))
    return {"adamw/gradients": gradients, "adamw/steps": np.stack(steps)}


def others() -> Arrays:
    """Returns what OpenCV and the confusion matrix stand in with."""
    image = smooth_picture(CROP, CROP)
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 500)
    guess = np.where(rng.random(500) < 0.6, truth, rng.integers(0, 3, 500))
    return {
        "mean": cv2.blur(image.astype(np.float32), (3, 3), borderType=cv2.BORDER_REFLECT_101),
        "median": cv2.medianBlur(image, 3),
        "truth": truth,
        "guess": guess,
        "counts": Confusion.of(truth, guess, classes=3).counts,
    }


def main() -> None:
    """Fills the folder."""
    folder = Path(sys.argv[1])
    write_networks(folder)
    arrays: dict[str, Any] = {**image_operations(), **losses(), **adamw(), **others()}
    np.savez(folder / "operations.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
