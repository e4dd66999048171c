from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_registry import detect
from ccfnet_tf.datasets.layouts import hugging_face
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID
from tests.datasets.layouts.small_copies import SIZE, mask, photo

NAMES = {"0": "background", "1": "leaf", "3": "stem"}
VALUES = np.resize([0, 1, 2, 3, 255], SIZE).astype(np.uint8)
IDS = np.resize([0, 1, VOID, 2, VOID], SIZE)


def pictures(root: Path, *stems: str) -> None:
    for index, stem in enumerate(stems):
        photo(root / f"{stem}.jpg", index)
        mask(root / f"{stem}_m.png", VALUES)
    (root / "id2label.json").write_text(json.dumps(NAMES))


def table(path: Path, stems: list[str], column: str = "mask_file_name", text: str = "") -> None:
    rows = [{"file_name": f"{s}.jpg", column: f"{s}_m.png", "text": text or "a, b"} for s in stems]
    if path.suffix == ".csv":
        lines = [f'{r["file_name"]},{r[column]},"{r["text"]}"' for r in rows]
        path.write_text("\n".join((f"file_name,{column},text", *lines)))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(root: Path) -> Listing:
    return hugging_face.read(DataConfig(root=str(root)), root, 0)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("column", ["mask_file_name", "label", "annotation", "segmentation_mask"])
def test_one_file_for_all_splits(tmp_path: Path, name: str, column: str) -> None:
    stems = ["train/a", "validation/b", "test/c"]
    pictures(tmp_path, *stems)
    table(tmp_path / name, stems, column)
    assert detect(tmp_path) == "hugging_face"
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("background", "leaf", "stem")
    assert [s.name for s in listing.train] == ["train/a"]
    assert [s.name for s in listing.val or ()] == ["validation/b"]
    assert [s.name for s in listing.test] == ["test/c"]
    np.testing.assert_array_equal(listing.load(listing.train[0])[1], IDS)


@pytest.mark.parametrize("text", ["a, b", "a\u2028b", "a\x85b"])
def test_images_beside_masks_are_no_second_layout(tmp_path: Path, text: str) -> None:
    pictures(tmp_path, "a")
    for folder, file in (("images", "a.jpg"), ("masks", "a_m.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / file).rename(tmp_path / folder / file)
    row = {"file_name": "images/a.jpg", "mask_file_name": "masks/a_m.png", "text": text}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False))
    assert detect(tmp_path) == "hugging_face"
    assert len(read(tmp_path).train) == 1
    (tmp_path / "classes.txt").write_text("background\nleaf\n")  # now both layouts match
    with pytest.raises(DataError, match=r"more than one layout: folder .*; hugging_face"):
        detect(tmp_path)


@pytest.mark.parametrize("folder", ["", "data/"])
def test_one_file_per_split(tmp_path: Path, folder: str) -> None:
    for part in ("train", "test"):
        pictures(tmp_path / folder / part, "a")
        table(tmp_path / folder / part / "metadata.jsonl", ["a"])
    (tmp_path / "classes.txt").write_text("background\nleaf\nstone\nstem\n")
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("background", "leaf", "stone", "stem")
    if not folder:
        assert [s.name for s in listing.train] == ["train/a"]
        assert [s.name for s in listing.test] == ["test/a"]
    assert len(listing.train) + len(listing.test) == 2


def test_everything_is_train(tmp_path: Path) -> None:
    pictures(tmp_path, "a", "b")
    table(tmp_path / "metadata.csv", ["a", "b"])
    assert len(read(tmp_path).train) == 2
    (tmp_path / "b_m.png").unlink()
    (fault,) = read(tmp_path).unpaired
    assert fault.kind == "missing"
    assert "metadata.csv: row 2: " in str(fault)


def test_paths_stay_in_the_folder(tmp_path: Path) -> None:
    pictures(tmp_path / "set", "a")
    photo(tmp_path / "b.jpg")
    (tmp_path / "set" / "metadata.csv").write_text("file_name,mask\n../b.jpg,a_m.png\n")
    (fault,) = read(tmp_path / "set").unpaired
    assert f"{tmp_path / 'set' / 'b.jpg'}: no such file" in str(fault)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file_name,caption\na.jpg,word\n", "no mask column (found: file_name, caption)"),
        ("file_name,mask,label\na.jpg,a.png,b.png\n", "several mask columns (mask, label)"),
        ("file_name,mask\n,a_m.png\n", "row 1: no file_name"),
        ("file_name,mask\na.jpg,a_m.png\na.jpg,a_m.png\n", "row 2: 'a' is listed twice"),
        ("file_name,mask\n..,a_m.png\n", "expected a path"),
        ("", "that lists training images"),
    ],
)
def test_tables_that_are_damaged(tmp_path: Path, text: str, words: str) -> None:
    pictures(tmp_path, "a")
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_lines_that_are_no_json(tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    for text in ("{", "[" * 100_000):
        (tmp_path / "metadata.jsonl").write_text(text)
        with pytest.raises(DataError, match=r"metadata\.jsonl: damaged"):
            read(tmp_path)


def test_no_class_list(tmp_path: Path) -> None:
    pictures(tmp_path, "a")
    table(tmp_path / "metadata.csv", ["a"])
    (tmp_path / "id2label.json").unlink()
    with pytest.raises(DataError, match=r"add classes\.txt .* or id2label\.json"):
        read(tmp_path)


def test_metadata_without_masks_is_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\na.jpg,word\n")
    assert hugging_face.signs(tmp_path) == ""
