"""The proof of exported files, from what lies beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ccfnet_tf.cli.main import main
from ccfnet_tf.errors import VerificationError
from ccfnet_tf.exporters.base import Exporter
from ccfnet_tf.exporters.registry import new_exporter
from ccfnet_tf.exporters.verify import verify as module
from ccfnet_tf.exporters.verify.gpu import GPUVerdict
from ccfnet_tf.exporters.verify.verify import tolerance_here, verify, verify_on_gpu
from ccfnet_tf.runtimes.manifest import (
    REFERENCE,
    Difference,
    Manifest,
    checksums,
    read_manifest,
    write_manifest,
)

pytestmark = pytest.mark.usefixtures("toy_network")

EXPORTERS = [
    new_exporter("saved_model", {}),
    new_exporter("saved_model", {"precision": "bfloat16"}),
    new_exporter("onnx", {}),
    *(new_exporter("tflite", {"quantize": how}) for how in ("none", "fp16", "dynamic", "int8")),
]


def contract_of(exporter: Exporter, difference: Difference) -> Manifest:
    return Manifest(
        format=exporter.format,
        run={},
        versions={},
        classes=[],
        palette=[],
        options=exporter.options,
        inputs={},
        outputs={},
        files={},
        difference=vars(difference),
        measured={},
    )


@pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda exporter: exporter.kind)
def test_what_is_allowed_at_first_is_allowed_later(exporter: Exporter) -> None:
    allowed = exporter.tolerance
    manifest = contract_of(
        exporter, replace(allowed, percentile=0.02, mean=0.004, other_labels=0.01)
    )
    assert manifest.kind == exporter.kind
    later = tolerance_here(manifest)
    if exporter.kind == "tflite int8":  # was judged by its accuracy, which is not measured again
        assert later == Difference(1.0, percentile=0.04, mean=0.008, other_labels=0.021)
    else:
        assert later == allowed


def answers_cut(folder: Path) -> str:
    path = folder / REFERENCE
    path.write_bytes(path.read_bytes()[:-100])
    return "reference.npz: damaged"


def answers_of_nothing(folder: Path) -> str:
    np.savez(folder / REFERENCE, allow_pickle=False, other=np.zeros(3))
    return "it contains no references"


def answers_of_another_size(folder: Path) -> str:
    with np.load(folder / REFERENCE) as arrays:
        halved = {key: value[: len(value) // 2] for key, value in arrays.items() if "y/" in key}
        np.savez(folder / REFERENCE, allow_pickle=False, **{**arrays, **halved})
    return "reference.npz: damaged"


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
    manifest = read_manifest(folder)
    expected = spoil(folder)
    write_manifest(folder, replace(manifest, files=checksums(folder)))
    assert main(["export", "--verify-only", str(folder)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"ccfnet-tf: {folder}: ")
    assert expected in said
    assert len(said.splitlines()) == 1


def test_what_differs_stays_where_it_is(
    unchecked: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is that close.
    monkeypatch.setattr(module, "tolerance", lambda _: Difference(-1.0, -1.0, -1.0, -1.0))
    with pytest.raises(VerificationError, match=r"differs from Keras: largest .* above -1"):
        verify(unchecked["onnx"], console=Console(quiet=True))
    assert unchecked["onnx"].is_dir()


@pytest.mark.parametrize("quantize", ["none", "fp16", "dynamic", "int8"])
def test_floats_that_a_gpu_answers_wrongly_are_refused(
    quantize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = GPUVerdict(runs=False, wrong=True, message="no: wrong outputs, by 3")
    monkeypatch.setattr(module, "try_on_gpu", lambda _, **__: wrong)
    if quantize in ("none", "fp16"):
        with pytest.raises(VerificationError, match="GPU: no: wrong outputs, by 3"):
            verify_on_gpu(tmp_path, quantize)
    else:  # for CPUs; the contract says so
        assert verify_on_gpu(tmp_path, quantize) == {"GPU": wrong.message}
