"""What cannot be exported or used: one line on stderr, the exit code, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ccfnet_tf.cli.main import main
from ccfnet_tf.errors import EXIT_USER_ERROR
from ccfnet_tf.exporters.verify.reference import reference_images
from ccfnet_tf.runtimes.manifest import MANIFEST, MODEL, REFERENCE, checksums

pytestmark = pytest.mark.usefixtures("toy_network")

PAGE = 4096
VERBS = ("verify", "predict", "benchmark")

Screen = pytest.CaptureFixture[str]
Tree = dict[str, Any]


def refused(arguments: list[str], screen: Screen) -> str:
    """Runs the command line; returns the one line that it said."""
    screen.readouterr()
    code, said = main(arguments), screen.readouterr().err
    assert code == EXIT_USER_ERROR, said
    assert len(said.splitlines()) == 1, said
    return said.removeprefix("ccfnet-tf: ")


def use(verb: str, source: Path, out: Path) -> list[str]:
    picture = Path(__file__).resolve().parents[2] / "data/sample/test/images/test_00.jpg"
    return {
        "verify": ["export", "--verify-only", str(source)],
        "predict": ["predict", str(source), str(picture), "--out", str(out)],
        "benchmark": ["benchmark", str(source), "--json", str(out)],
    }[verb]


def refused_by_all(folder: Path, expected: str, screen: Screen) -> None:
    """Sees every verb refuse an artifact and leave it as it is."""
    out, before = folder.parent / "out", checksums(folder)
    for verb in VERBS:
        said = refused(use(verb, folder, out), screen)
        assert expected in said
        assert str(folder) in said
    assert checksums(folder) == before
    assert not out.exists()


def weights(folder: Path, format_: str) -> Path:
    """Returns the file that holds the network's weights."""
    if format_ == "saved_model":
        return next((folder / "variables").glob("*.data*"))
    return folder / MODEL[format_]  # type: ignore[index]


@pytest.mark.parametrize("format_", ["saved_model", "tflite", "onnx"])
def test_an_artifact_that_is_not_whole_is_named(
    format_: str, unchecked: dict[str, Path], tmp_path: Path, capsys: Screen
) -> None:
    folder = tmp_path / "model"

    def cut(path: Path) -> str:
        path.write_bytes(path.read_bytes()[:-100])
        return f"{path}: changed since the export"

    def remove(path: Path) -> str:
        path.unlink()
        return f"{path}: missing: copy the complete artifact again"

    def add(path: Path) -> str:
        path.with_name("readme.txt").touch()
        return f"{path.with_name('readme.txt')}: not part of the export"

    for spoil in (cut, remove, add):
        for find in (weights, lambda folder, _: folder / REFERENCE):
            shutil.copytree(unchecked[format_], folder)
            refused_by_all(folder, spoil(find(folder, format_)), capsys)
            shutil.rmtree(folder)


def other_classes(tree: Tree) -> Tree:
    return {**tree, "classes": [*tree["classes"][:-1], "mud"]}


def fewer_classes(tree: Tree) -> Tree:
    return {**tree, "classes": tree["classes"][1:], "palette": tree["palette"][1:]}


def no_list_of_classes(tree: Tree) -> Tree:
    return {**tree, "classes": 3}


def colours_as_words(tree: Tree) -> Tree:
    return {**tree, "palette": ["red"] * 8}


def other_checksum(tree: Tree) -> Tree:
    return {**tree, "files": {**tree["files"], MODEL["onnx"]: "0" * 64}}


def wider_tolerance(tree: Tree) -> Tree:
    return {**tree, "format": "tflite", "options": {"quantize": "int8"}}


def other_format(tree: Tree) -> Tree:
    return {**tree, "format": "caffe"}


def key_missing(tree: Tree) -> Tree:
    return {key: value for key, value in tree.items() if key != "palette"}


def key_too_much(tree: Tree) -> Tree:
    return {**tree, "note": "mine"}


@pytest.mark.parametrize(
    "change",
    [
        other_classes,
        fewer_classes,
        no_list_of_classes,
        colours_as_words,
        other_checksum,
        wider_tolerance,
        other_format,
        key_missing,
        key_too_much,
    ],
)
def test_a_changed_contract_is_refused(
    change: Callable[[Tree], Tree], unchecked: dict[str, Path], tmp_path: Path, capsys: Screen
) -> None:
    folder = shutil.copytree(unchecked["onnx"], tmp_path / "onnx")
    path = folder / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    refused_by_all(folder, f"{path}: changed since the export", capsys)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not valid"),
        (b"{", "not valid"),
        (b"\xff\xfe", "not valid"),
        (b"[" * 100_000, "not valid"),
        (b"[]", "not valid"),
        (b"null", "not valid"),
        (b"{}", "the checksum 'sha256' is missing"),
    ],
)
def test_what_is_no_contract_is_refused(
    content: bytes, expected: str, unchecked: dict[str, Path], tmp_path: Path, capsys: Screen
) -> None:
    folder = shutil.copytree(unchecked["onnx"], tmp_path / "onnx")
    (folder / MANIFEST).write_bytes(content)
    refused_by_all(folder, f"{folder / MANIFEST}: {expected}", capsys)


def test_another_artifacts_contract_is_refused(
    unchecked: dict[str, Path], tmp_path: Path, capsys: Screen
) -> None:
    folder = shutil.copytree(unchecked["onnx"], tmp_path / "onnx")
    shutil.copy(unchecked["tflite"] / MANIFEST, folder)
    refused_by_all(folder, "not part of the export", capsys)


def test_no_contract_is_no_artifact(
    unchecked: dict[str, Path], tmp_path: Path, capsys: Screen
) -> None:
    folder = shutil.copytree(unchecked["onnx"], tmp_path / "onnx")
    (folder / MANIFEST).unlink()
    refused_by_all(folder, f"no {MANIFEST}: not an artifact of ccfnet-tf export", capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUN", "--format", "saved_modell"], "did you mean 'saved_model'"),
        (["RUN", "--format", "litrt"], "did you mean 'litert'"),
        (["RUN", "--format", "caffe"], "--format is 'caffe': expected saved_model, tflite"),
        (["RUN", "--quantize", "int8"], "--quantize applies only to --format tflite"),
        (["RUN", "--format", "tflite", "--quantize", "fp32"], "expected none, fp16, dynamic, int8"),
        (["RUN", "--format", "tflite", "--size", "240"], "expected HEIGHTxWIDTH"),
        (["RUN", "--format", "tflite", "--size", "abc"], "expected HEIGHTxWIDTH"),
        (["RUN", "--format", "tflite", "--size=-40x40"], "expected HEIGHTxWIDTH"),
        (["RUN", "--format", "tflite", "--size", "31x31"], "at least 32 on each side"),
        (["RUN", "--format", "tflite", "--size", "31x64"], "at least 32 on each side"),
        (["RUN", "--format", "tflite", "--size", "0x0"], "at least 32 on each side"),
        (["RUN", "--format", "tflite", "--batch", "0"], "--batch is 0"),
        (["RUN", "--format", "tflite", "--max-loss", "-1"], "--max-loss is -1"),
        (["RUN", "--verify-only", "x"], "give either a run folder to export, or --verify-only"),
        ([], "give either a run folder to export, or --verify-only"),
        (["/nowhere"], "/nowhere: no such folder"),
        (["RUN", "--data.root", "/nowhere"], "--data.root"),
    ],
)
def test_bad_options_are_one_line(
    run: Path, arguments: list[str], said: str, tmp_path: Path, capsys: Screen
) -> None:
    given = [str(run) if each == "RUN" else each for each in arguments]
    out = tmp_path / "models"
    assert said in refused(["export", *given, "--out", str(out)], capsys)
    assert not out.exists()


@pytest.mark.parametrize("format_", ["saved_model", "tflite", "onnx"])
def test_a_run_without_a_checkpoint_is_refused(
    format_: str, run: Path, tmp_path: Path, capsys: Screen
) -> None:
    empty, out = tmp_path / "empty", tmp_path / "models"
    shutil.copytree(run, empty, ignore=shutil.ignore_patterns("*.npz"))
    said = refused(["export", str(empty), "--format", format_, "--out", str(out)], capsys)
    assert said.startswith(f"{empty}: no checkpoint yet")
    assert not out.exists()


def test_places_that_cannot_be_written_are_named(
    run: Path, unchecked: dict[str, Path], tmp_path: Path, capsys: Screen
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for format_ in ("saved_model", "onnx"):
        said = refused(["export", str(run), "--format", format_, "--out", str(file)], capsys)
        assert str(file) in said
    assert file.read_text() == "mine"
    taken = unchecked["onnx"]
    before = checksums(taken)
    given = ["export", str(run), "--format", "onnx", "--out", str(taken.parent)]
    assert refused(given, capsys).startswith(f"{taken}: already exists and is not empty")
    assert checksums(taken) == before
    given = ["export", str(run), "--out", "gs://bucket/models"]
    assert "give a local folder" in refused(given, capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_folder_that_is_not_ours_is_named(run: Path, tmp_path: Path, capsys: Screen) -> None:
    tmp_path.chmod(0o500)
    said = refused(["export", str(run), "--format", "onnx", "--out", str(tmp_path)], capsys)
    assert said.startswith(f"Permission denied while writing {tmp_path}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a real disk of so many pages."""
    place = tmp_path / "disk"
    place.mkdir()

    def make(pages: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={pages * PAGE}", "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
            pytest.skip("needs the right to mount a tmpfs")
        return place

    yield make
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


def order(run: Path, format_: str, out: Path) -> list[str]:
    given = ["export", str(run), "--format", format_, "--out", str(out)]
    return given + (["--size", "33x47", "--quantize", "none"] if format_ == "tflite" else [])


@pytest.fixture
def one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks for one answer by Keras, as many as `unchecked` holds."""
    monkeypatch.setattr(reference_images, "__defaults__", (1,))


@pytest.mark.usefixtures("one_picture")
@pytest.mark.parametrize(
    "case",
    # Pages behind the answers: full while these are written, or in the middle of the network.
    [(each, -1) for each in ("saved_model", "tflite", "onnx")]
    + [("saved_model", 3), ("saved_model", 20), ("saved_model", 50), ("tflite", 1), ("onnx", 1)],
)
def test_a_full_disk_leaves_nothing(
    case: tuple[str, int],
    run: Path,
    unchecked: dict[str, Path],
    disk: Callable[[int], Path],
    capsys: Screen,
) -> None:
    format_, free = case
    answers = (unchecked[format_] / REFERENCE).stat().st_size
    place = disk(-(-answers // PAGE) + free)
    said = refused(order(run, format_, place), capsys)
    assert said.startswith(f"No space left on device while writing {place}")
    assert [path for path in place.rglob("*") if path.is_file()] == []


def test_a_full_disk_of_temporary_files_is_named(
    run: Path,
    disk: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Screen,
) -> None:
    place = disk(1)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    said = refused(order(run, "tflite", tmp_path / "out"), capsys)
    assert said.startswith(f"No space left on device in {place} while writing {tmp_path}")
    assert list(place.iterdir()) == []
    assert not (tmp_path / "out").exists()
