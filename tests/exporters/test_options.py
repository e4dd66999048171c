"""What an export is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccfnet_tf.exporters import options


def test_the_next_export_takes_the_next_number(tmp_path: Path) -> None:
    for name in ("1", "7", "old", ".9.unfinished"):
        (tmp_path / name).mkdir()
    assert options._next_version(tmp_path) == tmp_path / "8"


def test_the_usual_size_is_that_of_a_picture(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usual() -> str:
        return options.new_order("tflite", run, {}, data_root=None).options["size"]

    assert usual() == "180x240"
    monkeypatch.setattr(options, "LARGEST_USUAL", 60)
    assert usual() == "45x60"
