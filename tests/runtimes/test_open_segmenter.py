"""One face: whatever is named, what answers is the same, or one line says why not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.cli.main import main
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, RunError
from ccfnet_tf.exporters.onnx.writer import write_onnx
from ccfnet_tf.exporters.saved_model.writer import write_saved_model
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.predict import predict_all
from ccfnet_tf.inference.segmenter_protocol import MAPS, Prediction
from ccfnet_tf.inference.test_time import Augmentation, AugmentedNetwork
from ccfnet_tf.inference.wrap_segmenter import Wrapping, wrap
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED
from ccfnet_tf.runtimes import litert, served
from ccfnet_tf.runtimes.manifest import MANIFEST, MODEL, Format, Manifest, checksums, write_manifest
from ccfnet_tf.runtimes.open_segmenter import Source, find_source

TAXONOMY = Taxonomy(("sky", "sea", "sand"), ((90, 160, 250), (20, 60, 160), (230, 200, 120)))


def seal(folder: Path, format_: Format) -> Path:
    """Writes `export.json` as an export does."""
    palette = [list(colour) for colour in TAXONOMY.palette]
    manifest = Manifest(
        format=format_,
        run={},
        versions={},
        classes=list(TAXONOMY.names),
        palette=palette,
        options={"quantize": "none"} if format_ == "tflite" else {},
        inputs={},
        outputs={},
        files=checksums(folder),
        difference={},
        measured={},
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def model(toy: Callable[..., Any]) -> Any:
    keras.utils.set_random_seed(1)
    return toy(3)


@pytest.fixture(scope="module")
def models(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of one toy network: `ccfnet/2` and `ccfnet/10`, `onnx`."""
    out = tmp_path_factory.mktemp("models")
    newest = out / "ccfnet" / "10"
    write_saved_model(model, TAXONOMY, newest)
    shutil.copytree(newest, out / "ccfnet" / "2")
    (out / "onnx").mkdir()
    write_onnx(model, out / "onnx" / MODEL["onnx"])
    seal(newest, "saved_model")
    seal(out / "ccfnet" / "2", "saved_model")
    seal(out / "onnx", "onnx")
    return out


@pytest.fixture
def tflite(tmp_path: Path) -> Path:
    """An artifact whose file holds nothing."""
    folder = tmp_path / "tflite-fp16-64x64"
    folder.mkdir()
    (folder / MODEL["tflite"]).write_bytes(b"")
    return seal(folder, "tflite")


def test_what_a_source_names(models: Path, tflite: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.npz").touch()
    (run / "config.yaml").write_text("data: {format: scenes}\n")
    (run / "classes.json").write_text('{"names": ["a"], "palette": [[0, 0, 0]]}')
    expected = {
        run: ("run", run),
        models / "ccfnet": ("saved_model", models / "ccfnet" / "10"),
        models / "ccfnet" / "2": ("saved_model", models / "ccfnet" / "2"),
        models / "onnx": ("onnx", models / "onnx" / "ccfnet.onnx"),
        models / "onnx" / "ccfnet.onnx": ("onnx", models / "onnx" / "ccfnet.onnx"),
        tflite: ("tflite", tflite / "ccfnet.tflite"),
        tflite / "ccfnet.tflite": ("tflite", tflite / "ccfnet.tflite"),
    }
    for source, (kind, place) in expected.items():
        found = find_source(str(source))
        assert (found.kind, found.place) == (kind, str(place))
    for address in ("http://h:1/v1/models/m", "https://h/v1/models/m", "grpc://h:8500/m"):
        assert find_source(address) == Source("server", address)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("HTTP://h:1/v1/models/m", "http://h:1/v1/models/m"),
        ("gRPC://h:8500/m", "grpc://h:8500/m"),
        (str(Path("http://h:1/v1/models/m")), "http://h:1/v1/models/m"),
    ],
)
def test_addresses_in_capitals_and_of_pathlib(written: str, address: str) -> None:
    assert find_source(written) == Source("server", address)


@pytest.mark.parametrize("address", ["htp://h:1/v1/models/m", "s3://bucket/run", "ws://h"])
def test_addresses_of_another_scheme(address: str) -> None:
    with pytest.raises(RunError, match=f"^{address}: not a server's address: expected http://"):
        find_source(address)


def test_files_and_servers_are_opened_by_their_own(
    tflite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "ServedNetwork", lambda *given: given)
    monkeypatch.setattr(litert, "LiteRTNetwork", lambda *given: given)
    assert find_source("grpc://h:8500/m").open() == ("grpc://h:8500/m",)
    assert find_source(str(tflite)).open() == (
        tflite / "ccfnet.tflite",
        TAXONOMY,
        None,
        UNCALIBRATED,
    )


@pytest.mark.parametrize("size", [(1, 1), (20, 50), (48, 33)])
def test_all_answer_alike(model: Any, models: Path, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = KerasNetwork(model, taxonomy=TAXONOMY).predict(picture)
    for name, step in (("ccfnet", 0.5 / 255), ("onnx", 0.0)):
        network = find_source(str(models / name)).open()
        assert network.taxonomy == TAXONOMY
        found = network.predict(picture)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert found.labels.dtype == np.int32
        for each in MAPS:
            values, exact = getattr(found, each), getattr(expected, each)
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, exact, atol=step + 1e-4)


def test_predict_writes_the_same_files(model: Any, models: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    given = tmp_path / "a.png"
    cv2.imwrite(str(given), picture)
    predict_all(KerasNetwork(model, taxonomy=TAXONOMY), [str(given)], tmp_path / "run")
    expected = {path.name: cv2.imread(str(path)) for path in (tmp_path / "run").iterdir()}
    for name in ("ccfnet", "onnx"):
        out = tmp_path / name
        assert main(["predict", str(models / name), str(given), "--out", str(out)]) == EXIT_DONE
        assert {path.name for path in out.iterdir()} == set(expected)
        for kind in ("label", "color", "overlay"):
            file = f"a.{kind}.png"
            np.testing.assert_array_equal(cv2.imread(str(out / file)), expected[file])


@pytest.mark.parametrize("size", [(20, 50), (48, 33)])
def test_all_average_views_alike(model: Any, models: Path, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    views = Augmentation((0.75, 1.0, 1.5), flip=True)
    expected = AugmentedNetwork(KerasNetwork(model), views).predict(picture)
    assert isinstance(expected, Prediction)
    for name, step in (("ccfnet", 0.5 / 255), ("onnx", 0.0)):
        found = wrap(find_source(str(models / name)).open(), Wrapping(views)).predict(picture)
        assert isinstance(found, Prediction)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
        # Of the averaged probabilities, so not rounded to bytes as the maps of a SavedModel are.
        np.testing.assert_allclose(found.risk, expected.risk, atol=1e-4)
        for each in ("attention", "difficulty"):
            values, exact = getattr(found, each), getattr(expected, each)
            np.testing.assert_allclose(values, exact, atol=step + 1e-4)


@pytest.mark.parametrize("tiles", [[], ["--tile", "32"]])
def test_predict_with_views_writes_the_same_labels(
    models: Path, tmp_path: Path, tiles: list[str]
) -> None:
    given = tmp_path / "a.png"
    cv2.imwrite(str(given), np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    labels = []
    for name in ("ccfnet", "onnx"):
        out = tmp_path / name
        words = ["predict", str(models / name), str(given), "--out", str(out), *tiles]
        assert main([*words, "--tta", "scales=1,1.5", "flip"]) == EXIT_DONE
        labels.append(cv2.imread(str(out / "a.label.png"), cv2.IMREAD_UNCHANGED))
    np.testing.assert_array_equal(*labels)


def test_a_saved_model_without_probabilities_is_one_line(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = tf.saved_model.save

    def save_others(module: Any, folder: str, signatures: dict[str, Any]) -> None:
        del signatures["probabilities"]
        save(module, folder, signatures=signatures)

    monkeypatch.setattr(tf.saved_model, "save", save_others)
    write_saved_model(model, TAXONOMY, tmp_path / "1")
    seal(tmp_path / "1", "saved_model")
    given = tmp_path / "a.png"
    cv2.imwrite(str(given), np.zeros((40, 50, 3), np.uint8))
    words = ["predict", str(tmp_path / "1"), str(given), "--out", str(tmp_path / "out")]
    assert main([*words, "--tta", "flip"]) == EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert "1: has no signature 'probabilities', which --tta needs: export the run again" in line
    assert main(words) == EXIT_DONE


def spoil_a_folder_of_several(folder: Path) -> tuple[Path, str]:
    for name in ("onnx", "ccfnet/1", "ccfnet/2"):
        (folder / "mine" / name).mkdir(parents=True)
        (folder / "mine" / name / "export.json").touch()
    return folder / "mine", "mine: contains exported networks; give one of: onnx, ccfnet"


def spoil_nothing_known(folder: Path) -> tuple[Path, str]:
    (folder / "notes.txt").touch()
    return folder, "not a run folder and not an exported network; give a run folder, "


def spoil_missing(folder: Path) -> tuple[Path, str]:
    return folder / "gone", "no such folder or file; give a run folder, "


def spoil_other_file(folder: Path) -> tuple[Path, str]:
    (folder / "photo.jpg").touch()
    return folder / "photo.jpg", "not a file of a network; give a run folder, "


def spoil_no_contract(folder: Path) -> tuple[Path, str]:
    (folder / "ccfnet.onnx").touch()
    return folder, f"no {MANIFEST}: not an artifact"


def spoil_bare_file(folder: Path) -> tuple[Path, str]:
    (folder / "other.onnx").touch()
    return folder / "other.onnx", f"no {MANIFEST}: not an artifact"


def spoil_no_contract_of_a_version(folder: Path) -> tuple[Path, str]:
    (folder / "1").mkdir()
    (folder / "1" / "saved_model.pb").touch()
    return folder, f"no {MANIFEST}: not an artifact"


def spoil_changed(folder: Path) -> tuple[Path, str]:
    (folder / "ccfnet.onnx").touch()
    seal(folder, "onnx")
    (folder / "ccfnet.onnx").write_text("longer")
    return folder, "changed since the export"


def spoil_two_in_one(folder: Path) -> tuple[Path, str]:
    for name in MODEL.values():
        (folder / name).touch()
    seal(folder, "onnx")
    return folder / "ccfnet.tflite", f"{MANIFEST} in its folder has format onnx"


def spoil_run(folder: Path) -> tuple[Path, str]:
    (folder / "config.yaml").touch()
    return folder, "not a run folder: classes.json missing"


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_a_folder_of_several,
        spoil_nothing_known,
        spoil_missing,
        spoil_other_file,
        spoil_no_contract,
        spoil_bare_file,
        spoil_no_contract_of_a_version,
        spoil_changed,
        spoil_two_in_one,
        spoil_run,
    ],
)
def test_what_cannot_be_opened_is_one_line(
    spoil: Callable[[Path], tuple[Path, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, expected = spoil(tmp_path)
    assert main(["predict", str(source), "no/such.jpg"]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith(f"ccfnet-tf: {tmp_path}")
    assert expected in said
    assert len(said.splitlines()) == 1


def test_a_saved_model_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"no graph")
    seal(tmp_path, "saved_model")
    with pytest.raises(RunError, match=r": not a SavedModel \(") as caught:
        find_source(str(tmp_path)).open()
    assert len(str(caught.value).splitlines()) == 1


def test_exported_files_are_opened_without_the_network_s_code() -> None:
    code = (
        "import sys, ccfnet_tf.runtimes.open_segmenter;"
        "import ccfnet_tf.runtimes.onnx, ccfnet_tf.cli.main;"
        "early = {'tensorflow', 'keras', 'onnxruntime'} & set(sys.modules);"
        "import ccfnet_tf.runtimes.saved_model;"
        # The calibration of a run: numbers alone.
        "plain = {'ccfnet_tf.network', 'ccfnet_tf.network.calibration_parameters'};"
        "network = {name for name in sys.modules if name.startswith('ccfnet_tf.network')};"
        "sys.exit(bool(early or network - plain))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
