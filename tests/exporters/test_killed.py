"""An export of a whole network that is killed, and the next one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.cli.main import main
from ccfnet_tf.errors import EXIT_DONE, RunError
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import MAPS
from ccfnet_tf.runs.run_folder import load_run
from ccfnet_tf.runtimes.manifest import REFERENCE
from ccfnet_tf.runtimes.open_segmenter import find_source

PATIENCE = 300.0


def kill_when_there(arguments: list[str], file: Path) -> None:
    """Runs the command line and ends it as soon as a file is there."""
    process = subprocess.Popen([sys.executable, "-m", "ccfnet_tf", *arguments])
    try:
        until = time.monotonic() + PATIENCE
        while not file.exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_that_looks_whole(whole: Path, tmp_path: Path) -> None:
    """And the next one is right, of a size that neither stride nor bins divide."""
    out, place = tmp_path / "models", "tflite-none-33x47"
    unfinished = out / f".{place}.unfinished"
    given = ["export", str(whole), "--format", "tflite", "--quantize", "none"]
    given += ["--size", "33x47", "--out", str(out)]
    kill_when_there(given, unfinished / REFERENCE)
    assert list(out.iterdir()) == [unfinished]
    for source in (out, unfinished, out / place):
        with pytest.raises(RunError):
            find_source(str(source))
    assert main(given) == EXIT_DONE
    assert list(out.iterdir()) == [out / place]
    picture = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    expected = KerasNetwork(load_run(whole)).predict(picture)
    found = find_source(str(out / place)).open().predict(picture)
    for name in MAPS:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-4)
    assert (found.labels == expected.labels).mean() > 0.99
