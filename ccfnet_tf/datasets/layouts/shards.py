"""Sharded TFRecord files with a manifest, as `ccfnet-tf data convert` writes them.

    ROOT/manifest.json
    ROOT/train-00000-of-00008.tfrecord, ...     tf.train.Example: image and label, encoded

The manifest says where each record lies, so any sample is read alone: order, resume and every
augmented batch are those of the set the shards were made from. ROOT may be an address that
`tf.io.gfile` knows (`gs://...`); TensorFlow is imported for such places, and to parse a record.
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
from ccfnet_tf.datasets.audit.scan import in_threads
from ccfnet_tf.datasets.base import Listing
from ccfnet_tf.errors import DamagedRecordError, DataError, first_line
from ccfnet_tf.io.images import MAX_PIXELS, read_grey_values, read_image
from ccfnet_tf.labels import VOID, Sample, Taxonomy

MANIFEST = "manifest.json"
KIND = "ccfnet-tf shards"
VERSION = 1
_HEAD = 12  # bytes before a record's content: its length, and a checksum of the length
FRAME = _HEAD + 4  # and a checksum after it

_LONGEST = 2**31  # bytes of a record: a tf.train.Example holds no more
_FARTHEST = 2**48  # bytes before it: more than any disk has; seeking further fails in odd ways

# What a manifest of another shape raises on the way.
_DAMAGE = (
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


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
        near_duplicates: Key of the group of near-duplicates it belongs to, or an empty string.
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
        return _decode(records[sample.name], place, len(manifest.taxonomy.names))

    def fingerprint(sample: Sample) -> str:
        # Reading compares the record with this checksum; nothing need be read once more.
        record = records[sample.name]
        return f"{record.length} {record.crc32:08x}"

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
        near_duplicates={
            name: record.near_duplicates
            for name, record in records.items()
            if record.near_duplicates
        },
        read_bytes=lambda sample: example(records[sample.name], place)["image/encoded"],
        fingerprint=fingerprint,
        verify=partial(verify, place),
    )


def files_of(samples: Sequence[Sample]) -> list[str]:
    """Returns the shards that hold the samples, each once."""
    return list(dict.fromkeys(_file(sample) for sample in samples))


def of_worker(samples: Sequence[Sample], worker: int, workers: int) -> tuple[int, ...]:
    """Returns the indices of samples in every `workers`-th shard: no two workers open one file.

    Args:
        samples: A part, as `read` lists it.
        worker: Which worker, from 0.
        workers: How many there are.

    Raises:
        DataError: There are fewer shards than workers.
    """
    files = files_of(samples)
    if len(files) < workers:
        raise DataError(
            f"{files[0] if files else 'no shard'}: {len(files)} shards for {workers} workers: "
            "convert with a larger --shards"
        )
    mine = set(files[worker::workers])
    return tuple(i for i, sample in enumerate(samples) if _file(sample) in mine)


def read_manifest(place: str) -> Manifest:
    """Reads ROOT/manifest.json.

    Raises:
        DataError: Missing, or not what `data convert` writes.
    """
    path = _inside(place, MANIFEST)
    try:
        with open_binary(path) as file:
            content = file.read()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: it lists the shards") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from error
    try:
        tree = json.loads(content)
        if (tree["kind"], tree["version"]) != (KIND, VERSION):
            raise DataError(f"{path}: not a manifest of version {VERSION}; convert anew")
        return _manifest(tree)
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise DataError(f"{path}: damaged manifest ({reason}); convert anew") from error


def verify(place: str) -> tuple[DataError, ...]:
    """Compares the SHA-256 of every shard with the manifest's; reads the whole files.

    Returns:
        An error for each shard that is missing, cannot be read, or differs.

    Raises:
        DataError: As `read_manifest` does.
    """
    checksums = read_manifest(place).checksums

    def look(file: str) -> DataError | None:
        path = _inside(place, file)
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
        return DataError(f"{path}: its SHA-256 is not the manifest's: copy or convert the set anew")

    return tuple(fault for fault in in_threads(look, checksums) if fault)


def _manifest(tree: dict[str, Any]) -> Manifest:
    palette = tuple((int(r), int(g), int(b)) for r, g, b in tree["palette"])
    taxonomy = Taxonomy(tuple(str(name) for name in tree["classes"]), palette)
    parts = {part: tuple(_record(row) for row in rows) for part, rows in tree["parts"].items()}
    records = [record for rows in parts.values() for record in rows]
    if len({record.name for record in records}) < len(records):
        raise ValueError("a name of a record is there twice")
    checksums = {file: str(checksum) for file, checksum in tree["sha256"].items()}
    if checksums.keys() != {record.file for record in records}:
        raise ValueError("sha256 and the records name different files")
    return Manifest(taxonomy, parts, dict(tree["counts"]), checksums)


def _record(row: list[Any]) -> Record:
    name, file, *numbers, near_duplicates = row
    if not (isinstance(name, str) and isinstance(file, str) and isinstance(near_duplicates, str)):
        raise TypeError(f"record {row}")
    if len(numbers) != 6 or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"record {row}")
    number, offset, length, crc32, height, width = numbers
    # Neither name nor file must lead out of a folder, nor numbers ask for more than there can be.
    if not is_plain(name) or not is_plain(file) or "/" in file:
        raise ValueError(f"record {row}")
    if offset >= _FARTHEST or length >= _LONGEST or not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"record {row}")
    return Record(name, file, number, offset, length, crc32, height, width, near_duplicates)


def is_plain(name: str) -> bool:
    """Returns whether a text is a relative path that stays where it is, and can be written."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        # Neither control characters nor halves of a character.
        and not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)
    )


def example(record: Record, place: str) -> dict[str, bytes]:
    """Returns the byte features of a record, after its checksum was found right.

    Raises:
        DataError: The shard is missing or cannot be opened.
        DamagedRecordError: It is cut off, or the record is not as it was written.
    """
    path = _inside(place, record.file)
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
            f"{where}: damaged (its checksum differs): copy or convert the set anew",
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
    """Opens a file to read, by `tf.io.gfile` where the path is an address (`gs://...`).

    Raises:
        OSError: It cannot be opened, or not be read while it is open.
        EOFError: It was read at a place beyond its end; some files give no bytes there instead.
    """
    if "://" not in path:
        with Path(path).expanduser().open("rb") as file:
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
    """Returns void in the labels of records: PNGs of 8 bits, or of 16 where classes need them."""
    return 255 if classes <= 255 else 65535


def _decode(record: Record, place: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    features = example(record, place)
    where = f"{_address(place, record)} ({record.name})"
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


def _address(place: str, record: Record) -> str:
    return f"{_inside(place, record.file)}: record {record.number}"


def _inside(place: str, file: str) -> str:
    return f"{place.rstrip('/')}/{file}"


def _no_shard(path: str) -> DataError:
    return DataError(f"{path}: no such file, but the manifest has it", kind="missing")


def _file(sample: Sample) -> str:
    return sample.image.rsplit(": record ", 1)[0]
