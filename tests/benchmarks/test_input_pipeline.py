from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import input_pipeline
from benchmarks.write_layouts import COPIES, scenes


@pytest.mark.slow
def test_every_layout_is_timed_and_the_goals_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(input_pipeline, "IMAGES", 16)
    monkeypatch.setattr(input_pipeline, "STEPS", 1)
    COPIES["voc"](tmp_path / "set", scenes(20))
    input_pipeline.main([str(tmp_path / "set"), "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert "times the rate of training (goal: 5)" in printed
    assert "resident memory" in printed
    tree = json.loads((tmp_path / "out.json").read_text())
    assert len(tree["speeds"]) == len(COPIES) + 1
    assert all(speed["shards"] > 0 for speed in tree["speeds"])
    assert tree["step"] > 0
