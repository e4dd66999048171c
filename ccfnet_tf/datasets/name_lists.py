"""The small text files beside pictures: class lists, tables of colours, and lists of names.

    classes.txt                   a class name a line; the line is the class id. One name alone
                                  means that class against background, which is then class 0.
                                  labelme's `__ignore__` is void, and `_background_` background
    colours.txt                   `R G B name` a line, in id order; rows named void have no id. One
                                  class alone is told from background, which is then black
    train.txt, val.txt, test.txt  the name of a picture a line

UTF-8 with or without a byte order mark, any line ends.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ccfnet_tf.errors import DataError, nearest
from ccfnet_tf.io.images import NO_CLASS
from ccfnet_tf.labels import IGNORED, VOID, Taxonomy, distinct_colours, is_void_name

PARTS = ("train", "val", "test")
BACKGROUND = "background"
BACKGROUND_NAMES = (BACKGROUND, "_background_")
IGNORED_NAMES = ("void", "ignore", "ignored", "__ignore__")

MAX_CLASSES = 65_000
"""Ids of 16 bits, with room for void and for what is no class."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ColourTable:
    """Which colour of a mask means which class.

    Attributes:
        path: File it came from, or another name for it, for messages.
        taxonomy: The classes; their palette is these colours.
        names: Colour -> name, those of void too.
        ids: uint16 [2^24], packed colour -> class id minus `NO_CLASS`, so that 0 is no class. Only
            the pages of colours that are used take memory.
        fix: What else a user can do about a colour that is not there, for messages.
    """

    path: Path | str
    taxonomy: Taxonomy
    names: Mapping[Colour, str]
    ids: np.ndarray
    fix: str = "add a row"

    def classes_of(self, colours: np.ndarray, mask: str | Path) -> np.ndarray:
        """Translates the colours of a mask exactly.

        Args:
            colours: uint8 [H, W, 3] RGB.
            mask: The file, for messages.

        Returns:
            int32 [H, W], class ids or `VOID`.

        Raises:
            DataError: A colour that is not in the table; of kind `value`.
        """
        packed = colours[..., 0].astype(np.int32)
        for channel in (1, 2):
            packed <<= 8
            packed |= colours[..., channel]
        label = self.ids[packed].astype(np.int32) + NO_CLASS
        if label.min(initial=VOID) == NO_CLASS:
            strange, counts = np.unique(packed[label == NO_CLASS], return_counts=True)
            worst = int(counts.argmax())
            more = f" and {len(strange) - 1} other colours" if len(strange) > 1 else ""
            red, green, blue = _unpack(int(strange[worst]))
            raise DataError(
                f"{mask}: colour {red} {green} {blue} on {counts[worst]} pixels{more}: not in "
                f"{self.path}, whose nearest row is '{self._nearest((red, green, blue))}': correct "
                f"the mask (no smoothing, no JPEG), or {self.fix}",
                kind="value",
            )
        return label

    def _nearest(self, colour: Colour) -> str:
        def distance(other: Colour) -> int:
            return sum((a - b) ** 2 for a, b in zip(colour, other, strict=True))

        row = min(self.names, key=distance)
        return f"{row[0]} {row[1]} {row[2]} {self.names[row]}"


def read_names(path: Path) -> list[tuple[int, str]]:
    """Reads a list of names, one a line; blank lines and lines that begin with # are left out.

    Returns:
        (line number from 1, name) in the order of the file.

    Raises:
        DataError: Missing, or not text.
    """
    lines = enumerate(_lines(path, "it lists names, one a line"), start=1)
    names = [(number, line.strip()) for number, line in lines]
    return [(number, name) for number, name in names if name and not name.startswith("#")]


def plain_name(name: str) -> str:
    """Returns a path as all spell it: with forward slashes, and é as one character.

    macOS and archives made there write é as e and an accent; Windows writes backslashes.
    """
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def read_part_lists(root: Path, known: Mapping[str, str], what: str) -> dict[str, list[str]]:
    """Reads those of train.txt, val.txt and test.txt that `root` has.

    Args:
        root: Folder of the list files.
        known: Every way to write a name -> the sample it means.
        what: What a name must be, for messages.

    Returns:
        Part -> samples, in the order of its file; empty where `root` has no list.

    Raises:
        DataError: A name that is not known, or is listed twice; no train.txt beside another.
    """
    spelled = {plain_name(name): sample for name, sample in known.items()}
    paths = [root / f"{part}.txt" for part in PARTS]
    paths = [path for path in paths if path.is_file()]
    if paths and paths[0].stem != "train":
        raise DataError(f"{root}: {paths[0].name} but no train.txt: list what is to be learned too")
    parts: dict[str, list[str]] = {}
    taken: dict[str, str] = {}
    for path in paths:
        parts[path.stem] = []
        for line, name in read_names(path):
            sample = known.get(name, spelled.get(plain_name(name)))
            if sample is None:
                raise DataError(f"{path}: line {line}: '{name}' is no {what}{nearest(name, known)}")
            if sample in taken:
                raise DataError(f"{path}: line {line}: '{name}' is on {taken[sample]} already")
            taken[sample] = f"line {line} of {path.name}"
            parts[path.stem].append(sample)
    return parts


class ClassList(NamedTuple):
    """What a class list says.

    Attributes:
        taxonomy: The classes.
        values: The value of each class in a mask.
        void: Values of masks that the list calls void.
    """

    taxonomy: Taxonomy
    values: tuple[int, ...]
    void: tuple[int, ...]


def read_classes(path: Path, *, background: str = BACKGROUND_NAMES[0]) -> Taxonomy:
    """Returns the classes of a class list; see `read_class_list`."""
    return read_class_list(path, background=background).taxonomy


def read_class_list(path: Path, *, background: str = BACKGROUND_NAMES[0]) -> ClassList:
    """Reads a class list: the first line is class 0.

    `__ignore__` is no class. On the first line labelme counts it as -1, so that the line after it
    is 0; elsewhere the value of its line is void. One name alone is a class against background.

    Args:
        path: Text, a name a line.
        background: Name of what one name alone is told from.

    Raises:
        DataError: Missing, not text, no class or too many, a name twice, or a blank line between
            names (it would shift the ids after it).
    """
    lines = [line.strip() for line in _lines(path, "it names the classes, one a line")]
    seen: dict[str, int] = {}
    for number, name in enumerate(lines, start=1):
        if not name:
            raise DataError(f"{path}: line {number} is blank: the line of a name is its class id")
        if name in seen:
            raise DataError(f"{path}: '{name}' is on line {seen[name]} and {number}: once each")
        seen[name] = number
    first = -1 if lines[:1] == [IGNORED] else 0
    values = {name: value for value, name in enumerate(lines, start=first)}
    void = values.pop(IGNORED, -1)
    if len(values) == 1:
        values, void = _against_background(next(iter(values)), background, path), -1
    taxonomy = taxonomy_of(list(values), path, ", one a line")
    return ClassList(taxonomy, tuple(values.values()), (void,) if void >= 0 else ())


def _against_background(name: str, background: str, path: Path) -> dict[str, int]:
    """Returns the values of background and of the one class of a list."""
    if name.casefold() in BACKGROUND_NAMES:
        raise DataError(f"{path}: '{name}' alone: name what is to be told from it as well")
    return {background: 0, name: 1}


def taxonomy_of(
    names: list[str], source: str | Path, fix: str, *, most: int = MAX_CLASSES
) -> Taxonomy:
    """Returns the classes of these names, with colours that are far apart.

    Raises:
        DataError: Fewer than 2 or more than `most` names.
    """
    if not 2 <= len(names) <= most:
        raise DataError(f"{source}: {len(names)} class names: expected 2 to {most}{fix}")
    return Taxonomy(tuple(names), distinct_colours(len(names)))


def with_background(
    names: Sequence[str], source: str | Path
) -> tuple[Taxonomy, dict[str, int], int]:
    """Returns the classes of outlines, class ids by name, and what a pixel without an outline is.

    That is void, unless a class is named background (or `_background_`, as labelme writes it). One
    class alone is learned against background. What is named `__ignore__` is void.

    Args:
        names: What outlines are called, in order.
        source: Where they come from, for messages.

    Raises:
        DataError: No class, or too many.
    """
    classes = [name for name in names if name.casefold() not in IGNORED_NAMES]
    backgrounds = [name for name in classes if name.casefold() in BACKGROUND_NAMES]
    if len(classes) == 1 and not backgrounds:
        backgrounds = [BACKGROUND]
        classes = [*backgrounds, *classes]
    taxonomy = taxonomy_of(classes, source, "; label something")
    ids = {name: index for index, name in enumerate(classes)}
    background = ids[backgrounds[0]] if backgrounds else VOID
    return taxonomy, dict.fromkeys(names, VOID) | ids, background


def read_colour_table(path: Path) -> ColourTable:
    """Reads a table of colours: `R G B name` a line, apart by spaces, tabs or commas.

    The order of the rows is the order of the ids. Rows named void or `__ignore__`, of which there
    may be several, give colours of pixels without a label.

    Raises:
        DataError: Missing, not text, another kind of line, a colour or a class twice, no class or
            too many.
    """
    names: dict[Colour, str] = {}
    seen: dict[Colour | str, int] = {}
    for number, line in read_names(path):
        colour, name = _colour_row(line, f"{path}: line {number}")
        void = is_void_name(name)
        for key in (colour,) if void else (colour, name):
            if key in seen:
                shown = " ".join(map(str, key)) if isinstance(key, tuple) else key
                raise DataError(f"{path}: '{shown}' is on line {seen[key]} and {number}: once each")
            seen[key] = number
        names[colour] = name
    classes = [name for name in names.values() if not is_void_name(name)]
    if len(classes) == 1 and (0, 0, 0) not in names:
        background, _ = _against_background(classes[0], BACKGROUND, path)
        names[0, 0, 0] = background
        classes = [background, *classes]
    checked = taxonomy_of(classes, path, ", one `R G B name` a line")
    return colour_table(path, checked.names, names)


def colour_table(
    path: Path | str, classes: Sequence[str], names: Mapping[Colour, str], fix: str = "add a row"
) -> ColourTable:
    """Returns the table of these colours.

    Args:
        path: File it came from, or another name for it, for messages.
        classes: Names of the classes, in id order.
        names: Colour -> name of a class, or void.
        fix: As that of `ColourTable`.
    """
    order = {name: class_id for class_id, name in enumerate(classes)}
    palette = list(distinct_colours(len(classes)))
    ids = np.zeros(1 << 24, np.uint16)
    for colour, name in names.items():
        class_id = order.get(name, VOID)
        ids[_pack(colour)] = class_id - NO_CLASS
        if class_id != VOID:
            palette[class_id] = colour
    return ColourTable(path, Taxonomy(tuple(classes), tuple(palette)), names, ids, fix)


def _lines(path: Path, what: str) -> list[str]:
    """Returns the lines of a text file; blank ones at the end are left out."""
    try:
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: {what}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error})") from error


def _colour_row(line: str, where: str) -> tuple[Colour, str]:
    words = re.split(r"[\s,]+", line, maxsplit=3)
    numbers = [int(word) for word in words[:3] if re.fullmatch("[0-9]{1,3}", word)]
    if len(words) < 4 or not words[3] or len(numbers) < 3 or max(numbers) > 255:
        raise DataError(f"{where}: '{line[:60]}': expected `R G B name`, as in `64 0 128 Car`")
    return (numbers[0], numbers[1], numbers[2]), words[3]


def _pack(colour: Colour) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _unpack(packed: int) -> Colour:
    return packed >> 16, packed >> 8 & 255, packed & 255
