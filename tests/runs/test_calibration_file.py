from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccfnet_tf.errors import RunError
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runs.calibration_file import CALIBRATION, calibration_text, read_calibration
from ccfnet_tf.runs.checkpoint_file import write_arrays

VECTOR = Calibration((0.5, 1.5), (0.25, -1.0), 0.7, -0.3, 0.06)


@pytest.fixture
def best(tmp_path: Path) -> Path:
    path = tmp_path / "best.npz"
    write_arrays(path, {"model/w": np.zeros(2, np.float32)})
    return path


def read(best: Path) -> Calibration:
    return read_calibration(best.parent, best, classes=2)


def write(best: Path, **changes: Any) -> None:
    tree = json.loads(calibration_text(best, VECTOR, {"split": "val"}))
    (best.parent / CALIBRATION).write_text(json.dumps(tree | changes))


def test_a_calibration_is_read_back(best: Path) -> None:
    assert read(best) == UNCALIBRATED
    write(best)
    assert read(best) == VECTOR
    assert json.loads((best.parent / CALIBRATION).read_text())["measured"] == {"split": "val"}


def test_it_is_not_applied_to_other_weights(best: Path) -> None:
    write(best)
    last = best.with_name("last.npz")
    last.write_bytes(b"other weights")
    # Another checkpoint, which nobody calibrated.
    assert read_calibration(last.parent, last, classes=2, requested=True) == UNCALIBRATED
    with pytest.raises(RunError, match=r"json: is of best.npz, but .* last.npz: run `ccfnet-tf c"):
        read(last)
    write_arrays(best, {"model/w": np.ones(2, np.float32)})  # trained on
    with pytest.raises(RunError, match=r"best.npz was written again .* run `ccfnet-tf calibrate`"):
        read(best)


def test_a_damaged_checkpoint_is_not_called_a_newer_one(best: Path) -> None:
    write(best)
    best.write_bytes(best.read_bytes()[:1])
    with pytest.raises(RunError, match=r"best.npz: damaged .*copy of the other one") as caught:
        read(best)
    assert "calibrate" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "expected an object with keys, not list"),
        ("3", "expected an object with keys, not int"),
        ("{}", "no key 'checkpoint'"),
        ('{"checkpoint": "best.npz", "sha256": ""}', "no key 'scale'"),
    ],
)
def test_a_file_of_another_shape_says_what_it_lacks(best: Path, text: str, says: str) -> None:
    (best.parent / CALIBRATION).write_text(text)
    with pytest.raises(RunError, match=rf"not a calibration \({says}\): run `ccfnet-tf calib"):
        read(best)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": [1.0, 2.0, 3.0]},
        {"scale": [0.0]},
        {"scale": []},
        {"scale": 1.0},
        {"scale": [True]},
        {"bias": [1.0]},
        {"bias": ["1", "2"]},
        {"attention_scale": -1.0},
        {"attention_bias": None},
        {"attention_bias": 1e999},
        {"sha256": None},
    ],
)
def test_a_damaged_file_is_one_line(best: Path, changes: dict[str, Any]) -> None:
    write(best, **changes)
    with pytest.raises(RunError, match=r"calibration.json: .*run `ccfnet-tf calibrate`") as caught:
        read(best)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"checkpoint": "best.npz"}', "null", "{" * 99])
def test_what_is_no_calibration_is_one_line(best: Path, text: str) -> None:
    (best.parent / CALIBRATION).write_text(text)
    with pytest.raises(RunError, match=r"calibration.json: not a calibration") as caught:
        read(best)
    assert "\n" not in str(caught.value)


def test_it_is_not_applied_to_kernels_of_another_precision(best: Path) -> None:
    text = calibration_text(best, VECTOR, {}, kernels="bfloat16")
    (best.parent / CALIBRATION).write_text(text)
    assert read_calibration(best.parent, best, classes=2, kernels="bfloat16") == VECTOR
    with pytest.raises(RunError, match=r"kernels in bfloat16.*run `ccfnet-tf calibrate`"):
        read(best)
    write(best, kernels="float32")
    older = json.loads((best.parent / CALIBRATION).read_text())
    del older["kernels"]
    (best.parent / CALIBRATION).write_text(json.dumps(older))
    assert read(best) == VECTOR
    with pytest.raises(RunError, match=r"kernels in float32.*trained in bfloat16"):
        read_calibration(best.parent, best, classes=2, kernels="bfloat16")
