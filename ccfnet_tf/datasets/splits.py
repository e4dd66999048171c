"""The parts of a data set, whatever its layout, and how its samples become arrays."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig, DataFormat
from ccfnet_tf.datasets.base import Listing, Load, fingerprint
from ccfnet_tf.datasets.label_map import read_label_map
from ccfnet_tf.datasets.mask_values import MaskValues
from ccfnet_tf.datasets.name_lists import part_lists, plain_name, read_names, read_part_lists
from ccfnet_tf.datasets.registry import READERS, detect
from ccfnet_tf.datasets.split_names import misleading_folders
from ccfnet_tf.errors import ConfigError, DamagedRecordError, DataError
from ccfnet_tf.labels import VOID, Sample, Taxonomy

NEAR_DUPLICATES = "near_duplicates.txt"
"""Beside list files, or in a set: copies that stay on one side, a group per line, apart by tabs."""

_OLD_NAME = "kin.txt"


@dataclass(frozen=True)
class Parts:
    """What is learned from, chosen by, and reported on. Addresses only; nothing is read yet.

    Attributes:
        format: Layout, a key of `READERS`.
        taxonomy: The classes.
        train: Samples to learn from, never empty.
        val: Samples that checkpoint choice sees; may be empty.
        test: Samples to report on; may be empty.
        load: Reads a sample: image uint8 [H, W, 3] RGB, label int32 [H, W] with ids or `VOID`.
            Raises DataError where a file cannot be used or sizes differ.
        fingerprint: As that of a `Listing`.
        own_val: The validation split is the set's own, not a share of its training split.
        mask_values: As that of a `Listing`.
        notes: As those of a `Listing`.
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
    """Returns `data` with the layout that its folder has in place of `auto`.

    Raises:
        DataError: No folder, or its layout cannot be told.
    """
    if data.format == "scenes":
        return data
    if "://" in str(data.root):  # an object store: of all layouts only shards can lie there
        return replace(data, format="shards") if data.format == "auto" else data
    root = _root(data)
    if not root.is_dir():
        why = "is a file" if root.is_file() else "no such folder"
        raise DataError(f"{root}: {why}: give the folder that holds the data with --data.root")
    return replace(data, format=detect(root)) if data.format == "auto" else data


def list_set(data: DataConfig, seed: int) -> Listing:
    """Lists a data set with its own parts, or those of `data.lists`, and mapped classes.

    Args:
        data: Which set, and where.
        seed: Chooses which scenes are drawn.

    Raises:
        DataError: A folder that is missing, empty, or not of the layout.
        ConfigError: `data.lists` or `data.label_map` does not fit the set.
    """
    data = with_format(data)
    root = _root(data)
    listing = READERS[data.format].read(data, root, seed)
    if data.mask_values and listing.mask_values is None:
        raise ConfigError(
            f"data.mask_values is {data.mask_values}: format '{data.format}' says itself what "
            "its labels hold: leave it out"
        )
    if not data.lists and data.format not in ("scenes", "shards", "cityscapes"):
        lines = (*misleading_folders(root, parts_of(listing)), *_unused_lists(root))
        listing = replace(listing, notes=(*listing.notes, *lines))
    if data.lists:
        listing = _by_lists(listing, Path(data.lists).expanduser(), data.fold)
    elif "://" not in str(data.root):
        names = [sample.name for part in parts_of(listing).values() for sample in part]
        listing = _with_near_duplicates(listing, root, names)
    if data.fold and not listing.folds:
        raise ConfigError(
            f"data.fold is {data.fold}: this set has no folds: leave it out, or make some with "
            "ccfnet-tf data split"
        )
    if data.label_map:
        listing = _mapped(listing, Path(data.label_map).expanduser())
    return listing


def read_parts(data: DataConfig, seed: int) -> Parts:
    """Lists every part; takes `data.val_share` of train where the set has no validation list.

    Args:
        data: Which set, and where.
        seed: Chooses the validation share (and which scenes are drawn).

    Raises:
        DataError: A folder that is missing, empty, not of the layout, or has unpaired files.
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
    try:
        refuse_unpaired(listing)
    except DataError as error:
        raise DataError(f"{error}{all_of_them(data)}", kind=error.kind) from error
    train, val = listing.train, listing.val
    if val is None:
        train, val = _take(listing, data.val_share, seed)
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
    """Returns part -> samples, without parts that are missing or empty."""
    parts = {"train": listing.train, "val": listing.val or (), "test": listing.test}
    return {part: samples for part, samples in parts.items() if samples}


def refuse_unpaired(listing: Listing) -> None:
    """Refuses a set with files that have no partner.

    Raises:
        DataError: The first of them, with the number of others.
    """
    if listing.unpaired:
        first, others = listing.unpaired[0], len(listing.unpaired) - 1
        more = f" (and {others} more such files)" if others else ""
        raise DataError(f"{first}{more}", kind=first.kind)


def all_of_them(data: DataConfig) -> str:
    """Returns, for the end of a message, the command that lists every fault of a set."""
    if not data.root:
        return ""
    return f"; all that is wrong: ccfnet-tf data check {shlex.quote(data.root)}"


def agreeing(load: Load) -> Load:
    """Returns `load` that refuses a sample whose image and label differ in size."""

    def checked(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image, label = load(sample)
        if image.shape[:2] != label.shape:
            turned = image.shape[1::-1] == label.shape
            hint = " (EXIF orientation of the image is applied: turn the mask too)"
            raise DataError(
                f"{sample.image}: {image.shape[1]}x{image.shape[0]} pixels, but its label "
                f"{sample.label} has {label.shape[1]}x{label.shape[0]}: they must agree"
                f"{hint if turned else ''}",
                kind="size",
            )
        return image, label

    return checked


def without_damage(load: Load) -> Load:
    """Returns `load` that gives a void sample in place of a damaged record: it counts nowhere."""

    def tolerant(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        try:
            return load(sample)
        except DamagedRecordError as error:
            return np.zeros((*error.size, 3), np.uint8), np.full(error.size, VOID, np.int32)

    return tolerant


def _root(data: DataConfig) -> Path:
    return Path(data.root).expanduser() if data.root else Path()


def _mapped(listing: Listing, path: Path) -> Listing:
    label_map = read_label_map(path, listing.taxonomy)

    def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image, label = listing.load(sample)
        return image, label_map.apply(label)

    def load_label(sample: Sample) -> np.ndarray:
        return label_map.apply(listing.load_label(sample))

    return replace(listing, taxonomy=label_map.taxonomy, load=load, load_label=load_label)


def _by_lists(listing: Listing, lists: Path, fold: int) -> Listing:
    """Returns the listing with the parts that list files name; what they leave out is out."""
    folds = sum(1 for _ in takewhile(_is_folder, (lists / f"fold_{k}" for k in count())))
    folder = lists / f"fold_{fold}"
    if not folder.is_dir() and not folds:
        folder = lists
    if "train" not in part_lists(folder):
        raise ConfigError(
            f"data.lists: {folder}: no train.txt in it: it holds train.txt, val.txt and test.txt "
            "(one name per line), or folders fold_0, fold_1, ... of such files, chosen by data.fold"
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
    """Returns the listing with the groups of copies that a folder names, where it names any."""
    path, notes = folder / NEAR_DUPLICATES, listing.notes
    if not path.is_file() and (folder / _OLD_NAME).is_file():
        path = folder / _OLD_NAME
        notes += (f"{path}: is called {NEAR_DUPLICATES} now, and goes with the next version",)
    if not path.is_file():
        return listing
    found = _read_near_duplicates(path, names)
    return replace(listing, near_duplicates={**listing.near_duplicates, **found}, notes=notes)


def _read_near_duplicates(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Reads groups of copies, one per line, names apart by tabs; `names` are those of the set."""
    spelled = {plain_name(name): name for name in names}
    groups = [line.split("\t") for _, line in read_names(path)]
    return {spelled.get(plain_name(name), name): group[0] for group in groups for name in group}


def _unused_lists(root: Path) -> tuple[str, ...]:
    """Returns a note on a folder of lists in a set, which split it only where it is named."""
    found = sorted(path.parent for path in root.glob("*/train.txt"))
    return tuple(
        f"{folder}: its lists of parts are not used; to split by them add --data.lists "
        f"{shlex.quote(str(folder))}"
        for folder in found
    )


def _is_folder(path: Path) -> bool:
    return path.is_dir()


def _take(
    listing: Listing, share: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Returns train and val, each in the listing's order; near-duplicates stay on one side."""
    train = listing.train
    wanted = max(1, round(share * len(train))) if share > 0 else 0
    groups: dict[str, list[str]] = {}
    for sample in train:
        groups.setdefault(listing.near_duplicates.get(sample.name, sample.name), []).append(
            sample.name
        )
    if wanted and len(groups) < 2:
        raise DataError(
            f"{train[0].name if train else 'training part'}: too few images to take "
            f"data.val_share {share} of them; add images or set data.val_share 0"
        )
    keys = list(groups)
    held: set[str] = set()
    for index in np.random.default_rng([seed, 1]).permutation(len(keys)):
        group = groups[keys[index]]
        if len(held) + len(group) <= wanted:
            held.update(group)
    if wanted and not held:  # groups, such as films, are all larger than the share
        held.update(groups[min(keys, key=lambda key: len(groups[key]))])
    return (
        tuple(sample for sample in train if sample.name not in held),
        tuple(sample for sample in train if sample.name in held),
    )
