"""The table, the sheet and the tasks for Label Studio; our own reader decodes the tasks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layouts import label_studio
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.report import ranking_files
from ccfnet_tf.report.ranking_files import Ranked

TAXONOMY = Taxonomy(("sky", 'a "b" & <c>', "sea"), ((1, 2, 3), (255, 0, 16), (0, 128, 255)))
LABELS = np.random.default_rng(0).choice([0, 2], size=(12, 20)).astype(np.int32)
RANKED = Ranked("été/a b.png", 1.0, np.array([0.5, 0.0, 2.5]), 0.25, ("x.png", "y, z.png"))


def test_the_table() -> None:
    other = Ranked("b.png", 0.25, np.array([3.0, 2.0, 1.0]), 0.0, ())
    rows = list(csv.DictReader(ranking_files.table([RANKED, other], TAXONOMY).splitlines()))
    assert rows[0] == {
        "rank": "1",
        "path": "été/a b.png",
        "score": "1.0000",
        "expected_wrong_pixels": "3.0",
        "share_at_risk": "0.2500",
        "uncertain_classes": "sea; sky",
        "near_duplicates": "x.png; y, z.png",
    }
    assert rows[1]["rank"] == "2"
    assert rows[1]["uncertain_classes"] == 'sky; a "b" & <c>; sea'


def test_a_task_is_read_back_as_the_prediction(tmp_path: Path) -> None:
    prefix = "/data/local-files/?d=pool/"
    tree = ranking_files.task(RANKED, LABELS, TAXONOMY, prefix=prefix, rank=1, model="run")
    tree = json.loads(ranking_files.task_line(tree))
    assert tree["data"]["rank"] == 1
    assert tree["data"]["expected_wrong_pixels"] == 3.0
    assert unquote(tree["data"]["image"]) == prefix + RANKED.path
    assert tree["predictions"][0]["score"] == 0.0  # the first task has the lowest confidence
    (tmp_path / "été").mkdir()
    Image.new("RGB", (20, 12)).save(tmp_path / RANKED.path)
    accepted = tree | {"annotations": tree["predictions"]}  # what a click on Submit makes of it
    (tmp_path / "export.json").write_text(json.dumps([accepted]))
    listing = label_studio.read(DataConfig(), tmp_path, 0)
    read = listing.load_label(listing.train[0])
    names = np.array(listing.taxonomy.names)
    np.testing.assert_array_equal(names[read], np.array(TAXONOMY.names)[LABELS])


def test_the_configuration_names_every_class_and_the_tags_of_the_tasks() -> None:
    tree = ElementTree.fromstring(ranking_files.configuration(TAXONOMY))
    labels = {each.get("value"): each.get("background") for each in tree.iter("Label")}
    colours = ("#010203", "#ff0010", "#0080ff")
    assert labels == dict(zip(TAXONOMY.names, colours, strict=True))
    task = ranking_files.task(RANKED, LABELS, TAXONOMY, prefix="", rank=1, model="run")
    region = task["predictions"][0]["result"][0]
    brush, image = tree.find("BrushLabels"), tree.find("Image")
    assert brush is not None
    assert image is not None
    assert region["from_name"] == brush.get("name")
    assert region["to_name"] == image.get("name") == brush.get("toName")
    assert image.get("value") == "$image"


def test_the_sheet_shows_image_prediction_and_risk() -> None:
    image = np.full((12, 20, 3), 200, np.uint8)
    risk = np.zeros((12, 20), np.float32)
    cells = ranking_files.sheet_cells(image, LABELS, risk, TAXONOMY)
    assert {each.shape for each in cells} == {(144, 240, 3)}
    assert (cells[0] == 200).all()
    assert (cells[2] < 10).all()  # no risk is black
    one, two = (
        ranking_files.sheet([RANKED] * count, [cells] * count, [0, 2], TAXONOMY) for count in (1, 2)
    )
    assert one.shape[1] == two.shape[1] >= 3 * 240
    assert two.shape[0] - one.shape[0] > 144
