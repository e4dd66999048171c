"""Writes a data set anew: as TFRecord shards, or as a plain folder of pictures and masks."""

from __future__ import annotations

import hashlib
import io
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets import shards
from ccfnet_tf.datasets.census import Census
from ccfnet_tf.datasets.check import in_threads
from ccfnet_tf.datasets.listing import Listing
from ccfnet_tf.datasets.parts import agreeing
from ccfnet_tf.errors import ConfigError, DataError, ResourceError
from ccfnet_tf.labels import VOID, Sample, Taxonomy

Advance = Callable[[], None]

_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif"}  # others: the format's own name


def write_shards(
    listing: Listing, out: Path, count: int, *, workers: int = 0, advance: Advance = lambda: None
) -> shards.Manifest:
    """Writes `count` shards a part and the manifest; pictures keep their encoded bytes.

    Every sample is read and checked on the way, and every record is read back and compared.

    Args:
        listing: What to convert.
        out: Folder to make; whole or not there.
        count: Shards a part; fewer where a part has fewer samples.
        workers: Threads; 0 takes one a core.
        advance: Called twice a sample: when it was written, and when it was read back.

    Raises:
        DataError: A sample that cannot be used, or a record that reads back otherwise.
        ConfigError: `out` is not empty.
        ResourceError: The disk is full.
    """
    with _new_folder(out) as folder:
        parts: dict[str, tuple[shards.Record, ...]] = {}
        counts: dict[str, list[int]] = {}
        for part, samples in _parts(listing).items():
            encoded = _watched(in_threads(partial(_encode, listing), samples, workers), advance)
            sizes = [len(c) for c in np.array_split(range(len(samples)), min(count, len(samples)))]
            records, census = [], Census.empty(len(listing.taxonomy.names))
            for index, size in enumerate(sizes):
                path = folder / f"{part}-{index:05d}-of-{len(sizes):05d}.tfrecord"
                more, counted = _write_shard(path, islice(encoded, size), listing.kin)
                records += more
                census = sum(counted, census)
            parts[part], counts[part] = tuple(records), census.pixels.tolist()
        files = {record.file for records in parts.values() for record in records}
        checksums = {file: _sha256(folder / file) for file in sorted(files)}
        manifest = shards.Manifest(listing.taxonomy, parts, counts, checksums)
        (folder / shards.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        _read_back(listing, folder, workers, advance)
    return manifest


def write_folder(
    listing: Listing, out: Path, *, workers: int = 0, advance: Advance = lambda: None
) -> None:
    """Writes pictures (their encoded bytes), index masks and classes.txt as the folder layout.

    Args:
        listing: What to convert; at most 255 classes.
        out: Folder to make; whole or not there.
        workers: Threads; 0 takes one a core.
        advance: Called after each sample.

    Raises:
        DataError: A sample that cannot be used, or too many classes for index masks.
        ConfigError: `out` is not empty.
        ResourceError: The disk is full.
    """
    names = listing.taxonomy.names
    if len(names) > 255:
        raise DataError(f"{len(names)} classes: masks of 8 bits hold 255 and void; use --shards")
    load = agreeing(listing.load)

    with _new_folder(out) as folder:

        def write(item: tuple[str, Sample]) -> None:
            part, sample = item
            _, label = load(sample)
            encoded = listing.read_bytes(sample)
            with Image.open(io.BytesIO(encoded)) as image:
                kind = str(image.format)
            suffix = _SUFFIXES.get(kind, f".{kind.lower()}")
            stem = sample.name.removeprefix(f"{part}/")
            for side, end, content in (
                ("images", suffix, encoded),
                ("masks", ".png", encode_label(label, len(names))),
            ):
                path = folder / part / side / f"{stem}{end}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

        items = [(part, s) for part, samples in _parts(listing).items() for s in samples]
        for _ in in_threads(write, items, workers):
            advance()
        _write_classes(folder, listing.taxonomy)


def _write_classes(folder: Path, taxonomy: Taxonomy) -> None:
    """Writes classes.txt, and colours.txt where each class has a colour of its own."""
    names, palette = taxonomy.names, taxonomy.palette
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    if len(set(palette)) == len(palette):
        rows = [f"{r} {g} {b} {name}\n" for (r, g, b), name in zip(palette, names, strict=True)]
        (folder / "colours.txt").write_text("".join(rows), encoding="utf-8")


def encode_label(label: np.ndarray, classes: int) -> bytes:
    """Returns a label, int32 [H, W], as a grey PNG: 8 bits and void 255, or 16 bits and 65535."""
    void = shards.void_value(classes)
    kind = np.uint8 if void == 255 else np.uint16
    file = io.BytesIO()
    Image.fromarray(np.where(label == VOID, void, label).astype(kind)).save(file, "PNG")
    return file.getvalue()


def _parts(listing: Listing) -> dict[str, tuple[Sample, ...]]:
    parts = {"train": listing.train, "val": listing.val, "test": listing.test}
    return {part: samples for part, samples in parts.items() if samples}


@dataclass(frozen=True)
class _Encoded:
    """A sample ready to be written."""

    name: str
    content: bytes
    size: tuple[int, int]
    census: Census

    def record(self, file: str, number: int, offset: int, kin: str) -> shards.Record:
        length, crc = len(self.content), zlib.crc32(self.content)
        return shards.Record(self.name, file, number, offset, length, crc, *self.size, kin)


def _encode(listing: Listing, sample: Sample) -> _Encoded:
    classes = len(listing.taxonomy.names)
    _, label = agreeing(listing.load)(sample)
    content = _example(sample.name, listing.read_bytes(sample), encode_label(label, classes))
    height, width = label.shape
    return _Encoded(sample.name, content, (height, width), Census.of(label, classes))


def _write_shard(
    path: Path, encoded: Iterable[_Encoded], kin: Mapping[str, str]
) -> tuple[list[shards.Record], list[Census]]:
    records: list[shards.Record] = []
    counts: list[Census] = []
    offset = 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, item in enumerate(encoded):
            writer.write(item.content)
            records.append(item.record(path.name, number, offset, kin.get(item.name, "")))
            counts.append(item.census)
            offset += len(item.content) + shards.FRAME
    return records, counts


def _watched(items: Iterable[_Encoded], advance: Advance) -> Iterator[_Encoded]:
    for item in items:
        advance()
        yield item


def _example(name: str, image: bytes, label: bytes) -> bytes:
    def feature(value: bytes) -> Any:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {
        "name": feature(name.encode()),
        "image/encoded": feature(image),
        "label/encoded": feature(label),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return bytes(example.SerializeToString(deterministic=True))


def _read_back(listing: Listing, folder: Path, workers: int, advance: Advance) -> None:
    data = DataConfig(format="shards", root=str(folder), damaged_records="stop")
    written = shards.read(data, folder, 0)

    def compare(pair: tuple[Sample, Sample]) -> None:
        mine, theirs = pair
        same = listing.read_bytes(mine) == written.read_bytes(theirs)
        if not same or not np.array_equal(listing.load_label(mine), written.load_label(theirs)):
            raise DataError(f"{theirs.image}: reads back otherwise than {mine.image}: convert anew")

    for part, samples in _parts(listing).items():
        for _ in in_threads(compare, zip(samples, _parts(written)[part], strict=True), workers):
            advance()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder beside `out` that becomes `out` when all went well, else is removed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: already there and not empty; choose another folder")
    unfinished = out.with_name(f".{out.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        unfinished.mkdir(parents=True)
        yield unfinished
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, tf.errors.ResourceExhaustedError):
            raise ResourceError(f"disk full while writing {out}: nothing was kept") from error
        if isinstance(error, OSError):
            raise ResourceError(
                f"{error.strerror} while writing {out}: nothing was kept"
            ) from error
        raise
