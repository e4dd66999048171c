"""A calibration is part of an exported file, and of its manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from rich.console import Console

from ccfnet_tf.errors import EXIT_USER_ERROR, RunError
from ccfnet_tf.exporters.export_run import export_run
from ccfnet_tf.exporters.litert.writer import LiteRTOptions, write_litert
from ccfnet_tf.exporters.onnx.writer import write_onnx
from ccfnet_tf.exporters.registry import new_exporter
from ccfnet_tf.exporters.saved_model.writer import write_saved_model
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import MAPS, Maps, Prediction, Segmenter
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import Calibration
from ccfnet_tf.runs.calibration_file import CALIBRATION as CALIBRATION_FILE
from ccfnet_tf.runs.calibration_file import calibration_text
from ccfnet_tf.runtimes import manifest as module
from ccfnet_tf.runtimes.letterbox import fit, unfit
from ccfnet_tf.runtimes.litert import LiteRTNetwork
from ccfnet_tf.runtimes.manifest import MANIFEST, MODEL, Manifest, read_manifest, write_manifest
from ccfnet_tf.runtimes.onnx import OnnxNetwork
from ccfnet_tf.runtimes.open_segmenter import find_source
from ccfnet_tf.runtimes.saved_model import SavedModelNetwork

SIZE = (40, 56)
TAXONOMY = Taxonomy(("sky", "sea", "sand"), ((0, 0, 255), (0, 255, 0), (255, 0, 0)))
CALIBRATION = Calibration((0.5, 2.0, 1.0), (2.0, 0.0, -2.0), 0.5, 1.0)


@pytest.fixture(scope="module")
def model(toy: Callable[..., Any]) -> Any:
    keras.utils.set_random_seed(0)
    made = toy(len(TAXONOMY.names))
    kernel = made.get_layer("backbone").get_layer("body").kernel
    kernel.assign(kernel / 255.0)  # logits in units
    return made


def saved_model(model: Any, folder: Path) -> Segmenter:
    write_saved_model(model, TAXONOMY, folder, CALIBRATION)
    return SavedModelNetwork(folder, TAXONOMY)


def onnx(model: Any, folder: Path) -> Segmenter:
    write_onnx(model, folder / "a.onnx", CALIBRATION)
    return OnnxNetwork(folder / "a.onnx", TAXONOMY)


def litert(model: Any, folder: Path) -> Segmenter:
    options = LiteRTOptions(SIZE, "none")
    write_litert(model, TAXONOMY, folder / "a.tflite", options, calibration=CALIBRATION)
    return LiteRTNetwork(folder / "a.tflite", TAXONOMY)


@pytest.mark.parametrize("export", [saved_model, onnx, litert])
def test_a_file_is_calibrated_as_keras_is(
    export: Callable[[Any, Path], Segmenter], model: Any, tmp_path: Path
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    found = export(model, tmp_path).predict(picture)
    plain = KerasNetwork(model).predict(picture)
    calibrated = KerasNetwork(model, calibration=CALIBRATION)
    expected = calibrated.predict(picture)
    again = calibrated.prediction(calibrated.head_outputs(picture))
    for one, other in zip(again, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert (expected.probabilities.argmax(-1) != plain.labels).any()
    np.testing.assert_array_equal(found.labels, plain.labels)
    for name in MAPS:
        values, exact = getattr(found, name), getattr(expected, name)
        assert np.abs(exact - getattr(plain, name)).max() > 0.1
        rounding = 0.5 / 255 if isinstance(found, Maps) else 0.0
        np.testing.assert_allclose(values, exact, atol=1e-5 + rounding)
    if isinstance(found, Prediction):
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)


@pytest.mark.usefixtures("toy_network")
def test_an_export_takes_and_records_the_run_s_calibration(run: Path, tmp_path: Path) -> None:
    calibration = Calibration((0.5,), (), 2.0, 1.0)
    run = Path(shutil.copytree(run, tmp_path / "run"))
    content = calibration_text(run / "checkpoints" / "best.npz", calibration, {})
    (run / CALIBRATION_FILE).write_text(content)
    exporter = new_exporter("tflite", {"size": "33x47", "quantize": "none"})
    folder = export_run(
        run, tmp_path / "out", exporter, data_root=None, console=Console(quiet=True)
    )
    numbers = {"attention_scale": 2.0, "attention_bias": 1.0}
    assert read_manifest(folder).calibration == {"scale": [0.5], "bias": [], **numbers}
    picture = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    network = find_source(str(folder)).open()
    assert network.calibration == calibration
    found, keras_network = network.predict(picture), KerasNetwork(run)  # takes the run's own too
    expected = keras_network.predict(picture)
    for name in MAPS:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-4)
    # A larger image is shrunk to the size of the file, and its labels are not calibrated.
    larger = np.random.default_rng(1).integers(0, 256, (120, 100, 3), np.uint8)
    fitted = fit(larger, (33, 47))
    refine = unfit(np.exp(keras_network.head_outputs(fitted.image).refine), fitted)
    second, first = np.sort(refine)[..., -2:].transpose(2, 0, 1)
    clear = first - second > 1e-4  # otherwise rounding decides
    np.testing.assert_array_equal(network.predict(larger).labels[clear], refine.argmax(-1)[clear])


@pytest.mark.parametrize("format_", ["onnx", "saved_model"])
def test_artifacts_have_the_calibration_of_their_manifest(
    format_: str, model: Any, tmp_path: Path
) -> None:
    if format_ == "onnx":
        write_onnx(model, tmp_path / MODEL["onnx"], CALIBRATION)
    else:
        write_saved_model(model, TAXONOMY, tmp_path, CALIBRATION)
    numbers = json.loads(json.dumps(asdict(CALIBRATION)))
    del numbers["blend_threshold"]
    classes, palette = list(TAXONOMY.names), [list(colour) for colour in TAXONOMY.palette]
    changes = {"classes": classes, "palette": palette, "files": module.checksums(tmp_path)}
    write(tmp_path, format=format_, calibration=numbers, **changes)
    assert find_source(str(tmp_path)).open().calibration == CALIBRATION


@pytest.mark.parametrize("value", [{"scale": ["1"]}, {"scale": None}, [1.0]])
def test_a_manifest_with_another_calibration_is_refused(value: Any, tmp_path: Path) -> None:
    write(tmp_path, calibration=value)
    with pytest.raises(RunError, match=r"written by another version \(calibration is not of type"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"scale": [0.0], "bias": []}, "a scale is outside .*"),
        ({"scale": [1.0, 2.0], "bias": []}, "2 scales and 0 biases for 1 classes"),
        ({"scale": [1.0]}, "'bias'"),
    ],
)
def test_a_manifest_with_wrong_numbers_is_refused(
    value: dict[str, list[float]], message: str, tmp_path: Path
) -> None:
    write(tmp_path, calibration=value | {"attention_scale": 1.0, "attention_bias": 0.0})
    with pytest.raises(RunError, match=rf"written by another version \({message}\)"):
        read_manifest(tmp_path)


def test_a_manifest_from_before_the_three_maps_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ccfnet_tf.cli.main import main

    write(tmp_path)
    tree = json.loads((tmp_path / MANIFEST).read_text())
    del tree["calibration"], tree["sha256"]
    tree["sha256"] = module._checksum(tree)
    (tmp_path / MANIFEST).write_text(json.dumps(tree))
    assert (
        main(["predict", str(tmp_path), "a.png", "--out", str(tmp_path / "out")]) == EXIT_USER_ERROR
    )
    said = capsys.readouterr().err
    assert said.endswith("whose `difficulty` was today's `attention`: export the run again\n")
    assert len(said.splitlines()) == 1


def write(folder: Path, **changes: Any) -> None:
    texts = {key: {} for key in ("run", "versions", "options", "inputs", "outputs", "files")}
    rest = {"difference": {}, "measured": {}, "classes": ["a"], "palette": [[0, 0, 0]]}
    write_manifest(folder, Manifest(**{"format": "onnx", **texts, **rest, **changes}))
