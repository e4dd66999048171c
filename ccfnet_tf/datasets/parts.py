"""The parts of a data set, whatever its layout, and how its samples become arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig, DataFormat
from ccfnet_tf.datasets.label_map import read_label_map
from ccfnet_tf.datasets.layouts import READERS, detect
from ccfnet_tf.datasets.listing import Listing, Load, LoadLabel
from ccfnet_tf.datasets.name_lists import read_names
from ccfnet_tf.errors import ConfigError, DataError, nearest
from ccfnet_tf.labels import Sample, Taxonomy


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
        load_label: Reads its label alone.
    """

    format: DataFormat
    taxonomy: Taxonomy
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    load: Load
    load_label: LoadLabel

    def __post_init__(self) -> None:
        if not self.train:
            raise DataError(f"{self.format}: the training part is empty; add pictures to it")


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
    listing = READERS[data.format].read(data, _root(data), seed)
    if data.lists:
        listing = _by_lists(listing, Path(data.lists).expanduser(), data.fold)
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
    """
    data = with_format(data)
    listing = list_set(data, seed)
    if listing.unpaired:
        others = len(listing.unpaired) - 1
        more = f" (and {others} more such files)" if others else ""
        raise DataError(f"{listing.unpaired[0]}{more}", kind="missing")
    train, val = listing.train, listing.val
    if val is None:
        train, val = _take(listing, data.val_share, seed)
    load = agreeing(listing.load)
    return Parts(data.format, listing.taxonomy, train, val, listing.test, load, listing.load_label)


def agreeing(load: Load) -> Load:
    """Returns `load` that refuses a sample whose image and label differ in size."""

    def checked(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image, label = load(sample)
        if image.shape[:2] != label.shape:
            turned = image.shape[1::-1] == label.shape
            hint = " (EXIF orientation of the picture is applied: turn the mask too)"
            raise DataError(
                f"{sample.image}: {image.shape[1]}x{image.shape[0]} pixels, but its label "
                f"{sample.label} has {label.shape[1]}x{label.shape[0]}: they must agree"
                f"{hint if turned else ''}",
                kind="size",
            )
        return image, label

    return checked


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
    """Returns the listing with the parts that list files name."""
    folder = lists / f"fold_{fold}" if (lists / "fold_0").is_dir() else lists
    if not (folder / "train.txt").is_file():
        raise ConfigError(
            f"data.lists: {folder}: no train.txt in it: it holds train.txt, val.txt and test.txt "
            "(a name a line), or folders fold_0, fold_1, ... of such files, chosen by data.fold"
        )
    known = {s.name: s for s in (*listing.train, *(listing.val or ()), *listing.test)}
    parts: dict[str, tuple[Sample, ...]] = {}
    taken: dict[str, str] = {}
    for part in ("train", "val", "test"):
        path = folder / f"{part}.txt"
        if not path.is_file():
            continue
        rows = read_names(path)
        for line, name in rows:
            if name not in known:
                hint = nearest(name, known)
                raise DataError(f"{path}: line {line}: '{name}' is no sample of the set{hint}")
            if name in taken:
                raise DataError(f"{path}: line {line}: '{name}' is in {taken[name]} already")
            taken[name] = path.name
        parts[part] = tuple(known[name] for _, name in rows)
    return replace(
        listing,
        train=parts["train"],
        val=parts.get("val"),
        test=parts.get("test", ()),
        folds=len(list(lists.glob("fold_*/train.txt"))),
    )


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
