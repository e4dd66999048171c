"""`fit` with two workers on loopback: killed, stopped by SIGTERM, resumed, and from shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.runs.checkpoint_file import read_arrays
from tests.network.test_multi_worker_fit import two_free_ports
from tests.test_end_to_end import SAMPLE, SMALL

pytestmark = pytest.mark.slow

PATIENCE = 120
"""Seconds within which a worker must detect that the other has ended."""


def start_two(out: Path, *more: str | Path) -> list[subprocess.Popen[str]]:
    """Starts the chief and a worker, which gets a run folder that it must not touch."""
    port = two_free_ports()
    cluster = {"worker": [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]}
    processes = []
    for index in range(2):
        task = {"type": "worker", "index": index}
        path = out if index == 0 else out.with_name(f"{out.name}_of_worker_1")
        options = [*SMALL, "--train.strategy", "multi_worker", "--data.root", SAMPLE]
        options += ["--train.ema", "0.5", *more]
        command = [sys.executable, "-m", "ccfnet_tf", "fit", *options, "--out", path]
        processes.append(
            subprocess.Popen(
                list(map(str, command)),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "TF_CONFIG": json.dumps({"cluster": cluster, "task": task})},
            )
        )
    return processes


def ends(processes: list[subprocess.Popen[str]], code: int) -> list[str]:
    """Waits for both; returns their output."""
    output = []
    for process in processes:
        out, error = process.communicate()
        assert process.returncode == code, error
        output.append(out + error)
    return output


def wait_for_checkpoint(out: Path, processes: list[subprocess.Popen[str]]) -> None:
    while not (out / "checkpoints" / "last.npz").is_file():
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_a_killed_worker_ends_the_other_and_both_can_be_resumed(tmp_path: Path) -> None:
    out, every = tmp_path / "killed", ("--train.checkpoint_every", "1 step")
    chief, other = start_two(out, *every)
    wait_for_checkpoint(out, [chief, other])
    other.kill()
    _, output = chief.communicate(timeout=PATIENCE)
    assert chief.returncode == 138, output
    # TensorFlow's C++ code prints messages before that at any log level.
    assert "another of the 2 workers ended or cannot be reached" in output.splitlines()[-1]
    assert "Traceback" not in output
    other.communicate()
    state = json.loads(str(read_arrays(out / "checkpoints" / "last.npz")["state"]))
    assert state["epoch"] < 3, "the kill came too late to show anything"

    chief_said, other_said = ends(start_two(out, *every, "--resume"), 0)
    assert "resuming after epoch" in chief_said
    assert "epoch 3/3" in chief_said
    assert "epoch" not in other_said
    assert not out.with_name("killed_of_worker_1").exists()

    never = tmp_path / "never_killed"
    ends(start_two(never), 0)
    mine, theirs = (read_arrays(run / "checkpoints" / "last.npz") for run in (out, never))
    assert mine.keys() == theirs.keys()
    for key in theirs:
        np.testing.assert_array_equal(mine[key], theirs[key], err_msg=key)


def test_sigterm_to_a_worker_ends_both_and_one_can_be_resumed_alone(tmp_path: Path) -> None:
    out = tmp_path / "told"
    processes = start_two(out, "--train.checkpoint_every", "1 step")
    wait_for_checkpoint(out, processes)
    processes[1].terminate()
    for output in ends(processes, 143):
        assert "received SIGTERM at step" in output
    alone = [sys.executable, "-m", "ccfnet_tf", "fit", "--out", str(out), "--resume"]
    done = subprocess.run(
        [*alone, "--train.strategy", "none"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch" in done.stdout
    assert "epoch 3/3" in done.stdout


def test_shards_are_divided_by_file(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    convert = ["data", "convert", str(SAMPLE), "--out", str(shards), "--shards", "3"]
    subprocess.run([sys.executable, "-m", "ccfnet_tf", *convert], check=True, capture_output=True)
    chief_said, _ = ends(
        start_two(tmp_path / "run", "--data.root", shards, "--train.epochs", "1"), 0
    )
    assert "2 workers: each reads its own of 3 shards" in chief_said
    assert " 3 steps per epoch" in chief_said  # 3 of 8 examples by file, else 4.
    assert "epoch 1/1" in chief_said
