"""What `CCFNet.compile` and `fit` take, and one line for what they cannot take.

A Keras user tries Keras's arguments; one that would be ignored, or would mean something else on
label maps, is refused with the way to say it here.
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

LABEL_RULE = "labels must be class ids, or void (negative, or 255 where it is not a class)"
PARTS_RULE = "accumulate must divide the images of every batch on each replica; give \
batches of one size (drop_remainder=True)"
"""What the graph's own checks say."""

_LOOKED_AT = 8  # images

_REFUSED = {
    "loss": "CCFNet brings its own losses: leave it out; weigh them with loss_weights",
    "metrics": "CCFNet reports accuracies and mean IoU of its heads: leave it out; more figures "
    "come from a callback, or from ccfnet_tf's evaluation",
    "weighted_metrics": "CCFNet reports accuracies and mean IoU of its heads, unweighted: leave it "
    "out",
}


@dataclass(frozen=True)
class LossWeights:
    """Weights of the cross-entropies that add up to the loss; fine's is 0 in the paper."""

    coarse: float = 1.0
    attention: float = 1.0
    refine: float = 1.0
    fine: float = 0.0


def loss_weights_of(given: LossWeights | Mapping[str, float] | None) -> LossWeights:
    """Returns the weights of `given`; heads that a dict leaves out keep their defaults.

    Raises:
        ConfigError: It is neither `LossWeights` nor a dict of heads and numbers.
    """
    if given is None or isinstance(given, LossWeights):
        return given or LossWeights()
    heads = [field.name for field in fields(LossWeights)]
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"loss_weights is {given!r}: expected LossWeights, or a dict with {', '.join(heads)}"
        )
    for head, weight in given.items():
        if head not in heads:
            raise ConfigError(
                f"loss_weights has '{head}': expected {', '.join(heads)}" + nearest(head, heads)
            )
        if not _is_weight(weight):
            raise ConfigError(f"loss_weights['{head}'] is {weight!r}: expected a number from 0 up")
    return LossWeights(**{head: float(weight) for head, weight in given.items()})


def class_weights_of(given: Sequence[float] | None) -> list[float] | None:
    """Returns the weights of the classes as a list, None where there are none.

    Raises:
        ConfigError: One is not a number from 0 up, or all are 0.
    """
    if given is None:
        return None
    for weight in given:
        if not _is_weight(weight):
            raise ConfigError(f"class_weights has {weight!r}: expected numbers from 0 up")
    if not any(given):
        raise ConfigError("class_weights: all are 0; nothing would be learned")
    return [float(weight) for weight in given]


def _is_weight(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value) and value >= 0


def refuse_keras_arguments(**given: Any) -> None:
    """Refuses arguments of Keras's `compile` that would be ignored.

    Raises:
        ConfigError: One of them is not None.
    """
    for name, value in given.items():
        if value is not None and value not in ([], {}):
            raise ConfigError(f"{name} is {value!r}: {_REFUSED[name]}")


def refuse_class_weight(class_weight: Any) -> None:
    """Refuses `fit(class_weight=...)`, which Keras would turn into one weight an image.

    Raises:
        ConfigError: It is not None.
    """
    if class_weight is not None:
        raise ConfigError(
            f"class_weight is {class_weight!r}: it is for one label an image; give a weight for "
            "each class to compile(class_weights=[...])"
        )


def refuse_no_label_map(labels: Any, images: Any) -> None:
    """Refuses labels that are no class id a pixel, where their shape is known.

    Args:
        labels: [B, H, W] or [B, H, W, 1], a tensor or, eagerly, an array.
        images: [B, H, W, 3], as labels.

    Raises:
        DataError: They have another shape, as labels of one class an image and one-hot masks do.
    """
    shape, picture = tf.TensorShape(labels.shape), tf.TensorShape(images.shape)
    if shape.rank is None or picture.rank is None:
        return
    fits = shape.rank == 3 or (shape.rank == 4 and shape[3] in (None, 1))
    if not fits or not shape[:3].is_compatible_with(picture[:3]):
        raise DataError(
            f"labels have the shape {tuple(shape)} for images {tuple(picture)}: "
            "expected a class id a pixel, [B, H, W] or [B, H, W, 1]; of one-hot masks take "
            "argmax over the last axis"
        )


def warn_of_scaled_images(images: Any) -> None:
    """Warns of images that look divided by 255: they would be learned as nearly black.

    Args:
        images: Keras's `x`; only arrays and eager tensors are looked at, by their first images.
    """
    if not isinstance(images, np.ndarray) and not keras.ops.is_tensor(images):
        return
    first = np.asarray(images[:_LOOKED_AT])
    if first.dtype.kind == "f" and 0.0 < first.max(initial=0.0) <= 1.0:
        warnings.warn(
            f"the first images reach from {first.min():g} to {first.max():g}: CCFNet takes RGB "
            "from 0 to 255, so do not divide by 255",
            stacklevel=3,
        )


def sample_weight_map(weight: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns weights of pixels, float32 [B, H, W] or [B, 1, 1], of Keras's `sample_weight`.

    Args:
        weight: [B] or [B, 1] an image, or [B, H, W] or [B, H, W, 1] a pixel.
        labels: [B, H, W].

    Raises:
        ConfigError: It has another shape.
    """
    if not tf.is_tensor(weight):
        raise ConfigError(
            "sample_weight must be one array, of a weight an image [B] or a pixel [B, H, W]; got "
            f"{type(weight).__name__}"
        )
    weight = tf.cast(weight, tf.float32)
    shape = weight.shape
    if shape.rank == 1 or (shape.rank == 2 and shape[1] == 1):
        return tf.reshape(weight, [-1, 1, 1])
    if shape.rank == 4 and shape[-1] == 1:
        weight = weight[..., 0]
    if weight.shape.rank != 3 or not weight.shape[1:].is_compatible_with(labels.shape[1:]):
        raise ConfigError(
            f"sample_weight has the shape {tuple(shape)} for labels {tuple(labels.shape)}: "
            "expected a weight an image [B] or a pixel [B, H, W]"
        )
    return weight


def checked(value: tf.Tensor, condition: tf.Tensor, rule: str, *found: Any) -> tf.Tensor:
    """Returns `value`, once `condition` was seen to hold; `one_line_errors` reads what it says.

    Args:
        value: What must not be used before.
        condition: Scalar bool.
        rule: `LABEL_RULE` or `PARTS_RULE`.
        found: What was found instead, a word and an int32 scalar in turns.
    """
    # Several pieces, since XLA, which leaves assertions out, knows no operations on strings.
    with tf.control_dependencies([tf.debugging.Assert(condition, [rule, *found])]):
        return tf.identity(value)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns the errors of the graph's own checks into one line.

    Raises:
        DataError: A label is not a class.
        ConfigError: A batch does not divide by `accumulate`.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        kinds: dict[str, type[CCFNetError]] = {LABEL_RULE: DataError, PARTS_RULE: ConfigError}
        for rule, kind in kinds.items():
            _, there, found = str(error.message).partition(rule)
            if there:
                first, *others = found.splitlines()
                pieces = re.findall(r"\[([^\[\]]*)\]", first)  # or, eagerly, a line each
                pieces = pieces or [line.removeprefix("b").strip("'") for line in others]
                raise kind(f"{' '.join(pieces)}: {rule}") from error
        raise
