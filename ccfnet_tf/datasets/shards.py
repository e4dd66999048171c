"""Sharded TFRecord files with a manifest, as `ccfnet-tf data convert` writes them.

    ROOT/manifest.json
    ROOT/train-00000-of-00008.tfrecord, ...     tf.train.Example: image and label, encoded

The manifest says where each record lies, so any sample is read alone: order, resume and every
augmented batch are those of the set the shards were made from. ROOT may be an address that
`tf.io.gfile` knows (`gs://...`); TensorFlow is imported for such places, and to parse a record.
"""

from __future__ import annotations

import json
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.listing import Listing
from ccfnet_tf.datasets.pictures import read_grey_values, read_image
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID, Sample, Taxonomy

MANIFEST = "manifest.json"
KIND = "ccfnet-tf shards"
VERSION = 1
_HEAD = 12  # bytes before a record's content: its length, and a checksum of the length
FRAME = _HEAD + 4  # and a checksum after it


class DamagedRecord(UserWarning):
    """A record that cannot be used was left out; names file and record."""


@dataclass(frozen=True)
class Record:
    """Where a sample lies.

    Attributes:
        name: The sample's name.
        file: File name of the shard.
        number: Position in the shard, from 0.
        offset: Byte at which the record's frame starts.
        length: Bytes of its content.
        crc32: zlib's checksum of the content.
        height: Of image and label, in pixels.
        width: Likewise.
        kin: Key of the group of near-duplicates it belongs to, or an empty string.
    """

    name: str
    file: str
    number: int
    offset: int
    length: int
    crc32: int
    height: int
    width: int
    kin: str = ""


@dataclass(frozen=True)
class Manifest:
    """What shards hold.

    Attributes:
        taxonomy: The classes.
        parts: Part's name -> records in order; `val` is missing where the set has no such part.
        counts: Part's name -> labelled pixels of each class.
        checksums: Shard's file name -> SHA-256 of the file.
    """

    taxonomy: Taxonomy
    parts: dict[str, tuple[Record, ...]]
    counts: dict[str, list[int]]
    checksums: dict[str, str]

    def to_json(self) -> str:
        """Returns the manifest's text."""
        tree = {
            "kind": KIND,
            "version": VERSION,
            "classes": list(self.taxonomy.names),
            "palette": [list(colour) for colour in self.taxonomy.palette],
            "counts": self.counts,
            "sha256": self.checksums,
            "record": list(Record.__dataclass_fields__),
        }
        head = json.dumps(tree, indent=1)
        parts = ",\n".join(
            f" {json.dumps(part)}: [\n{_rows(records)}\n ]" for part, records in self.parts.items()
        )
        return f'{head[:-2]},\n "parts": {{\n{parts}\n }}\n}}\n'


def _rows(records: tuple[Record, ...]) -> str:
    return ",\n".join(f"  {json.dumps(list(vars(r).values()))}" for r in records)


def signs(root: Path) -> str:
    """Returns what shows that `root` holds shards, or an empty string."""
    try:
        with (root / MANIFEST).open("rb") as file:
            return MANIFEST if KIND.encode() in file.read(200) else ""
    except OSError:
        return ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the records of every shard; opens the manifest alone.

    Raises:
        DataError: No manifest, one that is damaged, or a shard that is missing.
    """
    place = data.root or "."
    manifest = read_manifest(place)
    records = {record.name: record for part in manifest.parts.values() for record in part}

    def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        record = records[sample.name]
        try:
            return _decode(record, place, len(manifest.taxonomy.names))
        except DataError as error:
            if data.damaged_records == "stop":
                raise
            warnings.warn(f"{error}; left out", DamagedRecord, stacklevel=2)
            return _blank(record)

    parts = {
        part: tuple(Sample(r.name, _address(place, r), _address(place, r)) for r in rows)
        for part, rows in manifest.parts.items()
    }
    return Listing(
        manifest.taxonomy,
        parts.get("train", ()),
        parts.get("val"),
        parts.get("test", ()),
        load,
        lambda sample: load(sample)[1],
        kin={name: record.kin for name, record in records.items() if record.kin},
        read_bytes=lambda sample: example(records[sample.name], place)["image/encoded"],
    )


def of_worker(samples: tuple[Sample, ...], worker: int, workers: int) -> tuple[Sample, ...]:
    """Returns the samples of every `workers`-th shard, so that no two workers open one file.

    Args:
        samples: A part, as `read` lists it.
        worker: Which worker, from 0.
        workers: How many there are.

    Raises:
        DataError: There are fewer shards than workers.
    """
    files = list(dict.fromkeys(_file(sample) for sample in samples))
    if len(files) < workers:
        raise DataError(
            f"{files[0] if files else 'no shard'}: {len(files)} shards for {workers} workers: "
            "convert with a larger --shards"
        )
    mine = set(files[worker::workers])
    return tuple(sample for sample in samples if _file(sample) in mine)


def read_manifest(place: str) -> Manifest:
    """Reads ROOT/manifest.json.

    Raises:
        DataError: Missing, or not what `data convert` writes.
    """
    path = f"{place}/{MANIFEST}"
    try:
        with open_binary(path) as file:
            tree = json.loads(file.read())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: it lists the shards") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({_first_line(error)})") from error
    try:
        if (tree["kind"], tree["version"]) != (KIND, VERSION):
            raise DataError(f"{path}: not a manifest of version {VERSION}; convert anew")
        return _manifest(tree)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged manifest ({error!r}); convert anew") from error


def _manifest(tree: dict[str, Any]) -> Manifest:
    palette = tuple((int(r), int(g), int(b)) for r, g, b in tree["palette"])
    taxonomy = Taxonomy(tuple(str(name) for name in tree["classes"]), palette)
    parts = {part: tuple(_record(row) for row in rows) for part, rows in tree["parts"].items()}
    return Manifest(taxonomy, parts, dict(tree["counts"]), dict(tree["sha256"]))


def _record(row: list[Any]) -> Record:
    name, file, *numbers, kin = row
    if not (isinstance(name, str) and isinstance(file, str) and isinstance(kin, str)):
        raise TypeError(f"record {row}")
    if len(numbers) != 6 or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError(f"record {row}")
    if "/" in file or "\\" in file:  # a manifest must not lead out of its folder
        raise ValueError(f"record {row}")
    number, offset, length, crc32, height, width = numbers
    return Record(name, file, number, offset, length, crc32, height, width, kin)


def example(record: Record, place: str) -> dict[str, bytes]:
    """Returns the byte features of a record, after its checksum was found right.

    Raises:
        DataError: The shard is missing or cut off, or the record is not as it was written.
    """
    path = f"{place}/{record.file}"
    where = f"{path}: record {record.number} ({record.name})"
    try:
        with open_binary(path) as file:
            file.seek(record.offset + _HEAD)
            content = file.read(record.length)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file, but the manifest has it", kind="missing") from error
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({_first_line(error)})") from error
    if len(content) != record.length or zlib.crc32(content) != record.crc32:
        raise DataError(f"{where}: damaged (its checksum differs): copy or convert the set anew")
    return parse(content)


def parse(content: bytes) -> dict[str, bytes]:
    """Returns the byte features of a serialised tf.train.Example."""
    from tensorflow.core.example.example_pb2 import Example

    features = Example.FromString(content).features.feature
    return {key: value.bytes_list.value[0] for key, value in features.items()}


def open_binary(path: str) -> BinaryIO:
    """Opens a file to read, by `tf.io.gfile` where the path is an address (`gs://...`).

    Raises:
        OSError: It cannot be opened.
    """
    if "://" not in path:
        return Path(path).expanduser().open("rb")
    import tensorflow as tf

    try:
        file = tf.io.gfile.GFile(path, "rb")
        file.size()  # opens it: a missing file shows now
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(path) from error
    except tf.errors.OpError as error:
        raise OSError(_first_line(error)) from error
    return file


def void_value(classes: int) -> int:
    """Returns void in the labels of records: PNGs of 8 bits, or of 16 where classes need them."""
    return 255 if classes <= 255 else 65535


def _decode(record: Record, place: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    features = example(record, place)
    where = f"{place}/{record.file}: record {record.number} ({record.name})"
    image = read_image(where, features["image/encoded"])
    return image, decode_label(features["label/encoded"], where, classes)


def decode_label(encoded: bytes, where: str, classes: int) -> np.ndarray:
    """Returns the label of a record, int32 [H, W] with ids or `VOID`.

    Raises:
        DataError: Not a label that `data convert` wrote for this number of classes.
    """
    void = void_value(classes)
    values = read_grey_values(where, encoded)
    label = np.where(values == void, VOID, values)
    if label.max(initial=VOID) >= classes:
        raise DataError(
            f"{where}: value {label.max()}: expected 0..{classes - 1} or {void} (void)",
            kind="value",
        )
    return label


def _blank(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Returns a sample of the record's size that counts nowhere."""
    size = (record.height, record.width)
    return np.zeros((*size, 3), np.uint8), np.full(size, VOID, np.int32)


def _address(place: str, record: Record) -> str:
    return f"{place}/{record.file}: record {record.number}"


def _file(sample: Sample) -> str:
    return sample.image.rsplit(": record ", 1)[0]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
