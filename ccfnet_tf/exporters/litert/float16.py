"""Stores the large weights of a LiteRT file in float16, and keeps small ones in float32.

LiteRT's converter rounds every constant. Small constants - biases, scales, depthwise kernels - are
a negligible share of the file, and rounding them can cost the most accuracy. In a trained
MobileNetV2 (docs/export.md) the weights of the first depthwise kernels, up to 24 in magnitude,
nearly cancel: rounding those 288 values alone changed one label in a hundred, and rounding all
larger constants together one in two thousand.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

MIN_FLOAT16_SIZE = 1024
"""Values of the smallest constant that is rounded; the limit of the converter's 8-bit mode."""

_DEQUANTIZE = schema.BuiltinOperator.DEQUANTIZE
_DEQUANTIZE_VERSION = 3


def with_float16_weights(content: bytes) -> bytes:
    """Returns a float32 file with large constants in float16, which LiteRT widens on loading.

    Constants with values that float16 cannot represent (above 65504) stay float32.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    opcode = _operator_code(model)
    float16_buffers: dict[int, int] = {}
    for graph in model.subgraphs:
        dequantizes = []
        for index, tensor in enumerate(list(graph.tensors)):
            float16_buffer = float16_buffers.get(tensor.buffer) or _float16_buffer(model, tensor)
            if float16_buffer is None:
                continue
            float16_buffers[tensor.buffer] = float16_buffer
            narrow = copy.copy(tensor)
            narrow.name, narrow.buffer = tensor.name + b"_fp16", float16_buffer
            narrow.type = schema.TensorType.FLOAT16
            graph.tensors.append(narrow)
            tensor.buffer = 0  # the empty buffer: values are computed by DEQUANTIZE
            dequantizes.append(_dequantize(opcode, len(graph.tensors) - 1, index))
        graph.operators = dequantizes + list(graph.operators)
    for buffer in float16_buffers:
        model.buffers[buffer].data = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _float16_buffer(model: Any, tensor: Any) -> int | None:
    """Returns the index of a new buffer with a constant in float16; None if it stays float32."""
    data = model.buffers[tensor.buffer].data
    if tensor.type != schema.TensorType.FLOAT32 or data is None:
        return None
    values = np.frombuffer(bytes(data), "<f4")
    if values.size < MIN_FLOAT16_SIZE:
        return None
    with np.errstate(over="ignore"):
        float16 = values.astype("<f2")
    if not np.isfinite(float16).all():
        return None
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(float16.tobytes(), np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _operator_code(model: Any) -> int:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = _DEQUANTIZE
    code.version = _DEQUANTIZE_VERSION
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _dequantize(code: int, narrow: int, wide: int) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, [narrow], [wide]
    operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
    operator.builtinOptions = schema.DequantizeOptionsT()
    return operator
