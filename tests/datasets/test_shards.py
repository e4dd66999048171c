from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets import shards
from ccfnet_tf.datasets.check import check
from ccfnet_tf.datasets.parts import list_set, read_parts
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID
from ccfnet_tf.pipeline.convert import write_shards

SCENES = DataConfig(format="scenes", scenes=10, scene_size=(40, 48), val_share=0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "set"
    write_shards(list_set(SCENES, 0), out, 3)
    return out


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def config(root: Path, **more: object) -> DataConfig:
    return DataConfig(root=str(root), val_share=0.0, **more)  # type: ignore[arg-type]


def test_the_same_samples_come_back(made: Path) -> None:
    theirs, mine = read_parts(SCENES, 0), read_parts(config(made), 0)
    assert mine.format == "shards"
    assert mine.taxonomy == theirs.taxonomy
    for part in ("train", "val", "test"):
        pairs = list(zip(getattr(mine, part), getattr(theirs, part), strict=True))
        for one, other in pairs:
            assert one.name == other.name
            for got, wanted in zip(mine.load(one), theirs.load(other), strict=True):
                np.testing.assert_array_equal(got, wanted)
                assert got.dtype == wanted.dtype


def test_tensorflow_reads_the_files_without_us(made: Path) -> None:
    files = sorted(str(f) for f in made.glob("train-*-of-00003.tfrecord"))
    assert len(files) == 3
    names = []
    for content in tf.data.TFRecordDataset(files):
        keys = ("name", "image/encoded", "label/encoded")
        row = tf.io.parse_single_example(
            content, {key: tf.io.FixedLenFeature([], tf.string) for key in keys}
        )
        assert tf.io.decode_png(row["image/encoded"]).shape == (40, 48, 3)
        label = tf.io.decode_png(row["label/encoded"])
        assert set(np.unique(label)) <= {*range(8), 255}
        names.append(row["name"].numpy().decode())
    assert names == [f"train/{i:05d}" for i in range(10)]


def test_the_manifest_counts(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    parts = read_parts(SCENES, 0)
    for part in ("train", "test"):
        census = check(getattr(parts, part), parts.load, 8).census
        assert manifest["counts"][part] == census.pixels.tolist()
    assert len(manifest["sha256"]) == 6


def test_workers_share_the_files_and_nothing_is_lost(made: Path) -> None:
    train = read_parts(config(made), 0).train
    split = [shards.of_worker(train, worker, 2) for worker in range(2)]
    assert sorted(s.name for part in split for s in part) == [s.name for s in train]
    files = [{s.image.split(": record")[0] for s in part} for part in split]
    assert not files[0] & files[1]
    with pytest.raises(DataError, match="3 shards for 4 workers"):
        shards.of_worker(train, 0, 4)


def damage(root: Path, number: int) -> str:
    """Flips a bit in the middle of a training record; returns the file's name."""
    record = shards.read_manifest(str(root)).parts["train"][number]
    path = root / record.file
    content = bytearray(path.read_bytes())
    content[record.offset + record.length // 2] ^= 4
    path.write_bytes(content)
    return record.file


def test_a_damaged_record_is_named_and_left_out(copied: Path) -> None:
    file = damage(copied, 5)
    parts = read_parts(config(copied), 0)
    with pytest.warns(shards.DamagedRecord, match=rf"{file}: record 1 \(train/00005\): damaged"):
        seen = check(parts.train, parts.load, 8)
    assert seen.sizes == [(40, 48)] * 10
    assert seen.census.pictures.max() <= 9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image, label = parts.load(parts.train[5])
    assert (label == VOID).all()
    assert image.shape == (40, 48, 3)


def test_a_damaged_record_stops_when_asked_to(copied: Path) -> None:
    file = damage(copied, 5)
    parts = read_parts(config(copied, damaged_records="stop"), 0)
    with pytest.raises(DataError, match=rf"{file}: record 1 \(train/00005\): damaged"):
        check(parts.train, parts.load, 8)


def test_a_shard_that_is_cut_off_or_gone(copied: Path) -> None:
    first, last = (sorted(copied.glob("train-*.tfrecord"))[i] for i in (0, -1))
    first.write_bytes(first.read_bytes()[:-40])
    last.unlink()
    parts = read_parts(config(copied, damaged_records="stop"), 0)
    assert parts.load(parts.train[0])[0].shape == (40, 48, 3)
    with pytest.raises(DataError, match=r"record 3 .*damaged"):
        parts.load(parts.train[3])
    with pytest.raises(DataError, match="no such file, but the manifest has it"):
        parts.load(parts.train[9])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"version": 1', '"version": 9', "not a manifest of version 1"),
        ('"classes"', '"classse"', "damaged manifest"),
        ("train-00000", "../train-00000", "damaged manifest"),
        (", 40, 48,", ", -40, 48,", "damaged manifest"),
        ("}\n", "", "cannot be read"),
    ],
)
def test_a_manifest_that_is_wrong(copied: Path, old: str, new: str, words: str) -> None:
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=words) as caught:
        read_parts(config(copied), 0)
    assert str(path) in str(caught.value)


def test_places_that_only_gfile_knows(made: Path) -> None:
    place = f"file://{made}"  # TensorFlow's own scheme for local files, through gfile
    parts = read_parts(DataConfig(root=place, val_share=0.0), 0)
    local = read_parts(config(made), 0)
    for one, other in zip(parts.train, local.train, strict=True):
        np.testing.assert_array_equal(parts.load(one)[0], local.load(other)[0])
    with pytest.raises(DataError, match=r"nowhere/manifest\.json: no such file"):
        read_parts(DataConfig(root=f"{place}/nowhere"), 0)
