from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layouts.camvid import read, signs
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID
from tests.datasets.layouts.small_copies import SIZE
from tests.datasets.layouts.small_copies import camvid as small

NAMES = [f"0001TP_{index:06d}" for index in range(4)]


def listed(root: Path) -> Listing:
    return read(DataConfig(format="camvid", root=str(root)), root, 0)


@pytest.mark.parametrize("lists", [True, False])
def test_splits(tmp_path: Path, lists: bool) -> None:
    found = listed(small(tmp_path, lists=lists))
    assert [s.name for s in found.train] == [f"train/{name}" for name in NAMES]
    assert found.val is not None
    assert [s.name for s in found.val] == [f"val/{name}" for name in NAMES[:2]]
    assert [s.name for s in found.test] == [f"test/{name}" for name in NAMES[:2]]
    assert not found.unpaired
    for sample in (*found.train, *found.val, *found.test):
        image, label = found.load(sample)
        assert image.shape == (*SIZE, 3)
        with Image.open(sample.label) as stored:
            values = np.array(stored).astype(int)
        np.testing.assert_array_equal(label, np.where(values == 11, VOID, values))
        assert label.dtype == np.int32


def test_missing_splits(tmp_path: Path) -> None:
    small(tmp_path)
    for part in ("val", "test"):
        (tmp_path / part).rename(tmp_path / f"{part} elsewhere")
    found = listed(tmp_path)
    assert found.val is None
    assert found.test == ()


def test_lists_select_and_order(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "train.txt").write_text(
        r"C:\My Sets\CamVid\train\0001TP_000003.png C:\My Sets\CamVid\trainannot\0001TP_000003.png"
        " /x/train/0001TP_000001.png /x/trainannot/0001TP_000001.png \r\n\r\n"
    )
    assert [s.name for s in listed(tmp_path).train] == [f"train/{NAMES[3]}", f"train/{NAMES[1]}"]


def test_masks_of_another_name(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "trainannot" / f"{NAMES[0]}.png").rename(tmp_path / "trainannot" / "other.png")
    (tmp_path / "train.txt").write_text(f"train/{NAMES[0]}.png trainannot/other.png\n")
    (sample,) = listed(tmp_path).train
    assert Path(sample.label).name == "other.png"


def test_masks_named_after_their_folder_without_a_list(tmp_path: Path) -> None:
    small(tmp_path, lists=False)
    for index, name in enumerate(NAMES):
        for folder in ("train", "trainannot"):
            (tmp_path / folder / f"{name}.png").rename(tmp_path / folder / f"{folder}_{index}.png")
    found = listed(tmp_path)
    assert [s.name for s in found.train] == [f"train/train_{index}" for index in range(4)]
    assert not found.unpaired


def test_unpaired_files_are_reported(tmp_path: Path) -> None:
    for lists in (True, False):
        root = small(tmp_path / str(lists), lists=lists)
        (root / "testannot" / f"{NAMES[0]}.png").unlink()
        (root / "val" / f"{NAMES[1]}.png").unlink()
        found = listed(root)
        assert [error.kind for error in found.unpaired] == ["missing"] * 2
        errors = " ".join(str(error) for error in found.unpaired)
        assert NAMES[1] in errors
        assert NAMES[0] in errors
        assert found.val is not None
        assert (len(found.train), len(found.val), len(found.test)) == (4, 1, 1)
        if lists:
            assert f"{root}/val/{NAMES[1]}.png: no such file: val.txt lists it" in errors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("0001TP_000001\n", "line 1 is '0001TP_000001': expected .../train/<name>.png"),
        ("/x/train/a.png\n", "line 1"),
        ("/x/trainannot/a.png /x/train/a.png\n", "line 1"),
        ("/x/val/a.png /x/valannot/a.png\n", "line 1"),
        ("\n/x/train/a.jpg /x/trainannot/a.jpg\n", "line 2"),
        ("/x/train/a.png /x/trainannot/a.png\n" * 2, "train/a.png is listed twice"),
        (
            "/x/train/a.png /x/trainannot/a.png /x/train/b.png /x/trainannot/a.png",
            "trainannot/a.png is listed twice",
        ),
    ],
)
def test_lists_that_are_invalid(tmp_path: Path, text: str, words: str) -> None:
    small(tmp_path)
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(DataError) as caught:
        listed(tmp_path)
    assert words in str(caught.value)
    assert "train.txt" in str(caught.value)


def test_wrong_root_names_the_right_one(tmp_path: Path) -> None:
    root = small(tmp_path / "SegNet" / "CamVid")
    assert signs(root)
    for wrong in (tmp_path, root.parent, root / "train"):
        assert not signs(wrong)
        with pytest.raises(DataError, match=rf"did you mean {root}\?"):
            listed(wrong)


def test_value_outside(tmp_path: Path) -> None:
    found = listed(small(tmp_path))
    Image.fromarray(np.full(SIZE, 12, np.uint8)).save(found.train[0].label)
    with pytest.raises(DataError, match=r"value 12 on 192 pixels: .*0\.\.10") as caught:
        found.load_label(found.train[0])
    assert caught.value.kind == "value"


def test_no_training_images(tmp_path: Path) -> None:
    small(tmp_path, lists=False)
    for side in ("train", "trainannot"):
        shutil.rmtree(tmp_path / side)
        (tmp_path / side).mkdir()
    with pytest.raises(DataError, match=r"train/<name>\.png: no training images found"):
        listed(tmp_path)
