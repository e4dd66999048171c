"""LiteRT files: equal to Keras, for the GPU, and the ways in which they would be silently wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from ccfnet_tf.errors import RunError
from ccfnet_tf.exporters.litert import gpu_safe_graph
from ccfnet_tf.exporters.litert.writer import LiteRTOptions, write_litert
from ccfnet_tf.exporters.verify import gpu_process
from ccfnet_tf.exporters.verify.compare_process import compare
from ccfnet_tf.exporters.verify.gpu import GPUVerdict, judge, try_on_gpu
from ccfnet_tf.exporters.verify.reference import write_reference
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import MAPS
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network import heads
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.network.ccfnet import build_ccfnet
from ccfnet_tf.network.fast_layers import Conv
from ccfnet_tf.network.heads import PyramidPooling
from ccfnet_tf.network.model import CCFNet
from ccfnet_tf.runtimes.letterbox import parse_size
from ccfnet_tf.runtimes.litert import LiteRTNetwork
from ccfnet_tf.runtimes.manifest import MODEL, REFERENCE, tolerance

SIZE = (40, 56)
TAXONOMY = Taxonomy(("sky", "sea", "sand"), ((0, 0, 255), (0, 255, 0), (255, 0, 0)))


def pictures(count: int = 2) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*SIZE, 3)).astype(np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def model(toy: Callable[..., Any]) -> Any:
    keras.utils.set_random_seed(0)
    made = toy(len(TAXONOMY.names))
    kernel = made.get_layer("backbone").get_layer("body").kernel
    kernel.assign(kernel / 255.0)  # logits in units, as a trained network has, not in hundreds
    return made


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("litert")
    write_reference(place / REFERENCE, KerasNetwork(model, taxonomy=TAXONOMY), pictures())
    return place


def write(
    model: Any, folder: Path, calibration: Calibration = UNCALIBRATED, **options: Any
) -> LiteRTNetwork:
    wanted = LiteRTOptions(**{"size": SIZE, **options})
    path = folder / MODEL["tflite"]
    write_litert(model, TAXONOMY, path, wanted, pictures(), calibration=calibration)
    return LiteRTNetwork(folder / MODEL["tflite"], TAXONOMY, threads=1)


@pytest.mark.parametrize("quantize", ["none", "fp16", "dynamic", "int8"])
def test_each_quantization_is_within_its_tolerance(model: Any, folder: Path, quantize: str) -> None:
    network = write(model, folder, quantize=quantize)
    assert compare(folder, network).above(tolerance(f"tflite {quantize}")) == []


def test_labels_are_the_largest_probability(model: Any, folder: Path) -> None:
    network = write(model, folder, quantize="none", outputs="labels", batch=2)
    found = compare(folder, network)
    assert found.largest < 1e-5
    assert found.other_labels == 0.0


def test_every_place_of_a_batch_is_compared(model: Any, folder: Path) -> None:
    network = write(model, folder, quantize="none", batch=2)
    runner = network._runner

    def forgetful(images: np.ndarray) -> dict[str, np.ndarray]:
        found = runner(images=images)
        return {name: np.stack([values[0], values[0]]) for name, values in found.items()}

    assert compare(folder, network).largest < 1e-5
    network._runner = forgetful
    assert compare(folder, network).largest > 1e-2


def test_the_process_that_checks_knows_no_network(model: Any, folder: Path) -> None:
    write(model, folder)
    command = [
        sys.executable,
        "-m",
        "ccfnet_tf.exporters.verify.compare_process",
        str(folder),
        "tflite",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["percentile"] < 0.05


def test_softmax_and_blend_of_int8_stay_float(model: Any, folder: Path) -> None:
    write(model, folder, quantize="int8")
    interpreter = Interpreter(str(folder / MODEL["tflite"]))
    kinds: dict[str, set[Any]] = {}
    types = {each["index"]: each["dtype"] for each in interpreter.get_tensor_details()}
    for op in interpreter._get_ops_details():
        kinds.setdefault(op["op_name"], set()).update(types[t] for t in op["outputs"])
    assert np.int8 in kinds["CONV_2D"]
    for name in ("EXP", "LOG", "SOFTMAX"):
        assert kinds.get(name, {np.float32}) == {np.float32}


def test_a_prediction_prints_nothing(
    model: Any, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(model, folder)
    capfd.readouterr()
    network = LiteRTNetwork(folder / MODEL["tflite"], TAXONOMY, threads=1)
    network.predict(pictures()[0])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"no file of that kind", b"1234TFL3"])
def test_what_is_no_file_of_ours_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"x\.tflite"):
        LiteRTNetwork(path, TAXONOMY)


@pytest.mark.parametrize(("text", "size"), [("240x320", (240, 320)), ("33X65", (33, 65))])
def test_sizes_are_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("channels", [910, 911, 2057])
def test_no_convolution_is_wider_than_a_texture(channels: int) -> None:
    """And the sum of its slices is what it was."""
    images = keras.Input((None, None, channels))
    layer = Conv(4, 3, padding="same", name="wide")
    plain = keras.Model(images, layer(images))
    sliced = gpu_safe_graph._rewritten(plain)
    x = np.random.default_rng(0).normal(size=(1, 5, 6, channels)).astype(np.float32)
    np.testing.assert_allclose(sliced(x), plain(x), rtol=1e-4, atol=1e-4)
    traced = tf.function(sliced).get_concrete_function(tf.TensorSpec(x.shape))
    kernels = [op.inputs[1].shape for op in traced.graph.get_operations() if op.type == "Conv2D"]
    assert len(kernels) == (1 if channels == 910 else -(-channels // gpu_safe_graph.SLICE_CHANNELS))
    assert all(np.prod(kernel[:3]) <= gpu_safe_graph.MAX_TEXTURE_ROWS for kernel in kernels)


@pytest.mark.parametrize("size", [(6, 6), (7, 9), (1, 5)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_strided_convolution_is_one_of_what_it_sees(size: tuple[int, int], padding: str) -> None:
    """In a model within the model, as the backbone is."""
    keras.utils.set_random_seed(0)
    inner_images = keras.Input((*size, 5))
    strided = Conv(4, 1, strides=2, padding=padding, activation="relu", name="strided")
    inner = keras.Model(inner_images, strided(inner_images))
    images = keras.Input((*size, 5))
    plain = keras.Model(images, inner(images))
    x = np.random.default_rng(0).normal(size=(2, *size, 5)).astype(np.float32)
    network = gpu_safe_graph._rewritten(plain)
    np.testing.assert_allclose(network(x), plain(x), atol=1e-6)
    traced = tf.function(network).get_concrete_function(tf.TensorSpec(x.shape))
    ops = [op for op in traced.graph.get_operations() if op.type == "Conv2D"]
    assert [list(op.get_attr("strides")) for op in ops] == [[1, 1, 1, 1]]


@pytest.mark.parametrize("size", [(6, 6), (7, 9), (31, 41)])
def test_means_of_slices_are_the_pooling(size: tuple[int, int]) -> None:
    pooling = PyramidPooling()
    x = np.random.default_rng(0).normal(size=(2, *size, 5)).astype(np.float32)
    for mine, theirs in zip(
        gpu_safe_graph._SlicedPyramidPooling(pooling)(x), pooling(x), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


REFUSED = """\
ERROR: Following operations are not supported by GPU delegate:
BATCH_MATMUL: Not supported batched mat mul case: non-constant tensor
DEQUANTIZE:
128 operations will run on the GPU, and the remaining 238 operations will run on the CPU.
"""


@pytest.mark.parametrize(
    ("stdout", "stderr", "verdict"),
    [
        (
            '{"largest": 1e-6, "mean": 0.03, "accelerated": true}',
            "",
            (True, False, "yes: within 1.0e-06"),
        ),
        (
            '{"largest": 1e-6, "mean": 0.03, "accelerated": true}',
            "x Validation error: Texture size",
            (False, True, "no: a kernel was rejected"),
        ),
        (
            '{"largest": 3.0, "mean": 0.03, "accelerated": true}',
            "",
            (False, True, "no: wrong outputs"),
        ),
        (
            '{"largest": NaN, "mean": 0.03, "accelerated": true}',
            "",
            (False, True, "no: wrong outputs"),
        ),
        (
            '{"largest": 0.0, "mean": 0.0, "accelerated": false}',
            "",
            (False, False, "no: some operators would run on the CPU"),
        ),
        ('{"error": "x"}', REFUSED, (False, False, "no: unsupported operators: BATCH_MA")),
        ('{"error": "x"}', "No adapters found", (False, False, "not tested: no GPU with Vulkan")),
        ("", "", (False, False, "no: LiteRT cannot run it (exit code 139)")),
    ],
)
def test_the_verdict_on_a_gpu(stdout: str, stderr: str, verdict: tuple[bool, bool, str]) -> None:
    found = judge(stdout, stderr, 139)
    assert (found.runs, found.wrong) == verdict[:2]
    assert found.message.startswith(verdict[2])


def test_where_the_cpu_computes_in_8_bits_the_mean_counts() -> None:
    near = '{"largest": 0.4, "mean": 0.01, "accelerated": true}'
    assert judge(near, "", 0, in_8_bits=True).runs
    assert judge(near, "", 0).wrong
    far = '{"largest": 0.97, "mean": 0.2, "accelerated": true}'
    assert judge(far, "", 0, in_8_bits=True).wrong


def test_what_fails_on_a_gpu_is_not_called_a_machine_without_one() -> None:
    # LiteRT looks for plugins of other makers in every process.
    stderr = "WARNING: Could not load shared library x.so\nERROR: [a.cc:3] VK_ERROR_DEVICE_LOST\n"
    said = "no: LiteRT cannot run it (VK_ERROR_DEVICE_LOST)"
    assert judge('{"error": "y"}', stderr, 0) == GPUVerdict(False, False, said)


def test_not_a_number_in_any_output_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = {name: np.zeros((1, 2, 2)) for name in MAPS}
    right["probabilities"] = np.zeros((1, 2, 2, 3))
    wrong = right | {"probabilities": np.full((1, 2, 2, 3), np.nan)}

    class Compiled:
        batch, accelerated = 1, True

        def __init__(self, path: Path, hardware: str) -> None:
            self.answer = {"GPU": wrong, "CPU": right}[hardware]

        def __call__(self, *, images: np.ndarray) -> dict[str, np.ndarray]:
            return self.answer

    monkeypatch.setattr(gpu_process, "CompiledLiteRT", Compiled)
    assert np.isnan(gpu_process._both(Path(), np.zeros((2, 2, 3)))["largest"])
    wrong = right | {"difficulty": np.full((1, 2, 2), np.nan)}
    assert gpu_process._both(Path(), np.zeros((2, 2, 3)))["largest"] == 1.0


def gpu_or_skip(folder: Path) -> GPUVerdict:
    verdict = try_on_gpu(folder)
    if verdict.message.startswith("not tested"):
        pytest.skip(
            f"{verdict.message}: install chromium-common and libvulkan1, set VK_DRIVER_FILES"
        )
    return verdict


@pytest.mark.parametrize("outputs", ["probabilities", "labels"])
def test_the_default_runs_wholly_on_a_gpu(model: Any, folder: Path, outputs: str) -> None:
    calibration = Calibration((0.5, 2.0, 1.0), (1.0, 0.0, -1.0), 0.5, 1.0)
    write(model, folder, calibration, outputs=outputs)
    verdict = gpu_or_skip(folder)
    assert verdict.runs, verdict.message


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "fp16"])
def test_a_network_on_efficientnet_lite_is_equal_to_keras_and_runs_on_a_gpu(
    lite_network: Any, tmp_path: Path, quantize: str
) -> None:
    reference = KerasNetwork(lite_network, taxonomy=TAXONOMY)
    write_reference(tmp_path / REFERENCE, reference, pictures())
    network = write(lite_network, tmp_path, quantize=quantize)
    assert compare(tmp_path, network).above(tolerance(f"tflite {quantize}")) == []
    verdict = gpu_or_skip(tmp_path)
    assert verdict.runs, verdict.message


def wide_network() -> Any:
    """All heads behind a convolution over 1088 channels, of which the GPU makes garbage."""
    keras.utils.set_random_seed(0)
    images = keras.Input((None, None, 3), name="images")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(1088, 1, activation="relu")(x)
    x = keras.layers.Conv2D(128, 3, padding="same", activation="relu", name="wide")(x)
    coarse = keras.layers.Conv2D(3, 1)(x)
    attention = keras.layers.Conv2D(2, 1)(x)
    fine = keras.layers.Conv2D(3, 1, name="fine_logits")(x)
    refine = heads.Blend()([heads.LogSoftmax()(coarse), attention, fine])
    outputs = {"coarse": coarse, "attention": attention, "refine": refine}
    return CCFNet(inputs=images, outputs=outputs)


@pytest.mark.slow
def test_wide_convolutions_run_rightly_on_a_gpu_in_slices_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wide_network()
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    write_reference(tmp_path / REFERENCE, KerasNetwork(model, taxonomy=TAXONOMY), [picture])
    write(model, tmp_path, size=(32, 32))
    verdict = gpu_or_skip(tmp_path)
    assert verdict.runs, verdict.message
    # As the graph is, the same network is silent garbage there, and is refused.
    monkeypatch.setattr(gpu_safe_graph, "MAX_TEXTURE_ROWS", 1 << 30)
    write(model, tmp_path, size=(32, 32))
    verdict = try_on_gpu(tmp_path)
    assert verdict.wrong, verdict.message


@pytest.mark.slow
def test_resnet_in_8_bits_runs_rightly_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keras.utils.set_random_seed(0)
    model = build_ccfnet(3, backbone="resnet50", backbone_weights=None, head_channels=8)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    write_reference(tmp_path / REFERENCE, KerasNetwork(model, taxonomy=TAXONOMY), [picture])
    write(model, tmp_path, size=(64, 64), quantize="dynamic")
    gpu_or_skip(tmp_path)
    verdict = try_on_gpu(tmp_path, in_8_bits=True)
    assert verdict.runs, verdict.message
    # As its strided convolutions are, it is silent garbage there.
    monkeypatch.setattr(gpu_safe_graph, "_StridedConv", lambda conv: conv)
    write(model, tmp_path, size=(64, 64), quantize="dynamic")
    verdict = try_on_gpu(tmp_path, in_8_bits=True)
    assert verdict.wrong, verdict.message
