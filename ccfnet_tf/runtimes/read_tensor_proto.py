"""Converts tensors of gRPC messages to arrays, and checks that shapes match the contents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Data types of exported signatures, and the message field that contains their values.
_FIELDS = {
    "string": "string_val",
    "uint8": "int_val",
    "int32": "int_val",
    "int64": "int64_val",
    "float32": "float_val",
}


def to_array(proto: Any) -> np.ndarray:
    """Returns the array of a `TensorProto` that contains as many values as its shape needs.

    `tf.make_ndarray` repeats the last value until a shape is full, so a message of 50 bytes could
    exhaust memory.

    Raises:
        ValueError: Data type, shape and number of values do not agree.
    """
    import tensorflow as tf  # imported late: HTTP clients do not need TensorFlow

    try:
        dtype = tf.dtypes.as_dtype(proto.dtype)
    except TypeError as error:
        raise ValueError(f"a tensor has the unsupported data type {proto.dtype}") from error
    if dtype.name not in _FIELDS:
        raise ValueError(f"a tensor has data type {dtype.name}: expected {', '.join(_FIELDS)}")
    shape = [side.size for side in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError(f"a tensor has the unknown shape {shape}")
    _refuse_other_count(proto, dtype, shape)
    try:
        return np.asarray(tf.make_ndarray(proto))
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _refuse_other_count(proto: Any, dtype: Any, shape: list[int]) -> None:
    needed = math.prod(shape)  # Python's integers do not overflow
    if proto.tensor_content and dtype.name != "string":
        count, unit = len(proto.tensor_content), "bytes"
        needed *= dtype.size
    else:
        count, unit = len(getattr(proto, _FIELDS[dtype.name])), "values"
    if count != needed:
        raise ValueError(f"{dtype.name} {shape} needs {needed} {unit}: the message has {count}")
