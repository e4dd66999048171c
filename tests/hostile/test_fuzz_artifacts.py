"""Files of exported networks, damaged 300 times: one-line errors, little memory.

They are opened as `predict` does after verifying the checksums, since an attacker who provides a
file also provides its checksum.
"""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.errors import RunError
from ccfnet_tf.exporters.litert.writer import LiteRTOptions, write_litert
from ccfnet_tf.exporters.onnx.writer import write_onnx
from ccfnet_tf.exporters.saved_model.writer import write_saved_model
from ccfnet_tf.runtimes import litert
from ccfnet_tf.runtimes.allowed_ops import refuse_harmful_graph
from ccfnet_tf.runtimes.manifest import Manifest
from ccfnet_tf.runtimes.onnx import OnnxNetwork
from ccfnet_tf.runtimes.open_segmenter import _open_litert
from ccfnet_tf.runtimes.saved_model import SavedModelNetwork
from ccfnet_tf.serving import model as serving
from tests.hostile.test_fuzz_runs import CLASSES, fuzz
from tests.memory import grows_at_most, peak_of

PICTURE = np.zeros((32, 32, 3), np.uint8)

MANIFEST = Manifest(
    format="tflite",
    classes=list(CLASSES.names),
    palette=[list(colour) for colour in CLASSES.palette],
    **{key: {} for key in ("run", "versions", "options", "inputs", "outputs", "files")},
    **{key: {} for key in ("difference", "measured")},
)


@pytest.fixture
def model(toy: Callable[..., Any]) -> Any:
    keras.utils.set_random_seed(0)
    return toy(3)


def test_onnx(model: Any, tmp_path: Path, count: int, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ccfnet.onnx"
    write_onnx(model, file)
    capfd.readouterr()
    fuzz(file, lambda: OnnxNetwork(file, CLASSES, threads=1).predict(PICTURE), count)
    assert capfd.readouterr() == ("", "")  # onnxruntime itself prints lines for some files.


def written_litert(model: Any, file: Path) -> Path:
    options = LiteRTOptions(size=(32, 32))
    write_litert(model, CLASSES, file, options, [PICTURE])
    return file


def test_litert(model: Any, tmp_path: Path, count: int) -> None:
    file = written_litert(model, tmp_path / "ccfnet.tflite")
    fuzz(file, lambda: _open_litert(file, MANIFEST, 1).predict(PICTURE), count)


def test_a_tensor_of_gigabytes_in_a_litert_file(model: Any, tmp_path: Path) -> None:
    file = written_litert(model, tmp_path / "ccfnet.tflite")
    shape, large = (struct.pack("<4i", 1, side, 32, 6) for side in (32, 1 << 23))
    assert shape in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(shape, large))
    with grows_at_most(1 << 30), pytest.raises(RunError, match="too large for one tensor"):
        _open_litert(file, MANIFEST, 1)
    # Nor in the trial process.
    code = f"{litert._TRIAL}\nprint(open('/proc/self/status').read())"
    command = [sys.executable, "-P", "-c", code, str(file)]
    status = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert peak_of(status) < 1 << 30


@pytest.mark.parametrize(
    ("trial", "words"),
    # LiteRT does so for few of thousands of damaged files, and not on every machine.
    [
        ("import os; os.kill(os.getpid(), 11)", "LiteRT crashes with SIGSEGV on opening it"),
        ("import time; time.sleep(60)", "LiteRT did not open it within 3 s"),
    ],
)
def test_a_litert_file_that_crashes_or_hangs_its_process(
    trial: str, words: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written_litert(model, tmp_path / "ccfnet.tflite")
    monkeypatch.setattr(litert, "_TRIAL", trial)
    monkeypatch.setattr(litert, "_TRIAL_SECONDS", 3.0)
    with pytest.raises(RunError, match=rf"ccfnet\.tflite: damaged: {words}; export it again"):
        _open_litert(file, MANIFEST, 1)


def test_the_graph_of_a_saved_model(model: Any, tmp_path: Path, count: int) -> None:
    write_saved_model(model, CLASSES, tmp_path / "1")
    file = tmp_path / "1" / "saved_model.pb"
    fuzz(file, lambda: SavedModelNetwork(tmp_path / "1", CLASSES).predict(PICTURE), count)


def test_the_graph_of_a_saved_model_that_is_served(model: Any, tmp_path: Path, count: int) -> None:
    write_saved_model(model, CLASSES, tmp_path / "1")

    def load() -> None:
        refuse_harmful_graph(tmp_path / "1")
        with tf.compat.v1.Session(graph=tf.Graph()) as session:
            serving._load(session, tmp_path / "1")

    fuzz(tmp_path / "1" / "saved_model.pb", load, count)


@pytest.mark.parametrize("name", ["variables.index", "variables.data-00000-of-00001"])
def test_the_variables_of_a_saved_model(name: str, model: Any, tmp_path: Path, count: int) -> None:
    """They must not crash the process or need much memory; `predict` reports any error in one line.

    Only TensorFlow's reader is run, which is a hundred times faster than loading the model.
    """
    write_saved_model(model, CLASSES, tmp_path / "1")
    variables = tmp_path / "1" / "variables" / "variables"

    def read() -> None:
        with contextlib.suppress(tf.errors.OpError, LookupError, RuntimeError, ValueError):
            reader = tf.train.load_checkpoint(str(variables))
            for each in reader.get_variable_to_shape_map():
                reader.get_tensor(each)

    read()
    fuzz(variables.with_name(name), read, count)
    variables.with_name(name).write_bytes(b"damaged")
    with pytest.raises(RunError, match="TensorFlow"):
        SavedModelNetwork(tmp_path / "1", CLASSES)
