"""`predict` on a toy network."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccfnet_tf.cli import main as cli
from ccfnet_tf.datasets.samples import fingerprint
from ccfnet_tf.labels import Sample
from ccfnet_tf.training.data_digest import Row, write_digest


@pytest.mark.parametrize("part", ["train", "earlier"])
def test_images_of_the_training_are_counted(
    run: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    images = run.parent / "data" / "test" / "images"
    row = Row("x", fingerprint(Sample("", str(images / "0.png"), "")), "")
    write_digest(run, {"train": [], "val": []} | {part: [row]})
    command = ["predict", str(run), str(images), "--out", str(run.parent / "out")]
    assert cli.main([*command, "--abstain-above", "0.99"]) == 0
    assert "; the run was trained on 1 of them, so" in capsys.readouterr().out
