"""What LiteRT files are made of where no size was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccfnet_tf.exporters.litert import exporter
from ccfnet_tf.exporters.verify.reference import run_parts
from ccfnet_tf.runs.run_folder import read_run


def test_the_usual_size_is_that_of_a_picture(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = run_parts(read_run(run))

    def usual() -> str:
        return exporter.LiteRTExporter.from_options().sized_for(parts).options["size"]

    assert usual() == "180x240"
    monkeypatch.setattr(exporter, "MAX_DEFAULT_SIDE", 60)
    assert usual() == "45x60"
    given = exporter.LiteRTExporter.from_options(size="33x47").sized_for(parts)
    assert given.options["size"] == "33x47"
