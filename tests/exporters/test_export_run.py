"""`ccfnet-tf export`: a run becomes an artifact that was proven, or nothing at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from ccfnet_tf.cli.main import main
from ccfnet_tf.errors import ConfigError, VerificationError
from ccfnet_tf.exporters import export_run as module
from ccfnet_tf.exporters.base import Exporter
from ccfnet_tf.exporters.registry import new_exporter
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import MAPS
from ccfnet_tf.runs.run_folder import load_run
from ccfnet_tf.runtimes.manifest import MANIFEST, Difference, read_manifest
from ccfnet_tf.runtimes.open_segmenter import find_source

QUIET = Console(quiet=True)
SMALL = new_exporter("tflite", {"size": "33x47", "quantize": "none"})

pytestmark = pytest.mark.usefixtures("toy_network")


@pytest.mark.slow
def test_the_contract_says_what_was_done(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = module.export_run(
        run, tmp_path, new_exporter("saved_model", {}), data_root=None, console=QUIET
    )
    assert artifact == tmp_path / "ccfnet" / "1"
    manifest = read_manifest(artifact)
    assert manifest.run == {"folder": str(run.resolve()), "checkpoint": "best.npz"}
    assert len(manifest.classes) == len(manifest.palette) == 8
    assert manifest.difference["largest"] < 1e-4
    assert set(manifest.files) == {
        path.relative_to(artifact).as_posix()
        for path in artifact.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    assert "EXIF" in manifest.inputs["orientation"]
    copy = shutil.copytree(artifact, tmp_path / "elsewhere")
    assert main(["export", "--verify-only", str(copy)]) == 0
    assert "saved_model compared with Keras on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (["--format", "onnx"], "onnx"),
        (["--format", "litert", "--size", "33x47"], "tflite-fp16-33x47"),
    ],
)
def test_files_are_proven_and_opened_again(
    options: list[str],
    place: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "models"
    assert main(["export", str(run), *options, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "compared with Keras on real images" in said
    assert said.index("verifying the file in a new process") < said.index(
        "compared with Keras"
    )  # in a log too
    assert [path.name for path in out.iterdir()] == [place]
    moved = (out / place).rename(tmp_path / "elsewhere")
    assert main(["export", "--verify-only", str(moved)]) == 0
    picture = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    expected = KerasNetwork(load_run(run)).predict(picture)
    found = find_source(str(moved)).open().predict(picture)
    assert (found.labels == expected.labels).mean() > 0.99
    for name in MAPS:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=0.01)
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), picture)
    capsys.readouterr()
    assert main(["predict", str(moved), str(file), "--out", str(tmp_path / "results")]) == 0
    said = "takes 33x47: larger images are made smaller for it"
    assert (said in capsys.readouterr().out) == place.startswith("tflite")


@pytest.mark.parametrize("options", [{}, {"size": "33x47"}])
def test_a_place_that_is_taken_is_refused_before_the_data_are_listed(
    options: dict[str, str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = new_exporter("tflite" if options else "onnx", options)
    exporter.artifact_folder(tmp_path).mkdir()
    (exporter.artifact_folder(tmp_path) / "mine").write_text("")
    monkeypatch.setattr(module, "run_parts", None)
    with pytest.raises(ConfigError, match="already exists"):
        module.export_run(run, tmp_path, exporter, data_root=None, console=QUIET)


def test_a_difference_leaves_nothing_behind(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is that close.
    monkeypatch.setattr(Exporter, "tolerance", Difference(-1.0, -1.0, -1.0, -1.0))
    out = tmp_path / "out"
    with pytest.raises(
        VerificationError, match=r"differs from Keras: largest .* above -1"
    ) as plain:
        module.export_run(run, out, SMALL, data_root=None, console=QUIET)
    assert "likely cause" not in str(plain.value)
    assert not out.exists()

    frozen = shutil.copytree(run, tmp_path / "frozen")
    text = (frozen / "config.yaml").read_text()
    assert "batch_norm: synchronised" in text
    (frozen / "config.yaml").write_text(text.replace("norm: synchronised", "norm: frozen"))
    with pytest.raises(
        VerificationError, match=r"likely cause is train\.batch_norm, .* train again"
    ):
        module.export_run(frozen, out, SMALL, data_root=None, console=QUIET)
    assert not out.exists()


@pytest.mark.slow
def test_a_file_in_bfloat16_is_held_against_keras_in_float32(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_run, loaded = module.load_run, list[str]()

    def watched(path: Path, **how: Any) -> Any:
        loaded.append(how.get("precision", "float32"))
        return load_run(path, **how)

    monkeypatch.setattr(module, "load_run", watched)
    asked = new_exporter("saved_model", {"precision": "bfloat16"})
    artifact = module.export_run(run, tmp_path, asked, data_root=None, console=QUIET)
    assert loaded == ["float32", "bfloat16"]
    assert read_manifest(artifact).options == {"precision": "bfloat16"}


def test_not_a_number_is_above_any_tolerance() -> None:
    found = Difference(float("nan"), 0.0, 0.0, 0.0)
    assert found.above(Difference(1.0, 1.0, 1.0, 1.0)) == ["largest nan above 1"]
