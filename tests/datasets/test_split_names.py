from __future__ import annotations

from pathlib import Path

import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.open_data_set import list_set
from ccfnet_tf.datasets.split_names import misleading_folders, part_folders, part_in, part_of
from ccfnet_tf.labels import Sample
from tests.datasets.layouts import small_copies


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("valid", "val"),
        ("validation", "val"),
        ("dev", "val"),
        ("TEST", "test"),
        ("testing", "test"),
        ("val2017", "val"),
        ("01_Train-Set", "train"),
        ("test-dev", "test"),
        ("testdata", "test"),
        ("trainannot", None),
        ("devices", None),
        ("dataset", None),
        ("train_images", None),
        ("trainval", None),
        ("", None),
    ],
)
def test_part_of(name: str, part: str | None) -> None:
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train_set", "train"),
        ("val_images", "val"),
        ("images-valid", "val"),
        ("val2017", "val"),
        ("testset", "test"),
        ("TestImages", "test"),
        ("imagesTr", "train"),
        ("labelsTs", "test"),
        ("trainannot", None),
        ("latest", None),
        ("valley", None),
        ("dataset", None),
        ("images", None),
    ],
)
def test_part_in(name: str, part: str | None) -> None:
    assert part_in(name) == part


def test_part_folders(tmp_path: Path) -> None:
    for name in ("valid", "train", "val", "images"):
        (tmp_path / name).mkdir()
    (tmp_path / "test").write_text("")
    assert part_folders(tmp_path) == {
        "train": [tmp_path / "train"],
        "val": [tmp_path / "val", tmp_path / "valid"],
    }
    assert part_folders(tmp_path / "none") == {}


def sample(root: Path, name: str) -> Sample:
    path = root / f"{name}.png"
    small_copies.photo(path)
    return Sample(name, str(path), str(root / "masks" / f"{name}.png"))


def test_misleading_folders(tmp_path: Path) -> None:
    train = [sample(tmp_path, name) for name in ("images/a/valid/1", "images/a/train/1", "x/2")]
    parts = {"train": train, "test": [sample(tmp_path, "images/val/1")]}
    sample(tmp_path, "images/testing/1")
    (tmp_path / "images" / "dev").mkdir()  # empty
    (tmp_path / ".git" / "test").mkdir(parents=True)
    images = tmp_path / "images"
    assert misleading_folders(tmp_path, parts) == (
        f"{images}/testing: looks like the test split, but its images are in no split",
        f"{images}/a/valid: looks like the val split, but its images are used for training",
    )


def test_folders_with_a_split_in_their_names(tmp_path: Path) -> None:
    train = [sample(tmp_path, f"images/{name}/1") for name in ("train_set", "val_set", "valid2")]
    sample(tmp_path, "test_images/1")
    unused, trained = misleading_folders(tmp_path, {"train": train})
    assert unused == (
        f"{tmp_path}/test_images: looks like the test split, but its images are in no split"
    )
    assert trained == (
        f"{tmp_path}/images/val_set (and 1 more): looks like the val split, but its images are "
        "used for training"
    )


def test_nested_folders_are_reported_once(tmp_path: Path) -> None:
    sample(tmp_path, "test_set/test_images/1")
    (line,) = misleading_folders(tmp_path, {"train": [sample(tmp_path, "images/1")]})
    assert line.startswith(f"{tmp_path}/test_set: looks like the test split")


def test_unused_folders_are_reported(tmp_path: Path) -> None:
    root = small_copies.camvid(tmp_path)
    small_copies.photo(root / "valid" / "0.png")
    notes = list_set(DataConfig(root=str(root)), 0).notes
    assert notes == (f"{root}/valid: looks like the val split, but its images are in no split",)


@pytest.mark.parametrize("layout", ["sift_flow", "camvid", "voc", "cityscapes", "ade20k"])
def test_published_layouts_are_not_reported(tmp_path: Path, layout: str) -> None:
    root = getattr(small_copies, layout)(tmp_path)
    assert list_set(DataConfig(root=str(root)), 0).notes == ()
