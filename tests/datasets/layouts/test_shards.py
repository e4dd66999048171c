from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.audit.check_split import check
from ccfnet_tf.datasets.audit.find_problems import inspect
from ccfnet_tf.datasets.layouts import shards
from ccfnet_tf.datasets.open_data_set import list_set, read_parts, without_damage
from ccfnet_tf.errors import DamagedRecordError, DataError
from ccfnet_tf.labels import VOID
from ccfnet_tf.pipeline.convert_data_set import write_shards

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


def config(root: Path) -> DataConfig:
    return DataConfig(root=str(root), val_share=0.0)


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


def test_tensorflow_reads_the_files(made: Path) -> None:
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
    split = [[train[i] for i in shards.of_worker(train, worker, 2)] for worker in range(2)]
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
    seen = check(parts.train, parts.load, 8, leave_out=True)
    (named,) = seen.damaged
    assert f"{file}: record 1 (train/00005): damaged" in str(named)
    assert seen.sizes == [(40, 48)] * 10
    assert seen.census.samples == 9
    image, label = without_damage(parts.load)(parts.train[5])
    assert (label == VOID).all()
    assert image.shape == (40, 48, 3)
    sound = without_damage(parts.load)(parts.train[4])
    np.testing.assert_array_equal(sound[0], parts.load(parts.train[4])[0])


def test_a_damaged_record_stops_when_asked_to(copied: Path) -> None:
    file = damage(copied, 5)
    parts = read_parts(config(copied), 0)
    with pytest.raises(DataError, match=rf"{file}: record 1 \(train/00005\): damaged"):
        check(parts.train, parts.load, 8)


def test_a_shard_that_is_cut_off_or_gone(copied: Path) -> None:
    first, last = (sorted(copied.glob("train-*.tfrecord"))[i] for i in (0, -1))
    first.write_bytes(first.read_bytes()[:-40])
    last.unlink()
    parts = read_parts(config(copied), 0)
    assert parts.load(parts.train[0])[0].shape == (40, 48, 3)
    with pytest.raises(DataError, match=r"record 3 .*damaged"):
        parts.load(parts.train[3])
    with pytest.raises(DataError, match="no such file, but the manifest lists it"):
        parts.load(parts.train[9])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"version": 1', '"version": 9', "not a manifest of version 1"),
        ('"classes"', '"classse"', "damaged manifest"),
        ("train-00000", "../train-00000", "damaged manifest"),
        (", 40, 48,", ", -40, 48,", "damaged manifest"),
        (", 40, 48,", ", 40, true,", "damaged manifest"),
        (", 40, 48,", ", 0, 48,", "damaged manifest"),
        (", 40, 48,", ", 40000, 48000,", "damaged manifest"),
        ('.tfrecord", 0, 0,', f'.tfrecord", 0, {2**48},', "damaged manifest"),
        ('"train/00003"', '""', "damaged manifest"),
        ('"train/00003"', '"/train/00003"', "damaged manifest"),
        ('"train/00003"', f'"{"x" * 900}/../../x"', "damaged manifest"),
        ('"train/00003"', r'"train\\00003"', "damaged manifest"),
        ('"train/00003"', r'"train/\u001b[2J"', "damaged manifest"),
        ('"train/00003"', r'"train/\ud800"', "damaged manifest"),
        ('"train/00003"', '"train/00004"', "two records have the same name"),
        ('"train-00000-of-00003.tfrecord":', '"..":', "list different files"),
        ('"parts": {', '"parts": [], "other": {', "damaged manifest"),
        ('"sha256": {', '"sha256": [], "other": {', "damaged manifest"),
        ('"palette": [', '"palette": [[1e999, 0, 0],', "damaged manifest"),
        ('"parts": {', '"parts": ' + "[" * 100_000, "damaged manifest"),
        ("}\n", "", "damaged manifest"),
    ],
)
def test_a_manifest_that_is_invalid(copied: Path, old: str, new: str, words: str) -> None:
    path = copied / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=words) as caught:
        read_parts(config(copied), 0)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


def test_a_record_of_impossible_length(copied: Path) -> None:
    path = copied / "manifest.json"
    tree = json.loads(path.read_text())
    tree["parts"]["train"][3][tree["record"].index("length")] = 2**31
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="damaged manifest"):
        shards.read_manifest(str(copied))


def test_addresses_that_only_gfile_supports(made: Path) -> None:
    address = f"file://{made}"  # TensorFlow's own scheme for local files, through gfile
    parts = read_parts(DataConfig(root=address, val_share=0.0), 0)
    local = read_parts(config(made), 0)
    for one, other in zip(parts.train, local.train, strict=True):
        np.testing.assert_array_equal(parts.load(one)[0], local.load(other)[0])
    with pytest.raises(DataError, match=r"nowhere/manifest\.json: no such file"):
        read_parts(DataConfig(root=f"{address}/nowhere"), 0)


def test_files_that_are_not_as_written(copied: Path) -> None:
    assert shards.verify(str(copied)) == ()
    assert shards.verify(f"file://{copied}") == ()
    files = sorted(copied.glob("train-*.tfrecord"))
    files[0].write_bytes(files[0].read_bytes() + b"x")  # outside all records
    files[2].unlink()
    changed, gone = shards.verify(str(copied))
    assert str(changed).startswith(f"{files[0]}: its SHA-256 differs from the manifest")
    assert str(gone).startswith(f"{files[2]}: no such file")
    assert gone.kind == "missing"


def test_a_root_that_ends_in_a_slash(made: Path) -> None:
    for address in (f"{made}/", f"file://{made}//"):
        parts = read_parts(DataConfig(format="shards", root=address, val_share=0.0), 0)
        assert "//" not in parts.train[0].image.removeprefix("file://")
        assert parts.load(parts.train[0])[0].shape == (40, 48, 3)


def test_faults_while_an_address_is_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = read_parts(DataConfig(root=f"file://{copied}", val_share=0.0), 0)
    path = copied / shards.read_manifest(str(copied)).parts["train"][3].file
    path.write_bytes(path.read_bytes()[:20])  # the record is beyond the end of the file
    with pytest.raises(DamagedRecordError, match=r"record 3 .*damaged"):
        parts.load(parts.train[3])

    def lost(*_: object) -> None:
        raise tf.errors.UnavailableError(None, None, "connection lost\nretry later")

    for method in ("seek", "read"):
        monkeypatch.setattr(tf.io.gfile.GFile, method, lost)
        with pytest.raises(DataError, match=r"cannot be read \(connection lost\)") as caught:
            parts.load(parts.train[0])
        assert not isinstance(caught.value, DamagedRecordError)
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read \(connection lost\)"):
        shards.read_manifest(f"file://{copied}")


def test_the_check_of_a_set_compares_the_files_themselves(copied: Path) -> None:
    listing = list_set(config(copied), 0)
    assert inspect(listing).ok
    path = sorted(copied.glob("train-*.tfrecord"))[0]
    content = bytearray(path.read_bytes())
    content[9] ^= 1  # in the frame, so no sample changes
    path.write_bytes(content)
    (found,) = inspect(list_set(config(copied), 0)).findings
    assert "SHA-256" in str(found)
