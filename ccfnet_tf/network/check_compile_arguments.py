"""Validates the arguments of `CCFNet.compile` and `CCFNet.fit`.

Arguments of Keras that would be ignored, or that have another meaning for label maps, raise an
error that names the replacement.
"""

from __future__ import annotations

import math
import numbers
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ccfnet_tf.errors import CCFNetError, ConfigError, DataError, nearest

LABEL_RULE = "labels must be class ids, or void (negative, or 255 if 255 is not a class)"
PARTS_RULE = "the number of images of every batch on each replica must be divisible by \
accumulate; use batches of one size (drop_remainder=True)"
"""Messages of the assertions in the graph."""

_CHECKED_IMAGES = 8

_REFUSED = {
    "loss": "CCFNet defines its own losses: omit it, and use loss_weights to weight them",
    "metrics": "CCFNet reports the accuracies and the mean IoU of its heads: omit it; for other "
    "metrics use a callback or the evaluation of ccfnet_tf",
    "weighted_metrics": "CCFNet reports the unweighted accuracies and mean IoU of its heads: omit "
    "it",
}


@dataclass(frozen=True)
class LossWeights:
    """Weights of the heads' cross-entropies in the total loss. Fine has weight 0 in the paper."""

    coarse: float = 1.0
    attention: float = 1.0
    refine: float = 1.0
    fine: float = 0.0


def loss_weights_of(given: LossWeights | Mapping[str, float] | None) -> LossWeights:
    """Converts the `loss_weights` argument. Heads missing from a dict keep their defaults.

    Raises:
        ConfigError: The argument is neither `LossWeights` nor a dict from heads to numbers.
    """
    if given is None or isinstance(given, LossWeights):
        return given or LossWeights()
    heads = [field.name for field in fields(LossWeights)]
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"loss_weights is {given!r}: expected LossWeights or a dict with keys "
            f"{', '.join(heads)}"
        )
    for head, weight in given.items():
        if head not in heads:
            raise ConfigError(
                f"loss_weights has '{head}': expected {', '.join(heads)}" + nearest(head, heads)
            )
        if not _is_weight(weight):
            raise ConfigError(f"loss_weights['{head}'] is {weight!r}: expected a number >= 0")
    return LossWeights(**{head: float(weight) for head, weight in given.items()})


def class_weights_of(given: Sequence[float] | None) -> list[float] | None:
    """Converts the `class_weights` argument to a list of floats; None stays None.

    Raises:
        ConfigError: A weight is not a non-negative number, or all weights are 0.
    """
    if given is None:
        return None
    for weight in given:
        if not _is_weight(weight):
            raise ConfigError(f"class_weights contains {weight!r}: expected numbers >= 0")
    if not any(given):
        raise ConfigError("class_weights: all weights are 0; at least one must be positive")
    return [float(weight) for weight in given]


def _is_weight(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value) and value >= 0


def refuse_keras_arguments(**given: Any) -> None:
    """Raises an error for arguments of Keras's `compile` that would be ignored.

    Raises:
        ConfigError: An argument is neither None nor empty.
    """
    for name, value in given.items():
        if value is not None and value not in ([], {}):
            raise ConfigError(f"{name} is {value!r}: {_REFUSED[name]}")


def refuse_class_weight(class_weight: Any) -> None:
    """Raises an error for `fit(class_weight=...)`, which Keras converts to one weight per image.

    Raises:
        ConfigError: `class_weight` is not None.
    """
    if class_weight is not None:
        raise ConfigError(
            f"class_weight is {class_weight!r}: it applies to one label per image; pass one weight "
            "per class to compile(class_weights=[...])"
        )


def check_label_map(labels: Any, images: Any) -> None:
    """Checks that labels contain one class id per pixel, if their shape is known.

    Args:
        labels: [B, H, W] or [B, H, W, 1], a tensor or, in eager mode, an array.
        images: [B, H, W, 3], a tensor or, in eager mode, an array.

    Raises:
        DataError: The labels have another shape, such as one class per image or one-hot masks.
    """
    shape, image_shape = tf.TensorShape(labels.shape), tf.TensorShape(images.shape)
    if shape.rank is None or image_shape.rank is None:
        return
    fits = shape.rank == 3 or (shape.rank == 4 and shape[3] in (None, 1))
    if not fits or not shape[:3].is_compatible_with(image_shape[:3]):
        raise DataError(
            f"labels have shape {tuple(shape)} for images of shape {tuple(image_shape)}: "
            "expected one class id per pixel, [B, H, W] or [B, H, W, 1]; convert one-hot masks "
            "with argmax over the last axis"
        )


def warn_of_scaled_images(images: Any) -> None:
    """Warns if images appear to be scaled to 0..1: the network would see them as nearly black.

    Args:
        images: The `x` argument of Keras. Only arrays and eager tensors are checked, by their
            first images.
    """
    if not isinstance(images, np.ndarray) and not keras.ops.is_tensor(images):
        return
    first = np.asarray(images[:_CHECKED_IMAGES])
    if first.dtype.kind == "f" and 0.0 < first.max(initial=0.0) <= 1.0:
        warnings.warn(
            f"the values of the first images range from {first.min():g} to {first.max():g}: CCFNet "
            "expects RGB values from 0 to 255, so do not divide by 255",
            stacklevel=3,
        )


def sample_weight_map(weight: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Converts Keras's `sample_weight` to pixel weights, float32 [B, H, W] or [B, 1, 1].

    Args:
        weight: One weight per image, [B] or [B, 1], or per pixel, [B, H, W] or [B, H, W, 1].
        labels: [B, H, W].

    Raises:
        ConfigError: `weight` has another shape.
    """
    if not tf.is_tensor(weight):
        raise ConfigError(
            "sample_weight must be one array with one weight per image [B] or per pixel "
            f"[B, H, W]; got {type(weight).__name__}"
        )
    weight = tf.cast(weight, tf.float32)
    shape = weight.shape
    if shape.rank == 1 or (shape.rank == 2 and shape[1] == 1):
        return tf.reshape(weight, [-1, 1, 1])
    if shape.rank == 4 and shape[-1] == 1:
        weight = weight[..., 0]
    if weight.shape.rank != 3 or not weight.shape[1:].is_compatible_with(labels.shape[1:]):
        raise ConfigError(
            f"sample_weight has shape {tuple(shape)} for labels of shape {tuple(labels.shape)}: "
            "expected one weight per image [B] or per pixel [B, H, W]"
        )
    return weight


def checked(value: tf.Tensor, condition: tf.Tensor, rule: str, *found: Any) -> tf.Tensor:
    """Returns `value` after asserting `condition`; `one_line_errors` parses the message.

    Args:
        value: Tensor that depends on the assertion.
        condition: Scalar bool.
        rule: `LABEL_RULE` or `PARTS_RULE`.
        found: Description of the value found: strings and int32 scalars alternately.
    """
    # Passed as separate pieces: XLA drops assertions, but cannot compile string operations.
    with tf.control_dependencies([tf.debugging.Assert(condition, [rule, *found])]):
        return tf.identity(value)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Converts the errors of assertions in the graph into one-line errors.

    Raises:
        DataError: A label is not a class id.
        ConfigError: The size of a batch is not divisible by `accumulate`.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        kinds: dict[str, type[CCFNetError]] = {LABEL_RULE: DataError, PARTS_RULE: ConfigError}
        for rule, kind in kinds.items():
            _, matched, found = str(error.message).partition(rule)
            if matched:
                first, *others = found.splitlines()
                pieces = re.findall(r"\[([^\[\]]*)\]", first)  # in eager mode, one per line
                pieces = pieces or [line.removeprefix("b").strip("'") for line in others]
                raise kind(f"{' '.join(pieces)}: {rule}") from error
        raise
