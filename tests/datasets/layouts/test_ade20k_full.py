from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_registry import detect
from ccfnet_tf.datasets.layouts import ade20k_full
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID
from tests.datasets.layouts.small_copies import SIZE, photo

NAMES = [f"thing {index}" for index in range(1, 400)]
NAMES[300] = "car, auto, automobile"  # position 301: R / 10 is 1, G is 45
NAMES[11] = "sky"
POSITIONS = np.resize([0, 301, 12, 5], SIZE)


def small(
    root: Path, sub: str = "images/ADE", *, index: bool = True, json_files: bool = True
) -> Path:
    for part in ("training", "validation"):
        folder = root / sub / part / "urban" / "street"
        photo(folder / "ADE_1.jpg")
        colours = np.stack([POSITIONS // 256 * 10, POSITIONS % 256, POSITIONS], -1).astype(np.uint8)
        Image.fromarray(colours).save(folder / "ADE_1_seg.png")
        Image.fromarray(colours).save(folder / "ADE_1_parts_1.png")
        Image.fromarray(colours[..., 0]).save(_made(folder / "ADE_1") / "instance_000_ADE_1.png")
        objects = [{"name": NAMES[p - 1], "name_ndx": p} for p in (301, 12, 5)]
        (folder / "ADE_1.json").write_text(json.dumps({"annotation": {"object": objects}}))
    if index:
        tree = {"filename": ["a", "b"], "n": np.arange(9), "objectnames": NAMES, "scene": ["x"]}
        (root / "index_ade20k.pkl").write_bytes(pickle.dumps(tree))
    return root


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def read(root: Path) -> Listing:
    return ade20k_full.read(DataConfig(root=str(root)), root, 0)


@pytest.mark.parametrize("sub", ["images/ADE", "images"])
@pytest.mark.parametrize("index", [True, False])
def test_chosen_classes(tmp_path: Path, sub: str, index: bool) -> None:
    small(tmp_path, sub, index=index)
    (tmp_path / "classes.txt").write_text("sky\ncar\n")
    assert detect(tmp_path) == "ade20k_full"
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("sky", "car, auto, automobile")
    assert [s.name for s in listing.train] == ["training/urban/street/ADE_1"]
    assert [s.name for s in listing.test] == ["validation/urban/street/ADE_1"]
    assert not listing.unpaired
    label = listing.load(listing.train[0])[1]
    np.testing.assert_array_equal(label, np.resize([VOID, 1, 0, VOID], SIZE))


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
def test_every_kind_of_index(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "index_ade20k.pkl"
    many = [f"thing {index}" for index in range(3688)]  # written in batches of 1000
    tree = {"a": many[7:9], "n": np.arange(9), "objectnames": many, "b": ["x"], "c": "y"}
    path.write_bytes(pickle.dumps(tree, protocol))
    assert list(ade20k_full._index_names(path).values()) == many


def test_the_index_is_not_unpickled(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (ran,)

    path = tmp_path / "index_ade20k.pkl"
    path.write_bytes(pickle.dumps({"x": Evil(), "objectnames": ["a", "b"]}))
    assert ade20k_full._index_names(path) == {1: "a", 2: "b"}
    assert not ran.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"objectnames": 5})])
def test_an_index_that_is_damaged(tmp_path: Path, content: bytes) -> None:
    small(tmp_path)
    (tmp_path / "index_ade20k.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"index_ade20k\.pkl: (damaged|contains no list)"):
        read(tmp_path)


def test_all_names_are_classes_where_they_are_few(tmp_path: Path) -> None:
    small(tmp_path, index=False)
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("thing 5", "sky", "car, auto, automobile")
    label = listing.load(listing.train[0])[1]
    np.testing.assert_array_equal(label, np.resize([VOID, 2, 1, 0], SIZE))


def test_invalid_data_sets(tmp_path: Path) -> None:
    small(tmp_path)
    with pytest.raises(
        DataError, match=r"399 class names: .* list the names to learn in .*classes"
    ):
        read(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\ncat\n")
    with pytest.raises(
        DataError, match="line 2: 'cat' is not an object of ADE20K; did you mean 'car"
    ):
        read(tmp_path)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "index_ade20k.pkl").unlink()
    for path in tmp_path.rglob("*.json"):
        path.unlink()
    with pytest.raises(DataError, match="use the 2021 version, or add its index"):
        read(tmp_path)
