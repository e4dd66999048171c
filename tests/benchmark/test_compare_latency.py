"""`benchmark` of what is shipped: small files whose answers mean nothing, timed as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf

from ccfnet_tf.benchmark import compare_latency, latency_process
from ccfnet_tf.benchmark.compare_latency import Entry
from ccfnet_tf.benchmark.latency_process import Request
from ccfnet_tf.cli import benchmark
from ccfnet_tf.cli import main as cli
from ccfnet_tf.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_USER_ERROR
from ccfnet_tf.inference.segmenter_protocol import Maps
from ccfnet_tf.runtimes.manifest import (
    MODEL,
    REFERENCE,
    Format,
    Manifest,
    checksums,
    write_manifest,
)
from ccfnet_tf.runtimes.open_segmenter import Source
from tests.tiny_onnx import write_tiny_onnx

FLOAT, BYTE = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8


def seal(folder: Path, format_: Format, **options: str) -> Path:
    """Writes `export.json` as an export does."""
    if format_ == "tflite":
        options = {"quantize": "none", **options}
    manifest = Manifest(
        format=format_,
        run={},
        versions={},
        classes=["a", "b", "c"],
        palette=[[0, 0, 0], [9, 9, 9], [20, 20, 20]],
        options=options,
        inputs={},
        outputs={},
        files=checksums(folder),
        difference={},
        measured={},
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def onnx_folder(tmp_path: Path) -> Path:
    """A network whose probabilities are the colours."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    write_tiny_onnx(folder / MODEL["onnx"])
    (folder / REFERENCE).write_bytes(bytes(10_000))
    return seal(folder, "onnx")


@pytest.fixture
def tflite_folder(tmp_path: Path) -> Path:
    """The same at 48x48 pixels."""
    module = tf.Module()
    module.answer = tf.function(
        lambda images: {
            "labels": tf.argmax(images, -1, output_type=tf.int32),
            "attention": tf.reduce_max(images, -1),
            "difficulty": tf.reduce_min(images, -1),
            "risk": tf.reduce_mean(images, -1),
            "probabilities": images / 2.0,
        },
        input_signature=[tf.TensorSpec([1, 48, 48, 3], tf.float32, name="images")],
    )
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.answer)
    folder = tmp_path / "tflite-fp16-48x48"
    folder.mkdir()
    content = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved")).convert()
    (folder / MODEL["tflite"]).write_bytes(content)
    return seal(folder, "tflite", quantize="fp16")


@pytest.mark.slow
def test_each_row_is_measured_in_one_table_and_one_file(
    onnx_folder: Path,
    tflite_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "all.json"
    args = [str(onnx_folder), str(tflite_folder / MODEL["tflite"]), "--openvino"]
    args += ["--size", "40x44", "--count", "5", "--warm-up", "2", "--threads", "1"]
    assert cli.main(["benchmark", *args, "--json", str(file)]) == EXIT_DONE
    printed = capsys.readouterr().out
    assert "An image of 40x44 pixels at a time" in printed
    assert "threads: 1, of" in printed
    assert "2 predictions to warm up, 5 timed" in printed

    tree = json.loads(file.read_text())
    # A GPU and bfloat16 are not everywhere; what is missing is named.
    shown = {(row["engine"], row["name"]): row for row in [*tree["rows"], *tree["left_out"]]}
    assert set(shown) == {
        ("onnxruntime", "onnx"),
        ("OpenVINO", "onnx"),
        ("LiteRT", "tflite-fp16-48x48"),
        ("LiteRT GPU", "tflite-fp16-48x48"),
    }
    measured = {(row["engine"], row["precision"]): row for row in tree["rows"]}
    assert set(measured) >= {
        ("onnxruntime", "float32"),
        ("OpenVINO", "float32"),
        ("LiteRT", "fp16 weights"),
    }
    for row in measured.values():
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert 1000 / row["p99_ms"] <= row["images_per_s"]
        assert (row["count"], row["warm_up"]) == (5, 2)
        assert row["peak_memory_mb"] > 10
        assert row["cold_start_s"] > 0
    weight = (onnx_folder / MODEL["onnx"]).stat().st_size / 1e6
    assert measured["onnxruntime", "float32"]["size_mb"] == pytest.approx(weight)
    assert all(not row["failed"] for row in tree["left_out"])


def test_one_that_cannot_be_opened_does_not_stop_the_others(
    onnx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / MODEL["onnx"]).write_text("no network")
    bad = seal(tmp_path / "bad", "onnx")
    args = [str(bad), str(onnx_folder), "--size", "33", "--count", "1"]
    assert cli.main(["benchmark", *args]) == EXIT_FINDINGS
    printed = capsys.readouterr().out
    assert f"left out: bad, onnxruntime: {bad}" in printed
    assert "onnxruntime, float32" in printed


def test_a_process_that_dies_is_named(onnx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_latency.sys, "executable", "false")
    request = Request(str(onnx_folder), "own", (33, 33), 1, 1, None, 0.0)
    assert compare_latency._measure_in_process(request) == "the process failed with exit code 1 ()"


class Slow:
    """Takes a second of a clock that nobody waits for."""

    def __init__(self) -> None:
        self.now = 0.0

    def open(self, threads: int | None) -> Slow:
        del threads
        return self

    def predict(self, image: np.ndarray) -> Maps:
        self.now += 1.0
        return Maps(image[..., 0].astype(np.int32), *[image[..., 0].astype(np.float32)] * 3)


@pytest.mark.parametrize(
    ("seconds", "warm_up", "count"), [(100.0, 4, 9), (8.5, 4, 6), (2.5, 4, 3), (0.5, 2, 3)]
)
def test_what_takes_too_long_is_cut_short(
    seconds: float, warm_up: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    source = Source("server", "")
    monkeypatch.setattr(latency_process, "find_source", lambda _: source)
    monkeypatch.setattr(Source, "open", lambda _, threads: slow.open(threads))
    monkeypatch.setattr(latency_process.time, "perf_counter", lambda: slow.now)
    monkeypatch.setattr(latency_process, "SECONDS", seconds)
    found = latency_process.measure(Request("x", "own", (32, 32), 4, 9, None, 0.0))
    assert (found.warm_up, len(found.ms)) == (warm_up, count)
    assert found.ms == [1000.0] * count


def test_a_table_says_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    server = Entry("http://h/v1/models/m", "", Source("server", "http://h/v1/models/m"))
    found = latency_process.Measurement(0.25, [10.0, 20.0, 30.0], 3, 99.5, None)
    row = {"name": server.name, "engine": "served"} | compare_latency._figures(server, found)
    tree: dict[str, Any] = {
        "size": [33, 33],
        "warm_up": 3,
        "count": 20,
        "threads": None,
        "machine": {"threads": 2, "processor": "a chip"},
        "rows": [row],
        "left_out": [{"name": "n", "engine": "e", "why": "none"}],
    }
    Console(width=80).print(compare_latency.table(tree))
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if server.name in line)
    figures = ["20.0", "28.0", "29.8", "50.0", "99.5", "0.25", ""]
    assert [cell.strip() for cell in lines[first].split("│")[2:-1]] == figures
    assert "served, the server's" in lines[first + 1]
    said = compare_latency.notes(tree)
    assert said[0] == "threads: 2, of a chip"
    assert "http://h/v1/models/m, served: only 3 timed: the time limit was reached" in said
    assert said[-1] == "left out: n, e: none"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ONNX", "no/such"], "no/such: no such folder or file"),
        (["TFLITE", "--openvino"], "--openvino reads ONNX files: give an .onnx file"),
        (["ONNX", "--batch", "2"], "--batch applies only to a single run, not to a comparison"),
        (["ONNX", "--data.root", "x"], "--data.root applies only to a single run"),
        (
            ["no/such/run", "--count", "2"],
            "--count applies only to comparisons: give an exported file",
        ),
        (["--openvino"], "--openvino applies only to comparisons"),
        (["--compare"], "--compare needs at least one SOURCE"),
        (["ONNX", "--warm-up", "0"], "--warm-up is 0: it must be 1 or more"),
        (["ONNX", "--threads", "0"], "--threads is 0: it must be 1 or more"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    args: list[str],
    message: str,
    onnx_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / MODEL["tflite"]).touch()
    places = {"ONNX": onnx_folder, "TFLITE": seal(tmp_path / "small", "tflite")}
    assert cli.main(["benchmark", *[str(places.get(arg, arg)) for arg in args]]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_openvino_that_is_not_there_is_one_line(
    onnx_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare_latency, "find_spec", lambda _: None)
    assert cli.main(["benchmark", str(onnx_folder), "--openvino"]) == EXIT_USER_ERROR
    assert "not installed: pip install 'ccfnet-tf[openvino]'" in capsys.readouterr().err


def test_one_run_alone_is_measured_as_before(tmp_path: Path, onnx_folder: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert benchmark._may_be_a_run(str(tmp_path))
    assert benchmark._may_be_a_run("no/such")  # and is refused as a run
    assert not benchmark._may_be_a_run(str(onnx_folder))
    assert not benchmark._may_be_a_run("http://h/v1/models/m")
