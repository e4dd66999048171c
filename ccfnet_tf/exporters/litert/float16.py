"""A LiteRT file's weights in 16 bits, but for those where that costs more than it saves.

The converter's own way rounds every constant. Small ones - biases, scales, the kernels of
depthwise convolutions - are next to nothing of a file, and rounding them can cost most. In a
trained MobileNetV2 (docs/export.md) the first depthwise kernels, of up to 24, sum to nearly
nothing: those 288 numbers alone moved one label in a hundred, and all larger ones together one in
two thousand.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

LEAST = 1024
"""Numbers of a constant that is worth it; the converter leaves smaller ones alone in 8 bits too."""

_DEQUANTIZE = schema.BuiltinOperator.DEQUANTIZE
_VERSION_OF_HALVES = 3


def with_float16_weights(content: bytes) -> bytes:
    """Returns a float32 file with its large constants in float16, which LiteRT widens on loading.

    What float16 cannot hold (above 65504) stays float32.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    widen = _operator_code(model)
    halves: dict[int, int] = {}
    for graph in model.subgraphs:
        widened = []
        for index, tensor in enumerate(list(graph.tensors)):
            half = halves.get(tensor.buffer) or _half(model, tensor)
            if half is None:
                continue
            halves[tensor.buffer] = half
            narrow = copy.copy(tensor)
            narrow.name, narrow.buffer = tensor.name + b"_fp16", half
            narrow.type = schema.TensorType.FLOAT16
            graph.tensors.append(narrow)
            tensor.buffer = 0  # which is empty: its values are computed
            widened.append(_widen(widen, len(graph.tensors) - 1, index))
        graph.operators = widened + list(graph.operators)
    for buffer in halves:
        model.buffers[buffer].data = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _half(model: Any, tensor: Any) -> int | None:
    """Returns the new buffer of a constant's halves; None where it stays as it is."""
    data = model.buffers[tensor.buffer].data
    if tensor.type != schema.TensorType.FLOAT32 or data is None:
        return None
    values = np.frombuffer(bytes(data), "<f4")
    if values.size < LEAST:
        return None
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if not np.isfinite(halves).all():
        return None
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(halves.tobytes(), np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _operator_code(model: Any) -> int:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = _DEQUANTIZE
    code.version = _VERSION_OF_HALVES
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _widen(code: int, narrow: int, wide: int) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, [narrow], [wide]
    operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
    operator.builtinOptions = schema.DequantizeOptionsT()
    return operator
