"""Files of exported networks, damaged 300 times: one line each, and little memory.

They are opened as `predict` opens them, once their checksums were found right: who writes a file
for others to open writes its checksum too. Not LiteRT's: a damaged file may end the process in
native code, as docs/security.md says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.artifacts.graph_ops import refuse_harmful_graph
from ccfnet_tf.artifacts.onnx import OnnxNetwork
from ccfnet_tf.artifacts.saved_model import SavedModelNetwork
from ccfnet_tf.export.onnx import write_onnx
from ccfnet_tf.export.saved_model import write_saved_model
from ccfnet_tf.serving import model as serving
from tests.hostile.test_fuzz_runs import CLASSES, fuzz

PICTURE = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture
def model(toy: Callable[..., Any]) -> Any:
    keras.utils.set_random_seed(0)
    return toy(3)


def test_onnx(model: Any, tmp_path: Path, count: int, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ccfnet.onnx"
    write_onnx(model, file)
    capfd.readouterr()
    fuzz(file, lambda: OnnxNetwork(file, CLASSES, threads=1).predict(PICTURE), count)
    assert capfd.readouterr() == ("", "")  # onnxruntime has lines of its own for some


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
