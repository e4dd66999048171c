"""The matrix of formats: reuse of artifacts, refused exports, and the output."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import export_matrix
from benchmarks.export_matrix import Matrix, Row, as_json, exported, find_artifact, markdown
from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, TrainConfig, to_yaml
from ccfnet_tf.errors import ConfigError, RunError
from ccfnet_tf.runs.run_folder import RunInfo, read_run
from ccfnet_tf.runtimes.manifest import MODEL, Format, Manifest, checksums, write_manifest

BEFORE, TRAINED, AFTER = 1000, 2000, 3000


@pytest.fixture
def run(tmp_path: Path) -> RunInfo:
    """A run with an empty checkpoint."""
    folder = tmp_path / "city"
    (folder / "checkpoints").mkdir(parents=True)
    config = RunConfig(
        data=DataConfig(format="scenes"),
        model=ModelConfig(backbone="mobilenet_v2", backbone_weights="none", head_channels=4),
        train=TrainConfig(precision="bfloat16"),
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "classes.json").write_text('{"names": ["a", "b"], "palette": [[0, 0, 0], [9, 9, 9]]}')
    checkpoint = folder / "checkpoints" / "best.npz"
    checkpoint.write_bytes(b"")
    os.utime(checkpoint, (TRAINED, TRAINED))
    return read_run(folder)


def artifact(out: Path, quantize: str, size: str, written: int) -> Path:
    """Writes a folder that looks like an artifact exported at the given time."""
    folder = out / f"tflite-{quantize}-{size}"
    folder.mkdir(parents=True)
    (folder / MODEL["tflite"]).write_bytes(bytes(2_000_000))
    format_: Format = "tflite"
    manifest = Manifest(
        format=format_,
        run={},
        versions={},
        classes=["a", "b"],
        palette=[[0, 0, 0], [9, 9, 9]],
        options={"quantize": quantize, "size": size},
        inputs={},
        outputs={},
        files=checksums(folder),
        difference={"largest": 0.0123, "percentile": 1e-3, "mean": 1e-4, "other_labels": 2e-4},
        measured={"GPU": "yes: within 8.0e-07 of the CPU"},
    )
    write_manifest(folder, manifest)
    os.utime(folder / "export.json", (written, written))
    return folder


def test_existing_artifacts_are_reused(run: RunInfo, tmp_path: Path) -> None:
    out = tmp_path / "models"
    folder = artifact(out, "fp16", "240x320", AFTER)
    assert exported(run, "tflite fp16", out, None).path == folder
    assert exported(run, "tflite fp16", out, "240x320").path == folder


@pytest.mark.parametrize(
    ("kind", "size", "written"),
    [
        ("tflite fp16", None, BEFORE),  # from an older checkpoint
        ("tflite fp16", "64x64", AFTER),
        ("tflite none", None, AFTER),
        ("onnx", None, AFTER),
    ],
)
def test_other_artifacts_are_not_reused(
    run: RunInfo, tmp_path: Path, kind: str, size: str | None, written: int
) -> None:
    artifact(tmp_path, "fp16", "240x320", written)
    assert find_artifact(run, kind, tmp_path, size) is None


@pytest.mark.slow
def test_a_refused_export_is_reported(run: RunInfo, tmp_path: Path) -> None:
    row = exported(run, "tflite fp16", tmp_path / "models", None)
    assert row.path is None
    assert "best.npz" in row.refused


def test_a_damaged_artifact_is_an_error(run: RunInfo, tmp_path: Path) -> None:
    folder = artifact(tmp_path, "fp16", "240x320", AFTER)
    (folder / MODEL["tflite"]).write_bytes(b"")
    with pytest.raises(RunError, match="changed since the export"):
        exported(run, "tflite fp16", tmp_path, None)


def test_the_table_is_markdown(run: RunInfo, tmp_path: Path) -> None:
    kept = exported(run, "tflite fp16", artifact(tmp_path, "fp16", "240x320", AFTER).parent, None)
    kept.size_mb, kept.ms = 2.0, {1: 120.4, 2: 70.5}
    rows = [
        Row(export_matrix.KERAS, run.path, size_mb=1.5, ms={1: 300.0, 2: 200.0}),
        kept,
        Row("tflite int8", refused="ccfnet-tf: int8 leaves 3 points: take --quantize fp16"),
    ]
    found = Matrix(run, (240, 320), 7.456, rows, others=0.02)
    lines = markdown(found)
    assert lines[0] == (
        "**city**: mobilenet_v2, 4-channel heads, 2 classes, trained in bfloat16 on scenes; "
        "240x320, 7.46 GMAC"
    )
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "| Keras | 1.5 |  |  |  | 300 | 200 |  |" in lines
    assert "| tflite fp16 | 2.0 | 1.2e-02 | 1.0e-03 | 0.020 % | 120 | 70 | yes |" in lines
    assert "- tflite int8: ccfnet-tf: int8 leaves 3 points: take --quantize fp16" in lines
    tree = as_json(found)
    assert [row["ms"] for row in tree["rows"]] == [row.ms for row in rows]
    assert tree["rows"][1]["difference"]["largest"] == 0.0123


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["no/such/run"], "no/such/run: no such folder"),
        (["RUN", "--size", "240"], "--size is '240': expected HEIGHTxWIDTH"),
        (["RUN", "--json", "no/such/folder/x.json"], "it must be a file in an existing folder"),
    ],
)
def test_invalid_arguments_are_one_line(args: list[str], message: str, run: RunInfo) -> None:
    given = [str(run.path) if arg == "RUN" else arg for arg in args]
    with pytest.raises((ConfigError, RunError), match=message.replace("[", r"\[")):
        export_matrix.main(given)
