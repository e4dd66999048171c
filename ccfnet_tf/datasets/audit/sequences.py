"""Groups of related images: groups given by the user, and frames of a video.

Frames of a video are near-duplicates of each other. If some are in the training split and others in
the test split, the test measures memorisation. They are recognised by names with a prefix and a
counter, as in `0001TP_006690.png`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ccfnet_tf.datasets.class_and_split_lists import plain_name
from ccfnet_tf.datasets.split_names import part_of
from ccfnet_tf.errors import ConfigError, nearest, unreadable
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.labels import Sample

BY_PREFIX = r"([^/]*?)[0-9]+[^/0-9]*$"
"""Matches the file name up to its last number."""
BY_FOLDER = "^(.*)/"

_HEADER_NAMES = frozenset(("name", "path", "file", "filename", "picture", "image", "sample"))
_MIN_SEQUENCE = 3  # minimum number of images in a sequence
_SIDE = 16  # pixels of a thumbnail
_WINDOW = 25  # number of following frames that a frame is compared with

# Thresholds for the mean difference of thumbnails in grey levels and for their correlation. Five
# pairs of the 2688 unrelated images with numbered names in SIFT Flow pass them; an image shifted by
# 1 % of the width passes.
_DIFFERENCE, _CORRELATION, _EQUAL = 8.0, 0.97, 2.0


@dataclass(frozen=True)
class Frame:
    """Position of an image in a sequence, derived from its name.

    Attributes:
        sequence: Folder and name with `*` for the last number. Folders named after splits are
            dropped, because a video may be in several splits.
        number: The last number in the name.
    """

    sequence: str
    number: int


def frame_of(name: str) -> Frame | None:
    """Parses the name of a sample; returns None if it has no number."""
    *folders, last = name.split("/")
    counter = re.fullmatch(r"(.*?)([0-9]+)([^0-9]*)", last)
    if counter is None:
        return None
    kept = [folder for folder in folders if part_of(folder) is None]
    return Frame("/".join([*kept, f"{counter[1]}*{counter[3]}"]), int(counter[2]))


def sequences(samples: Sequence[Sample]) -> list[list[int]]:
    """Returns the ordered sample indices of each sequence of three or more images."""
    found: dict[str, list[tuple[int, int]]] = {}
    for index, sample in enumerate(samples):
        if frame := frame_of(sample.name):
            found.setdefault(frame.sequence, []).append((frame.number, index))
    return [[i for _, i in sorted(each)] for each in found.values() if len(each) >= _MIN_SEQUENCE]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Returns an image, uint8 [H, W, 3], downscaled to float32 [16 * 16 * 3]."""
    small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32).ravel()


def near_copies(samples: Sequence[Sample], thumbnails: np.ndarray) -> list[int]:
    """Groups similar frames of the same sequence.

    Args:
        samples: N samples.
        thumbnails: float32 [N, P], results of `thumbnail`.

    Returns:
        A group key for each sample.
    """
    group = list(range(len(samples)))
    for frames in sequences(samples):
        for ahead in range(1, min(_WINDOW, len(frames) - 1) + 1):
            ones, others = np.array(frames[:-ahead]), np.array(frames[ahead:])
            near = alike(thumbnails[ones], thumbnails[others])
            for one, other in zip(ones[near].tolist(), others[near].tolist(), strict=True):
                join(group, one, other)
    return [first_of(group, index) for index in range(len(group))]


def hint(samples: Sequence[Sample]) -> str:
    """Returns a hint on grouping if the names look like those of video frames; else empty."""
    found = sequences(samples)
    if len(found) < 2 or 2 * sum(map(len, found)) < len(samples):
        return ""
    names = sorted({samples[frames[0]].name.rpartition("/")[2] for frames in found})
    stems = {re.sub(r"[0-9]+[^0-9]*$", "", name) for name in names}
    by = BY_PREFIX if len(stems) > 1 else BY_FOLDER
    longest = max(found, key=len)
    return (
        f"the names look like frames of {len(found)} sequences, such as the {len(longest)} images "
        f"like '{samples[longest[0]].name}': if they are video frames, keep each video in one fold "
        f"with --group-by '{by}' (a regular expression for the path), or --group-by FILE.csv"
    )


def groups_of(by: str, samples: Sequence[Sample], root: Path) -> list[str]:
    """Returns the group of each sample.

    Args:
        by: A regular expression that is searched in the path of each image below `root`. The text
            of its capturing groups, or of the match if it has none, is the group. Or the path of a
            CSV file with the columns image and group.
        samples: The samples.
        root: Folder of the set.

    Raises:
        ConfigError: `by` is neither, or an image has no group.
    """
    if by.casefold().endswith(".csv"):
        return _by_table(expanded(by), samples, root)
    try:
        pattern = re.compile(by)
    except re.error as error:
        raise ConfigError(
            f"--group-by '{by}': not a valid regular expression ({error}): correct it; a bracket "
            "in a name is written \\("
        ) from error
    paths = [_below(sample, root) for sample in samples]
    matches = [pattern.search(path) for path in paths]
    unmatched = [path for path, match in zip(paths, matches, strict=True) if match is None]
    if unmatched:
        more = f" and {len(unmatched) - 1} more" if len(unmatched) > 1 else ""
        raise ConfigError(
            f"--group-by '{by}': does not match '{unmatched[0]}'{more} of {len(paths)} paths: "
            "every image needs a group: change the expression, or give a CSV file with lines "
            "IMAGE,VIDEO"
        )
    return ["\t".join(m.groups("") or [m[0]]) for m in matches if m is not None]


def _by_table(path: Path, samples: Sequence[Sample], root: Path) -> list[str]:
    known = _spellings(samples, root)
    groups: dict[int, str] = {}
    for line, row in enumerate(_rows(path), start=1):
        if len(row) < 2 or not row[1].strip():
            raise ConfigError(f"{path}: line {line}: expected an image and its group, as in `a,1`")
        name = plain_name(row[0].strip())
        if name not in known:
            if line == 1 and name.casefold() in _HEADER_NAMES:
                continue
            suggestion = nearest(name, known)
            raise ConfigError(
                f"{path}: line {line}: '{name}' is not an image of the set{suggestion}"
            )
        index = known[name]
        if groups.setdefault(index, row[1].strip()) != row[1].strip():
            raise ConfigError(
                f"{path}: line {line}: '{name}' is already in group '{groups[index]}'"
            )
    for index, sample in enumerate(samples):
        if index not in groups:
            raise ConfigError(f"{path}: '{sample.name}' is not listed: every image needs a group")
    return [groups[index] for index in range(len(samples))]


def _rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(
            f"--group-by {path}: no such file: give a CSV file with lines IMAGE,VIDEO, or a "
            "regular expression"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--group-by {path}: {unreadable(error)}") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        return [
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row
        ]
    except csv.Error as error:
        raise ConfigError(f"--group-by {path}: not a CSV file ({error})") from error


def _spellings(samples: Sequence[Sample], root: Path) -> Mapping[str, int]:
    """Returns every accepted spelling of an image -> its index."""
    spellings: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        path = _below(sample, root)
        names = {sample.name, sample.name + Path(path).suffix, path, path.rpartition(".")[0]}
        names |= {name.rpartition("/")[2] for name in names}
        for name in map(plain_name, names):
            spellings.setdefault(name, []).append(index)
    exact = {plain_name(sample.name): index for index, sample in enumerate(samples)}
    return {name: found[0] for name, found in spellings.items() if len(found) == 1} | exact


def _below(sample: Sample, root: Path) -> str:
    try:
        return Path(sample.image).relative_to(root).as_posix()
    except ValueError:
        return sample.image


def alike(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns which pairs of thumbnails are near-copies, bool [M].

    Args:
        ones: float32 [M, P], results of `thumbnail`; or [1, P], which is compared with each other.
        others: float32 [M, P].
    """
    difference = np.abs(ones - others).mean(axis=1)
    one, other = (each - each.mean(axis=1, keepdims=True) for each in (ones, others))
    scale = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    correlation = (one * other).sum(axis=1) / np.maximum(scale, 1e-6)
    near = (difference <= _DIFFERENCE) & (correlation >= _CORRELATION)
    return np.asarray(near | (difference <= _EQUAL))


def first_of(group: list[int], index: int) -> int:
    """Returns the root of an index in the union-find structure `group`, with path compression."""
    while group[index] != index:
        group[index] = group[group[index]]
        index = group[index]
    return index


def join(group: list[int], one: int, other: int) -> None:
    """Merges the groups of two indices."""
    low, high = sorted((first_of(group, one), first_of(group, other)))
    group[high] = low
