from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layouts.voc import read, signs
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.io import read_images
from ccfnet_tf.labels import VOID
from tests.datasets.layouts.small_copies import SIZE, values, voc_palette
from tests.datasets.layouts.small_copies import voc as small

NAMES = [f"2007_{index:06d}" for index in range(7)]


def listed(root: Path) -> Listing:
    return read(DataConfig(format="voc", root=str(root)), root, 0)


@pytest.mark.parametrize("coloured", [False, True])
def test_splits(tmp_path: Path, coloured: bool) -> None:
    found = listed(small(tmp_path, coloured=coloured))
    assert [s.name for s in found.train] == NAMES[:4]
    assert found.val is None
    assert [s.name for s in found.test] == NAMES[4:6]
    assert not found.unpaired
    for seed, sample in enumerate((*found.train, *found.test)):
        image, label = found.load(sample)
        assert image.shape == (*SIZE, 3)
        expected = values([*range(21), 255], seed).astype(int)
        np.testing.assert_array_equal(label, np.where(expected == 255, VOID, expected))
        assert label.dtype == np.int32


def test_grey_masks_and_the_augmented_folder(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "SegmentationClass").rename(tmp_path / "SegmentationClassAug")
    assert "SegmentationClassAug/" in signs(tmp_path)
    found = listed(tmp_path)
    label = found.load_label(found.train[0])
    Image.fromarray(np.where(label == VOID, 255, label).astype(np.uint8)).save(found.train[0].label)
    np.testing.assert_array_equal(found.load_label(found.train[0]), label)


def test_listed_files_that_are_missing(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "JPEGImages" / f"{NAMES[1]}.jpg").unlink()
    (tmp_path / "SegmentationClass" / f"{NAMES[4]}.png").unlink()
    (tmp_path / "SegmentationClass" / f"{NAMES[6]}.png").unlink()  # not in a list
    found = listed(tmp_path)
    assert (len(found.train), len(found.test)) == (3, 1)
    assert [error.kind for error in found.unpaired] == ["missing"] * 2
    assert f"train.txt: line 2: '{NAMES[1]}' has no image" in str(found.unpaired[0])
    assert f"val.txt: line 1: '{NAMES[4]}' has no mask" in str(found.unpaired[1])


@pytest.mark.parametrize(
    ("part", "content", "words"),
    [
        ("train", None, "train.txt: no such file"),
        ("val", None, "val.txt: no such file"),
        ("train", b" \r\n", "train.txt: empty"),
        ("train", b"\xff\xff", "train.txt: not a UTF-8 text file"),
        (
            "train",
            f"{NAMES[0]}\n{NAMES[0]}\n".encode(),
            "line 2: '2007_000000' is already in train.txt",
        ),
        ("val", f"{NAMES[0]}\n".encode(), "val.txt: line 1: '2007_000000' is already in train.txt"),
    ],
)
def test_lists_that_are_invalid(
    tmp_path: Path, part: str, content: bytes | None, words: str
) -> None:
    path = small(tmp_path) / "ImageSets" / "Segmentation" / f"{part}.txt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        listed(tmp_path)
    assert words in str(caught.value)


def test_wrong_root_names_the_right_one(tmp_path: Path) -> None:
    root = small(tmp_path / "VOCdevkit" / "VOC2012")
    assert signs(root) == "JPEGImages/ and SegmentationClass/"
    for wrong in (tmp_path, root.parent, root / "JPEGImages", root / "ImageSets" / "Segmentation"):
        assert not signs(wrong)
        with pytest.raises(DataError, match=rf"did you mean {root}\?"):
            listed(wrong)
    assert not signs(tmp_path / "nowhere")


def test_value_outside(tmp_path: Path) -> None:
    found = listed(small(tmp_path))
    Image.fromarray(np.full(SIZE, 21, np.uint8)).save(found.train[0].label)
    with pytest.raises(DataError, match=r"value 21 on 192 pixels: .*0\.\.20.*255") as caught:
        found.load_label(found.train[0])
    assert caught.value.kind == "value"


def test_colour_outside(tmp_path: Path) -> None:
    found = listed(small(tmp_path, coloured=True))
    colours = voc_palette()[np.zeros(SIZE, int)]
    colours[0, :2] = (129, 0, 0)
    Image.fromarray(colours).save(found.train[0].label)
    with pytest.raises(DataError, match=r"colour 129 0 0 on 2 pixels.*128 0 0 aeroplane") as caught:
        found.load_label(found.train[0])
    assert caught.value.kind == "value"


@pytest.mark.parametrize("coloured", [False, True])
def test_a_header_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coloured: bool
) -> None:
    found = listed(small(tmp_path, coloured=coloured))
    heads: list[Any] = []
    look = read_images._mask_kind
    monkeypatch.setattr(read_images, "_mask_kind", lambda *args: heads.append(args) or look(*args))
    found.load_label(found.train[0])
    assert len(heads) == 1


@pytest.mark.parametrize(
    "line",
    [
        "{0}",
        "{0}.jpg",
        "JPEGImages/{0}.jpg",
        "/JPEGImages/{0}.jpg /SegmentationClass/{0}.png",
        "C:\\voc\\JPEGImages\\{0}.jpg SegmentationClass\\{0}.PNG",
    ],
)
def test_spellings_of_an_image_in_a_list(tmp_path: Path, line: str) -> None:
    path = small(tmp_path) / "ImageSets" / "Segmentation" / "train.txt"
    names = path.read_text().split()
    path.write_text("".join(line.format(name) + "\n" for name in names))
    listing = listed(tmp_path)
    assert [sample.name for sample in listing.train] == names
    assert listing.unpaired == ()
