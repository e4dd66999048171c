"""What is wrong with an ONNX file or an image, in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from ccfnet_tf.errors import ConfigError, DataError, RunError
from ccfnet_tf.inference.segmenter_protocol import ImageTooLargeError
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runtimes.onnx import OnnxNetwork
from tests.tiny_onnx import write_tiny_onnx

TAXONOMY = Taxonomy(("red", "green", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
FLOAT, BYTE = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A network whose probabilities are the colours."""
    write_tiny_onnx(tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (40, 33)])
def test_the_answer_has_the_picture_s_size(path: Path, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = OnnxNetwork(path, TAXONOMY, threads=1).predict(picture)
    np.testing.assert_array_equal(found.probabilities, picture.astype(np.float32))
    np.testing.assert_array_equal(found.attention, picture.max(-1).astype(np.float32))
    np.testing.assert_array_equal(found.difficulty, picture.min(-1).astype(np.float32))
    np.testing.assert_array_equal(found.risk, picture.min(-1).astype(np.float32))
    np.testing.assert_array_equal(found.labels, picture.argmax(-1))
    assert found.labels.dtype == np.int32


def test_what_is_no_picture_is_refused(path: Path) -> None:
    network = OnnxNetwork(path, TAXONOMY)
    with pytest.raises(DataError, match="is not an image: expected uint8"):
        network.predict(np.zeros((4, 4), np.uint8))


def test_a_file_cut_short_is_one_line(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match=r"tiny\.onnx: onnxruntime [0-9.]+: ") as caught:
        OnnxNetwork(path, TAXONOMY)
    assert len(str(caught.value).splitlines()) == 1


def test_other_classes_are_refused(path: Path) -> None:
    two = Taxonomy(("dark", "bright"), ((0, 0, 0), (255, 255, 255)))
    with pytest.raises(RunError, match="predicts 3 classes: expected 2: export the run"):
        OnnxNetwork(path, two)


def test_without_onnxruntime_the_mend_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"need onnxruntime, .*'ccfnet-tf\[onnx\]'"):
        OnnxNetwork(path, TAXONOMY)


def test_memory_that_ran_out_concerns_one_picture(path: Path) -> None:
    class Full:
        def run(self, *_: object) -> None:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 9")

    network = OnnxNetwork(path, TAXONOMY)
    network._session = Full()
    with pytest.raises(ImageTooLargeError, match="memory ran out on an image of 40x33"):
        network.predict(np.zeros((33, 40, 3), np.uint8))
