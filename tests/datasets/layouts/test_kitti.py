from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_registry import detect
from ccfnet_tf.datasets.layouts import kitti
from ccfnet_tf.datasets.published_classes import CODINGS
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from tests.datasets.layouts.small_copies import SIZE, mask, photo, values


def small(root: Path) -> Path:
    for index in range(2):
        photo(root / "training" / "image_2" / f"{index:06d}_10.png", index)
        mask(root / "training" / "semantic" / f"{index:06d}_10.png", values([*range(34)], index))
    photo(root / "testing" / "image_2" / "000000_10.png")
    return root


def read(root: Path) -> Listing:
    return kitti.read(DataConfig(root=str(root)), root, 0)


def test_training(tmp_path: Path) -> None:
    assert detect(small(tmp_path)) == "kitti"
    listing = read(tmp_path)
    assert [s.name for s in listing.train] == ["000000_10", "000001_10"]
    assert (listing.val, listing.test, listing.unpaired) == (None, (), ())
    assert len(listing.taxonomy.names) == 19
    label = listing.load(listing.train[1])[1]
    np.testing.assert_array_equal(label, CODINGS["cityscapes"].table()[values([*range(34)], 1)])


def test_own_classes(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "label_colors.txt").write_text("".join(f"{i} 1 2 c{i}\n" for i in range(34)))
    listing = read(tmp_path)
    assert len(listing.taxonomy.names) == 34
    label = listing.load(listing.train[1])[1]
    np.testing.assert_array_equal(label, values([*range(34)], 1))


def test_invalid_data_sets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the folder of KITTI semantics"):
        read(tmp_path)
    small(tmp_path)
    (tmp_path / "training" / "semantic" / "000001_10.png").unlink()
    listing = read(tmp_path)
    assert [error.kind for error in listing.unpaired] == ["missing"]
    mask(Path(listing.train[0].label), np.full(SIZE, 40, np.uint8))
    with pytest.raises(DataError, match="value 40 on 192 pixels"):
        listing.load_label(listing.train[0])
