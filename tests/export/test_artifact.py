"""`ccfnet-tf export`: a run becomes an artifact that was proven, or nothing at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ccfnet_tf.artifacts.contract import (
    CONTRACT,
    REFERENCE,
    Difference,
    checksums,
    read_contract,
    write_contract,
)
from ccfnet_tf.artifacts.open import open_network
from ccfnet_tf.cli import main
from ccfnet_tf.errors import VerificationError
from ccfnet_tf.export import artifact as module
from ccfnet_tf.export import order
from ccfnet_tf.export.accuracy import Accuracy
from ccfnet_tf.export.gpu import GPUVerdict
from ccfnet_tf.export.litert import LiteRTOptions
from ccfnet_tf.export.order import Order
from ccfnet_tf.export.reference import run_parts
from ccfnet_tf.inference.predictor import Predictor
from ccfnet_tf.inference.runs import load_run, read_run

QUIET = Console(quiet=True)
SMALL = Order("tflite", LiteRTOptions((33, 47), "none"))

pytestmark = pytest.mark.usefixtures("toy_network")


@pytest.mark.slow
def test_the_contract_says_what_was_done(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = module.export_run(run, tmp_path, Order("saved_model"), data_root=None, console=QUIET)
    assert artifact == tmp_path / "ccfnet" / "1"
    contract = read_contract(artifact)
    assert contract.run == {"folder": str(run.resolve()), "checkpoint": "best.npz"}
    assert len(contract.classes) == len(contract.palette) == 8
    assert contract.difference["largest"] < 1e-4
    assert set(contract.files) == {
        path.relative_to(artifact).as_posix()
        for path in artifact.rglob("*")
        if path.is_file() and path.name != CONTRACT
    }
    assert "EXIF" in contract.inputs["orientation"]
    copy = shutil.copytree(artifact, tmp_path / "elsewhere")
    assert main(["export", "--verify-only", str(copy)]) == 0
    assert "saved_model beside Keras on" in capsys.readouterr().out


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
    assert "beside Keras on real pictures" in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == [place]
    moved = (out / place).rename(tmp_path / "elsewhere")
    assert main(["export", "--verify-only", str(moved)]) == 0
    picture = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    expected = Predictor(load_run(run)).predict(picture)
    found = open_network(str(moved)).predict(picture)
    assert (found.labels == expected.labels).mean() > 0.99
    np.testing.assert_allclose(found.difficulty, expected.difficulty, atol=0.01)


def test_a_difference_leaves_nothing_behind(
    run: Path, unchecked: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is that close.
    monkeypatch.setattr(module, "tolerance", lambda _: Difference(-1.0, -1.0, -1.0, -1.0))
    with pytest.raises(VerificationError, match=r"differs from Keras: largest .* above -1"):
        module.export_run(run, tmp_path, SMALL, data_root=None, console=QUIET)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(VerificationError):
        module.verify(unchecked["onnx"], console=QUIET)
    assert unchecked["onnx"].is_dir()


def test_the_next_export_takes_the_next_number(tmp_path: Path) -> None:
    for name in ("1", "7", "old", ".9.unfinished"):
        (tmp_path / name).mkdir()
    assert order._next_version(tmp_path) == tmp_path / "8"


def test_the_usual_size_is_that_of_a_picture(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usual() -> str:
        return order.new_order("tflite", run, {}, data_root=None).options["size"]

    assert usual() == "180x240"
    monkeypatch.setattr(order, "LARGEST_USUAL", 60)
    assert usual() == "45x60"


def answers_cut(folder: Path) -> str:
    path = folder / REFERENCE
    path.write_bytes(path.read_bytes()[:-100])
    return "BadZipFile"


def answers_of_nothing(folder: Path) -> str:
    np.savez(folder / REFERENCE, allow_pickle=False, other=np.zeros(3))
    return "there is nothing to compare with"


def answers_of_another_size(folder: Path) -> str:
    with np.load(folder / REFERENCE) as arrays:
        halved = {key: value[: len(value) // 2] for key, value in arrays.items() if "y/" in key}
        np.savez(folder / REFERENCE, allow_pickle=False, **{**arrays, **halved})
    return "difficulty has shape"


def answers_of_another_network(folder: Path) -> str:
    with np.load(folder / REFERENCE) as arrays:
        turned = {key: value[::-1] for key, value in arrays.items() if "probabilities" in key}
        np.savez(folder / REFERENCE, allow_pickle=False, **{**arrays, **turned})
    return "differs from Keras: largest"


@pytest.mark.parametrize(
    "spoil",
    [answers_cut, answers_of_nothing, answers_of_another_size, answers_of_another_network],
)
def test_a_failed_check_ends_with_1(
    spoil: Callable[[Path], str],
    unchecked: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Checksums are right here: what is left is the comparison itself."""
    folder = shutil.copytree(unchecked["onnx"], tmp_path / "onnx")
    contract = read_contract(folder)
    expected = spoil(folder)
    write_contract(folder, replace(contract, files=checksums(folder)))
    assert main(["export", "--verify-only", str(folder)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"ccfnet-tf: {folder}: ")
    assert expected in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("quantize", ["none", "fp16", "dynamic", "int8"])
def test_floats_that_a_gpu_answers_wrongly_are_refused(
    quantize: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = GPUVerdict(runs=False, wrong=True, said="no: it answers wrong there, by 3")
    monkeypatch.setattr(module, "try_on_gpu", lambda _, **__: wrong)
    monkeypatch.setattr(module, "LiteRTNetwork", lambda *_: None)
    monkeypatch.setattr(module, "measure_accuracy", lambda *_: Accuracy(0.5, 0.5, 1, "val"))
    info = read_run(run)
    predictor = Predictor(load_run(run), taxonomy=info.taxonomy)
    asked = Order("tflite", LiteRTOptions((33, 47), quantize))  # type: ignore[arg-type]
    given = (tmp_path, asked, predictor, run_parts(info), print)
    if quantize in ("none", "fp16"):
        with pytest.raises(VerificationError, match="GPU: no: it answers wrong there, by 3"):
            module._measure(*given)
    else:  # for CPUs; the contract says so
        assert module._measure(*given)["GPU"] == wrong.said


def test_not_a_number_is_above_any_tolerance() -> None:
    found = Difference(float("nan"), 0.0, 0.0, 0.0)
    assert found.above(Difference(1.0, 1.0, 1.0, 1.0)) == ["largest nan above 1"]
