"""Sharded TFRecord files with a manifest, written by `ccfnet-tf data convert`.

    ROOT/manifest.json
    ROOT/train-00000-of-00008.tfrecord, ...     tf.train.Example: image and label, encoded

The manifest contains the position of each record, so samples can be read in any order. Sample
order, resuming and augmented batches are therefore the same as for the original data set. ROOT may
be an address that `tf.io.gfile` supports (`gs://...`). TensorFlow is imported only for such
addresses and to parse a record.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DamagedRecordError, DataError, first_line
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.in_threads import in_threads
from ccfnet_tf.io.read_images import MAX_PIXELS, read_grey_values, read_image
from ccfnet_tf.labels import VOID, Sample, Taxonomy

MANIFEST = "manifest.json"
KIND = "ccfnet-tf shards"
VERSION = 1
_HEAD = 12  # bytes before the content of a record: its length, and a checksum of the length
FRAME = _HEAD + 4  # these, and a checksum after the content

_MAX_LENGTH = 2**31  # bytes of a record, the limit of a tf.train.Example
_MAX_OFFSET = 2**48  # bytes, beyond the size of any disk; larger seeks raise other errors

# Exceptions raised while parsing a manifest that has another structure.
_MANIFEST_ERRORS = (
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Record:
    """Position of a sample in the shards.

    Attributes:
        name: Name of the sample.
        file: File name of the shard.
        number: Index in the shard, from 0.
        offset: Byte offset of the record's frame.
        length: Length of the content in bytes.
        crc32: CRC-32 of the content, as computed by zlib.
        height: Height of image and label in pixels.
        width: Width of image and label in pixels.
        near_duplicates: Key of the group of near-duplicates of the sample, or an empty string.
    """

    name: str
    file: str
    number: int
    offset: int
    length: int
    crc32: int
    height: int
    width: int
    near_duplicates: str = ""


@dataclass(frozen=True)
class Manifest:
    """Content of the shards of a data set.

    Attributes:
        taxonomy: The classes.
        parts: Split -> records in order; `val` is absent if the data set has no such split.
        counts: Split -> number of labelled pixels of each class.
        checksums: File name of a shard -> SHA-256 of the file.
    """

    taxonomy: Taxonomy
    parts: dict[str, tuple[Record, ...]]
    counts: dict[str, list[int]]
    checksums: dict[str, str]

    def to_json(self) -> str:
        """Returns the manifest as a JSON string."""
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
    """Returns the name of the manifest if `root` contains shards, or an empty string."""
    try:
        with (root / MANIFEST).open("rb") as file:
            return MANIFEST if KIND.encode() in file.read(200) else ""
    except OSError:
        return ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the records of every shard. Opens only the manifest.

    Raises:
        DataError: The manifest is missing or damaged.
    """
    location = data.root or "."
    manifest = read_manifest(location)
    records = {record.name: record for part in manifest.parts.values() for record in part}

    def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        return _decode(records[sample.name], location, len(manifest.taxonomy.names))

    def fingerprint(sample: Sample) -> str:
        # Loading verifies this checksum, so the record need not be read here.
        record = records[sample.name]
        return f"{record.length} {record.crc32:08x}"

    parts = {
        part: tuple(Sample(r.name, _address(location, r), _address(location, r)) for r in rows)
        for part, rows in manifest.parts.items()
    }
    return Listing(
        manifest.taxonomy,
        parts.get("train", ()),
        parts.get("val"),
        parts.get("test", ()),
        load,
        lambda sample: load(sample)[1],
        near_duplicates={
            name: record.near_duplicates
            for name, record in records.items()
            if record.near_duplicates
        },
        read_bytes=lambda sample: example(records[sample.name], location)["image/encoded"],
        fingerprint=fingerprint,
        verify=partial(verify, location),
    )


def files_of(samples: Sequence[Sample]) -> list[str]:
    """Returns the shards that contain the samples, without duplicates."""
    return list(dict.fromkeys(_file(sample) for sample in samples))


def of_worker(samples: Sequence[Sample], worker: int, workers: int) -> tuple[int, ...]:
    """Returns the indices of the samples of one worker; no two workers share a shard.

    Worker i of n reads the shards i, i + n, i + 2n, ...

    Args:
        samples: A split, as listed by `read`.
        worker: Index of the worker, from 0.
        workers: Number of workers.

    Raises:
        DataError: There are fewer shards than workers.
    """
    files = files_of(samples)
    if len(files) < workers:
        raise DataError(
            f"{files[0] if files else 'no shard'}: {len(files)} shards for {workers} workers: "
            "convert with a larger --shards"
        )
    own = set(files[worker::workers])
    return tuple(i for i, sample in enumerate(samples) if _file(sample) in own)


def read_manifest(location: str) -> Manifest:
    """Reads ROOT/manifest.json.

    Args:
        location: ROOT, a folder or an address that `tf.io.gfile` supports.

    Raises:
        DataError: The manifest is missing or damaged, or has another version.
    """
    path = _inside(location, MANIFEST)
    try:
        with open_binary(path) as file:
            content = file.read()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: it must list the shards") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from error
    try:
        tree = json.loads(content)
        if (tree["kind"], tree["version"]) != (KIND, VERSION):
            raise DataError(
                f"{path}: not a manifest of version {VERSION}; convert the data set again"
            )
        return _manifest(tree)
    except _MANIFEST_ERRORS as error:
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise DataError(
            f"{path}: damaged manifest ({reason}); convert the data set again"
        ) from error


def verify(location: str) -> tuple[DataError, ...]:
    """Compares the SHA-256 of every shard with the manifest. Reads the complete files.

    Args:
        location: ROOT, a folder or an address that `tf.io.gfile` supports.

    Returns:
        An error for each shard that is missing, cannot be read, or differs.

    Raises:
        DataError: The manifest is missing or damaged, or has another version.
    """
    checksums = read_manifest(location).checksums

    def check(file: str) -> DataError | None:
        path = _inside(location, file)
        digest = hashlib.sha256()
        try:
            with open_binary(path) as stream:
                while piece := stream.read(1 << 20):
                    digest.update(piece)
        except FileNotFoundError:
            return _no_shard(path)
        except OSError as error:
            return DataError(f"{path}: cannot be read ({first_line(error)})")
        if digest.hexdigest() == checksums[file]:
            return None
        return DataError(
            f"{path}: its SHA-256 differs from the manifest: copy or convert the data set again"
        )

    return tuple(fault for fault in in_threads(check, checksums) if fault)


def _manifest(tree: dict[str, Any]) -> Manifest:
    palette = tuple((int(r), int(g), int(b)) for r, g, b in tree["palette"])
    taxonomy = Taxonomy(tuple(str(name) for name in tree["classes"]), palette)
    parts = {part: tuple(_record(row) for row in rows) for part, rows in tree["parts"].items()}
    records = [record for rows in parts.values() for record in rows]
    if len({record.name for record in records}) < len(records):
        raise ValueError("two records have the same name")
    checksums = {file: str(checksum) for file, checksum in tree["sha256"].items()}
    if checksums.keys() != {record.file for record in records}:
        raise ValueError("'sha256' and the records list different files")
    return Manifest(taxonomy, parts, dict(tree["counts"]), checksums)


def _record(row: list[Any]) -> Record:
    name, file, *numbers, near_duplicates = row
    if not (isinstance(name, str) and isinstance(file, str) and isinstance(near_duplicates, str)):
        raise TypeError(f"record {row}")
    if len(numbers) != 6 or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"record {row}")
    number, offset, length, crc32, height, width = numbers
    # A crafted manifest must not address files outside the folder or cause large allocations.
    if not is_plain(name) or not is_plain(file) or "/" in file:
        raise ValueError(f"record {row}")
    if offset >= _MAX_OFFSET or length >= _MAX_LENGTH or not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"record {row}")
    return Record(name, file, number, offset, length, crc32, height, width, near_duplicates)


def is_plain(name: str) -> bool:
    """Returns whether a name is a relative path without `..` and with printable characters only."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        # No control characters and no surrogates.
        and not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
    )


def example(record: Record, location: str) -> dict[str, bytes]:
    """Returns the byte features of a record after verifying its checksum.

    Args:
        record: The record.
        location: ROOT, a folder or an address that `tf.io.gfile` supports.

    Raises:
        DataError: The shard is missing or cannot be opened.
        DamagedRecordError: The shard is truncated, or the checksum differs.
    """
    path = _inside(location, record.file)
    where = f"{path}: record {record.number} ({record.name})"
    try:
        with open_binary(path) as file:
            file.seek(record.offset + _HEAD)
            content = file.read(record.length)
    except FileNotFoundError as error:
        raise _no_shard(path) from error
    except EOFError:
        content = b""
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({first_line(error)})") from error
    if len(content) != record.length or zlib.crc32(content) != record.crc32:
        raise DamagedRecordError(
            f"{where}: damaged (its checksum differs): copy or convert the data set again",
            size=(record.height, record.width),
        )
    return parse(content)


def parse(content: bytes) -> dict[str, bytes]:
    """Returns the byte features of a serialised tf.train.Example."""
    from tensorflow.core.example.example_pb2 import Example

    features = Example.FromString(content).features.feature
    return {key: value.bytes_list.value[0] for key, value in features.items()}


@contextmanager
def open_binary(path: str) -> Iterator[BinaryIO]:
    """Opens a file for reading, with `tf.io.gfile` if the path is an address (`gs://...`).

    Raises:
        OSError: The file cannot be opened or read.
        EOFError: A read began beyond the end of the file; local files return no bytes instead.
    """
    if "://" not in path:
        with expanded(path).open("rb") as file:
            yield file
        return
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            yield file
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(path) from error
    except tf.errors.OutOfRangeError as error:
        raise EOFError(path) from error
    except tf.errors.OpError as error:
        raise OSError(first_line(error)) from error


def void_value(classes: int) -> int:
    """Returns the value of void in label PNGs: 255 (8 bits) or, for more classes, 65535 (16 bits).

    Args:
        classes: Number of classes.
    """
    return 255 if classes <= 255 else 65535


def _decode(record: Record, location: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    features = example(record, location)
    where = f"{_address(location, record)} ({record.name})"
    image = read_image(where, features["image/encoded"])
    return image, decode_label(features["label/encoded"], where, classes)


def decode_label(encoded: bytes, where: str, classes: int) -> np.ndarray:
    """Returns the label of a record as int32 [H, W] of class ids or `VOID`.

    Args:
        encoded: The label PNG.
        where: Start of error messages.
        classes: Number of classes.

    Raises:
        DataError: The PNG is damaged, or contains a value that is neither a class id nor void.
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


def _address(location: str, record: Record) -> str:
    return f"{_inside(location, record.file)}: record {record.number}"


def _inside(location: str, file: str) -> str:
    return f"{location.rstrip('/')}/{file}"


def _no_shard(path: str) -> DataError:
    return DataError(f"{path}: no such file, but the manifest lists it", kind="missing")


def _file(sample: Sample) -> str:
    return sample.image.rsplit(": record ", 1)[0]
