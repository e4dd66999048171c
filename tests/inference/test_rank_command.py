"""`ccfnet-tf rank` on a real, small network."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from ccfnet_tf.cli import main as cli
from ccfnet_tf.datasets.samples import fingerprint
from ccfnet_tf.inference import feature_network
from ccfnet_tf.inference.feature_network import View
from ccfnet_tf.labels import Sample
from ccfnet_tf.network.calibration_parameters import Calibration
from ccfnet_tf.palettes import PALETTES, PaletteName, accessible_colours
from ccfnet_tf.runs.calibration_file import calibration_text
from tests.inference.conftest import TAXONOMY, write_picture


def test_a_folder_is_ranked(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, pool, out = make_run("best"), tmp_path / "a pool", tmp_path / "out"
    rng = np.random.default_rng(0)
    for index in range(6):
        write_picture(pool / f"{index}.png", rng.integers(0, 255, (40, 48, 3), np.uint8))
    (pool / "damaged.png").write_bytes(b"nothing")
    rows_of = {
        part: [[name, fingerprint(Sample("", str(pool / f"{name}.png"), "")), ""]]
        for part, name in (("train", "0"), ("val", "4"), ("earlier", "5"))
    }
    digest = {"version": 1, **rows_of}
    (run / "data_digest.json").write_text(json.dumps(digest))
    flat = Calibration(scale=(1e-4,))  # every class 1/3
    (run / "calibration.json").write_text(
        calibration_text(run / "checkpoints" / "best.npz", flat, {})
    )
    command = ["rank", str(run), str(pool), "--top", "2", "--out", str(out)]
    assert cli.main(command) == 1  # the damaged image
    printed, errors = capsys.readouterr()
    assert "damaged.png: not an image" in errors
    assert "damaged.png" not in printed
    assert "skipped 3 images" in printed
    assert "2 of 3 images chosen" in printed
    rows = list(csv.DictReader((out / "ranking.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert float(rows[0]["expected_wrong_pixels"]) == pytest.approx(40 * 48 * 2 / 3, rel=0.01)
    assert {row["path"] for row in rows} <= {"1.png", "2.png", "3.png"}
    task = json.loads((out / "label_studio.json").read_text())[0]
    assert task["data"]["image"] == f"/data/local-files/?d=a%20pool/{rows[0]['path']}"
    assert TAXONOMY.names[0] in (out / "label_studio.xml").read_text()
    assert cli.main(command) == 2  # the results are not overwritten
    assert "already exists" in capsys.readouterr().err


class NoRisk:
    """A network that needs no seconds to open."""

    def __init__(self, run: Path) -> None:
        assert run.is_dir()

    def view(self, image: np.ndarray) -> View:
        """Labels every pixel as the first class."""
        size = image.shape[:2]
        return View(np.zeros(size, np.int32), np.zeros(size, np.float32), np.ones(3, np.float32))


def test_a_run_without_a_digest_says_so(
    make_run: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feature_network, "FeatureNetwork", NoRisk)
    run, pool, out = make_run("best"), tmp_path / "pool", tmp_path / "out"
    write_picture(pool / "a.png", np.zeros((40, 48, 3), np.uint8))
    command = ["rank", str(run), str(pool), "--out", str(out), "--image-url", "https://host/p/"]
    assert cli.main(command) == 0
    assert "may be chosen" in capsys.readouterr().err
    task = json.loads((out / "label_studio.json").read_text())[0]
    assert task["data"]["image"] == "https://host/p/a.png"


@pytest.mark.parametrize("palette", PALETTES)
def test_sheet_and_labelling_configuration_have_the_colours_of_a_palette(
    palette: PaletteName,
    make_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feature_network, "FeatureNetwork", NoRisk)
    pool, out = tmp_path / "pool", tmp_path / "out"
    write_picture(pool / "a.png", np.zeros((40, 48, 3), np.uint8))
    command = ["rank", str(make_run("best")), str(pool), "--out", str(out), "--palette", palette]
    assert cli.main(command) == 0
    accessible = accessible_colours(len(TAXONOMY.names))
    colours = {"dataset": TAXONOMY.palette, "accessible": accessible}
    labels = ElementTree.parse(out / "label_studio.xml").iter("Label")
    found = [each.get("background") for each in labels]
    assert found == [f"#{bytes(colour).hex()}" for colour in colours[palette]]
    sheet = cv2.imread(str(out / "contact_sheet.png"))
    assert sheet is not None
    seen = {tuple(colour) for colour in sheet[..., ::-1].reshape(-1, 3).tolist()}
    for name, (first, *_) in colours.items():  # every pixel has the first class
        assert (tuple(first) in seen) == (name == palette)
