"""Names that people give to the folders of training, validation and test images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from ccfnet_tf.datasets.name_lists import PARTS, part_named
from ccfnet_tf.labels import Sample


def part_of(folder: str) -> str | None:
    """Returns the part that a folder's name stands for, `train`, `val` or `test`, or None.

    Numbers and the words set, data and split count for nothing: val2017, 02_test, Train-Set.
    """
    word = re.sub(r"[\W\d_]+", "", folder.casefold())
    for ending in ("set", "data", "split"):
        word = word.removesuffix(ending)
    # `default` is what CVAT calls a part; in other layouts it is a name like any.
    return part_named(word) or None if word != "default" else None


def part_in(folder: str) -> str | None:
    """Returns the part that a word in a folder's name stands for, as in val_set, imagesTs, val2017.

    Such a folder looks like the part; readers take it as one only where their layout says so.
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", folder)
    named = (_SHORT.get(word.casefold()) or part_of(word.removesuffix("set")) for word in words)
    return next(filter(None, named), None)


def part_folders(root: Path) -> dict[str, list[Path]]:
    """Returns part -> the folders in `root` that are named after it."""
    found: dict[str, list[Path]] = {}
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        part = part_of(folder.name)
        if part and folder.is_dir():
            found.setdefault(part, []).append(folder)
    return {part: found[part] for part in PARTS if part in found}


_SHORT = {"tr": "train", "ts": "test"}  # imagesTr and imagesTs of nnU-Net
_DEPTH = 3
_LOOKED_AT = 1000
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


def misleading_folders(root: Path, parts: Mapping[str, Sequence[Sample]]) -> tuple[str, ...]:
    """Returns a line on each kind of folder that is named as a part which its images are not in.

    That a layout reports on the validation folder, as its publishers do, is no such case: only
    folders named after validation or test whose images are trained on, and folders of images
    that are in no part.

    Args:
        root: Folder of the set.
        parts: Part -> its samples.
    """
    used: dict[str, str] = {}  # folder -> a part of the samples below it; train where any is
    for part in ("test", "val", "train"):
        samples = parts.get(part, ())
        parents = {Path(file).parent for s in samples for file in (s.image, s.label)}
        used |= dict.fromkeys((str(p) for each in parents for p in (each, *each.parents)), part)
    found: dict[str, list[Path]] = {}
    for folder, named in _named_as_parts(root):
        taken = used.get(str(folder))
        if taken is None and _holds_pictures(folder):
            what = f"the part {named}, but its images are in no part"
        elif taken == "train" and named != "train":
            what = f"the part {named}, but its images are trained on"
        else:
            continue
        found.setdefault(what, []).append(folder)
    return tuple(_line(folders, what) for what, folders in found.items())


def _line(folders: Sequence[Path], what: str) -> str:
    """Returns a line on folders; what is on one above it is said there."""
    tops = [folder for folder in folders if not any(p in folders for p in folder.parents)]
    more = f" (and {len(tops) - 1} more)" if len(tops) > 1 else ""
    return f"{tops[0]}{more}: looks like {what}"


def _named_as_parts(root: Path) -> Iterator[tuple[Path, str]]:
    for folder, below, _ in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        below[:] = sorted(n for n in below if n[0] != ".") if depth < _DEPTH else []
        yield from ((Path(folder, name), part) for name in below if (part := part_in(name)))


def _holds_pictures(folder: Path) -> bool:
    files = islice(folder.rglob("*"), _LOOKED_AT)
    return any(path.suffix.lower() in _IMAGE_SUFFIXES for path in files)
