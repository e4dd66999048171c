"""Two processes on loopback train what one trains; each process is tests/network/worker.py."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

WORKER = Path(__file__).with_name("worker.py")


def two_free_ports() -> int:
    """Returns a port that is free, as the one after it is."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                other.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def start(index: int, port: int, check: str, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), str(index), str(port), check, str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def run_two(check: str, folder: Path, ending: str) -> list[Path]:
    port = two_free_ports()
    outs = [folder / f"{check}_{index}{ending}" for index in range(2)]
    processes = [start(index, port, check, out) for index, out in enumerate(outs)]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    return outs


def test_two_workers_equal_one(tmp_path: Path) -> None:
    alone = tmp_path / "alone.npz"
    process = start(-1, 0, "train", alone)
    _, said = process.communicate()
    assert process.returncode == 0, said
    with np.load(alone) as one:
        assert float(one["moved"]) > 0.01
        for out in run_two("train", tmp_path, ".npz"):
            with np.load(out) as two:
                assert two.files == one.files
                for key in one.files:
                    if key.startswith(("weight", "figure")):
                        np.testing.assert_allclose(two[key], one[key], atol=1e-5, err_msg=key)
                    elif key != "moved":  # counts, over all pictures on every worker
                        np.testing.assert_array_equal(two[key], one[key], err_msg=key)


def test_keras_alone_cannot_yet(tmp_path: Path) -> None:
    for out in run_two("stock", tmp_path, ".json"):
        tree = json.loads(out.read_text())
        assert not tree["works"], "Keras can do it: delete ccfnet_tf/network/multi_worker.py"
        assert "PerReplica" in tree["why"]


def test_what_workers_tell_each_other(tmp_path: Path) -> None:
    for out in run_two("talk", tmp_path, ".json"):
        tree = json.loads(out.read_text())
        assert tree["total"] == [[2, 2**41], 1.0, [[0]], [2.0 + 2e-12]]  # uint32 wraps around
        assert tree["types"] == ["int64", "float32", "uint32", "float64"]
        assert tree["chief"] == [[7], [np.float32(0.1).item()]]
        assert tree["text"] == "grüße"
        assert tree["any"] == [False, True]
