"""Checks a SavedModel against a list of allowed operators.

A SavedModel is a program: TensorFlow has operators that read and write files, call Python and
start servers. Only these are allowed: arithmetic of segmentation networks, control flow, variables,
image formats, and the two functions that TensorFlow uses to save and restore variables, where
TensorFlow itself calls them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from ccfnet_tf.errors import RunError

FILE = "saved_model.pb"

_OTHER_GRAPH_FILES = ("saved_model.cpb", "saved_model.pbtxt")
"""Other graph files that TensorFlow would read instead of `FILE`."""

_NAMES = """
Abs Add AddN AddV2 All Any ArgMax ArgMin Assert AssignVariableOp AvgPool BatchMatMul
BatchMatMulV2 BatchMatMulV3 BatchToSpaceND BiasAdd BroadcastArgs BroadcastTo Cast Ceil
ClipByValue Concat ConcatV2 Const Conv2D Conv2DBackpropInput Cumsum DecodeBmp DecodeImage
DecodeJpeg DecodePng DecodeRaw DepthToSpace DepthwiseConv2dNative DisableCopyOnRead Einsum Elu
EncodePng Equal Erf Exp ExpandDims Expm1 ExtractJpegShape Fill Floor FloorDiv FloorMod
FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 Gather GatherNd GatherV2 Greater GreaterEqual
Identity IdentityN If InvertPermutation IsFinite IsInf IsNan LeakyRelu Less LessEqual Log Log1p
LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul Max MaxPool MaxPoolV2 Maximum Mean Min Minimum
MirrorPad Mul Neg NoOp NotEqual OneHot OnesLike Pack Pad PadV2 PartitionedCall Placeholder
PlaceholderWithDefault Pow PreventGradient Prod Range Rank ReadVariableOp RealDiv Reciprocal
Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor ReverseV2 Round Rsqrt ScatterNd Select
SelectV2 Selu Shape ShapeN Sigmoid Sign Size Slice Softmax Softplus SpaceToBatchND SpaceToDepth
Split SplitV Sqrt Square SquaredDifference Squeeze StatefulPartitionedCall StatelessIf
StatelessWhile StaticRegexFullMatch StopGradient StridedSlice StringJoin StringLength Sub Substr
Sum Tanh TensorListFromTensor TensorListGetItem TensorListReserve TensorListSetItem
TensorListStack Tile TopKV2 Transpose TruncateDiv TruncateMod Unpack VarHandleOp
VarIsInitializedOp Where While ZerosLike
"""
ALLOWED = frozenset(_NAMES.split())

SAVERS = frozenset(("SaveV2", "MergeV2Checkpoints", "ShardedFilename", "RestoreV2"))
"""Operators that read and write the files of variables."""


def refuse_harmful_graph(folder: Path) -> None:
    """Checks the graph of a SavedModel without running any of it.

    Args:
        folder: The folder that contains `saved_model.pb`.

    Raises:
        RunError: The file cannot be read, or contains an operator that is not allowed.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    for name in _OTHER_GRAPH_FILES:
        if (folder / name).exists():
            raise RunError(f"{folder / name}: not a file that ccfnet-tf export writes: remove it")
    path = folder / FILE
    try:
        model = SavedModel.FromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise RunError(f"{path}: not a SavedModel ({error}): export the run again") from error
    for graph in model.meta_graphs:
        if fault := _fault(graph):
            raise RunError(
                f"{path}: {fault}: ccfnet-tf export writes no such graph, so it is not run; "
                "export the run again"
            )


def _fault(meta: Any) -> str:
    """Returns a description of the first thing that is not allowed; empty if there is none."""
    return _disallowed_operator(meta) or _use_of_files(meta) or _foreign_file(meta)


def _disallowed_operator(meta: Any) -> str:
    nodes, functions = meta.graph_def.node, meta.graph_def.library.function
    if disallowed := _ops(nodes) - ALLOWED:
        return f"operator '{min(disallowed)}'"
    for each in functions:
        if disallowed := _ops(each.node_def) - ALLOWED - SAVERS:
            return f"operator '{min(disallowed)}'"
        # TensorFlow would call the function instead of the operator or function of that name.
        if each.signature.name in ALLOWED | SAVERS or "api_implements" in each.attr:
            return f"function '{each.signature.name}'"
    return ""


def _use_of_files(meta: Any) -> str:
    """Returns a fault if anything except TensorFlow's saver reads or writes files."""
    nodes, functions = meta.graph_def.node, meta.graph_def.library.function
    saving = {each.signature.name for each in functions if _ops(each.node_def) & SAVERS}
    savers = [_node_of(meta.saver_def.save_tensor_name), _node_of(meta.saver_def.restore_op_name)]
    callers = [node for node in nodes if node.name not in savers]
    for node in chain(callers, *(each.node_def for each in functions)):
        if called := saving & set(_called(node)):
            return f"function '{min(called)}', which opens files, called by '{node.name}'"
    named = {_node_of(name) for node in nodes for name in node.input} | set(_entry_nodes(meta))
    if used := named.intersection(savers):
        return f"a use of '{min(used)}', which opens files"
    if reads := saving & set(meta.object_graph_def.concrete_functions):
        return f"function '{min(reads)}', which opens files, for others to call"
    return ""


def _foreign_file(meta: Any) -> str:
    """Returns a fault if variables are restored from any file except the SavedModel's own."""
    restore = _node_of(meta.saver_def.restore_op_name)
    filename = _node_of(meta.saver_def.filename_tensor_name)
    for node in meta.graph_def.node:
        if node.name == restore and filename not in node.input[:1]:
            return "variables that are restored from another file"
        if node.name == filename and node.op != "Placeholder":
            return "variables that are restored from another file"
    for each in meta.graph_def.library.function:
        own = each.signature.input_arg[0].name if each.signature.input_arg else ""
        for node in each.node_def:
            if node.op == "RestoreV2" and list(node.input[:1]) != [own]:
                return "variables that are restored from another file"
    return ""


def _ops(nodes: Iterable[Any]) -> set[str]:
    return {node.op for node in nodes}


def _called(node: Any) -> list[str]:
    """Returns the names of the functions that a node calls."""
    names = []
    for value in node.attr.values():
        names += [each.name for each in (value.func, *value.list.func) if each.name]
    return names


def _entry_nodes(meta: Any) -> list[str]:
    """Returns the nodes that are run or fed when the graph is loaded or called."""
    names = [name for each in meta.collection_def.values() for name in each.node_list.value]
    for signature in meta.signature_def.values():
        names += [info.name for info in (*signature.inputs.values(), *signature.outputs.values())]
    return [_node_of(name) for name in names]


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]
