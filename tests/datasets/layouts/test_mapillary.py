from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_registry import detect
from ccfnet_tf.datasets.layouts import mapillary
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID
from tests.datasets.layouts.small_copies import SIZE, mask, photo

ROWS: list[Any] = [
    {"name": "animal--bird", "readable": "Bird", "color": [165, 42, 42], "evaluate": True},
    {"name": "void--car-mount", "readable": "Car Mount", "color": [32, 32, 32], "evaluate": False},
    {"name": "nature--sky", "readable": "Sky", "color": [70, 130, 180], "evaluate": True},
]
VALUES = np.resize([0, 1, 2, 255], SIZE).astype(np.uint8)
IDS = np.resize([0, VOID, 1, VOID], SIZE)


def small(root: Path, version: str, config: str, rows: Any = ROWS) -> Path:
    for part in ("training", "validation"):
        photo(root / part / "images" / "a.jpg")
        mask(root / part / version / "labels" / "a.png", VALUES, bytes(768))
    (root / config).write_text(json.dumps({"labels": rows, "version": "1.1"}))
    return root


def read(root: Path) -> Listing:
    return mapillary.read(DataConfig(root=str(root)), root, 0)


@pytest.mark.parametrize(
    ("version", "config"),
    [("v2.0", "config_v2.0.json"), ("v1.2", "config_v1.2.json"), ("", "config.json")],
)
def test_versions(tmp_path: Path, version: str, config: str) -> None:
    assert detect(small(tmp_path, version, config)) == "mapillary"
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("animal--bird", "nature--sky")
    assert listing.taxonomy.palette == ((165, 42, 42), (70, 130, 180))
    assert [s.name for s in listing.train] == ["training/a"]
    assert [s.name for s in listing.test] == ["validation/a"]
    np.testing.assert_array_equal(listing.load(listing.train[0])[1], IDS)


def test_the_newest_version_is_read(tmp_path: Path) -> None:
    small(tmp_path, "v1.2", "config_v1.2.json")
    small(tmp_path, "v2.0", "config_v2.0.json")
    assert "v2.0" in read(tmp_path).train[0].label


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (5, "'labels' is 5"),
        (ROWS[:1], "1 class names"),
        ([ROWS[0], {"name": "x", "color": [1, 2]}], "'labels'[1]: 'color' is a list of 2"),
        ([ROWS[0], {"name": "x", "color": [1, 2, 999]}], "'labels'[1]: 'color'"),
        ([ROWS[0], {"name": "x", "color": [1, [2], 3]}], "'labels'[1]: 'color'"),
        ([ROWS[0], {"color": [1, 2, 3]}], "'labels'[1]: 'name' is missing"),
    ],
)
def test_configurations_that_are_damaged(tmp_path: Path, rows: Any, words: str) -> None:
    small(tmp_path, "v2.0", "config_v2.0.json", rows)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "config_v2.0.json"))
    assert words in str(caught.value)


def test_values_outside(tmp_path: Path) -> None:
    small(tmp_path, "v2.0", "config_v2.0.json")
    listing = read(tmp_path)
    mask(Path(listing.train[0].label), np.full(SIZE, 3, np.uint8))
    with pytest.raises(DataError, match=r"value 3 .*config_v2\.0\.json has no such row"):
        listing.load_label(listing.train[0])
