"""The result of a layout reader: the samples of a data set and functions that load them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ccfnet_tf.datasets.mask_values_to_classes import MaskValues
from ccfnet_tf.errors import DataError, unreadable
from ccfnet_tf.io.read_images import extra_band, read_image
from ccfnet_tf.labels import Sample, Taxonomy

Load = Callable[[Sample], tuple[np.ndarray, np.ndarray]]
"""Loads a sample: image uint8 [H, W, 3] RGB and label int32 [H, W], class ids or `VOID`."""

LoadLabel = Callable[[Sample], np.ndarray]
"""Loads only the label of a sample, int32 [H, W]."""


_DIGEST_BYTES = 8  # bytes; enough to detect accidental changes, not deliberate ones
_MAX_FULL_DIGEST = 2**20
_END_BYTES = 2**16


def stored_bytes(sample: Sample) -> bytes:
    """Returns the bytes of the image file of a sample."""
    return Path(sample.image).read_bytes()


def fingerprint(sample: Sample) -> str:
    """Returns a digest of the image file of a sample.

    The digest covers the size and the content, or only the start and end of files above 1 MiB.

    Raises:
        DataError: The file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    try:
        with Path(sample.image).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(size.to_bytes(8, "little"))
            if size <= _MAX_FULL_DIGEST:
                digest.update(file.read())
            else:
                digest.update(file.read(_END_BYTES))
                file.seek(-_END_BYTES, os.SEEK_END)
                digest.update(file.read())
    except OSError as error:
        raise DataError(f"{sample.image}: {unreadable(error)}") from error
    return digest.hexdigest()


def bytes_fingerprint(stored: bytes) -> str:
    """Returns a digest of an image that is not stored as a separate file."""
    return hashlib.blake2b(stored, digest_size=_DIGEST_BYTES).hexdigest()


def label_fingerprint(label: np.ndarray) -> str:
    """Returns a digest of a label, int32 [H, W]."""
    digest = hashlib.blake2b(str(label.shape).encode(), digest_size=_DIGEST_BYTES)
    digest.update(np.ascontiguousarray(label, np.int32).data)
    return digest.hexdigest()


_COMMON_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif"))


def bands_note(samples: Iterable[Sample]) -> str:
    """Returns a note on images with a band in addition to RGB, which is ignored; else empty."""
    candidates = [s.image for s in samples if Path(s.image).suffix.lower() not in _COMMON_SUFFIXES]
    extra = [image for image in candidates if extra_band(image)]
    if not extra:
        return ""
    more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
    return (
        f"{extra[0]}{more}: a band in addition to RGB, such as near infrared, is ignored; the "
        "colours are used as stored"
    )


@dataclass(frozen=True)
class Listing:
    """The splits of a data set as its layout defines them.

    Attributes:
        taxonomy: The classes.
        train: Training samples.
        val: Validation samples defined by the set; `None` if it defines none.
        test: Test samples; empty if the layout has no test split.
        load: Loads a sample. The sizes of image and label are not compared yet.
        load_label: Loads only the label of a sample.
        read_bytes: Returns the encoded image, in any format that Pillow reads.
        fingerprint: Returns a digest of the encoded image, independent of its path.
        verify: Checks for damage that loading samples does not reveal, such as a wrong file
            checksum. May take long.
        near_duplicates: Maps sample names to group keys. The samples of a group must stay on one
            side of a split.
        folds: Number of folds that `data.fold` can select; 0 if the set has none.
        unpaired: Images without a label and labels without an image (kind `missing`), and label
            files that cannot be read at all. They belong to no split; training rejects a set that
            has any.
        mask_values: Meaning of the values of index masks; `None` for other kinds of labels.
        notes: Remarks on the set, each a line of the form `file: remark`.
    """

    taxonomy: Taxonomy
    train: tuple[Sample, ...]
    val: tuple[Sample, ...] | None
    test: tuple[Sample, ...]
    load: Load
    load_label: LoadLabel
    read_bytes: Callable[[Sample], bytes] = stored_bytes
    fingerprint: Callable[[Sample], str] = fingerprint
    verify: Callable[[], tuple[DataError, ...]] = tuple
    near_duplicates: Mapping[str, str] = field(default_factory=dict)
    folds: int = 0
    unpaired: tuple[DataError, ...] = ()
    mask_values: MaskValues | None = None
    notes: tuple[str, ...] = ()


def with_images(load_label: LoadLabel) -> Load:
    """Returns a loader for ordinary image files, with labels loaded by `load_label`."""
    return lambda sample: (read_image(sample.image), load_label(sample))
