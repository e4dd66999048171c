"""Arrays out of gRPC's messages, which may promise more than they hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Of the kinds that exported signatures take and give: the field that holds values one by one.
_FIELDS = {
    "string": "string_val",
    "uint8": "int_val",
    "int32": "int_val",
    "int64": "int64_val",
    "float32": "float_val",
}


def to_array(proto: Any) -> np.ndarray:
    """Returns the array of a `TensorProto` that holds every value its shape promises.

    `tf.make_ndarray` would fill up a shape with the last value, and a message of 50 bytes all of
    the memory.

    Raises:
        ValueError: Kind, shape and values do not agree.
    """
    import tensorflow as tf  # a client by HTTP needs none

    try:
        kind = tf.dtypes.as_dtype(proto.dtype)
    except TypeError as error:
        raise ValueError(f"a tensor of kind {proto.dtype} is not taken") from error
    if kind.name not in _FIELDS:
        raise ValueError(f"a tensor of kind {kind.name} is not taken: {', '.join(_FIELDS)} are")
    shape = [side.size for side in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError(f"a tensor of unknown shape {shape}")
    _refuse_other_count(proto, kind, shape)
    try:
        return np.asarray(tf.make_ndarray(proto))
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _refuse_other_count(proto: Any, kind: Any, shape: list[int]) -> None:
    promised = math.prod(shape)  # Python's whole numbers do not overflow
    if proto.tensor_content and kind.name != "string":
        held, unit = len(proto.tensor_content), "bytes"
        promised *= kind.size
    else:
        held, unit = len(getattr(proto, _FIELDS[kind.name])), "values"
    if held != promised:
        raise ValueError(f"{kind.name} {shape} needs {promised} {unit}: the message has {held}")
