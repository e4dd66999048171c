from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layouts.ade20k import read, signs
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from tests.datasets.layouts.small_copies import SIZE, values
from tests.datasets.layouts.small_copies import ade20k as small


def listed(root: Path) -> Listing:
    return read(DataConfig(format="ade20k", root=str(root)), root, 0)


def test_splits(tmp_path: Path) -> None:
    found = listed(small(tmp_path))
    assert [s.name for s in found.train] == [f"training/ADE_train_{i:08d}" for i in range(1, 5)]
    assert found.val is None
    assert [s.name for s in found.test] == [f"validation/ADE_val_{i:08d}" for i in (1, 2)]
    assert not found.unpaired
    for index, sample in enumerate(found.train, start=1):
        image, label = found.load(sample)
        assert image.shape == (*SIZE, 3)
        np.testing.assert_array_equal(label, values(list(range(151)), index).astype(int) - 1)
        assert label.dtype == np.int32


def test_unpaired_files_are_reported(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "annotations" / "training" / "ADE_train_00000002.png").unlink()
    (tmp_path / "images" / "validation" / "ADE_val_00000001.jpg").unlink()
    (tmp_path / "images" / "training" / ".ADE_train_00000009.jpg").touch()
    found = listed(tmp_path)
    assert (len(found.train), len(found.test)) == (3, 1)
    assert [error.kind for error in found.unpaired] == ["missing"] * 2
    assert "ADE_train_00000002.jpg: no label" in str(found.unpaired[0])
    assert "ADE_val_00000001.png: no image" in str(found.unpaired[1])


def test_two_images_of_one_name(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "images" / "training" / "ADE_train_00000002.png").touch()
    with pytest.raises(DataError, match=r"ADE_train_00000002\.jpg has the same name"):
        listed(tmp_path)


def test_wrong_root_names_the_right_one(tmp_path: Path) -> None:
    root = small(tmp_path / "data" / "ADEChallengeData2016")
    assert signs(root)
    for wrong in (tmp_path, root.parent, root / "images", root / "images" / "training"):
        assert not signs(wrong)
        with pytest.raises(DataError, match=rf"did you mean {root}\?"):
            listed(wrong)


def test_value_outside(tmp_path: Path) -> None:
    found = listed(small(tmp_path))
    Image.fromarray(np.full(SIZE, 151, np.uint8)).save(found.train[0].label)
    with pytest.raises(DataError, match=r"value 151 on 192 pixels: .*1\.\.150") as caught:
        found.load_label(found.train[0])
    assert caught.value.kind == "value"


def test_no_training_images(tmp_path: Path) -> None:
    small(tmp_path)
    for side in ("images/training", "annotations/training"):
        shutil.rmtree(tmp_path / side)
        (tmp_path / side).mkdir()
    with pytest.raises(DataError, match=r"images/training/<name>\.jpg: no training images found"):
        listed(tmp_path)
