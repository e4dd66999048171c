"""`ccfnet-tf export`: a run becomes an artifact that was proven, or nothing at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
from rich.console import Console

from ccfnet_tf.artifacts.contract import (
    CONTRACT,
    REFERENCE,
    Difference,
    read_contract,
    write_contract,
)
from ccfnet_tf.cli import main
from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, to_yaml
from ccfnet_tf.datasets.parts import read_parts
from ccfnet_tf.errors import RunError, VerificationError
from ccfnet_tf.export import artifact as module
from ccfnet_tf.export import order
from ccfnet_tf.export.order import Order
from ccfnet_tf.export.reference import reference_pictures, run_parts, write_reference
from ccfnet_tf.export.saved_model import write_saved_model
from ccfnet_tf.inference.predictor import Predictor
from ccfnet_tf.inference.runs import load_run, read_run
from ccfnet_tf.network import ccfnet
from ccfnet_tf.training.checkpoint import Progress, save_best
from ccfnet_tf.training.journal import write_classes

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"
QUIET = Console(quiet=True)


@pytest.fixture(scope="module", autouse=True)
def toy_network(toy: Callable[..., Any]) -> Iterator[None]:
    """Exports a graph of five layers in place of the whole network."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ccfnet, "build_ccfnet", lambda classes, **_: toy(classes))
        yield


@pytest.fixture(scope="module")
def run(toy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one small network whose weights are random."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    config = RunConfig(
        data=DataConfig(format="folder", root=str(SAMPLE)),
        model=ModelConfig(backbone="mobilenet_v2", backbone_weights="none", head_channels=4),
    )
    parts = read_parts(config.data, 0)
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    write_classes(folder, parts.taxonomy)
    keras.utils.set_random_seed(0)
    model = toy(len(parts.taxonomy.names))
    (folder / "checkpoints").mkdir()
    save_best(folder / "checkpoints" / "best.npz", model, Progress(epoch=1))
    return folder


@pytest.fixture(scope="module")
def artifact(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models")
    return module.export_run(run, out, Order("saved_model"), data_root=None, console=QUIET)


@pytest.mark.slow
def test_the_contract_says_what_was_done(artifact: Path, run: Path) -> None:
    assert artifact.parts[-2:] == ("ccfnet", "1")
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


@pytest.mark.slow
def test_a_difference_leaves_nothing_behind(
    run: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is that close.
    monkeypatch.setattr(module, "tolerance", lambda _: Difference(-1.0, -1.0, -1.0, -1.0))
    models = artifact.parents[1]
    with pytest.raises(VerificationError, match=r"differs from Keras: largest .* above -1"):
        module.export_run(run, models, Order("saved_model"), data_root=None, console=QUIET)
    assert [path.name for path in (models / "ccfnet").iterdir()] == ["1"]
    with pytest.raises(VerificationError):
        module.verify(artifact, console=QUIET)


def test_the_next_export_takes_the_next_number(tmp_path: Path) -> None:
    for name in ("1", "7", "old", ".9.unfinished"):
        (tmp_path / name).mkdir()
    assert order._next_version(tmp_path) == tmp_path / "8"


@pytest.fixture
def written(run: Path, tmp_path: Path) -> Path:
    """An artifact that was written and not checked, which takes its time."""
    folder = tmp_path / "1"
    info, model = read_run(run), load_run(run)
    folder.mkdir()
    predictor = Predictor(model, taxonomy=info.taxonomy)
    write_reference(folder / REFERENCE, predictor, reference_pictures(run_parts(info), 1))
    write_saved_model(model, info.taxonomy, folder)
    found = Difference(0.0, 0.0, 0.0, 0.0)
    contract = module._contract(info, info.checkpoint(), Order("saved_model"), folder, found)
    write_contract(folder, contract)
    return folder


@pytest.mark.slow
def test_the_check_is_repeated_elsewhere(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    assert main(["export", "--verify-only", str(copy)]) == 0
    assert "saved_model beside Keras on" in capsys.readouterr().out


def spoil_cut(folder: Path) -> str:
    path = next((folder / "variables").glob("*.data*"))
    path.write_bytes(path.read_bytes()[:-100])
    return f"{path}: not the file that was exported"


def spoil_missing(folder: Path) -> str:
    (folder / REFERENCE).unlink()
    return f"{folder / REFERENCE}: missing"


def spoil_more(folder: Path) -> str:
    (folder / "assets" / "readme.txt").touch()
    return f"{folder / 'assets' / 'readme.txt'}: not part of what was exported"


def spoil_contract(folder: Path) -> str:
    (folder / CONTRACT).write_text("{")
    return f"{folder / CONTRACT}: not understood"


def spoil_format(folder: Path) -> str:
    tree = json.loads((folder / CONTRACT).read_text())
    (folder / CONTRACT).write_text(json.dumps({**tree, "format": "caffe"}))
    return f"{folder / CONTRACT}: format 'caffe'"


def spoil_all(folder: Path) -> str:
    (folder / CONTRACT).unlink()
    return f"{folder}: no {CONTRACT}"


@pytest.mark.parametrize(
    "spoil", [spoil_cut, spoil_missing, spoil_more, spoil_contract, spoil_format, spoil_all]
)
def test_a_spoilt_artifact_is_one_line(
    written: Path, spoil: object, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = spoil(written)  # type: ignore[operator]
    assert main(["export", "--verify-only", str(written)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ccfnet-tf: {expected}")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUN", "--format", "saved_modell"], "did you mean 'saved_model'"),
        (["RUN", "--format", "litrt"], "did you mean 'litert'"),
        (["RUN", "--quantize", "int8"], "--quantize is for --format tflite"),
        (["RUN", "--format", "tflite", "--quantize", "fp32"], "expected none, fp16, dynamic, int8"),
        (["RUN", "--format", "tflite", "--size", "240"], "expected HEIGHTxWIDTH"),
        (["RUN", "--format", "tflite", "--size", "31x64"], "at least 32 on each side"),
        (["RUN", "--format", "tflite", "--batch", "0"], "--batch is 0"),
        (["RUN", "--format", "tflite", "--max-loss", "-1"], "--max-loss is -1"),
        (["RUN", "--verify-only", "x"], "not both"),
        ([], "give a run folder to export"),
        (["/nowhere"], "/nowhere: no such folder"),
        (["RUN", "--data-root", "/nowhere"], "--data-root"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(run) if each == "RUN" else each for each in arguments]
    assert main(["export", *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_run_without_a_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    shutil.copytree(run, empty, ignore=shutil.ignore_patterns("*.npz"))
    with pytest.raises(RunError, match="no checkpoint yet"):
        module.export_run(empty, tmp_path, Order("saved_model"), data_root=None, console=QUIET)


def test_not_a_number_is_above_any_tolerance() -> None:
    found = Difference(float("nan"), 0.0, 0.0, 0.0)
    assert found.above(Difference(1.0, 1.0, 1.0, 1.0)) == ["largest nan above 1"]
