from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_registry import detect
from ccfnet_tf.datasets.layouts import roboflow_masks
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID
from tests.datasets.layouts.small_copies import SIZE, mask, photo

TABLE = "Pixel Value, Class\n0, background\n1, leaf\n3, stem\n"
VALUES = np.resize([0, 1, 3, 255], SIZE).astype(np.uint8)
IDS = np.resize([0, 1, 2, VOID], SIZE)


def put(root: Path, *folders: str, table: str = TABLE) -> Path:
    for index, folder in enumerate(folders):
        name = f"{index}_jpg.rf.00ff"
        photo(root / folder / f"{name}.jpg", index)
        mask(root / folder / f"{name}_mask.png", VALUES)
        (root / folder / "_classes.csv").write_text(table)
    return root


def read(root: Path) -> Listing:
    return roboflow_masks.read(DataConfig(root=str(root)), root, 0)


def test_splits(tmp_path: Path) -> None:
    put(tmp_path, "train", "valid", "test")
    assert detect(tmp_path) == "roboflow_masks"
    listing = read(tmp_path)
    assert listing.taxonomy.names == ("background", "leaf", "stem")
    assert [s.name for s in listing.train] == ["train/0_jpg.rf.00ff"]
    assert [s.name for s in listing.val or ()] == ["valid/1_jpg.rf.00ff"]
    assert [s.name for s in listing.test] == ["test/2_jpg.rf.00ff"]
    assert not listing.unpaired
    for sample in (*listing.train, *listing.test):
        np.testing.assert_array_equal(listing.load(sample)[1], IDS)


def test_one_folder(tmp_path: Path) -> None:
    listing = read(put(tmp_path, "."))
    assert [s.name for s in listing.train] == ["0_jpg.rf.00ff"]
    assert listing.val is None


def test_one_table_for_all(tmp_path: Path) -> None:
    put(tmp_path, "train", "valid")
    (tmp_path / "train" / "_classes.csv").rename(tmp_path / "_classes.csv")
    (tmp_path / "valid" / "_classes.csv").unlink()
    listing = read(tmp_path)
    assert (len(listing.train), len(listing.val or ())) == (1, 1)


def test_void_and_quoted_names(tmp_path: Path) -> None:
    table = 'Pixel Value, Class\n0, void\n1,"leaf, old"\n3, stem\n'
    listing = read(put(tmp_path, "train", table=table))
    assert listing.taxonomy.names == ("leaf, old", "stem")
    label = listing.load_label(listing.train[0])
    np.testing.assert_array_equal(label, np.resize([VOID, 0, 1, VOID], SIZE))


def test_unpaired_files(tmp_path: Path) -> None:
    put(tmp_path, "train", "valid")
    photo(tmp_path / "train" / "b.jpg")
    mask(tmp_path / "valid" / "c_mask.png", VALUES)
    assert [error.kind for error in read(tmp_path).unpaired] == ["missing"] * 2


def test_a_table_of_image_labels_is_not_recognised(tmp_path: Path) -> None:
    put(tmp_path, "train", table="filename, leaf, stem\na.jpg, 1, 0\n")
    assert roboflow_masks.signs(tmp_path) == ""


def test_values_of_the_masks_are_others_than_the_tables(tmp_path: Path) -> None:
    put(tmp_path, "train", table="Pixel Value, Class\n0, background\n1, leaf\n")
    data = DataConfig(root=str(tmp_path), mask_values={255: "leaf", 3: "void"})
    listing = roboflow_masks.read(data, tmp_path, 0)
    mask(Path(listing.train[0].label), np.resize([0, 255, 3], SIZE).astype(np.uint8))
    label = listing.load_label(listing.train[0])
    np.testing.assert_array_equal(label, np.resize([0, 1, VOID], SIZE))
    assert listing.mask_values is not None


def test_a_class_of_255_is_no_void(tmp_path: Path) -> None:
    table = "Pixel Value, Class\n0, background\n1, leaf\n3, stem\n255, crack\n"
    listing = read(put(tmp_path, "train", table=table))
    label = listing.load_label(listing.train[0])
    np.testing.assert_array_equal(label, np.resize([0, 1, 2, 3], SIZE))


def test_values_outside(tmp_path: Path) -> None:
    listing = read(put(tmp_path, "train"))
    mask(Path(listing.train[0].label), np.full(SIZE, 2, np.uint8))
    with pytest.raises(DataError, match=r"value 2 on 192 .*_classes\.csv lists no such") as caught:
        listing.load_label(listing.train[0])
    assert caught.value.kind == "value"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("x, leaf\n", "line 2: 'x, leaf': expected `value, class`"),
        ("300, leaf\n", "line 2"),
        ("1\n", "line 2"),
        ("1, leaf\n1, stem\n", "line 3: '1, stem': values and names must be unique"),
        ("1, leaf\n2, leaf\n", "line 3"),
        ("1, leaf\n2,\n", "line 3"),
        ("", "0 class names"),
    ],
)
def test_tables_that_are_damaged(tmp_path: Path, rows: str, words: str) -> None:
    put(tmp_path, "train", table=f"Pixel Value, Class\n{rows}")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "train" / "_classes.csv"))
    assert words in str(caught.value)


def test_invalid_data_sets(tmp_path: Path) -> None:
    put(tmp_path, "train", "valid")
    (tmp_path / "valid" / "_classes.csv").write_text(TABLE.replace("leaf", "stem 2"))
    with pytest.raises(DataError, match="its classes differ from those of"):
        read(tmp_path)
    (tmp_path / "train" / "_classes.csv").unlink()
    with pytest.raises(DataError, match=r"contains no train/_classes\.csv"):
        read(tmp_path)
