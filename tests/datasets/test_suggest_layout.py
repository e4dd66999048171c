from __future__ import annotations

from pathlib import Path

import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_registry import detect
from ccfnet_tf.datasets.open_data_set import read_parts
from ccfnet_tf.errors import DataError
from tests.datasets.layouts import small_copies
from tests.datasets.layouts.small_copies import mask, photo, values


def told(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        detect(root)
    message = str(caught.value)
    assert message.startswith(f"{root}: no known layout")
    assert "\n" not in message
    return message


def fill(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".jpg", ".png"):
            mask(path, values([0, 1])) if path.suffix == ".png" else photo(path)
        else:
            path.write_text("x")
    return root


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("imgs/a.jpg", "gt/a.png"), "rename imgs/ to images/, rename gt/ to masks/, add classes"),
        (("photos/a.jpg", "segmentations/a.png"), "rename photos/ to images/"),
        (
            ("train/imgs/a.jpg", "train/annotation/a.png", "classes.txt"),
            "rename train/imgs/ to train/images/, rename train/annotation/ to train/masks/",
        ),
        (
            ("val_images/a.jpg", "train_images/a.jpg", "train_masks/a.png", "val_masks/a.png"),
            "rename train_masks/ to train/masks/, rename val_images/ to val/images/, rename val_m",
        ),
        (
            ("imagesTs/a.png", "imagesTr/a.png", "imagesTr/b.png", "labelsTr/a.png"),
            "rename imagesTr/ to train/images/, rename labelsTr/ to train/masks/, add",
        ),
        (
            ("imgs/train/a.jpg", "imgs/val/a.jpg", "gt/train/a.png", "gt/val/a.png"),
            "rename imgs/ to images/, rename gt/ to masks/, add",
        ),
        (
            ("train/a.png", "train_labels/a_L.png", "val/b.png", "val_labels/b_L.png"),
            "rename train/ to train/images/, rename train_labels/ to train/masks/, rename val/ to",
        ),
        (("train/a.jpg", "train_masks/a_mask.png"), "rename train_masks/ to train/masks/"),
        (("a.jpg", "a_mask.png"), "masks are next to their images ('a_mask')"),
        (("b/a.jpg", "b/a_seg.png"), "without '_seg'"),
        (
            ("a.jpg", "b.jpg"),
            "images in images/, for each a PNG of class ids of the same name in masks/",
        ),
        (("set.zip",), "an archive: unpack it"),
        (("train/images/a.jpg", "train/labels/a.txt", "data.yaml"), "YOLO polygons"),
        (("images/a.jpg", "labels/a.txt"), "YOLO polygons"),
        (
            ("JPEGImages/a.jpg", "Annotations/a.xml"),
            "boxes (Annotations/*.xml), without pixel labels",
        ),
        (("meta.json", "ds/img/a.jpg", "ds/ann/a.jpg.json"), "Supervisely format"),
        (("data/train-0.parquet",), "Parquet"),
        (("a.jpg", "task-1-annotation-2-by-3-tag-leaf-0.png"), "Label Studio brush masks"),
        (("a.jpg", "via_region_data.json"), "VGG Image Annotator format"),
        (("notes.txt",), "no images within four levels"),
        ((), "no images within four levels"),
    ],
)
def test_advice(tmp_path: Path, files: tuple[str, ...], words: str) -> None:
    message = told(fill(tmp_path, *files))
    assert words in message
    assert "(found: " in message or "found: " in message
    assert "data/README.md" in message


def test_contents_are_listed(tmp_path: Path) -> None:
    assert "found: gt/, imgs/" in told(fill(tmp_path, "imgs/a.jpg", "gt/a.png"))


def test_a_layout_below(tmp_path: Path) -> None:
    small_copies.voc(tmp_path / "VOCdevkit" / "VOC2012")
    message = told(tmp_path)
    assert f"but {tmp_path}/VOCdevkit/VOC2012 is voc (JPEGImages/ and " in message


def test_datumaro_format_is_not_coco(tmp_path: Path) -> None:
    fill(tmp_path, "images/a.jpg", "annotations/default.json")
    text = '{"infos": {}, "categories": {"label": {"labels": []}}, "items": []}'
    (tmp_path / "annotations" / "default.json").write_text(text)
    assert "Datumaro format" in told(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a-asset.json", '{"asset": {"name": "a.jpg"}, "regions": []}', "VoTT format"),
        ("p.vott", "{}", "VoTT format"),
        ("export.json", '[{"ID": "x", "Labeled Data": "a.jpg", "Label": {}}]', "Labelbox format"),
        ("x/export.json", '[{"data_row": {"id": "x"}}]', "Labelbox format"),
        (
            "annotations.json",
            '{"a.jpg1": {"filename": "a.jpg", "regions": [{"shape_attributes": {}}]}}',
            "VGG Image Annotator format",
        ),
        ("a.jpg.json", '{"metadata": {"name": "a.jpg"}, "instances": []}', "SuperAnnotate format"),
        ("annotations/a.json", '{"item": {"name": "a"}, "annotations": []}', "V7 Darwin format"),
        (
            "a.json",
            '{"image": {"filename": "a"}, "annotations": [{"name": "x", "polygon": {}}]}',
            "V7 Darwin format",
        ),
        ("ann/a.json", '{"objects": [{"points": {"exterior": []}}]}', "Supervisely format"),
        ("labels.json", '[{"name": "a", "labels": [{"poly2d": []}]}]', "Scalabel format"),
        ("gt/a.json", '{"imgHeight": 4, "imgWidth": 6, "objects": []}', "Cityscapes polygons"),
        ("annotations/train.json", '{"categories": {"label": {}}, "items": []}', "Datumaro format"),
        ("train.csv", "ImageId,EncodedPixels\n", "a table of run lengths (train.csv)"),
    ],
)
def test_unsupported_formats_of_tools(tmp_path: Path, name: str, text: str, words: str) -> None:
    fill(tmp_path, "a.jpg", name)
    (tmp_path / name).write_text(text)
    assert words in told(tmp_path)


def test_several_folders_of_one_layout(tmp_path: Path) -> None:
    for part in ("a", "b", "c"):
        fill(tmp_path, f"{part}/images/x.jpg", f"{part}/masks/x.png")
    message = told(tmp_path)
    assert (
        f"{tmp_path / 'a'} is folder (images/ and masks/): so is b/ next to it (3 in all)"
        in message
    )


@pytest.mark.parametrize(
    ("files", "lacking"),
    [
        (("train/images/a.jpg", "val/images/b.jpg", "val/masks/b.png"), "train/masks/"),
        (("train/masks/a.png", "test/images/b.jpg", "test/masks/b.png"), "train/images/"),
        (("train/img_dir/a.jpg", "val/img_dir/b.jpg", "val/ann_dir/b.png"), "train/ann_dir/"),
        (("train/a.jpg", "val/images/b.jpg", "val/masks/b.png"), "train/images/ and train/masks/"),
        (("val/images/b.jpg", "val/masks/b.png"), "train/images/ and train/masks/"),
        (("train/images/a.jpg", "classes.txt"), "train/masks/"),
        (("train/images/a.jpg", "val/images/b.jpg", "classes.txt"), "train/masks/"),
    ],
)
def test_a_folder_that_a_split_lacks_is_named(
    files: tuple[str, ...], lacking: str, tmp_path: Path
) -> None:
    root = fill(tmp_path / "set", *files)
    with pytest.raises(DataError) as caught:
        detect(root)
    assert str(caught.value).startswith(f"{root}: {lacking} missing (found: ")


def test_a_folder_that_another_split_lacks_is_named(tmp_path: Path) -> None:
    files = ("train/images/a.jpg", "train/masks/a.png", "val/images/b.jpg", "classes.txt")
    root = fill(tmp_path / "set", *files)
    with pytest.raises(DataError, match=r"set/val: contains no masks/ \(found: images/\): add it"):
        read_parts(DataConfig(root=str(root)), seed=0)
