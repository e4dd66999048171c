"""What the comparison with Keras sees, whatever answers."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ccfnet_tf.errors import ResourceError
from ccfnet_tf.exporters.verify import compare_process, compare_saved_model, verify
from ccfnet_tf.inference.segmenter_protocol import MAPS, Maps, Prediction
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network import ccfnet
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED
from ccfnet_tf.runtimes.manifest import REFERENCE, Difference

SIZE = (4, 5)


def expected() -> Prediction:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), SIZE).astype(np.float32)
    labels = probabilities.argmax(-1).astype(np.int32)
    maps = (probabilities[..., each] / 2 for each in range(3))
    return Prediction(labels, *maps, probabilities)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    right = expected()
    settled = np.ones(SIZE, bool)
    settled[3, 4] = False
    arrays = {"image/0": np.zeros((*SIZE, 3), np.uint8), "settled/0": settled}
    arrays["clear_branch/0"] = np.ones(SIZE, bool)
    arrays |= {f"{name}/0": values for name, values in right._asdict().items()}
    np.savez(tmp_path / REFERENCE, allow_pickle=False, **arrays)
    return tmp_path


class Answering:
    """A network that knows one answer."""

    at_once = 1
    calibration = UNCALIBRATED
    taxonomy = Taxonomy((), ())

    def __init__(self, answer: Prediction | Maps) -> None:
        self._answer = answer

    def predict(self, _: np.ndarray, /) -> Prediction | Maps:
        return self._answer


def compared(folder: Path, answer: Prediction | Maps) -> Difference:
    return compare_process.compare(folder, Answering(answer))


def test_what_is_equal_has_no_difference(folder: Path) -> None:
    right = expected()
    nothing = Difference(0.0, 0.0, 0.0, 0.0)
    assert compared(folder, right) == nothing
    stored = Maps(right.labels, *(np.round(255 * each) / 255 for each in right[1:4]))
    assert compared(folder, stored).largest < 1e-7


@pytest.mark.parametrize("name", ["probabilities", *MAPS])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_no_number_is_refused(folder: Path, name: str, value: float) -> None:
    found = expected()
    getattr(found, name)[2, 3] = value
    with pytest.raises(ValueError, match="an output is not finite"):
        compared(folder, found)


@pytest.mark.parametrize("name", Prediction._fields)
def test_another_form_is_refused(folder: Path, name: str) -> None:
    found = expected()
    turned = np.swapaxes(getattr(found, name), 0, 1)
    with pytest.raises(ValueError, match=f"{name} has shape"):
        compared(folder, found._replace(**{name: turned}))


def test_every_difference_is_seen(folder: Path) -> None:
    right = expected()
    other = right.labels.copy()
    other[0, 0] = (other[0, 0] + 1) % 3
    assert compared(folder, right._replace(labels=other)).other_labels == 0.05
    for name in ("probabilities", *MAPS):
        found = expected()
        getattr(found, name)[1, 1] += 0.25
        assert compared(folder, found).largest == pytest.approx(0.25)
    for name in MAPS:
        maps = Maps(*right[:4])
        maps = maps._replace(**{name: getattr(right, name) + 0.25})
        assert compared(folder, maps).largest == pytest.approx(0.25, abs=1 / 255)


def test_difficulty_is_not_compared_where_two_classes_of_coarse_tie(folder: Path) -> None:
    for name, largest in (("difficulty", 0.0), ("risk", 0.25)):
        found = expected()
        getattr(found, name)[3, 4] += 0.25
        assert compared(folder, found).largest == pytest.approx(largest)


def test_a_process_that_knows_the_network_does_not_judge(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["check", str(folder), "onnx"])
    compare_process.main()
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    package = ccfnet.__name__.rpartition(".")[0]
    assert said["error"].startswith(f"the comparison imported {package}")


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Temporary files go to a real disk of 32 KiB, of which a file fits."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount a 32 KiB tmpfs")
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("side", [8, 200])
def test_a_full_disk_of_temporary_files_is_no_wrong_answer(
    side: int, full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        """Fails as `saved_model_cli` does where its answers do not fit."""
        said = "OSError: 129600 requested and 3968 written"
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(compare_saved_model, "subprocess", SimpleNamespace(run=run))
    call = compare_saved_model._by_cli(Path("model"), "probabilities")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        call(np.zeros((1, side, side, 3), np.uint8))
    assert list(full_disk.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_the_check_says_of_a_full_disk_what_it_is(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(folder: Path, format_: str) -> Difference:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(compare_process, "_check", full)
    monkeypatch.setattr(sys, "argv", ["check", "model", "saved_model"])
    monkeypatch.setattr(sys, "modules", {})
    compare_process.main()
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == ["full"]

    answer = subprocess.CompletedProcess("check", 0, json.dumps(printed), "")
    monkeypatch.setattr(verify, "subprocess", SimpleNamespace(run=lambda *_, **__: answer))
    with pytest.raises(ResourceError, match=r"model: cannot be verified.* TMPDIR"):
        verify.compare_with_keras(
            Path("x"), "saved_model", Difference(1.0, 1.0, 1.0, 1.0), Path("model")
        )
