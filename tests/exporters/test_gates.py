"""Exports of networks with other gates than attention, or that read images at two scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from ccfnet_tf.exporters.fold_batch_norm import fold_batch_norm
from ccfnet_tf.exporters.litert.writer import LiteRTOptions, write_litert
from ccfnet_tf.exporters.onnx.writer import write_onnx
from ccfnet_tf.exporters.saved_model.writer import write_saved_model
from ccfnet_tf.exporters.verify.compare_process import compare
from ccfnet_tf.exporters.verify.gpu import try_on_gpu
from ccfnet_tf.exporters.verify.reference import (
    BRANCH_LEAD,
    Gaps,
    read_references,
    write_reference,
)
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import Segmenter
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.ccfnet import build_ccfnet
from ccfnet_tf.network.heads import AffineGate, HardGate
from ccfnet_tf.network.labels_and_maps import exported_heads
from ccfnet_tf.runtimes.litert import LiteRTNetwork
from ccfnet_tf.runtimes.manifest import MODEL, REFERENCE, tolerance
from ccfnet_tf.runtimes.onnx import OnnxNetwork
from ccfnet_tf.runtimes.saved_model import SavedModelNetwork

SIZE = (40, 56)
TAXONOMY = Taxonomy(("sky", "sea", "sand"), ((0, 0, 255), (0, 255, 0), (255, 0, 0)))
GATES: dict[str, Callable[[], Any]] = {
    "affine": lambda: AffineGate(name="gate"),
    "hard": lambda: HardGate(0.45, name="gate"),
}
FULL = {"attention_input": "features_and_coarse", "fine_input": "pyramid_and_detail"}


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def saved_model(model: Any, folder: Path) -> Segmenter:
    write_saved_model(model, TAXONOMY, folder)
    return SavedModelNetwork(folder, TAXONOMY)


def litert(model: Any, folder: Path) -> Segmenter:
    options = LiteRTOptions(size=SIZE, quantize="none")
    write_litert(model, TAXONOMY, folder / MODEL["tflite"], options, [image()])
    return LiteRTNetwork(folder / MODEL["tflite"], TAXONOMY, threads=1)


def onnx(model: Any, folder: Path) -> Segmenter:
    write_onnx(model, folder / "model.onnx")
    return OnnxNetwork(folder / "model.onnx", TAXONOMY)


EXPORTS = {"saved_model": saved_model, "tflite none": litert, "onnx": onnx}


def assert_equal_to_keras(model: Any, folder: Path, kind: str) -> None:
    network = EXPORTS[kind](model, folder)
    write_reference(folder / REFERENCE, KerasNetwork(model, taxonomy=TAXONOMY), [image()])
    assert compare(folder, network).above(tolerance(kind)) == []


def assert_runs_on_a_gpu(folder: Path) -> None:
    verdict = try_on_gpu(folder)
    if verdict.message.startswith("not tested"):
        pytest.skip(
            f"{verdict.message}: install chromium-common and libvulkan1, set VK_DRIVER_FILES"
        )
    assert verdict.runs, verdict.message


def with_gate(toy: Callable[..., Any], name: str) -> Any:
    keras.utils.set_random_seed(0)
    gate = GATES[name]()
    model = toy(len(TAXONOMY.names), gate=gate)
    kernel = model.get_layer("backbone").get_layer("body").kernel
    kernel.assign(kernel / 255.0)
    for variable in gate.variables:
        variable.assign(variable + 0.07)  # weights that no other gate has
    if isinstance(gate, HardGate):  # half of the pixels are taken from each branch
        logits = KerasNetwork(model).head_outputs(image()).attention
        gate.threshold = float(1 / (1 + np.exp(-np.median(logits))))
    return model


@pytest.fixture(scope="module", params=GATES)
def gated(request: pytest.FixtureRequest, toy: Callable[..., Any]) -> Any:
    return with_gate(toy, request.param)


@pytest.mark.parametrize("kind", EXPORTS)
def test_every_format_blends_by_the_gate(gated: Any, kind: str, tmp_path: Path) -> None:
    hard = KerasNetwork(gated, taxonomy=TAXONOMY).head_outputs(image())
    by_attention = np.logaddexp(
        hard.coarse - np.log1p(np.exp(hard.attention))[..., None],
        hard.fine - np.log1p(np.exp(-hard.attention))[..., None],
    )
    assert np.abs(np.exp(hard.refine) - np.exp(by_attention)).max() > 0.01
    assert_equal_to_keras(gated, tmp_path, kind)


def test_every_gate_runs_wholly_on_a_gpu(gated: Any, tmp_path: Path) -> None:
    assert_equal_to_keras(gated, tmp_path, "tflite none")
    assert_runs_on_a_gpu(tmp_path)


@pytest.fixture(scope="module", params=[(0.5, 1.0), (0.5, 0.5), (1.5, 1.0)])
def two_scales(request: pytest.FixtureRequest) -> Any:
    keras.utils.set_random_seed(0)
    coarse_scale, attention_scale = request.param
    model = build_ccfnet(
        len(TAXONOMY.names),
        backbone="mobilenet_v2",
        backbone_weights=None,
        head_channels=8,
        coarse_scale=coarse_scale,
        attention_scale=attention_scale,
        gate="affine",
        batch_norm_momentum=0.0,
        **FULL,
    )
    model(np.stack([image()] * 2), training=True)  # statistics with which signals do not vanish
    return model


@pytest.mark.slow
def test_a_backbone_at_two_scales_is_folded_once(two_scales: Any) -> None:
    """Keras refuses two models of one name."""
    folded = fold_batch_norm(exported_heads(two_scales))
    outputs = folded({"images": image()[None]})
    expected = two_scales(image()[None])
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, atol=1e-3)
    assert sum(layer.name == "backbone" for layer in folded.layers) == 1


def test_pixels_at_the_threshold_of_a_hard_blend_refuse_no_export(
    toy: Callable[..., Any], tmp_path: Path
) -> None:
    """Rounding chooses the other branch there; a wrong branch elsewhere is refused."""
    network = KerasNetwork(with_gate(toy, "hard"), taxonomy=TAXONOMY)
    write_reference(tmp_path / REFERENCE, network, [image()])
    (reference,) = read_references(tmp_path)
    logit = network.head_outputs(image()).attention
    threshold = np.median(logit)
    np.testing.assert_array_equal(reference.clear_branch, np.abs(logit - threshold) >= BRANCH_LEAD)
    assert 0 < (~reference.clear_branch).sum() < reference.clear_branch.size

    def difference(pixels: np.ndarray) -> float:
        wrong = reference.prediction._replace(
            labels=np.where(pixels, 1 - reference.prediction.labels.clip(0, 1), 0)
            + np.where(pixels, 0, reference.prediction.labels),
            risk=np.where(pixels, 1 - reference.prediction.risk, reference.prediction.risk),
            probabilities=np.where(
                pixels[..., None],
                reference.prediction.probabilities[..., ::-1],
                reference.prediction.probabilities,
            ),
        )
        gaps = Gaps()
        gaps.add_prediction(wrong, reference)
        return gaps.difference().largest

    assert difference(~reference.clear_branch) == 0.0
    assert difference(reference.clear_branch) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["fp16", "int8"])
def test_the_gate_is_computed_in_float(gated: Any, quantize: str, tmp_path: Path) -> None:
    options = LiteRTOptions(size=SIZE, quantize=quantize)
    path = tmp_path / MODEL["tflite"]
    write_litert(gated, TAXONOMY, path, options, [image()])
    write_reference(tmp_path / REFERENCE, KerasNetwork(gated, taxonomy=TAXONOMY), [image()])
    network = LiteRTNetwork(path, TAXONOMY, threads=1)
    assert compare(tmp_path, network).above(tolerance(f"tflite {quantize}")) == []
    details = Interpreter(model_path=str(path)).get_tensor_details()
    of_gate = [each["dtype"] for each in details if "gate" in each["name"]]
    assert np.int8 not in of_gate


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPORTS)
def test_every_format_reads_both_scales(two_scales: Any, kind: str, tmp_path: Path) -> None:
    assert_equal_to_keras(two_scales, tmp_path, kind)


@pytest.mark.slow
def test_two_scales_run_wholly_on_a_gpu(two_scales: Any, tmp_path: Path) -> None:
    assert_equal_to_keras(two_scales, tmp_path, "tflite none")
    assert_runs_on_a_gpu(tmp_path)
