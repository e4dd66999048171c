"""SavedModels with operators that open files or call Python are refused, and not run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from ccfnet_tf.errors import RunError
from ccfnet_tf.exporters.saved_model.writer import write_saved_model
from ccfnet_tf.exporters.verify.compare_saved_model import check_saved_model
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runtimes.allowed_ops import refuse_harmful_graph
from ccfnet_tf.runtimes.saved_model import SavedModelNetwork

TAXONOMY = Taxonomy(("a", "b"), ((0, 0, 0), (9, 9, 9)))
Body = Callable[[Any], Any]


def read(x: Any) -> Any:
    return tf.strings.length(tf.io.read_file("/etc/hostname")) + tf.shape(x)[0]


def write(x: Any) -> Any:
    with tf.control_dependencies([tf.io.write_file("planted", "x")]):
        return tf.shape(x)[0]


def match(x: Any) -> Any:
    return tf.shape(tf.io.matching_files("/*"))[0] + tf.shape(x)[0]


def python(x: Any) -> Any:
    return tf.py_function(lambda y: y, [tf.shape(x)[0]], tf.int32)


def numpy(x: Any) -> Any:
    return tf.numpy_function(lambda y: y, [tf.shape(x)[0]], tf.int32)


def printed(x: Any) -> Any:
    with tf.control_dependencies([tf.print("x", output_stream="file://planted")]):
        return tf.shape(x)[0]


def restored(x: Any) -> Any:
    (found,) = tf.raw_ops.RestoreV2(
        prefix="/etc/x", tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.int32]
    )
    return found + tf.shape(x)[0]


def saved(x: Any) -> Any:
    save = tf.raw_ops.SaveV2(
        prefix="planted", tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant(1)]
    )
    with tf.control_dependencies([save] if save is not None else []):
        return tf.shape(x)[0]


def merged(x: Any) -> Any:
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=["a"], destination_prefix="b")
    return tf.shape(x)[0]


def listed(x: Any) -> Any:
    return tf.cast(
        tf.data.TextLineDataset("/etc/hostname").reduce(
            tf.constant(0, tf.int64), lambda n, _: n + 1
        ),
        tf.int32,
    )


def in_a_branch(x: Any) -> Any:
    return tf.cond(tf.shape(x)[0] > 5, lambda: read(x), lambda: 0)


def in_a_loop(x: Any) -> Any:
    return tf.while_loop(lambda i: i < 3, lambda i: i + read(x), [0])[0]


BODIES = [read, write, match, python, numpy, printed, restored, saved, merged, listed]


@pytest.fixture(scope="module")
def exported(toy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "1"
    write_saved_model(toy(2), TAXONOMY, folder)
    return folder


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "1"))


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "saved_model.pb"
    model = SavedModel.FromString(path.read_bytes())
    change(model.meta_graphs[0])
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("body", [*BODIES, in_a_branch, in_a_loop])
def test_a_graph_that_opens_files_or_calls_python_is_refused(
    body: Body, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = tf.Module()
    module.serve = tf.function(body, input_signature=[tf.TensorSpec([None, None, None, 3])])
    tf.saved_model.save(module, "1", signatures={"serving_default": module.serve})
    for opened in (refuse_harmful_graph, lambda at: SavedModelNetwork(at, TAXONOMY)):
        with pytest.raises(RunError, match=r"(operator|function) '.*so it is not run") as caught:
            opened(tmp_path / "1")
        assert "\n" not in str(caught.value)
    with pytest.raises(RunError):
        check_saved_model(tmp_path / "1")
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_what_an_export_writes_passes(artifact: Path) -> None:
    refuse_harmful_graph(artifact)


def saver_function(meta: Any, operator: str) -> str:
    (name,) = (
        each.signature.name
        for each in meta.graph_def.library.function
        if operator in {node.op for node in each.node_def}
    )
    return str(name)


def call_of(meta: Any, signature: str) -> Any:
    node = meta.signature_def[signature].outputs["labels"].name.partition(":")[0]
    return next(each for each in meta.graph_def.node if each.name == node)


def call_the_saver(meta: Any) -> None:
    call_of(meta, "serving_default").attr["f"].func.name = saver_function(meta, "SaveV2")


def call_it_within(meta: Any) -> None:
    name = saver_function(meta, "RestoreV2")
    other = next(f for f in meta.graph_def.library.function if f.signature.name != name)
    node = other.node_def.add(name="x", op="StatefulPartitionedCall")
    node.attr["f"].func.name = name


def serve_the_saver(meta: Any) -> None:
    meta.signature_def["serving_default"].outputs["labels"].name = meta.saver_def.save_tensor_name


def begin_with_the_saver(meta: Any) -> None:
    name = meta.saver_def.save_tensor_name.partition(":")[0]
    meta.collection_def["saved_model_main_op"].node_list.value[:] = [name]


def use_the_saver(meta: Any) -> None:
    name = meta.saver_def.restore_op_name
    call_of(meta, "serving_default").input.append(f"^{name}")


def restore_another(meta: Any) -> None:
    name = saver_function(meta, "RestoreV2")
    (function,) = (f for f in meta.graph_def.library.function if f.signature.name == name)
    (node,) = (n for n in function.node_def if n.op == "RestoreV2")
    node.input[0] = node.input[1]


def fix_the_name(meta: Any) -> None:
    name = meta.saver_def.filename_tensor_name.partition(":")[0]
    next(node for node in meta.graph_def.node if node.name == name).op = "Const"


def name_a_function_like_an_operator(meta: Any) -> None:
    meta.graph_def.library.function[0].signature.name = "Relu6"


def swap_by_device(meta: Any) -> None:
    meta.graph_def.library.function[0].attr["api_implements"].s = b"x"


def hand_the_saver_out(meta: Any) -> None:
    name = saver_function(meta, "SaveV2")
    meta.object_graph_def.concrete_functions[name].bound_inputs[:] = []


@pytest.mark.parametrize(
    "change",
    [
        call_the_saver,
        call_it_within,
        serve_the_saver,
        begin_with_the_saver,
        use_the_saver,
        restore_another,
        fix_the_name,
        name_a_function_like_an_operator,
        swap_by_device,
        hand_the_saver_out,
    ],
)
def test_what_restores_variables_is_used_for_that_alone(
    change: Callable[[Any], object], artifact: Path
) -> None:
    edit(artifact, change)
    with pytest.raises(RunError, match="it is not run"):
        refuse_harmful_graph(artifact)


def test_other_forms_of_the_graph_are_refused(artifact: Path) -> None:
    (artifact / "saved_model.cpb").write_bytes(b"")
    with pytest.raises(RunError, match=r"saved_model\.cpb: not a file that"):
        refuse_harmful_graph(artifact)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"no model"])
def test_what_is_no_graph_is_one_line(content: bytes, artifact: Path) -> None:
    (artifact / "saved_model.pb").write_bytes(content)
    with pytest.raises(RunError, match="saved_model") as caught:
        SavedModelNetwork(artifact, TAXONOMY)
    assert "\n" not in str(caught.value)
