"""Images that belong together: groups that the user names, and frames of one film.

Frames of a film are as good as copies of each other: where some are trained on and others tested,
the test measures memory. Their names show it, a prefix and a counter, as in `0001TP_006690.png`.
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

from ccfnet_tf.datasets.name_lists import plain_name
from ccfnet_tf.datasets.split_names import part_of
from ccfnet_tf.errors import ConfigError, nearest
from ccfnet_tf.labels import Sample

BY_PREFIX = r"([^/]*?)[0-9]+[^/0-9]*$"
"""Takes the file name up to its last number."""
BY_FOLDER = "^(.*)/"

_HEADS = frozenset(("name", "path", "file", "filename", "picture", "image", "sample"))
_FEWEST = 3  # images that make a sequence
_SIDE = 16  # pixels of a thumbnail
_WINDOW = 25  # frames ahead that a frame is compared with

# Mean difference of thumbnails in grey levels and their correlation. Among 2688 unrelated images
# with numbered names (SIFT Flow) five pairs come below; a shift by 1 % of the width stays below.
_DIFFERENCE, _CORRELATION, _EQUAL = 8.0, 0.97, 2.0


@dataclass(frozen=True)
class Frame:
    """Where an image stands in a sequence, by its name.

    Attributes:
        sequence: Folder and name with `*` for the last number; folders named after parts are left
            out, since a film may be in several.
        number: The last number of the name.
    """

    sequence: str
    number: int


def frame_of(name: str) -> Frame | None:
    """Returns the place that a sample's name tells; None without a number in it."""
    *folders, last = name.split("/")
    counter = re.fullmatch(r"(.*?)([0-9]+)([^0-9]*)", last)
    if counter is None:
        return None
    kept = [folder for folder in folders if part_of(folder) is None]
    return Frame("/".join([*kept, f"{counter[1]}*{counter[3]}"]), int(counter[2]))


def sequences(samples: Sequence[Sample]) -> list[list[int]]:
    """Returns the samples, by index and in order, of each sequence of three or more."""
    found: dict[str, list[tuple[int, int]]] = {}
    for index, sample in enumerate(samples):
        if frame := frame_of(sample.name):
            found.setdefault(frame.sequence, []).append((frame.number, index))
    return [[i for _, i in sorted(each)] for each in found.values() if len(each) >= _FEWEST]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Returns float32 [16 * 16 * 3], an image uint8 [H, W, 3] made small."""
    small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32).ravel()


def near_copies(samples: Sequence[Sample], thumbnails: np.ndarray) -> list[int]:
    """Returns a key for each sample; frames of a sequence that look alike share one.

    Args:
        samples: N samples.
        thumbnails: float32 [N, P], what `thumbnail` returned.
    """
    group = list(range(len(samples)))
    for frames in sequences(samples):
        for ahead in range(1, min(_WINDOW, len(frames) - 1) + 1):
            ones, others = np.array(frames[:-ahead]), np.array(frames[ahead:])
            alike = _alike(thumbnails[ones], thumbnails[others])
            for one, other in zip(ones[alike].tolist(), others[alike].tolist(), strict=True):
                join(group, one, other)
    return [first_of(group, index) for index in range(len(group))]


def hint(samples: Sequence[Sample]) -> str:
    """Returns a line on how to keep films together, where names look like those of frames."""
    found = sequences(samples)
    if len(found) < 2 or 2 * sum(map(len, found)) < len(samples):
        return ""
    names = sorted({samples[frames[0]].name.rpartition("/")[2] for frames in found})
    stems = {re.sub(r"[0-9]+[^0-9]*$", "", name) for name in names}
    by = BY_PREFIX if len(stems) > 1 else BY_FOLDER
    longest = max(found, key=len)
    return (
        f"names look like those of {len(found)} sequences, such as the {len(longest)} images "
        f"like '{samples[longest[0]].name}': if they are frames of films, keep each film on one "
        f"side with --group-by '{by}' (a regular expression on the path), or --group-by FILE.csv"
    )


def groups_of(by: str, samples: Sequence[Sample], root: Path) -> list[str]:
    """Returns the group of each sample.

    Args:
        by: A regular expression that is searched in the path of each image below `root`: what its
            groups match, or all that it matches without groups, is the group. Or a CSV file of
            image and group.
        samples: The samples.
        root: Folder of the set.

    Raises:
        ConfigError: Neither, or an image that it says nothing about.
    """
    if by.casefold().endswith(".csv"):
        return _by_table(Path(by).expanduser(), samples, root)
    try:
        pattern = re.compile(by)
    except re.error as error:
        raise ConfigError(f"--group-by '{by}': no regular expression ({error})") from error
    paths = [_below(sample, root) for sample in samples]
    matches = [pattern.search(path) for path in paths]
    lonely = [path for path, match in zip(paths, matches, strict=True) if match is None]
    if lonely:
        more = f" and {len(lonely) - 1} more" if len(lonely) > 1 else ""
        raise ConfigError(
            f"--group-by '{by}': does not match '{lonely[0]}'{more} of {len(paths)} paths: every "
            "image needs a group"
        )
    return ["\t".join(m.groups("") or [m[0]]) for m in matches if m is not None]


def _by_table(path: Path, samples: Sequence[Sample], root: Path) -> list[str]:
    known = _ways_to_write(samples, root)
    groups: dict[int, str] = {}
    for line, row in enumerate(_rows(path), start=1):
        if len(row) < 2 or not row[1].strip():
            raise ConfigError(f"{path}: line {line}: expected an image and its group, as in `a,1`")
        name = plain_name(row[0].strip())
        if name not in known:
            if line == 1 and name.casefold() in _HEADS:
                continue
            hint_ = nearest(name, known)
            raise ConfigError(f"{path}: line {line}: '{name}' is not an image of the set{hint_}")
        index = known[name]
        if groups.setdefault(index, row[1].strip()) != row[1].strip():
            raise ConfigError(f"{path}: line {line}: '{name}' is in '{groups[index]}' already")
    for index, sample in enumerate(samples):
        if index not in groups:
            raise ConfigError(f"{path}: '{sample.name}' is not in it: every image needs a group")
    return [groups[index] for index in range(len(samples))]


def _rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"--group-by {path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--group-by {path}: not a UTF-8 text file ({error})") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        return [
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row
        ]
    except csv.Error as error:
        raise ConfigError(f"--group-by {path}: not a CSV file ({error})") from error


def _ways_to_write(samples: Sequence[Sample], root: Path) -> Mapping[str, int]:
    """Returns what a table may call an image -> its index."""
    ways: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        path = _below(sample, root)
        names = {sample.name, sample.name + Path(path).suffix, path, path.rpartition(".")[0]}
        names |= {name.rpartition("/")[2] for name in names}
        for name in map(plain_name, names):
            ways.setdefault(name, []).append(index)
    exact = {plain_name(sample.name): index for index, sample in enumerate(samples)}
    return {name: found[0] for name, found in ways.items() if len(found) == 1} | exact


def _below(sample: Sample, root: Path) -> str:
    try:
        return Path(sample.image).relative_to(root).as_posix()
    except ValueError:
        return sample.image


def _alike(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns bool [M] of two times M thumbnails, float32 [M, P]."""
    difference = np.abs(ones - others).mean(axis=1)
    one, other = (each - each.mean(axis=1, keepdims=True) for each in (ones, others))
    scale = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    correlation = (one * other).sum(axis=1) / np.maximum(scale, 1e-6)
    near = (difference <= _DIFFERENCE) & (correlation >= _CORRELATION)
    return np.asarray(near | (difference <= _EQUAL))


def first_of(group: list[int], index: int) -> int:
    """Returns the first member of a group; `group` has, for each index, an earlier member."""
    while group[index] != index:
        group[index] = group[group[index]]
        index = group[index]
    return index


def join(group: list[int], one: int, other: int) -> None:
    """Makes one group of two."""
    low, high = sorted((first_of(group, one), first_of(group, other)))
    group[high] = low
