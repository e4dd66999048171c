"""Converts a data set to TFRecord shards, or to a plain folder of images and masks."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.layouts import shards
from ccfnet_tf.datasets.open_data_set import NEAR_DUPLICATES, agreeing, parts_of, refuse_unpaired
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError, ResourceError
from ccfnet_tf.io.checksum import sha256_of
from ccfnet_tf.io.in_threads import in_threads
from ccfnet_tf.io.new_folder import new_folder
from ccfnet_tf.labels import VOID, Sample, Taxonomy, is_void_name

Advance = Callable[[], None]

# File suffix of each Pillow format. Pillow reports JPEG files of many cameras and phones as MPO.
_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "TIFF": ".tif",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "PPM": ".ppm",
    "AVIF": ".avif",
}


def write_shards(
    listing: Listing, out: Path, count: int, *, workers: int = 0, advance: Advance = lambda: None
) -> shards.Manifest:
    """Writes `count` shards per split and the manifest; images keep their encoded bytes.

    Every sample is checked while it is written, and every record is read back and compared.

    Args:
        listing: The data set to convert.
        out: Folder to create. It appears only once it is complete.
        count: Shards per split; fewer for a split with fewer samples.
        workers: Number of threads; 0 uses one per core, at most 8.
        advance: Called twice per sample: after it is written, and after it is read back.

    Raises:
        DataError: A sample cannot be used, or a record differs when read back.
        ConfigError: `out` is not empty.
        ResourceError: The disk is full.
    """
    refuse_unpaired(listing)
    with _new_folder(out) as folder:
        parts: dict[str, tuple[shards.Record, ...]] = {}
        counts: dict[str, list[int]] = {}
        for part, samples in parts_of(listing).items():
            encoded = _watched(in_threads(partial(_encode, listing), samples, workers), advance)
            sizes = [len(c) for c in np.array_split(range(len(samples)), min(count, len(samples)))]
            records, census = [], Census.empty(len(listing.taxonomy.names))
            for index, size in enumerate(sizes):
                path = folder / f"{part}-{index:05d}-of-{len(sizes):05d}.tfrecord"
                more, counted = _write_shard(path, islice(encoded, size), listing.near_duplicates)
                records += more
                census = sum(counted, census)
            parts[part], counts[part] = tuple(records), census.pixels.tolist()
        files = {record.file for records in parts.values() for record in records}
        checksums = {file: sha256_of(folder / file) for file in sorted(files)}
        manifest = shards.Manifest(listing.taxonomy, parts, counts, checksums)
        (folder / shards.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        _read_back(listing, folder, workers, advance)
    return manifest


def write_folder(
    listing: Listing, out: Path, *, workers: int = 0, advance: Advance = lambda: None
) -> None:
    """Writes images (their encoded bytes), index masks and class lists in the folder layout.

    Args:
        listing: The data set to convert. Masks have 16 bits if it has more than 255 classes.
        out: Folder to create. It appears only once it is complete.
        workers: Number of threads; 0 uses one per core, at most 8.
        advance: Called after each sample.

    Raises:
        DataError: A sample cannot be used.
        ConfigError: `out` is not empty.
        ResourceError: The disk is full.
    """
    refuse_unpaired(listing)
    names = listing.taxonomy.names
    _refuse_names(names)
    load = agreeing(listing.load)

    with _new_folder(out) as folder:

        def write(item: tuple[str, str, Sample]) -> None:
            part, stem, sample = item
            image, label = load(sample)
            suffix, encoded = _stored(listing.read_bytes(sample), image)
            _write(folder / part / "images" / f"{stem}{suffix}", encoded)
            _write(folder / part / "masks" / f"{stem}.png", encode_label(label, len(names)))

        items = [
            (part, stem, sample)
            for part, samples in parts_of(listing).items()
            for stem, sample in _stems(part, samples).items()
        ]
        for _ in in_threads(write, items, workers):
            advance()
        _write_classes(folder, listing.taxonomy)
        renamed = {sample.name: f"{part}/{stem}" for part, stem, sample in items}
        _write_near_duplicates(folder, listing.near_duplicates, renamed)


def _stems(part: str, samples: Sequence[Sample]) -> dict[str, Sample]:
    """Returns the path of each sample below images/ and masks/: its name without the split."""
    stems: dict[str, Sample] = {}
    for sample in samples:
        stem = sample.name.removeprefix(f"{part}/")
        if stem in stems or Path(stem).is_absolute() or ".." in Path(stem).parts:
            raise DataError(
                f"{sample.image}: cannot be written as {part}/images/{stem}: another image has "
                "this name, or the path leads outside the folder; rename it"
            )
        stems[stem] = sample
    return stems


def _stored(encoded: bytes, image: np.ndarray) -> tuple[str, bytes]:
    """Returns suffix and bytes of an image; formats outside `_SUFFIXES` are re-encoded as PNG."""
    with Image.open(io.BytesIO(encoded)) as opened:
        suffix = _SUFFIXES.get(str(opened.format))
    if suffix:
        return suffix, encoded
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return ".png", file.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(content)


def _write_near_duplicates(
    folder: Path, near_duplicates: Mapping[str, str], renamed: Mapping[str, str]
) -> None:
    """Writes the groups of near-duplicates, so that later splits keep each group together."""
    groups: dict[str, list[str]] = {}
    for name, key in near_duplicates.items():
        if name in renamed:
            groups.setdefault(key, []).append(renamed[name])
    lines = ["\t".join(group) + "\n" for group in groups.values() if len(group) > 1]
    if lines:
        (folder / NEAR_DUPLICATES).write_text("".join(lines), encoding="utf-8")


def _refuse_names(names: Sequence[str]) -> None:
    """Raises DataError for class names that classes.txt would read as void or as a comment."""
    for name in names:
        if is_void_name(name) or name.startswith("#"):
            raise DataError(
                f"class '{name}': classes.txt would read this name as void or as a comment: rename "
                f"the class with data.label_map, as in `{name.strip('#_')} class: ['{name}']`"
            )


def _write_classes(folder: Path, taxonomy: Taxonomy) -> None:
    """Writes classes.txt, and colours.txt if all classes have different colours."""
    names, palette = taxonomy.names, taxonomy.palette
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    if len(set(palette)) == len(palette):
        rows = [f"{r} {g} {b} {name}\n" for (r, g, b), name in zip(palette, names, strict=True)]
        (folder / "colours.txt").write_text("".join(rows), encoding="utf-8")


def encode_label(label: np.ndarray, classes: int) -> bytes:
    """Encodes a label, int32 [H, W], as a greyscale PNG.

    Up to 255 classes take 8 bits, with void as 255; more take 16 bits, with void as 65535.
    """
    void = shards.void_value(classes)
    kind = np.uint8 if void == 255 else np.uint16
    file = io.BytesIO()
    Image.fromarray(np.where(label == VOID, void, label).astype(kind)).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class _Encoded:
    """A sample ready to be written."""

    name: str
    content: bytes
    size: tuple[int, int]
    census: Census

    def record(self, file: str, number: int, offset: int, near_duplicates: str) -> shards.Record:
        length, crc = len(self.content), zlib.crc32(self.content)
        return shards.Record(
            self.name, file, number, offset, length, crc, *self.size, near_duplicates
        )


def _encode(listing: Listing, sample: Sample) -> _Encoded:
    classes = len(listing.taxonomy.names)
    if not shards.is_plain(sample.name):
        raise DataError(
            f"{sample.image}: the name {sample.name!r} is not allowed in a manifest (it has a "
            "backslash or a control character, or leads outside the folder): rename the image"
        )
    _, label = agreeing(listing.load)(sample)
    content = _example(sample.name, listing.read_bytes(sample), encode_label(label, classes))
    height, width = label.shape
    return _Encoded(sample.name, content, (height, width), Census.of(label, classes))


def _write_shard(
    path: Path, encoded: Iterable[_Encoded], near_duplicates: Mapping[str, str]
) -> tuple[list[shards.Record], list[Census]]:
    records: list[shards.Record] = []
    counts: list[Census] = []
    offset = 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, item in enumerate(encoded):
            writer.write(item.content)
            records.append(
                item.record(path.name, number, offset, near_duplicates.get(item.name, ""))
            )
            counts.append(item.census)
            offset += len(item.content) + shards.FRAME
    return records, counts


def _watched(items: Iterable[_Encoded], advance: Advance) -> Iterator[_Encoded]:
    for item in items:
        advance()
        yield item


def _example(name: str, image: bytes, label: bytes) -> bytes:
    def feature(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {
        "name": feature(name.encode()),
        "image/encoded": feature(image),
        "label/encoded": feature(label),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return bytes(example.SerializeToString(deterministic=True))


def _read_back(listing: Listing, folder: Path, workers: int, advance: Advance) -> None:
    data = DataConfig(format="shards", root=str(folder))
    written = shards.read(data, folder, 0)

    def compare(pair: tuple[Sample, Sample]) -> None:
        source, record = pair
        same = listing.read_bytes(source) == written.read_bytes(record)
        if not same or not np.array_equal(listing.load_label(source), written.load_label(record)):
            raise DataError(
                f"{record.image}: differs from {source.image} when read back: convert again"
            )

    for part, samples in parts_of(listing).items():
        for _ in in_threads(compare, zip(samples, parts_of(written)[part], strict=True), workers):
            advance()


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Wraps `new_folder` so that TensorFlow's error for a full disk also removes the folder."""
    try:
        with new_folder(out) as folder:
            yield folder
    except tf.errors.ResourceExhaustedError as error:
        raise ResourceError(f"disk full while writing {out}: nothing was kept") from error
