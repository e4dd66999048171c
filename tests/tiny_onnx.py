"""An ONNX file of a network without weights: probabilities are the colours of the image."""

from __future__ import annotations

from pathlib import Path

import onnx

TYPES = onnx.TensorProto
MAPS = ("attention", "difficulty", "risk")


def write_tiny_onnx(path: Path) -> None:
    """Writes the file; attention is the brightest colour, difficulty and risk the darkest."""
    helper = onnx.helper
    nodes = [
        helper.make_node("Cast", ["images"], ["probabilities"], to=TYPES.FLOAT),
        helper.make_node("ArgMax", ["probabilities"], ["index"], axis=3, keepdims=0),
        helper.make_node("Cast", ["index"], ["labels"], to=TYPES.INT32),
    ]
    for operator, name in zip(("ReduceMax", "ReduceMin", "ReduceMin"), MAPS, strict=True):
        nodes += [helper.make_node(operator, ["probabilities"], [name], axes=[3], keepdims=0)]
    sides = ["b", "h", "w"]
    inputs = [helper.make_tensor_value_info("images", TYPES.UINT8, [*sides, 3])]
    outputs = [
        helper.make_tensor_value_info("labels", TYPES.INT32, sides),
        *(helper.make_tensor_value_info(name, TYPES.FLOAT, sides) for name in MAPS),
        helper.make_tensor_value_info("probabilities", TYPES.FLOAT, [*sides, 3]),
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
