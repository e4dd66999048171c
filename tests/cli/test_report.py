"""`report` on a toy network: the page, where it goes, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.cli import main as cli
from ccfnet_tf.config import DataConfig, RunConfig, to_yaml
from ccfnet_tf.network import ccfnet
from ccfnet_tf.network.backbone_weights import named_variables
from ccfnet_tf.palettes import accessible_colours
from ccfnet_tf.report.html_pages import css_colour
from ccfnet_tf.runs.checkpoint_file import write_arrays


@pytest.fixture
def run(toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy's run folder, evaluated on three images."""
    monkeypatch.setattr(ccfnet, "build_ccfnet", lambda classes, **_: toy(classes))
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        place = tmp_path / "data" / part
        for folder in ("images", "masks"):
            (place / folder).mkdir(parents=True)
        for index in range(3):
            mask = rng.integers(0, 3, (4, 5)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
            Image.fromarray(mask).save(place / "masks" / f"{index}.png")
            Image.fromarray(mask * 90).convert("RGB").save(place / "images" / f"{index}.png")
    (tmp_path / "data" / "classes.txt").write_text("sky\ntree\nroad\n")
    folder = tmp_path / "run"
    folder.mkdir()
    data = DataConfig(format="folder", root=str(tmp_path / "data"), val_share=0.3)
    (folder / "config.yaml").write_text(to_yaml(RunConfig(data=data)))
    classes = {"names": ["sky", "tree", "road"], "palette": [[0, 0, 9], [0, 9, 0], [9, 0, 0]]}
    (folder / "classes.json").write_text(json.dumps(classes))
    arrays = {
        f"model/{key}": rng.normal(size=variable.shape).astype(np.float32) ** 2
        for key, variable in named_variables(toy(3)).items()
    }
    write_arrays(folder / "checkpoints" / "best.npz", arrays)
    return folder


def test_a_run_becomes_a_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(run)]) == 2
    assert f"run `ccfnet-tf evaluate {run}` first" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run)]) == 0
    assert cli.main(["report", str(run)]) == 0
    assert f"written to {run}/report.html" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "3 images of the test split" in page
    assert page.count("data:image/webp") == 4 * 3  # the image and its three maps
    assert page.count("data:image/png") == 4 * 3
    assert "is not the one that was evaluated" not in page
    assert "#000900" in page

    # Again, which replaces it: in colours that the colour-blind tell apart, and with a figure of an
    # image that is not what the network predicts now.
    write_cell(run, 1, "refine_pixel_accuracy", "0.987654")
    assert cli.main(["report", str(run), "--palette", "accessible"]) == 0
    page = (run / "report.html").read_text()
    assert "On 1 of the images the prediction shown is not the one that was evaluated" in page
    assert "#000900" not in page
    assert css_colour(accessible_colours(3)[1]) in page

    # Its figures alone.
    out = run.parent / "figures.html"
    assert cli.main(["report", str(run / "evaluation.json"), "--out", str(out)]) == 0
    assert "shows no images" in out.read_text()

    # Another file is not replaced, and an image that is gone is named.
    out.write_text("<p>mine</p>")
    assert cli.main(["report", str(run), "--out", str(out)]) == 2
    write_cell(run, 0, "image", "gone")
    assert cli.main(["report", str(run)]) == 2
    said = capsys.readouterr().err
    assert "already exists and was not written by ccfnet-tf" in said
    assert "the test split has no image 'gone'" in said
    assert out.read_text() == "<p>mine</p>"


GARBAGE = (b"", b"garbage\n", b"\x00\xff\xfe garbage\n", b"a,b\n1,2\n")


@pytest.mark.parametrize("garbage", GARBAGE)
def test_damaged_files_are_refused_in_one_line(
    garbage: bytes, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(run)]) == 0
    (run / "metrics.csv").write_text("epoch,refine_loss\n1,0.5\n")
    files = ("evaluation.json", "images.csv", "metrics.csv", "config.yaml", "classes.json")
    for name in (*files, "checkpoints/best.npz"):
        sound = (run / name).read_bytes()
        (run / name).write_bytes(garbage)
        capsys.readouterr()
        assert cli.main(["report", str(run)]) == 2, name
        said = capsys.readouterr().err
        assert name in said
        assert said.count("\n") == 1
        (run / name).write_bytes(sound)
    assert not (run / "report.html").exists()


def test_an_image_that_is_cut_off_is_missed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(run)]) == 0
    lines = (run / "images.csv").read_text().splitlines(keepends=True)
    (run / "images.csv").write_text("".join(lines[:-1]))
    assert cli.main(["report", str(run)]) == 2
    assert "images.csv: has 2 images with 4000 pixels, and evaluation.json 3" in (
        capsys.readouterr().err
    )


def write_cell(run: Path, row: int, column: str, value: str) -> None:
    """Changes a cell of `images.csv`."""
    with (run / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[row][column] = value
    with (run / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
