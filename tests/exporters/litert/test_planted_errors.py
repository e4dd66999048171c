"""LiteRT files as they are made the obvious way: silently wrong, and refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.datasets.open_data_set import Parts
from ccfnet_tf.errors import RunError, VerificationError
from ccfnet_tf.exporters.litert import gpu_safe_graph
from ccfnet_tf.exporters.litert import writer as litert
from ccfnet_tf.exporters.litert.exporter import LiteRTExporter
from ccfnet_tf.exporters.litert.writer import LiteRTOptions, write_litert
from ccfnet_tf.exporters.verify import verify
from ccfnet_tf.exporters.verify.compare_process import compare
from ccfnet_tf.exporters.verify.gpu import GPUVerdict, try_on_gpu
from ccfnet_tf.exporters.verify.reference import write_reference
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.labels import Sample, Taxonomy
from ccfnet_tf.network.labels_and_maps import maps
from ccfnet_tf.runtimes.litert import LiteRTNetwork
from ccfnet_tf.runtimes.manifest import MODEL, REFERENCE, tolerance

SIZE = (40, 56)
TAXONOMY = Taxonomy(("sky", "sea", "sand"), ((0, 0, 255), (0, 255, 0), (255, 0, 0)))


def pictures() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*SIZE, 3)).astype(np.uint8) for _ in range(2)]


@pytest.fixture(scope="module")
def model(toy: Callable[..., Any]) -> Any:
    keras.utils.set_random_seed(0)
    made = toy(len(TAXONOMY.names))
    kernel = made.get_layer("backbone").get_layer("body").kernel
    kernel.assign(kernel / 255.0)
    return made


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("litert")
    write_reference(place / REFERENCE, KerasNetwork(model, taxonomy=TAXONOMY), pictures())
    return place


def write(model: Any, folder: Path, **options: Any) -> None:
    wanted = LiteRTOptions(SIZE, **options)
    write_litert(model, TAXONOMY, folder / MODEL["tflite"], wanted, pictures())


def plain_answers(model: Any) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    def answers(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return maps(model(images, training=False))

    return answers


def test_unfrozen_variables_are_refused(model: Any, folder: Path) -> None:
    """The obvious way: it converts without a word."""
    spec = tf.TensorSpec([1, *SIZE, 3], tf.float32, name="images")
    module = tf.Module()
    module.model = model
    module.serve = tf.function(plain_answers(model), input_signature=[spec])
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.serve.get_concrete_function()], module
    )
    (folder / MODEL["tflite"]).write_bytes(converter.convert())
    with pytest.raises(RunError, match="not finite"):
        compare(folder, LiteRTNetwork(folder / MODEL["tflite"], TAXONOMY))


def test_a_file_without_a_size_is_refused(model: Any, folder: Path, tmp_path: Path) -> None:
    """It converts and loads; what it takes by itself is an image of one pixel."""
    spec = tf.TensorSpec([1, None, None, 3], tf.float32, name="images")
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    module.serve = tf.function(plain_answers(model), input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.serve})
    content = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path)).convert()
    (folder / MODEL["tflite"]).write_bytes(content)
    found = compare(folder, LiteRTNetwork(folder / MODEL["tflite"], TAXONOMY))
    assert found.above(tolerance("tflite fp16"))


def test_int8_softmaxes_are_refused_by_what_they_lose(
    model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything in 8 bits, as the converter does it: other labels, and not a word of it."""
    predictor = KerasNetwork(model, taxonomy=TAXONOMY)
    labelled = {str(n): (each, predictor.predict(each).labels) for n, each in enumerate(pictures())}
    samples = tuple(Sample(name, name, name) for name in labelled)
    parts = Parts("folder", TAXONOMY, samples, samples, (), lambda sample: labelled[sample.name])
    exporter = LiteRTExporter(LiteRTOptions(SIZE, "int8"), max_loss=5.0)
    nothing = GPUVerdict(runs=False, wrong=False, message="not tested")
    monkeypatch.setattr(verify, "try_on_gpu", lambda _, **__: nothing)
    write(model, folder, quantize="int8")
    measured = exporter.measure(folder, predictor, parts, print)
    assert measured["accuracy"].endswith("(2 images of val)")
    monkeypatch.setattr(litert, "_FLOAT_LAYERS", ())
    write(model, folder, quantize="int8")
    with pytest.raises(VerificationError, match=r"int8 reaches .* points below .*--max-loss"):
        exporter.measure(folder, predictor, parts, print)
    accepted = replace(exporter, max_loss=50.0)
    assert accepted.measure(folder, predictor, parts, print)["GPU"] == "not tested"


def test_operators_that_no_gpu_has_are_named(
    model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = gpu_safe_graph.gpu_safe_outputs(model)

    def answers(images: tf.Tensor) -> dict[str, tf.Tensor]:
        found = plain(images)
        logs = tf.nn.log_softmax(tf.math.log(found["probabilities"]))
        return {**found, "probabilities": tf.exp(logs)}

    monkeypatch.setattr(litert, "gpu_safe_outputs", lambda *_: answers)
    write(model, folder)
    verdict = try_on_gpu(folder)
    if verdict.message.startswith("not tested"):
        pytest.skip(verdict.message)
    assert not verdict.runs
    assert "LOG_SOFTMAX" in verdict.message
