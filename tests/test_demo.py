"""The results of the demo on unseen scenes, as stated in README."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_reaches_the_stated_results(tmp_path: Path) -> None:
    for args in (["fit", "--out", str(tmp_path / "demo")], ["evaluate", str(tmp_path / "demo")]):
        command = [sys.executable, "-m", "ccfnet_tf", *args]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    tree = json.loads((tmp_path / "demo" / "evaluation.json").read_text())
    assert (tree["split"], tree["pictures"]) == ("test", 100)
    assert tree["refine"]["pixel_accuracy"] >= 0.85, tree
    assert tree["refine"]["pixel_accuracy"] >= tree["coarse"]["pixel_accuracy"]
    assert tree["difficulty"]["auroc"] > 0.75
