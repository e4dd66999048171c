from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.open_data_set import list_set, read_parts
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import ConfigError, DataError, ResourceError
from ccfnet_tf.io.read_images import read_image
from ccfnet_tf.labels import VOID, Sample, Taxonomy, distinct_colours
from ccfnet_tf.pipeline.batch import training_batches
from ccfnet_tf.pipeline.convert_data_set import encode_label, write_folder, write_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three splits of images in several formats and sizes."""
    rng = np.random.default_rng(0)
    root = tmp_path / "set"
    for part, count in (("train", 7), ("val", 2), ("test", 3)):
        for side in ("images", "masks"):
            (root / part / side / "sub").mkdir(parents=True)
        for i in range(count):
            size = (40 + i, 50)
            kind = (".jpg", ".png", ".webp")[i % 3]
            image = Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8))
            image.save(root / part / "images" / "sub" / f"{i}{kind}")
            mask = rng.choice([0, 1, 2, 255], size).astype(np.uint8)
            Image.fromarray(mask).save(root / part / "masks" / "sub" / f"{i}.png")
    (root / "classes.txt").write_text("sky\ntree\nroad\n")
    return root


def config(root: Path) -> DataConfig:
    return DataConfig(root=str(root), crop=33, val_share=0.0)


@pytest.mark.parametrize("to", ["shards", "folder"])
def test_a_round_trip_is_identical(folder: Path, tmp_path: Path, to: str) -> None:
    source = list_set(config(folder), 0)
    out = tmp_path / "out"
    steps: list[int] = []

    def advance() -> None:
        steps.append(1)

    if to == "shards":
        write_shards(source, out, 2, advance=advance)
    else:
        write_folder(source, out, advance=advance)
    assert len(steps) == 12 * (2 if to == "shards" else 1)
    back = list_set(config(out), 0)
    assert back.taxonomy == source.taxonomy
    for part in ("train", "val", "test"):
        pairs = list(zip(getattr(source, part), getattr(back, part), strict=True))
        for mine, theirs in pairs:
            assert mine.name == theirs.name
            assert source.read_bytes(mine) == back.read_bytes(theirs)
            for a, b in zip(source.load(mine), back.load(theirs), strict=True):
                np.testing.assert_array_equal(a, b)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_training_sees_the_same_batches_from_shards(folder: Path, tmp_path: Path) -> None:
    write_shards(list_set(config(folder), 0), tmp_path / "out", 3)
    batches = []
    for root in (folder, tmp_path / "out"):
        parts = read_parts(config(root), 0)
        dataset = training_batches(parts.train, parts.load, config(root), batch=2, seed=3)
        batches.append([(x.numpy(), y.numpy()) for x, y in dataset.take(9)])
    for (image, label), (image2, label2) in zip(*batches, strict=True):
        np.testing.assert_array_equal(image, image2)
        np.testing.assert_array_equal(label, label2)


@pytest.mark.parametrize("classes", [2, 255, 256, 60_000])
def test_labels_of_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(VOID, classes, (30, 40)).astype(np.int32)
    label[0, :2] = VOID, classes - 1
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(image)
    names = tuple(map(str, range(classes)))
    sample = Sample("a", str(image), "")
    source = Listing(
        Taxonomy(names, distinct_colours(classes)), (sample,), None, (),
        lambda _: (np.zeros((30, 40, 3), np.uint8), label), lambda _: label,
        near_duplicates={"a": "family"},
    )  # fmt: skip
    write_shards(source, tmp_path / "out", 5)
    back = list_set(config(tmp_path / "out"), 0)
    np.testing.assert_array_equal(back.load_label(back.train[0]), label)
    assert dict(back.near_duplicates) == {"a": "family"}


@pytest.mark.parametrize("to", ["shards", "folder"])
def test_sixteen_bit_labels_round_trip(tmp_path: Path, to: str) -> None:
    names = "".join(f"c{i}\n" for i in range(300))
    ids = np.random.default_rng(0).choice([*range(300), 65535], (30, 40)).astype(np.uint16)
    for side in ("images", "masks"):
        (tmp_path / "set" / side).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "set" / "images" / "a.png")
    Image.fromarray(ids).save(tmp_path / "set" / "masks" / "a.png")
    (tmp_path / "set" / "classes.txt").write_text(names)
    source, out = list_set(config(tmp_path / "set"), 0), tmp_path / "out"
    if to == "shards":
        write_shards(source, out, 1)
    else:
        write_folder(source, out)
    back = list_set(config(out), 0)
    label = back.load_label(back.train[0])
    np.testing.assert_array_equal(label, np.where(ids == 65535, VOID, ids.astype(np.int32)))
    assert back.taxonomy.names == source.taxonomy.names


def test_encoded_labels_are_plain_pngs() -> None:
    assert encode_label(np.zeros((2, 2), np.int32), 3).startswith(b"\x89PNG")


@pytest.mark.parametrize("write", [write_folder, lambda s, o: write_shards(s, o, 2)])
def test_a_bad_sample_leaves_no_output(folder: Path, tmp_path: Path, write: object) -> None:
    Image.fromarray(np.full((41, 50), 9, np.uint8)).save(folder / "train/masks/sub/1.png")
    with pytest.raises(DataError, match="value 9"):
        write(list_set(config(folder), 0), tmp_path / "out")  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("write", [write_folder, lambda s, o: write_shards(s, o, 2)])
def test_nothing_is_overwritten(folder: Path, tmp_path: Path, write: object) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="already exists and is not empty"):
        write(list_set(config(folder), 0), tmp_path / "out")  # type: ignore[operator]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("write", [write_folder, lambda s, o: write_shards(s, o, 2)])
def test_a_full_disk_leaves_no_output(folder: Path, small_disk: Path, write: object) -> None:
    with pytest.raises(ResourceError, match="nothing was kept"):
        write(list_set(config(folder), 0), small_disk / "out")  # type: ignore[operator]
    assert list(small_disk.iterdir()) == []


def test_unpaired_files_raise(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "masks" / "sub" / "1.png").unlink()
    with pytest.raises(DataError, match="no mask"):
        write_folder(list_set(config(folder), 0), tmp_path / "out")
    with pytest.raises(DataError, match="no mask"):
        write_shards(list_set(config(folder), 0), tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()


def listing_of(path: Path, *names: str, classes: tuple[str, ...] = ("a", "b")) -> Listing:
    image = read_image(path)
    label = np.zeros(image.shape[:2], np.int32)
    samples = tuple(Sample(name, str(path), "") for name in names)
    taxonomy = Taxonomy(classes, distinct_colours(len(classes)))
    return Listing(taxonomy, samples, None, (), lambda _: (image, label), lambda _: label)


@pytest.mark.parametrize("names", [("a", "train/a"), ("../a",), ("/a",)])
def test_names_that_overwrite_or_leave_the_folder(tmp_path: Path, names: tuple[str, ...]) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="cannot be written as train/images/"):
        write_folder(listing_of(tmp_path / "x.png", *names), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png"]


@pytest.mark.parametrize(("kind", "suffix"), [("MPO", ".jpg"), ("JPEG2000", ".png")])
def test_unknown_image_formats_are_written_as_png(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / "picture"
    frames = {"save_all": True, "append_images": [Image.new("RGB", (40, 40))]}
    Image.new("RGB", (40, 40), (9, 99, 200)).save(path, kind, **frames if kind == "MPO" else {})
    source = listing_of(path, "a")
    write_folder(source, tmp_path / "out")
    back = list_set(config(tmp_path / "out"), 0)
    assert back.train[0].image.endswith(f"a{suffix}")
    np.testing.assert_array_equal(back.load(back.train[0])[0], source.load(source.train[0])[0])


@pytest.mark.parametrize("name", ["Void", "ignore", "__ignore__", "#5"])
def test_class_names_that_classes_txt_reads_as_void_or_comment(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    source = listing_of(tmp_path / "x.png", "a", classes=("sky", name))
    with pytest.raises(DataError, match=f"class '{name}': .* data.label_map"):
        write_folder(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_near_duplicates_are_kept(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    source = listing_of(tmp_path / "x.png", "a", "b", "c", classes=("sky", "sea"))
    source = dataclasses.replace(source, near_duplicates={"a": "k", "c": "k"})
    write_folder(source, tmp_path / "out")
    back = list_set(config(tmp_path / "out"), 0)
    assert back.taxonomy.names == ("sky", "sea")
    assert back.near_duplicates["train/a"] == back.near_duplicates["train/c"]
    assert "train/b" not in back.near_duplicates


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "../a"])
def test_names_not_allowed_in_a_manifest(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="is not allowed in a manifest"):
        write_shards(listing_of(tmp_path / "x.png", name), tmp_path / "out", 1)
