"""The splits of a data set in any layout, and loading of samples as arrays."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig, DataFormat
from ccfnet_tf.datasets.class_and_split_lists import (
    part_lists,
    plain_name,
    read_names,
    read_part_lists,
)
from ccfnet_tf.datasets.label_map import read_label_map
from ccfnet_tf.datasets.layout_registry import READERS, detect
from ccfnet_tf.datasets.mask_values_to_classes import MaskValues
from ccfnet_tf.datasets.samples import Listing, Load, fingerprint
from ccfnet_tf.datasets.split_names import misleading_folders
from ccfnet_tf.errors import ConfigError, DamagedRecordError, DataError
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.labels import VOID, Sample, Taxonomy

NEAR_DUPLICATES = "near_duplicates.txt"
"""File in a data set or next to split lists, with one tab-separated group of copies per line."""

_OLD_NAME = "kin.txt"


@dataclass(frozen=True)
class Parts:
    """The training, validation and test splits of a data set. Images are not read yet.

    Attributes:
        format: Layout, a key of `READERS`.
        taxonomy: The classes.
        train: Training samples, not empty.
        val: Validation samples, used to choose the checkpoint; may be empty.
        test: Test samples; may be empty.
        load: Loads a sample: image uint8 [H, W, 3] RGB, label int32 [H, W], class ids or `VOID`.
            Raises DataError if a file cannot be used or the sizes differ.
        fingerprint: As in `Listing`.
        own_val: Whether the set defines its validation split, rather than `data.val_share`.
        mask_values: As in `Listing`.
        notes: As in `Listing`.
    """

    format: DataFormat
    taxonomy: Taxonomy
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    load: Load
    fingerprint: Callable[[Sample], str] = fingerprint
    own_val: bool = False
    mask_values: MaskValues | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.train:
            raise DataError(f"{self.format}: the training split is empty; add images to it")


def with_format(data: DataConfig) -> DataConfig:
    """Returns `data` with `format` set to the detected layout if it is `auto`.

    Raises:
        DataError: The folder does not exist, or its layout is not recognised.
    """
    if data.format == "scenes":
        return data
    if "://" in str(data.root):  # object stores support only the layout `shards`
        return replace(data, format="shards") if data.format == "auto" else data
    root = _root(data)
    if not root.is_dir():
        why = "is a file" if root.is_file() else "no such folder"
        raise DataError(f"{root}: {why}: give the folder of the data set (--data.root)")
    return replace(data, format=detect(root)) if data.format == "auto" else data


def list_set(data: DataConfig, seed: int) -> Listing:
    """Lists a data set with its own splits or those of `data.lists`, and applies the label map.

    Args:
        data: Configuration of the data set.
        seed: Seed of generated scenes.

    Raises:
        DataError: The folder is missing, empty, or does not have the layout.
        ConfigError: `data.lists` or `data.label_map` does not fit the set.
    """
    data = with_format(data)
    root = _root(data)
    listing = READERS[data.format].read(data, root, seed)
    if data.mask_values and listing.mask_values is None:
        raise ConfigError(
            f"data.mask_values is {data.mask_values}: format '{data.format}' defines its labels "
            "itself: remove data.mask_values"
        )
    if not data.lists and data.format not in ("scenes", "shards", "cityscapes"):
        lines = (*misleading_folders(root, parts_of(listing)), *_unused_lists(root))
        listing = replace(listing, notes=(*listing.notes, *lines))
    if data.lists:
        listing = _with_lists(listing, expanded(data.lists), data.fold)
    elif "://" not in str(data.root):
        names = [sample.name for part in parts_of(listing).values() for sample in part]
        listing = _with_near_duplicates(listing, root, names)
    if data.fold and not listing.folds:
        raise ConfigError(
            f"data.fold is {data.fold}: this set has no folds: remove data.fold, or create folds "
            "with ccfnet-tf data split"
        )
    if data.label_map:
        listing = _mapped(listing, expanded(data.label_map))
    return listing


def read_parts(data: DataConfig, seed: int) -> Parts:
    """Returns the splits of a data set.

    If the set has no validation split, a share `data.val_share` of the training split is used.

    Args:
        data: Configuration of the data set.
        seed: Seed of the validation share and of generated scenes.

    Raises:
        DataError: The folder is missing, empty, does not have the layout, or has unpaired files.
        ConfigError: `data.lists` or `data.label_map` does not fit the set.

    Examples:
        >>> parts = read_parts(DataConfig(root="data/sample", val_share=0.25), seed=0)
        >>> parts.taxonomy.names[:3]
        ('sky', 'hill', 'water')
        >>> len(parts.train), len(parts.val), len(parts.test)
        (8, 2, 2)
        >>> image, label = parts.load(parts.test[0])
        >>> image.shape, image.dtype, label.shape, label.dtype
        ((180, 240, 3), dtype('uint8'), (180, 240), dtype('int32'))
    """
    data = with_format(data)
    listing = list_set(data, seed)
    refuse_unpaired(listing, data)
    train, val = listing.train, listing.val
    if val is None:
        train, val = _draw_val(listing, data.val_share, seed)
    return Parts(
        data.format,
        listing.taxonomy,
        train,
        val,
        listing.test,
        agreeing(listing.load),
        listing.fingerprint,
        own_val=listing.val is not None,
        mask_values=listing.mask_values,
        notes=listing.notes,
    )


def parts_of(listing: Listing) -> dict[str, tuple[Sample, ...]]:
    """Returns split -> samples, without missing or empty splits."""
    parts = {"train": listing.train, "val": listing.val or (), "test": listing.test}
    return {part: samples for part, samples in parts.items() if samples}


def refuse_unpaired(listing: Listing, data: DataConfig | None = None) -> None:
    """Rejects a set with unpaired images or labels.

    Args:
        listing: The set.
        data: Its configuration; the message then has the command that lists all problems.

    Raises:
        DataError: The first unpaired file, with the number of others.
    """
    if listing.unpaired:
        first, others = listing.unpaired[0], len(listing.unpaired) - 1
        more = f" (and {others} more such files)" if others else ""
        raise DataError(f"{first}{more}{all_of_them(data) if data else ''}", kind=first.kind)


def all_of_them(data: DataConfig) -> str:
    """Returns the end of an error message: the command that lists all problems of a set."""
    if not data.root:
        return ""
    return f"; to list all problems: ccfnet-tf data check {shlex.quote(data.root)}"


def agreeing(load: Load) -> Load:
    """Wraps `load` to raise DataError if image and label differ in size."""

    def checked(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image, label = load(sample)
        if image.shape[:2] != label.shape:
            rotated = image.shape[1::-1] == label.shape
            hint = " (EXIF orientation of the image is applied: rotate the mask too)"
            raise DataError(
                f"{sample.image}: {image.shape[1]}x{image.shape[0]} pixels, but its label "
                f"{sample.label} has {label.shape[1]}x{label.shape[0]}: they must agree"
                f"{hint if rotated else ''}",
                kind="size",
            )
        return image, label

    return checked


def without_damage(load: Load) -> Load:
    """Wraps `load` to replace damaged records by void samples, which are ignored."""

    def tolerant(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        try:
            return load(sample)
        except DamagedRecordError as error:
            return np.zeros((*error.size, 3), np.uint8), np.full(error.size, VOID, np.int32)

    return tolerant


def _root(data: DataConfig) -> Path:
    return expanded(data.root) if data.root else Path()


def _mapped(listing: Listing, path: Path) -> Listing:
    label_map = read_label_map(path, listing.taxonomy)

    def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image, label = listing.load(sample)
        return image, label_map.apply(label)

    def load_label(sample: Sample) -> np.ndarray:
        return label_map.apply(listing.load_label(sample))

    return replace(listing, taxonomy=label_map.taxonomy, load=load, load_label=load_label)


def _with_lists(listing: Listing, lists: Path, fold: int) -> Listing:
    """Returns the listing with the splits of list files; drops samples that are not listed."""
    folds = sum(1 for _ in takewhile(_is_folder, (lists / f"fold_{k}" for k in count())))
    folder = lists / f"fold_{fold}"
    if not folder.is_dir() and not folds:
        folder = lists
    if not lists.is_dir():
        why = "is a file" if lists.is_file() else "no such folder"
        fix = "give the folder of the lists, such as --out of ccfnet-tf data split"
        raise ConfigError(f"data.lists: {lists}: {why}: {fix}")
    if folds and not folder.is_dir():
        numbers = f"the folds 0 to {folds - 1}" if folds > 1 else "fold 0 only"
        raise ConfigError(f"data.fold is {fold}: {lists} has {numbers}")
    if "train" not in part_lists(folder):
        raise ConfigError(
            f"data.lists: {folder}: no train.txt: expected train.txt, val.txt and test.txt (one "
            "name per line), or folders fold_0, fold_1, ... of such files, chosen by data.fold"
        )
    known = {sample.name: sample for part in parts_of(listing).values() for sample in part}
    names = read_part_lists(folder, {name: name for name in known}, "a sample of the set")
    parts = {part: tuple(known[name] for name in chosen) for part, chosen in names.items()}
    return replace(
        _with_near_duplicates(listing, lists, known),
        train=parts["train"],
        val=parts.get("val"),
        test=parts.get("test", ()),
        folds=max(folds, int(folder != lists)),
        unpaired=(),
    )


def _with_near_duplicates(listing: Listing, folder: Path, names: Iterable[str]) -> Listing:
    """Returns the listing with the near-duplicate groups of a folder, if it has any."""
    path, notes = folder / NEAR_DUPLICATES, listing.notes
    if not path.is_file() and (folder / _OLD_NAME).is_file():
        path = folder / _OLD_NAME
        notes += (f"{path}: rename it to {NEAR_DUPLICATES}; the next version ignores the old name",)
    if not path.is_file():
        return listing
    found = _read_near_duplicates(path, names)
    return replace(listing, near_duplicates={**listing.near_duplicates, **found}, notes=notes)


def _read_near_duplicates(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Reads tab-separated groups, one per line; `names` are the sample names of the set."""
    normalised = {plain_name(name): name for name in names}
    groups = [line.split("\t") for _, line in read_names(path)]
    return {normalised.get(plain_name(name), name): group[0] for group in groups for name in group}


def _unused_lists(root: Path) -> tuple[str, ...]:
    """Returns notes on folders of split lists, which have no effect without `data.lists`."""
    found = sorted(path.parent for path in root.glob("*/train.txt"))
    return tuple(
        f"{folder}: its split lists are not used; to use them, add --data.lists "
        f"{shlex.quote(str(folder))}"
        for folder in found
    )


def _is_folder(path: Path) -> bool:
    return path.is_dir()


def _draw_val(
    listing: Listing, share: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Draws the validation split by groups of near-duplicates; returns train and val in order."""
    train = listing.train
    wanted = max(1, round(share * len(train))) if share > 0 else 0
    groups: dict[str, list[str]] = {}
    for sample in train:
        groups.setdefault(listing.near_duplicates.get(sample.name, sample.name), []).append(
            sample.name
        )
    if wanted and len(groups) < 2:
        raise DataError(
            f"{train[0].name if train else 'training split'}: too few images for a validation "
            f"share of {share}; add images or set data.val_share 0"
        )
    keys = list(groups)
    held_out: set[str] = set()
    for index in np.random.default_rng([seed, 1]).permutation(len(keys)):
        group = groups[keys[index]]
        if len(held_out) + len(group) <= wanted:
            held_out.update(group)
    if wanted and not held_out:  # every group, such as a video, is larger than the share
        held_out.update(groups[min(keys, key=lambda key: len(groups[key]))])
    return (
        tuple(sample for sample in train if sample.name not in held_out),
        tuple(sample for sample in train if sample.name in held_out),
    )
