"""Deals the images of a data set to folds of like content, copies on one side.

Shapes: N samples, U units (groups of samples that stay together), F features, K folds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.audit.problems import fingerprint
from ccfnet_tf.datasets.audit.scan import in_threads
from ccfnet_tf.datasets.audit.sequences import first_of, join, near_copies, thumbnail
from ccfnet_tf.datasets.base import Listing
from ccfnet_tf.datasets.splits import NEAR_DUPLICATES, agreeing, parts_of, refuse_unpaired
from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.io.new_folder import new_folder, refuse_existing
from ccfnet_tf.labels import Sample

_TRADES = 30_000
_AT_ONCE = 128


@dataclass(frozen=True)
class Split:
    """What `split` dealt.

    Attributes:
        folders: The K folders written, in the order of the folds.
        census: Counts over the test part of each fold.
        kept: Groups of two or more images that stay on one side.
        frames: Images that look like another frame of their sequence.
        absent: (fold, class id): the fold has no image of the class although there are K groups
            or more that show it.
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
    """Deals all samples of a set, of whatever part, to folds and writes the lists.

    `out/fold_k/test.txt` has the names of fold k, `train.txt` those of the others, as `data.lists`
    and `data.fold` take them. Stay on one side: near-duplicates that the layout knows, images of
    the same pixels, frames of a sequence (by name) that look alike, and groups of `group_of`.

    Args:
        listing: The set; its own division into parts is not kept.
        out: Folder to make for the lists; whole or not there.
        folds: Number of folds K.
        seed: Another seed gives another deal.
        group_of: Returns the group of each sample; a group stays on one side.
        workers: Threads; 0 takes one a core, 8 at most.
        advance: Called after each sample, in the caller's thread.

    Raises:
        ConfigError: `out` is there and not empty, or more folds than groups of images.
        DataError: A file that is missing or cannot be used.
        ResourceError: The lists cannot be written.
    """
    samples = tuple(sample for part in parts_of(listing).values() for sample in part)
    refuse_existing(out)
    refuse_unpaired(listing)
    _refuse_names(samples)
    named = [group_of(samples)] if group_of else []
    load, classes = agreeing(listing.load), len(listing.taxonomy.names)

    def look(sample: Sample) -> tuple[bytes, np.ndarray, Census]:
        image, label = load(sample)
        return fingerprint(image), thumbnail(image), Census.of(label, classes)

    prints: list[bytes] = []
    thumbnails: list[np.ndarray] = []
    counted: list[Census] = []
    for mark, small, census in in_threads(look, samples, workers):
        prints.append(mark)
        thumbnails.append(small)
        counted.append(census)
        advance()
    frames = near_copies(samples, np.array(thumbnails))
    pixels = np.array([census.pixels for census in counted])
    near_duplicates = [listing.near_duplicates.get(sample.name, sample.name) for sample in samples]
    groups = joined(near_duplicates, prints, frames, *named)
    units = max(groups) + 1
    if units < 2:
        raise ConfigError(
            f"{out}: all {len(samples)} images belong together (by --group-by, or as frames that "
            "look alike): one group cannot be dealt to folds"
        )
    if not 2 <= folds <= min(units, 100):
        raise ConfigError(
            f"--folds is {folds}: from 2 to {min(units, 100)} are possible: the set has "
            f"{units} images (or groups of images that stay together)"
        )
    where = deal(np.hstack([pixels, pixels > 0]), groups, folds, seed)
    made = f"data split --folds {folds} --seed {seed}"
    with new_folder(out) as folder:
        for k in range(folds):
            head = f"# Fold {k} of 0..{folds - 1}: {made}"
            _write(folder / f"fold_{k}", samples, where == k, head)
        _write_near_duplicates(folder, samples, groups)
    return Split(
        tuple(out / f"fold_{k}" for k in range(folds)),
        tuple(_sum(counted, where == k, classes) for k in range(folds)),
        int((np.bincount(groups) > 1).sum()),
        int((np.bincount(frames)[frames] > 1).sum()),
        tuple(gaps(pixels, groups, where, folds)),
    )


def joined(*keys: Sequence[Hashable]) -> list[int]:
    """Returns a group for each sample: 0, 1, ... in order of first appearance.

    Args:
        keys: One or more keys for each sample; samples that share one are in one group, and so
            are those that such groups connect.
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
    """Deals samples to folds of equal size and like features; the same seed gives the same deal.

    From a seeded random deal, two units trade places whenever that brings their folds closer
    together in the share they have of each feature. A fold may still lack a feature which K units
    or more have (features a, b and c in units ab, bc and ca, two folds); `gaps` tells which.

    Args:
        features: float or int [N, F], 0 or more: what shall be balanced, such as the pixels of
            each class, and whether a class is there.
        groups: N numbers 0..U-1; samples of one number, a unit, are in one fold.
        folds: Number of folds K, U at most.
        seed: Chooses the first deal and the trades.

    Returns:
        int [N], the fold of each sample. Sizes differ by 1 at most where units allow it.
    """
    rng = np.random.default_rng(seed)
    size, weight = _units(features, groups, folds)
    large = sorted(np.flatnonzero(size > 1), key=lambda unit: -size[unit])
    small = np.flatnonzero(size == 1)
    order = np.array([*large, *small[rng.permutation(len(small))]], np.int64)
    table = _Table(size[order], weight[order], folds)
    table.level()
    units = len(order)
    trades = max(_TRADES, 10 * units)
    for first in range(0, trades, _AT_ONCE):
        table.trade(rng.integers(units, size=(min(_AT_ONCE, trades - first), 2)))
    fold_of_unit = np.empty(units, np.int64)
    fold_of_unit[order] = table.where
    return fold_of_unit[np.asarray(groups)]


def gaps(
    features: np.ndarray, groups: Sequence[int], where: np.ndarray, folds: int
) -> list[tuple[int, int]]:
    """Returns (fold, feature) of the folds that lack a feature which K units or more have."""
    shown = _units(features, groups, folds)[1] > 0
    fold_of_unit = np.empty(len(shown), np.int64)
    fold_of_unit[np.asarray(groups)] = where
    have = np.array([shown[fold_of_unit == k].sum(axis=0) for k in range(folds)])
    lacking = np.argwhere((have == 0) & (shown.sum(axis=0) >= folds))
    return [(int(fold), int(feature)) for fold, feature in lacking]


def _units(
    features: np.ndarray, groups: Sequence[int], folds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns sizes int64 [U] and features float64 [U, F] of units; 1 a fold would be perfect."""
    total = features.sum(axis=0, dtype=np.float64)
    scaled = features / np.where(total > 0, total / folds, 1)
    size = np.bincount(groups)
    weight = np.zeros((len(size), features.shape[1]))
    np.add.at(weight, np.asarray(groups), scaled)
    return size.astype(np.int64), weight


class _Pairs(NamedTuple):
    """Trades to weigh against each other: unit `a` of fold `f` against unit `b` of fold `g`."""

    a: np.ndarray
    b: np.ndarray
    f: np.ndarray
    g: np.ndarray


class _Table:
    """Units, dealt to folds.

    Attributes:
        where: int64 [U], the fold of each unit.
        sizes: int64 [K], samples in each fold.
        sums: float64 [K, F], features of each fold; all 1 would be perfect.
    """

    def __init__(self, size: np.ndarray, weight: np.ndarray, folds: int) -> None:
        """Deals the units in their order, large ones first, each to the smallest fold.

        The last, of size 1 and in random order, fill one fold after the other.
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
        """Moves and trades units as long as that makes the sizes of folds more equal."""
        while self.sizes.max() - self.sizes.min() > 1:
            # A unit that moves trades with nobody: a unit of size 0 in each fold stands for that.
            size = np.concatenate([self.size, np.zeros(self.folds, np.int64)])
            where = np.concatenate([self.where, np.arange(self.folds)])
            f, g = int(self.sizes.argmax()), int(self.sizes.argmin())
            ones, others = np.flatnonzero(where == f), np.flatnonzero(where == g)
            less = size[ones][:, None] - size[others][None]  # what fold f loses and g gains
            gap = int(self.sizes[f] - self.sizes[g])
            after = np.abs(gap - 2 * less)
            best = int(after.argmin())
            if after.flat[best] >= gap:
                break
            i, j = np.unravel_index(best, after.shape)
            for unit, fold in ((ones[i], g), (others[j], f)):
                if unit < len(self.size):
                    self._move(int(unit), fold)
        self.limits = (int(self.sizes.min()), int(self.sizes.max()))

    def trade(self, proposals: np.ndarray) -> None:
        """Does those of the trades int [M, 2] that help, one after the other."""
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
        """Returns bool [M]: two folds, whose sizes stay within those of the levelled deal."""
        grows = self.size[pairs.b] - self.size[pairs.a]
        low, high = self.limits
        allowed = pairs.f != pairs.g
        for after in (self.sizes[pairs.f] + grows, self.sizes[pairs.g] - grows):
            allowed &= (low <= after) & (after <= high)
        return np.asarray(allowed)

    def _gain(self, pairs: _Pairs) -> np.ndarray:
        """Returns float64 [M]: by how much the squared distance of the folds from 1 changes."""
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
    """Refuses names that cannot stand in a list."""
    for sample in samples:
        name = sample.name
        lines = len(name.splitlines())
        if name.startswith("#") or name != name.strip() or lines != 1 or "\t" in name:
            raise DataError(
                f"{sample.image}: the name {name!r} cannot stand in a list of names: it begins "
                "with #, has a blank at an end, a tab or a line break; rename the image"
            )


def _write(folder: Path, samples: Sequence[Sample], tested: np.ndarray, made: str) -> None:
    rule = "class shares balanced, copies on one side"
    folder.mkdir()
    for part, chosen in (("train", ~tested), ("test", tested)):
        names = [sample.name for sample, taken in zip(samples, chosen, strict=True) if taken]
        head = f"{made}; {len(names)} of {len(samples)} images, {rule}."
        lines = "".join(f"{line}\n" for line in (head, *names))
        (folder / f"{part}.txt").write_text(lines, encoding="utf-8", newline="\n")


def _write_near_duplicates(folder: Path, samples: Sequence[Sample], groups: Sequence[int]) -> None:
    """Writes which samples stay on one side where a validation share of a fold is taken."""
    members: dict[int, list[str]] = {}
    for sample, group in zip(samples, groups, strict=True):
        members.setdefault(group, []).append(sample.name)
    lines = ["\t".join(names) + "\n" for names in members.values() if len(names) > 1]
    (folder / NEAR_DUPLICATES).write_text("".join(lines), encoding="utf-8", newline="\n")


def _sum(counted: Sequence[Census], chosen: np.ndarray, classes: int) -> Census:
    of_fold = (census for census, taken in zip(counted, chosen, strict=True) if taken)
    return sum(of_fold, Census.empty(classes))
