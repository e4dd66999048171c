"""Where SavedModels go."""

from __future__ import annotations

from pathlib import Path

from ccfnet_tf.exporters.saved_model.exporter import NAME, SavedModelExporter


def test_the_next_export_takes_the_next_number(tmp_path: Path) -> None:
    for name in ("1", "7", "old", ".9.unfinished"):
        (tmp_path / NAME / name).mkdir(parents=True)
    assert SavedModelExporter().artifact_folder(tmp_path) == tmp_path / NAME / "8"
