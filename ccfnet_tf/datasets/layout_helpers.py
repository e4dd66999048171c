"""Helpers for layout readers: layout detection, file listing, and pairing images with labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

from ccfnet_tf.datasets.class_and_split_lists import plain_name, read_names
from ccfnet_tf.datasets.split_names import part_of
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
PHOTOS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".avif")
)
MASKS = (".png",)

# Glob patterns for the files of a folder.
HERE = ("*.*",)
DEEP = ("*.*", "*/*.*")  # also in subfolders, which may be symbolic links
ANYWHERE = ("**/*",)

_NEARBY = 200  # maximum number of folders searched for a hint

_WORDS = re.compile(
    r"\.(jpe?g|png|tiff?|bmp|webp)$"
    r"|(?<![a-z])(mask|masks|label|labels|labelids|gt|seg|segmentation|l)(?![a-z])"
    r"|(?<![a-z])(image|img|rgb|photo)(?![a-z])"
)
"""Words and suffixes that tools add to the names of images and masks, as in `a.jpg.png`."""


def folders_seen(root: Path, *names: str) -> str:
    """Returns `a/ and b/` if `root` has all these folders, else an empty string."""
    try:
        found = all((root / name).is_dir() for name in names)
    except OSError:  # no permission; the later open reports it
        return ""
    return " and ".join(f"{name}/" for name in names) if found else ""


def require(root: Path, signs: Callable[[Path], str], expected: str) -> None:
    """Checks that a folder has a layout; suggests a nearby folder that has it.

    Args:
        root: The given folder.
        signs: Detection function of the layout.
        expected: Description of the layout and its files, for the error message.

    Raises:
        DataError: `signs` does not recognise `root`.
    """
    if signs(root):
        return
    below = chain(root.glob("*/"), root.glob("*/*/"))
    near = next((p for p in (*root.parents[:2], *islice(below, _NEARBY)) if signs(p)), None)
    hint = f"; did you mean {near}?" if near else "; for other layouts, set data.format to auto"
    raise DataError(f"{root}: not the folder of {expected}{hint}")


def contents(folder: Path) -> str:
    """Returns the first few names in a folder, for error messages."""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name[0] != ".")
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "nothing"


def files_in(
    folder: Path, suffixes: Collection[str], patterns: Sequence[str] = HERE
) -> dict[str, Path]:
    """Lists the files of a folder; skips hidden files and hidden folders.

    Args:
        folder: Folder to list. A missing folder counts as empty.
        suffixes: Accepted suffixes in lower case; they match in any case.
        patterns: Patterns for `Path.glob`; no file may match two of them.

    Returns:
        Path below `folder` without suffix, normalised by `plain_name` -> file, sorted.

    Raises:
        DataError: Two files have the same name without suffix.
    """
    found: dict[str, Path] = {}
    for path in sorted(chain.from_iterable(folder.glob(pattern) for pattern in patterns)):
        relative = path.relative_to(folder)
        hidden = any(piece.startswith(".") for piece in relative.parts)
        if hidden or path.suffix.lower() not in suffixes or not path.is_file():
            continue
        key = plain_name(relative.with_suffix("").as_posix())
        if key in found:
            raise DataError(
                f"{path}: {found[key].name} has the same name without suffix: they would share "
                "one label or image; rename or remove one"
            )
        found[key] = path
    return found


def pair(
    images: Mapping[str, Path], labels: Mapping[str, Path], *, within: str, prefix: str = ""
) -> tuple[tuple[Sample, ...], tuple[DataError, ...]]:
    """Pairs images and labels with the same key.

    Args:
        images: Key -> image.
        labels: Key -> label.
        within: Folders that were searched for the counterpart, for error messages.
        prefix: Prefix of the key in the names of the samples.

    Returns:
        The samples, sorted by key, and an error of kind `missing` for each unpaired file.
    """
    samples = tuple(
        Sample(prefix + key, str(images[key]), str(labels[key]))
        for key in sorted(images.keys() & labels.keys())
    )
    unused = {key: path for key, path in labels.items() if key not in images}
    by_name = unambiguous((plain_words(key), key) for key in unused)
    unpaired: list[str] = []
    for key, path in images.items():
        if key not in labels:
            found = unused.pop(by_name.get(plain_words(key), ""), None)
            text = f"{path}: no label of that name in {within}"
            advice = f"{found} may be it: a label must have the name of its image: rename it"
            unpaired.append(
                f"{text}; {advice}" if found else f"{text}: add it, or remove this file"
            )
    for path in unused.values():
        text = f"{path}: no image of that name in {within}: add it, or remove this file"
        unpaired.append(text)
    return samples, tuple(DataError(text, kind="missing") for text in unpaired)


def require_images(part: tuple[tuple[Sample, ...], tuple[DataError, ...]], expected: Path) -> None:
    """Checks that a split has any files.

    Args:
        part: Result of `pair`.
        expected: Pattern of the image paths, for the error message.

    Raises:
        DataError: The split has neither samples nor unpaired files.
    """
    if not any(part):
        raise DataError(f"{expected}: no training images found; unpack the data set again")


def read_list(path: Path, what: str) -> list[tuple[int, str]]:
    """Reads a list file of a published set.

    Args:
        path: Text file with one entry per line.
        what: Name of an entry, for error messages.

    Returns:
        Pairs of line number, from 1, and stripped text, without blank lines.

    Raises:
        DataError: The file is missing, not text, or empty.
    """
    rows = read_names(path)
    if not rows:
        raise DataError(f"{path}: empty: expected {what} per line; unpack the data set again")
    return rows


def not_there(path: Path, listed: Path) -> DataError:
    """Returns the error for a listed file that does not exist."""
    return DataError(
        f"{path}: no such file: {listed.name} lists it; unpack the data set again", kind="missing"
    )


def plain_words(stem: str) -> str:
    """Returns a path in lower case without words for images and masks, as `a/b` for `A/b_mask`."""
    *folders, name = stem.casefold().split("/")
    folder = "/".join(part_of(each) or each for each in folders)
    plain = re.sub(r"[\s._-]+", "-", _WORDS.sub("", name)).strip("-")
    return f"{folder}/{plain}"


def unambiguous(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns key -> value for the keys with exactly one value."""
    found: dict[str, set[str]] = {}
    for key, value in pairs:
        found.setdefault(key, set()).add(value)
    return {key: next(iter(values)) for key, values in found.items() if len(values) == 1}
