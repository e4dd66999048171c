"""Exported networks load in TensorFlow 2.15 beside TensorFlow Addons, and answer as they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

MAPS = ("attention", "difficulty", "risk")
BYTES = ("labels", *MAPS)


@pytest.fixture(scope="module")
def answers(material: Path) -> Any:
    with np.load(material / "answers.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_this_is_the_older_generation() -> None:
    import keras
    import tensorflow_addons

    assert tf.__version__.startswith("2.15.")
    assert keras.__version__.startswith("2.15.")
    assert tensorflow_addons.__version__ == "0.23.0"


@pytest.fixture(scope="module")
def saved_model(material: Path) -> Any:
    return tf.saved_model.load(str(material / "saved_model"))


def test_a_saved_model_answers_as_here(
    saved_model: Any, answers: Any, record_property: Any
) -> None:
    picture = tf.constant(answers["picture"][None])
    found = saved_model.signatures["probabilities"](images=picture)["probabilities"].numpy()
    gap = np.abs(found - answers["probabilities/probabilities"]).max()
    record_property("largest difference", f"{gap:.2g}")
    assert gap < 1e-4
    served = saved_model.signatures["serving_default"](images=picture)
    for name in BYTES:
        expected = answers[f"serving_default/{name}"]
        assert served[name].dtype == tf.uint8
        # A probability on the edge between two bytes may fall to either side.
        step = np.abs(served[name].numpy().astype(int) - expected)
        assert (step > 0).mean() < 1e-3, name


def test_it_answers_pictures_as_files(saved_model: Any, answers: Any) -> None:
    content = tf.io.encode_png(answers["picture"])
    found = saved_model.signatures["encoded"](image_bytes=content[None])
    labels = tf.io.decode_png(found["labels_png_bytes"][0])[..., 0].numpy()
    assert (labels != answers["serving_default/labels"][0]).mean() < 1e-3


def test_a_session_of_tensorflow_1_loads_it(material: Path, answers: Any) -> None:
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.loader.load(
            session, ["serve"], str(material / "saved_model")
        )
        signature = meta.signature_def["probabilities"]
        found = session.run(
            signature.outputs["probabilities"].name,
            {signature.inputs["images"].name: answers["picture"][None]},
        )
    assert np.abs(found - answers["probabilities/probabilities"]).max() < 1e-4


# int8 kernels may round to the other neighbour, and the steps add up over layers.
@pytest.mark.parametrize(("quantize", "largest"), [("none", 1e-4), ("fp16", 1e-4), ("int8", 0.05)])
def test_a_tflite_file_answers_as_here(
    material: Path, answers: Any, quantize: str, largest: float, record_property: Any
) -> None:
    interpreter = tf.lite.Interpreter(str(material / f"{quantize}.tflite"), num_threads=1)
    run = interpreter.get_signature_runner("serving_default")
    found = run(images=answers["picture"][None].astype(np.float32))
    gaps = [
        np.abs(found[name][0] - answers[f"{quantize}/{name}"]).max()
        for name in ("probabilities", *MAPS)
    ]
    record_property("largest difference", f"{max(gaps):.2g}")
    assert max(gaps) < largest


def flagged(path: Path, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Returns what 2.15's analyzer says that older GPU delegates do not run; it only prints."""
    capfd.readouterr()
    tf.lite.experimental.Analyzer.analyze(model_path=str(path), gpu_compatibility=True)
    said = capfd.readouterr().out.splitlines()
    kept = [line for line in said if "GPU COMPATIBILITY WARNING" in line]
    return sorted({line.split("WARNING:")[-1].split(" at nodes")[0].strip() for line in kept})


@pytest.mark.parametrize("quantize", ["none", "fp16", "int8"])
def test_what_older_gpu_delegates_are_said_to_lack(
    material: Path, quantize: str, capfd: pytest.CaptureFixture[str], record_property: Any
) -> None:
    """A second opinion for old boards, shown and not judged.

    It takes the weights of an fp16 file for inputs that are computed, which GPU delegates do not
    mind, and so flags every convolution there ("has 3 runtime inputs").
    """
    for line in flagged(material / f"{quantize}.tflite", capfd) or ["nothing"]:
        record_property(f"{quantize}.tflite, flagged", line)


def test_the_analyzer_sees_what_no_gpu_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = tf.Module()
    spec = tf.TensorSpec([1, 8, 8, 3], tf.float32)
    module.f = tf.function(lambda x: tf.argmax(x, -1), input_signature=[spec])
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.f.get_concrete_function()], module
    )
    path = tmp_path / "planted.tflite"
    path.write_bytes(converter.convert())
    assert any("ARG_MAX" in line for line in flagged(path, capfd))
