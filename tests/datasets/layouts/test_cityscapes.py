from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layouts.cityscapes import read, signs
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID
from tests.datasets.layouts.small_copies import SIZE, values
from tests.datasets.layouts.small_copies import cityscapes as small

# id in the files -> class
CLASSES = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10}
CLASSES |= {24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


def listed(root: Path) -> Listing:
    return read(DataConfig(format="cityscapes", root=str(root)), root, 0)


def test_splits(tmp_path: Path) -> None:
    found = listed(small(tmp_path))
    assert [s.name for s in found.train] == [
        "train/aachen/aachen_000000_000019",
        "train/aachen/aachen_000001_000019",
        "train/bonn/bonn_000000_000019",
        "train/bonn/bonn_000001_000019",
    ]
    assert found.val is None
    assert [s.name for s in found.test] == [f"val/lindau/lindau_{i:06d}_000019" for i in range(2)]
    assert not found.unpaired
    for index, sample in enumerate(found.test):
        image, label = found.load(sample)
        assert image.shape == (*SIZE, 3)
        ids = values([*range(34), 255], index)
        expected = [[CLASSES.get(int(value), VOID) for value in row] for row in ids]
        np.testing.assert_array_equal(label, expected)
        assert label.dtype == np.int32


def test_train_ids(tmp_path: Path) -> None:
    found = listed(small(tmp_path, train_ids=True))
    assert (len(found.train), len(found.test)) == (4, 2)
    expected = values([*range(19), 255], 0).astype(int)
    label = found.load_label(found.train[0])
    np.testing.assert_array_equal(label, np.where(expected == 255, VOID, expected))


def test_label_ids_win_over_train_ids(tmp_path: Path) -> None:
    small(tmp_path)
    small(tmp_path, train_ids=True)
    found = listed(tmp_path)
    assert all(sample.label.endswith("_gtFine_labelIds.png") for sample in found.train)
    assert not found.unpaired


def test_unpaired_files_are_reported(tmp_path: Path) -> None:
    small(tmp_path)
    Path(tmp_path, "gtFine/train/bonn/bonn_000001_000019_gtFine_labelIds.png").unlink()
    Path(tmp_path, "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png").unlink()
    found = listed(tmp_path)
    assert (len(found.train), len(found.test)) == (3, 1)
    assert [error.kind for error in found.unpaired] == ["missing"] * 2
    assert "bonn_000001_000019_leftImg8bit.png: no label" in str(found.unpaired[0])
    assert "lindau_000000_000019_gtFine_labelIds.png: no image" in str(found.unpaired[1])


def test_wrong_root_names_the_right_one(tmp_path: Path) -> None:
    root = small(tmp_path / "cityscapes")
    assert signs(root)
    for wrong in (tmp_path, root / "leftImg8bit", root / "gtFine" / "train"):
        assert not signs(wrong)
        with pytest.raises(DataError, match=rf"did you mean {root}\?"):
            listed(wrong)


@pytest.mark.parametrize(
    ("train_ids", "value", "words"),
    [(False, 34, "value 34 on 192 pixels: labelIds"), (True, 19, "value 19 on 192 pixels: labelT")],
)
def test_value_outside(tmp_path: Path, train_ids: bool, value: int, words: str) -> None:
    found = listed(small(tmp_path, train_ids=train_ids))
    Image.fromarray(np.full(SIZE, value, np.uint8)).save(found.train[0].label)
    with pytest.raises(DataError, match=words) as caught:
        found.load_label(found.train[0])
    assert caught.value.kind == "value"


def test_no_training_images(tmp_path: Path) -> None:
    small(tmp_path)
    for side in ("leftImg8bit/train", "gtFine/train"):
        shutil.rmtree(tmp_path / side)
    with pytest.raises(
        DataError,
        match=r"leftImg8bit/train/<city>/<name>_leftImg8bit\.png: no training images found",
    ):
        listed(tmp_path)


def test_cities_may_be_links_and_hidden_ones_are_left_out(tmp_path: Path) -> None:
    small(tmp_path)
    for side in ("leftImg8bit", "gtFine"):
        (tmp_path / side / "train" / "bonn").rename(tmp_path / f"{side} of bonn")
        (tmp_path / side / "train" / "bonn").symlink_to(tmp_path / f"{side} of bonn")
    hidden = tmp_path / "leftImg8bit" / "train" / ".thumbs"
    shutil.copytree(tmp_path / "leftImg8bit" / "train" / "aachen", hidden)
    found = listed(tmp_path)
    assert len(found.train) == 4
    assert not found.unpaired
