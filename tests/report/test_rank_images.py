"""A folder is ranked: what is left out, what is written, what happens on failure."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ccfnet_tf.datasets.samples import bytes_fingerprint, fingerprint
from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.inference.feature_network import View
from ccfnet_tf.io.read_images import read_image
from ccfnet_tf.labels import Sample, Taxonomy
from ccfnet_tf.report.rank_images import Ranking, rank_folder, write_ranking

TAXONOMY = Taxonomy(("dark", "light"), ((10, 10, 10), (250, 250, 250)))


class RedIsRisk:
    """Labels pixels by green; risk is red / 255; features are the mean colour."""

    def view(self, image: np.ndarray) -> View:
        labels = (image[..., 1] > 127).astype(np.int32)
        risk = (image[..., 0] / 255).astype(np.float32)
        return View(labels, risk, image.mean(axis=(0, 1)).astype(np.float32))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of noise, of which 0 has the most red; one in a folder below."""
    rng = np.random.default_rng(0)
    (tmp_path / "pool" / "below").mkdir(parents=True)
    for index in range(6):
        image = rng.integers(0, 255, (20, 30, 3))
        image[..., 0] //= index + 1
        name = "below/5.png" if index == 5 else f"{index}.png"
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "pool" / name)
    return tmp_path / "pool"


def rank(folder: Path, *, top: int = 50, known: frozenset[str] = frozenset()) -> Ranking:
    network = RedIsRisk()
    return rank_folder(
        folder,
        lambda: network,  # type: ignore[arg-type, return-value]
        TAXONOMY,
        top=top,
        known=known,
        out=folder.parent / "out",
        console=Console(quiet=True),
    )


def write(ranking: Ranking, out: Path) -> None:
    network = RedIsRisk()
    write_ranking(
        ranking,
        network,  # type: ignore[arg-type]
        TAXONOMY,
        out,
        model="run",
        prefix="/p/",
        console=Console(quiet=True),
    )


def test_the_files_agree(folder: Path, tmp_path: Path) -> None:
    ranking = rank(folder, top=4)
    write(ranking, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "ranking.csv").read_text().splitlines()))
    tasks = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    paths = [row["path"] for row in rows]
    assert paths[0] == "0.png"
    assert len(set(paths)) == 4
    assert [task["data"]["image"] for task in tasks] == [f"/p/{path}" for path in paths]
    scores = [1 - task["predictions"][0]["score"] for task in tasks]
    np.testing.assert_allclose(scores, [float(row["score"]) for row in rows], atol=1e-4)
    assert len(read_image(tmp_path / "out" / "contact_sheet.png")) > 4 * 160
    assert (tmp_path / "out" / "label_studio.xml").is_file()
    red = read_image(folder / "0.png")[..., 0]
    assert float(rows[0]["expected_wrong_pixels"]) == pytest.approx(red.sum() / 255, abs=0.1)


def test_more_are_wanted_than_there_are(folder: Path) -> None:
    assert len(rank(folder).chosen) == 6


@pytest.mark.parametrize("stored", [False, True])
def test_labelled_images_are_left_out(folder: Path, stored: bool) -> None:
    path = folder / "0.png"
    digest = (
        bytes_fingerprint(path.read_bytes()) if stored else fingerprint(Sample("", str(path), ""))
    )
    ranking = rank(folder, known=frozenset([digest]))
    assert ranking.labelled == 1
    assert "0.png" not in [each.path for each in ranking.chosen]
    assert len(ranking.chosen) == 5


def test_a_near_duplicate_is_dropped_in_favour_of_the_riskier(folder: Path) -> None:
    image = read_image(folder / "0.png").copy()
    image[:4, :4, 0] = 0
    Image.fromarray(image).save(folder / "copy.png")
    chosen = rank(folder).chosen
    assert chosen[0].path == "0.png"
    assert chosen[0].near_duplicates == ("copy.png",)
    assert len(chosen) == 6


def test_damaged_images_and_videos_are_failures(folder: Path) -> None:
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (folder / "film.mp4").write_bytes(b"")
    ranking = rank(folder)
    assert len(ranking.chosen) == 6
    reasons = {Path(each.source).name: each.reason for each in ranking.failures}
    assert set(reasons) == {"damaged.png", "film.mp4"}
    assert "save its frames" in reasons["film.mp4"]


def test_nothing_to_rank_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    with pytest.raises(DataError, match=r"pool: contains no image \(.jpg [^)]*\): give") as error:
        rank(tmp_path / "pool")
    assert "mp4" not in str(error.value)


def test_images_that_differ_only_in_the_suffix_are_both_ranked(folder: Path) -> None:
    twin = np.random.default_rng(1).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(twin).save(folder / "0.jpg")
    ranking = rank(folder)
    assert ranking.failures == ()
    assert {"0.png", "0.jpg"} <= {each.path for each in ranking.chosen}


def test_nothing_is_kept_if_an_image_disappears(folder: Path, tmp_path: Path) -> None:
    ranking = rank(folder)
    (folder / "below" / "5.png").unlink()
    with pytest.raises(DataError, match=r"5\.png"):
        write(ranking, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool"]


def test_an_existing_folder_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    ranking = rank(folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note").write_text("mine")
    with pytest.raises(ConfigError, match="already exists"):
        write(ranking, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["note"]
