"""The parts of a data set, whatever its layout, and the arrays of one sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets import folder, scenes, stanford_background
from ccfnet_tf.datasets.listing import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample, Taxonomy


class Reader(NamedTuple):
    """The one module that knows a layout, as three functions."""

    read: Callable[[DataConfig, Path, int], Listing]
    load: Callable[[Sample, DataConfig, int], tuple[np.ndarray, np.ndarray]]
    load_label: Callable[[Sample, DataConfig, int], np.ndarray]


READERS = {
    name: Reader(module.read, module.load, module.load_label)
    for name, module in (
        ("scenes", scenes),
        ("stanford_background", stanford_background),
        ("folder", folder),
    )
}


@dataclass(frozen=True)
class Parts:
    """What is learned from, chosen by, and reported on. Addresses only; nothing is read yet.

    Attributes:
        format: Layout, a key of `READERS`.
        taxonomy: The classes.
        train: Samples to learn from, never empty.
        val: Samples that checkpoint choice sees; may be empty.
        test: Samples to report on; may be empty.
    """

    format: str
    taxonomy: Taxonomy
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]

    def __post_init__(self) -> None:
        if not self.train:
            raise DataError(f"{self.format}: the training part is empty; add pictures to it")


def read_parts(data: DataConfig, seed: int) -> Parts:
    """Lists every part; takes `data.val_share` of train where the set has no validation list.

    Args:
        data: Which set, and where.
        seed: Chooses the validation share (and which scenes are drawn).

    Raises:
        DataError: A folder that is missing, empty, or not of the layout.
    """
    root = Path(data.root).expanduser() if data.root else Path()
    if data.format != "scenes" and not root.is_dir():
        why = "is a file" if root.is_file() else "no such folder"
        raise DataError(f"{root}: {why}: give the folder that holds the data with --data.root")
    listing = READERS[data.format].read(data, root, seed)
    train, val = listing.train, listing.val
    if val is None:
        train, val = _take(listing, data.val_share, seed)
    return Parts(data.format, listing.taxonomy, train, val, listing.test)


def load(sample: Sample, data: DataConfig, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads one picture and its label.

    Returns:
        image uint8 [H, W, 3] RGB, label int32 [H, W] with ids 0..classes-1 or `VOID`.

    Raises:
        DataError: A file that cannot be used, or sizes that differ.
    """
    image, label = READERS[data.format].load(sample, data, classes)
    if image.shape[:2] != label.shape:
        turned = image.shape[1::-1] == label.shape
        hint = " (EXIF orientation of the picture is applied: turn the mask too)" if turned else ""
        raise DataError(
            f"{sample.image}: {image.shape[1]}x{image.shape[0]} pixels, but its label "
            f"{sample.label} has {label.shape[1]}x{label.shape[0]}: they must agree{hint}"
        )
    return image, label


def load_label(sample: Sample, data: DataConfig, classes: int) -> np.ndarray:
    """Reads one label, int32 [H, W] with ids 0..classes-1 or `VOID`.

    Raises:
        DataError: A file that cannot be used.
    """
    return READERS[data.format].load_label(sample, data, classes)


def _take(
    listing: Listing, share: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Returns train and val, each in the listing's order; kin stay on one side."""
    train = listing.train
    wanted = max(1, round(share * len(train))) if share > 0 else 0
    groups: dict[str, list[str]] = {}
    for sample in train:
        groups.setdefault(listing.kin.get(sample.name, sample.name), []).append(sample.name)
    if wanted and len(groups) < 2:
        raise DataError(
            f"{train[0].name if train else 'training part'}: too few pictures to take "
            f"data.val_share {share} of them; add pictures or set data.val_share 0"
        )
    keys = list(groups)
    held: set[str] = set()
    for index in np.random.default_rng([seed, 1]).permutation(len(keys)):
        group = groups[keys[index]]
        if len(held) + len(group) <= wanted:
            held.update(group)
    return (
        tuple(sample for sample in train if sample.name not in held),
        tuple(sample for sample in train if sample.name in held),
    )
