"""Recognises the folders of training, validation and test images by name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from ccfnet_tf.datasets.class_and_split_lists import PARTS, part_named
from ccfnet_tf.labels import Sample


def part_of(folder: str) -> str | None:
    """Returns the split that a folder name stands for, `train`, `val` or `test`, or None.

    Numbers and the words set, data and split are ignored: val2017, 02_test, Train-Set.
    """
    word = re.sub(r"[\W\d_]+", "", folder.casefold())
    for ending in ("set", "data", "split"):
        word = word.removesuffix(ending)
    # `default` is the name of a subset in CVAT; in other layouts it has no special meaning.
    return part_named(word) or None if word != "default" else None


def part_in(folder: str) -> str | None:
    """Returns the split that a word in a folder name suggests, as in val_set, imagesTs, val2017.

    This is only a guess: readers treat such a folder as a split only if their layout defines it.
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", folder)
    named = (
        _ABBREVIATIONS.get(word.casefold()) or part_of(word.removesuffix("set")) for word in words
    )
    return next(filter(None, named), None)


def part_folders(root: Path) -> dict[str, list[Path]]:
    """Returns split -> the folders in `root` that are named after it."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        part = part_of(folder.name)
        if part and folder.is_dir():
            found.setdefault(part, []).append(folder)
    return {part: found[part] for part in PARTS if part in found}


_ABBREVIATIONS = {"tr": "train", "ts": "test"}  # imagesTr and imagesTs of nnU-Net
_MAX_DEPTH = 3
_MAX_FILES = 1000
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


def misleading_folders(root: Path, parts: Mapping[str, Sequence[Sample]]) -> tuple[str, ...]:
    """Returns notes on folders whose name suggests a different split than their images are in.

    Reported are folders named after validation or test whose images are used for training, and
    folders of images in no split. Layouts that test on the validation folder, as their publishers
    do, are not reported.

    Args:
        root: Folder of the set.
        parts: Split -> samples.
    """
    used: dict[str, str] = {}  # folder -> split of the samples below it; train takes precedence
    for part in ("test", "val", "train"):
        samples = parts.get(part, ())
        parents = {Path(file).parent for s in samples for file in (s.image, s.label)}
        used |= dict.fromkeys((str(p) for each in parents for p in (each, *each.parents)), part)
    found: dict[str, list[Path]] = {}
    for folder, named in _split_like_folders(root):
        actual = used.get(str(folder))
        if actual is None and _has_images(folder):
            what = f"the {named} split, but its images are in no split"
        elif actual == "train" and named != "train":
            what = f"the {named} split, but its images are used for training"
        else:
            continue
        found.setdefault(what, []).append(folder)
    return tuple(_note(folders, what) for what, folders in found.items())


def _note(folders: Sequence[Path], what: str) -> str:
    """Returns a note on folders, leaving out those below another one of them."""
    tops = [folder for folder in folders if not any(p in folders for p in folder.parents)]
    more = f" (and {len(tops) - 1} more)" if len(tops) > 1 else ""
    return f"{tops[0]}{more}: looks like {what}"


def _split_like_folders(root: Path) -> Iterator[tuple[Path, str]]:
    for folder, below, _ in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        below[:] = sorted(n for n in below if n[0] != ".") if depth < _MAX_DEPTH else []
        yield from ((Path(folder, name), part) for name in below if (part := part_in(name)))


def _has_images(folder: Path) -> bool:
    files = islice(folder.rglob("*"), _MAX_FILES)
    return any(path.suffix.lower() in _IMAGE_SUFFIXES for path in files)
