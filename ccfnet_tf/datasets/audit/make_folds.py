"""Splits a data set into stratified folds and keeps near-duplicates in one fold.

Shapes: N samples, U units (groups of samples that stay together), F features, K folds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.audit.find_problems import fingerprint
from ccfnet_tf.datasets.audit.sequences import first_of, join, near_copies, thumbnail
from ccfnet_tf.datasets.open_data_set import NEAR_DUPLICATES, agreeing, parts_of, refuse_unpaired
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.io.in_threads import in_threads
from ccfnet_tf.io.new_folder import new_folder, refuse_existing
from ccfnet_tf.labels import Sample

_MIN_SWAPS = 30_000
_BATCH = 128


@dataclass(frozen=True)
class Split:
    """Result of `split`.

    Attributes:
        folders: The K folders written, in the order of the folds.
        census: Class counts over the test split of each fold.
        kept: Number of groups of two or more images, each kept in one fold.
        frames: Number of images that look like another frame of their sequence.
        absent: Pairs (fold, class id) of a fold without any image of the class, although K or more
            groups contain it.
    """

    folders: tuple[Path, ...]
    census: tuple[Census, ...]
    kept: int
    frames: int
    absent: tuple[tuple[int, int], ...]


def split(
    listing: Listing,
    out: Path,
    *,
    folds: int,
    seed: int,
    group_of: Callable[[Sequence[Sample]], list[str]] | None = None,
    workers: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Split:
    """Assigns all samples of a set to folds and writes the split lists.

    `out/fold_k/test.txt` lists the names of fold k, `train.txt` those of the other folds, in the
    form that `data.lists` and `data.fold` read. Kept in one fold are near-duplicates that the
    layout defines, identical images, similar frames of a sequence (by name), and groups of
    `group_of`.

    Args:
        listing: The set. Its own splits are merged.
        out: Folder to create for the lists. It appears only once it is complete.
        folds: Number of folds K.
        seed: Seed of the assignment.
        group_of: Returns the group of each sample; a group is kept in one fold.
        workers: Number of threads; 0 uses one per core, at most 8.
        advance: Called after each sample, in the thread of the caller.

    Raises:
        ConfigError: `out` exists and is not empty, or there are more folds than groups of images.
        DataError: A file is missing or cannot be used.
        ResourceError: The lists cannot be written.
    """
    samples = tuple(sample for part in parts_of(listing).values() for sample in part)
    refuse_existing(out)
    refuse_unpaired(listing)
    _refuse_names(samples)
    named = [group_of(samples)] if group_of else []
    fingerprints, thumbnails, counted = _scanned(listing, samples, workers, advance)
    frames = near_copies(samples, np.array(thumbnails))
    pixels = np.array([census.pixels for census in counted])
    near_duplicates = [listing.near_duplicates.get(sample.name, sample.name) for sample in samples]
    groups = joined(near_duplicates, fingerprints, frames, *named)
    _check_folds(folds, max(groups) + 1, len(samples), out)
    where = deal(np.hstack([pixels, pixels > 0]), groups, folds, seed)
    command = f"data split --folds {folds} --seed {seed}"
    with new_folder(out) as folder:
        for k in range(folds):
            head = f"# Fold {k} of 0..{folds - 1}: {command}"
            _write(folder / f"fold_{k}", samples, where == k, head)
        _write_near_duplicates(folder, samples, groups)
    return Split(
        tuple(out / f"fold_{k}" for k in range(folds)),
        tuple(_sum(counted, where == k, len(listing.taxonomy.names)) for k in range(folds)),
        int((np.bincount(groups) > 1).sum()),
        int((np.bincount(frames)[frames] > 1).sum()),
        tuple(gaps(pixels, groups, where, folds)),
    )


def _scanned(
    listing: Listing, samples: Sequence[Sample], workers: int, advance: Callable[[], None]
) -> tuple[list[bytes], list[np.ndarray], list[Census]]:
    """Reads every sample once; returns their fingerprints, thumbnails and class counts."""
    load, classes = agreeing(listing.load), len(listing.taxonomy.names)

    def scan(sample: Sample) -> tuple[bytes, np.ndarray, Census]:
        image, label = load(sample)
        return fingerprint(image), thumbnail(image), Census.of(label, classes)

    fingerprints: list[bytes] = []
    thumbnails: list[np.ndarray] = []
    counted: list[Census] = []
    for image_fingerprint, small, census in in_threads(scan, samples, workers):
        fingerprints.append(image_fingerprint)
        thumbnails.append(small)
        counted.append(census)
        advance()
    return fingerprints, thumbnails, counted


def _check_folds(folds: int, units: int, images: int, out: Path) -> None:
    """Checks that the groups of images can be divided into that many folds."""
    if units < 2:
        raise ConfigError(
            f"{out}: all {images} images are in one group (by --group-by, or as similar "
            "frames): one group cannot be split into folds"
        )
    if not 2 <= folds <= min(units, 100):
        raise ConfigError(
            f"--folds is {folds}: expected 2 to {min(units, 100)}: the set has {units} images (or "
            "groups of images that stay together)"
        )


def joined(*keys: Sequence[Hashable]) -> list[int]:
    """Merges groupings; returns a group number for each sample, in order of first appearance.

    Args:
        keys: One or more sequences of keys, one key per sample. Samples that share a key are in one
            group, transitively.
    """
    group = list(range(len(keys[0])))
    for column in keys:
        first: dict[Hashable, int] = {}
        for index, key in enumerate(column):
            join(group, index, first.setdefault(key, index))
    number: dict[int, int] = {}
    firsts = (first_of(group, index) for index in range(len(group)))
    return [number.setdefault(each, len(number)) for each in firsts]


def deal(features: np.ndarray, groups: Sequence[int], folds: int, seed: int) -> np.ndarray:
    """Assigns samples to folds of equal size with balanced features.

    Starting from a seeded random assignment, units of two folds are swapped whenever that makes the
    feature shares of the folds more equal. A fold may still lack a feature that K or more units
    have (for example features a, b and c in the units ab, bc and ca, with two folds); see `gaps`.
    The same seed gives the same result.

    Args:
        features: float or int [N, F], non-negative quantities to balance, such as the pixels of
            each class and whether a class occurs.
        groups: N numbers 0..U-1. Samples with the same number form a unit and are in one fold.
        folds: Number of folds K, at most U.
        seed: Seed of the initial assignment and of the swaps.

    Returns:
        int [N], the fold of each sample. Fold sizes differ by at most 1 if the units allow it.
    """
    rng = np.random.default_rng(seed)
    size, weight = _units(features, groups, folds)
    large = sorted(np.flatnonzero(size > 1), key=lambda unit: -size[unit])
    small = np.flatnonzero(size == 1)
    order = np.array([*large, *small[rng.permutation(len(small))]], np.int64)
    assignment = _Assignment(size[order], weight[order], folds)
    assignment.level()
    units = len(order)
    swaps = max(_MIN_SWAPS, 10 * units)
    for first in range(0, swaps, _BATCH):
        assignment.swap_if_better(rng.integers(units, size=(min(_BATCH, swaps - first), 2)))
    fold_of_unit = np.empty(units, np.int64)
    fold_of_unit[order] = assignment.where
    return fold_of_unit[np.asarray(groups)]


def gaps(
    features: np.ndarray, groups: Sequence[int], where: np.ndarray, folds: int
) -> list[tuple[int, int]]:
    """Returns pairs (fold, feature) where a fold lacks a feature that K or more units have."""
    shown = _units(features, groups, folds)[1] > 0
    fold_of_unit = np.empty(len(shown), np.int64)
    fold_of_unit[np.asarray(groups)] = where
    have = np.array([shown[fold_of_unit == k].sum(axis=0) for k in range(folds)])
    lacking = np.argwhere((have == 0) & (shown.sum(axis=0) >= folds))
    return [(int(fold), int(feature)) for fold, feature in lacking]


def _units(
    features: np.ndarray, groups: Sequence[int], folds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns sizes int64 [U] and features float64 [U, F] of the units, scaled to 1 per fold."""
    total = features.sum(axis=0, dtype=np.float64)
    scaled = features / np.where(total > 0, total / folds, 1)
    size = np.bincount(groups)
    weight = np.zeros((len(size), features.shape[1]))
    np.add.at(weight, np.asarray(groups), scaled)
    return size.astype(np.int64), weight


class _Pairs(NamedTuple):
    """Candidate swaps of unit `a` in fold `f` with unit `b` in fold `g`, each int64 [M]."""

    a: np.ndarray
    b: np.ndarray
    f: np.ndarray
    g: np.ndarray


class _Assignment:
    """Assignment of units to folds.

    Attributes:
        where: int64 [U], the fold of each unit.
        sizes: int64 [K], number of samples in each fold.
        sums: float64 [K, F], feature sums of each fold; 1 is the ideal.
    """

    def __init__(self, size: np.ndarray, weight: np.ndarray, folds: int) -> None:
        """Assigns each unit in order to the smallest fold, large units first.

        Units of size 1 come last, in random order, and fill one fold after the other.
        """
        self.size, self.weight, self.folds = size, weight, folds
        sizes = [0] * folds
        chosen = []
        for each in size.tolist():
            fold = min(range(folds), key=sizes.__getitem__)
            chosen.append(fold)
            sizes[fold] += each
        large = int((size > 1).sum())
        self.where = np.array(chosen[:large] + sorted(chosen[large:]), np.int64)
        self.sizes = np.array(sizes, np.int64)
        self.sums = np.array([weight[self.where == k].sum(axis=0) for k in range(folds)])
        self.limits = (min(sizes), max(sizes))

    def level(self) -> None:
        """Moves and swaps units as long as that makes the fold sizes more equal."""
        while self.sizes.max() - self.sizes.min() > 1:
            # A move is a swap with an empty unit: each fold gets one of size 0.
            size = np.concatenate([self.size, np.zeros(self.folds, np.int64)])
            where = np.concatenate([self.where, np.arange(self.folds)])
            f, g = int(self.sizes.argmax()), int(self.sizes.argmin())
            units_f, units_g = np.flatnonzero(where == f), np.flatnonzero(where == g)
            less = (
                size[units_f][:, None] - size[units_g][None]
            )  # change in size of fold g, and of f with opposite sign
            gap = int(self.sizes[f] - self.sizes[g])
            after = np.abs(gap - 2 * less)
            best = int(after.argmin())
            if after.flat[best] >= gap:
                break
            i, j = np.unravel_index(best, after.shape)
            for unit, fold in ((units_f[i], g), (units_g[j], f)):
                if unit < len(self.size):
                    self._move(int(unit), fold)
        self.limits = (int(self.sizes.min()), int(self.sizes.max()))

    def swap_if_better(self, proposals: np.ndarray) -> None:
        """Applies the proposed swaps, int [M, 2], that improve the balance, one after the other."""
        while len(proposals):
            pairs = self._pairs(proposals[:, 0], proposals[:, 1])
            better = self._allowed(pairs)
            better[better] = self._gain(_Pairs(*(side[better] for side in pairs))) < 0
            if not better.any():
                return
            chosen = int(better.argmax())
            self._swap(pairs.a[chosen], pairs.b[chosen])
            proposals = proposals[chosen + 1 :]

    def _pairs(self, a: np.ndarray, b: np.ndarray) -> _Pairs:
        return _Pairs(a, b, self.where[a], self.where[b])

    def _allowed(self, pairs: _Pairs) -> np.ndarray:
        """Returns bool [M]: the folds differ and their sizes stay within the limits of `level`."""
        grows = self.size[pairs.b] - self.size[pairs.a]
        low, high = self.limits
        allowed = pairs.f != pairs.g
        for after in (self.sizes[pairs.f] + grows, self.sizes[pairs.g] - grows):
            allowed &= (low <= after) & (after <= high)
        return np.asarray(allowed)

    def _gain(self, pairs: _Pairs) -> np.ndarray:
        """Returns float64 [M], the change in squared distance of the two folds from the ideal."""
        change = self.weight[pairs.b] - self.weight[pairs.a]
        f, g = self.sums[pairs.f] - 1, self.sums[pairs.g] - 1
        after = (f + change) ** 2 + (g - change) ** 2
        return np.asarray(after.sum(axis=1) - (f**2 + g**2).sum(axis=1))

    def _swap(self, a: int, b: int) -> None:
        f, g = self.where[a], self.where[b]
        self._move(a, g)
        self._move(b, f)

    def _move(self, unit: int, fold: int) -> None:
        for sign, place in ((-1, self.where[unit]), (1, fold)):
            self.sizes[place] += sign * self.size[unit]
            self.sums[place] += sign * self.weight[unit]
        self.where[unit] = fold


def _refuse_names(samples: Sequence[Sample]) -> None:
    """Raises DataError for names that a list file cannot represent."""
    for sample in samples:
        name = sample.name
        lines = len(name.splitlines())
        if name.startswith("#") or name != name.strip() or lines != 1 or "\t" in name:
            raise DataError(
                f"{sample.image}: the name {name!r} is not allowed in a list: it starts with #, "
                "starts or ends with a space, or has a tab or a line break; rename the image"
            )


def _write(folder: Path, samples: Sequence[Sample], tested: np.ndarray, command: str) -> None:
    rule = "class shares balanced, copies on one side"
    folder.mkdir()
    for part, chosen in (("train", ~tested), ("test", tested)):
        names = [sample.name for sample, taken in zip(samples, chosen, strict=True) if taken]
        head = f"{command}; {len(names)} of {len(samples)} images, {rule}."
        lines = "".join(f"{line}\n" for line in (head, *names))
        (folder / f"{part}.txt").write_text(lines, encoding="utf-8", newline="\n")


def _write_near_duplicates(folder: Path, samples: Sequence[Sample], groups: Sequence[int]) -> None:
    """Writes the groups, so that the validation share of a fold keeps them together as well."""
    members: dict[int, list[str]] = {}
    for sample, group in zip(samples, groups, strict=True):
        members.setdefault(group, []).append(sample.name)
    lines = ["\t".join(names) + "\n" for names in members.values() if len(names) > 1]
    (folder / NEAR_DUPLICATES).write_text("".join(lines), encoding="utf-8", newline="\n")


def _sum(counted: Sequence[Census], chosen: np.ndarray, classes: int) -> Census:
    of_fold = (census for census, taken in zip(counted, chosen, strict=True) if taken)
    return sum(of_fold, Census.empty(classes))
