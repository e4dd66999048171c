"""What readers of published layouts share: is it this layout, which files belong together."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

from ccfnet_tf.datasets.name_lists import plain_name, read_names
from ccfnet_tf.datasets.split_names import part_of
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
PHOTOS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".avif")
)
MASKS = (".png",)

# Patterns of files in a folder.
HERE = ("*.*",)
DEEP = ("*.*", "*/*.*")  # and in the folders in it, which may be links
ANYWHERE = ("**/*",)

_NEARBY = 200  # folders looked at for a hint

_WORDS = re.compile(
    r"\.(jpe?g|png|tiff?|bmp|webp)$"
    r"|(?<![a-z])(mask|masks|label|labels|labelids|gt|seg|segmentation|l)(?![a-z])"
    r"|(?<![a-z])(image|img|rgb|photo)(?![a-z])"
)
"""What tools put into the names of images and masks to tell them apart; `a.jpg.png` too."""


def folders_seen(root: Path, *names: str) -> str:
    """Returns `a/ and b/` where `root` has all these folders, else an empty string."""
    try:
        found = all((root / name).is_dir() for name in names)
    except OSError:  # not ours to read; opening it will say so
        return ""
    return " and ".join(f"{name}/" for name in names) if found else ""


def require(root: Path, signs: Callable[[Path], str], expected: str) -> None:
    """Refuses a folder that is not of a layout; names the right one if it is near.

    Args:
        root: The folder given.
        signs: The layout's own.
        expected: What it is and holds, for the message.

    Raises:
        DataError: `signs` finds none in `root`.
    """
    if signs(root):
        return
    below = chain(root.glob("*/"), root.glob("*/*/"))
    near = next((p for p in (*root.parents[:2], *islice(below, _NEARBY)) if signs(p)), None)
    hint = f"; did you mean {near}?" if near else ""
    raise DataError(f"{root}: not the folder of {expected}{hint}")


def contents(folder: Path) -> str:
    """Returns the first few names in a folder, for a message."""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name[0] != ".")
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "nothing"


def files_in(
    folder: Path, suffixes: Collection[str], patterns: Sequence[str] = HERE
) -> dict[str, Path]:
    """Lists files; those that are hidden, or in a hidden folder, are left out.

    Args:
        folder: Where; one that is missing holds none.
        suffixes: In lower case; the case of a file's own does not matter.
        patterns: Where in it, as `Path.glob` takes them; no file may fit two.

    Returns:
        Path below `folder` without suffix, as `plain_name` spells it -> file, sorted.

    Raises:
        DataError: Two files of one name.
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
    """Joins images and labels of one key.

    Args:
        images: Key -> image.
        labels: Key -> label.
        within: Where the other half was sought, for messages.
        prefix: Comes before the key in a sample's name.

    Returns:
        The samples in order of their keys; an error of kind `missing` for each lonely file.
    """
    samples = tuple(
        Sample(prefix + key, str(images[key]), str(labels[key]))
        for key in sorted(images.keys() & labels.keys())
    )
    free = {key: path for key, path in labels.items() if key not in images}
    by_name = unambiguous((plain_words(key), key) for key in free)
    lonely: list[str] = []
    for key, path in images.items():
        if key not in labels:
            found = free.pop(by_name.get(plain_words(key), ""), None)
            text = f"{path}: no label of that name in {within}"
            named = f"{found} lies there: a label has its image's name: rename it"
            lonely.append(f"{text}; {named}" if found else f"{text}: add it, or remove this file")
    for path in free.values():
        text = f"{path}: no image of that name in {within}: add it, or remove this file"
        lonely.append(text)
    return samples, tuple(DataError(text, kind="missing") for text in lonely)


def require_pictures(
    part: tuple[tuple[Sample, ...], tuple[DataError, ...]], expected: Path
) -> None:
    """Refuses a part that has neither samples nor lonely files.

    Args:
        part: What `pair` returned.
        expected: Pattern of its images' paths, for the message.

    Raises:
        DataError: There is nothing in it.
    """
    if not any(part):
        raise DataError(f"{expected}: no such images to learn from; unpack the set anew")


def read_list(path: Path, what: str) -> list[tuple[int, str]]:
    """Reads a list file of a published set.

    Args:
        path: Text, `what` a line.
        what: For messages.

    Returns:
        Line number from 1 and text, without blank lines and outer spaces.

    Raises:
        DataError: Missing, not text, or nothing in it.
    """
    rows = read_names(path)
    if not rows:
        raise DataError(f"{path}: empty: expected {what} a line; unpack the set anew")
    return rows


def not_there(path: Path, listed: Path) -> DataError:
    """Returns the error of a file that a list names and that is not there."""
    return DataError(
        f"{path}: no such file: {listed.name} names it; unpack the set anew", kind="missing"
    )


def plain_words(stem: str) -> str:
    """Returns a path without what names images and masks, in lower case: `a/b` of `A/b_mask`."""
    *folders, name = stem.casefold().split("/")
    folder = "/".join(part_of(each) or each for each in folders)
    plain = re.sub(r"[\s._-]+", "-", _WORDS.sub("", name)).strip("-")
    return f"{folder}/{plain}"


def unambiguous(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns key -> value of the keys that have one value."""
    found: dict[str, set[str]] = {}
    for key, value in pairs:
        found.setdefault(key, set()).add(value)
    return {key: next(iter(values)) for key, values in found.items() if len(values) == 1}
