"""Two processes on loopback train like one; each process runs tests/network/worker.py."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("worker.py")


def two_free_ports() -> int:
    """Returns a free port that is followed by another free port."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                other.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def start(index: int, port: int, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), str(index), str(port), str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files written by two workers, and by one process that trained alone (-1)."""
    folder, port = tmp_path_factory.mktemp("workers"), two_free_ports()
    for together in [(-1,), (0, 1)]:
        processes = [start(index, port, folder) for index in together]
        for process in processes:
            _, said = process.communicate()
            assert process.returncode == 0, said
    return folder


def test_two_workers_equal_one(told: Path) -> None:
    with np.load(told / "train_-1.npz") as one:
        assert float(one["moved"]) > 0.01
        for index in range(2):
            with np.load(told / f"train_{index}.npz") as two:
                # Without clipping, no worker has the gradient of all.
                assert two.files == [key for key in one.files if key != "figure gradient_norm"]
                for key in two.files:
                    if key.startswith(("weight", "figure")):
                        np.testing.assert_allclose(two[key], one[key], atol=1e-5, err_msg=key)
                    elif key != "moved":  # counts, over all images on every worker
                        np.testing.assert_array_equal(two[key], one[key], err_msg=key)


def test_keras_alone_still_fails(told: Path) -> None:
    assert json.loads((told / "stock_-1.json").read_text())["works"]
    for index in range(2):
        tree = json.loads((told / f"stock_{index}.json").read_text())
        assert not tree["works"], "Keras can do it: delete ccfnet_tf/network/multi_worker_fit.py"
        assert "PerReplica" in tree["why"]


def test_collectives(told: Path) -> None:
    for index in range(2):
        tree = json.loads((told / f"talk_{index}.json").read_text())
        assert tree["total"] == [[2, 2**41], 1.0, [[0]], [2.0 + 2e-12]]  # uint32 wraps around
        assert tree["types"] == ["int64", "float32", "uint32", "float64"]
        assert tree["chief"] == [[7], [np.float32(0.1).item()]]
        assert tree["text"] == "grüße"
        assert tree["any"] == [False, True]
