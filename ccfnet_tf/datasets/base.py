"""What a reader of a layout hands back: the addresses of a data set, before val is taken."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ccfnet_tf.datasets.mask_values import MaskValues
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.images import extra_band, read_image
from ccfnet_tf.labels import Sample, Taxonomy

Load = Callable[[Sample], tuple[np.ndarray, np.ndarray]]
"""A sample's image uint8 [H, W, 3] RGB and label int32 [H, W] (ids or `VOID`)."""

LoadLabel = Callable[[Sample], np.ndarray]
"""A sample's label alone, int32 [H, W]."""


_DIGEST = 8  # bytes: enough against accidents, which is all that a digest of data is for
_SMALL = 2**20
_END = 2**16


def stored_bytes(sample: Sample) -> bytes:
    """Returns the bytes of a sample's image file."""
    return Path(sample.image).read_bytes()


def fingerprint(sample: Sample) -> str:
    """Returns a digest of a sample's image file: of all of it, or of its size and ends if large.

    Raises:
        DataError: It cannot be read.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST)
    try:
        with Path(sample.image).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(size.to_bytes(8, "little"))
            if size <= _SMALL:
                digest.update(file.read())
            else:
                digest.update(file.read(_END))
                file.seek(-_END, os.SEEK_END)
                digest.update(file.read())
    except OSError as error:
        raise DataError(f"{sample.image}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def bytes_fingerprint(stored: bytes) -> str:
    """Returns a digest of an image that is not a file of its own."""
    return hashlib.blake2b(stored, digest_size=_DIGEST).hexdigest()


def label_fingerprint(label: np.ndarray) -> str:
    """Returns a digest of a label, int32 [H, W]."""
    digest = hashlib.blake2b(str(label.shape).encode(), digest_size=_DIGEST)
    digest.update(np.ascontiguousarray(label, np.int32).data)
    return digest.hexdigest()


_COMMON = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif"))


def bands_note(samples: Iterable[Sample]) -> str:
    """Returns a line on images of which a band beside the colours is left out; else empty."""
    odd = [s.image for s in samples if Path(s.image).suffix.lower() not in _COMMON]
    found = [image for image in odd if extra_band(image)]
    if not found:
        return ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"{found[0]}{more}: a band beside the colours, such as near infrared, is left out; the "
        "colours are taken as they are stored"
    )


@dataclass(frozen=True)
class Listing:
    """The parts of a data set as its layout states them.

    Attributes:
        taxonomy: The classes.
        train: Samples to learn from.
        val: The set's own validation list; `None` where it has none.
        test: Samples to report on; empty where the layout has no test split.
        load: Reads a sample of this set; sizes of image and label may still differ.
        load_label: Reads its label alone.
        read_bytes: Returns the image as it is stored, any format that Pillow reads.
        fingerprint: Returns a digest of the image as it is stored, which no path is part of.
        verify: Looks for damage that no sample shows, such as a file's checksum; takes its time.
        near_duplicates: Sample name to a group's key, for copies that must stay on one side.
        folds: How many folds `data.fold` can choose from; 0 where the set has none.
        unpaired: Images without a label and labels without an image, of kind `missing`, and
            label files that cannot be used at all. They are in no part; training refuses a set
            that has any.
        mask_values: What the values of its index masks mean; `None` where its labels are of
            another kind.
        notes: What is worth knowing of the set, each `file: what` on one line.
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


def with_pictures(load_label: LoadLabel) -> Load:
    """Returns a loader of ordinary image files with the labels that `load_label` reads."""
    return lambda sample: (read_image(sample.image), load_label(sample))
