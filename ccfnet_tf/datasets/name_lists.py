"""The small text files beside images: class lists, tables of colours, and lists of names.

    classes.txt                   a class name a line; the line is the class id. Or `value: name`,
                                  also with a comma or a blank. One name alone means that class
                                  against background, which is then class 0
    colours.txt                   `R G B name` a line, in id order; rows named void have no id. One
                                  class alone is told from background, which is then black
    train.txt, val.txt, test.txt  the name of one image per line; also training.txt, valid.txt, ...

UTF-8, or UTF-16 with a byte order mark; any line ends. Lines that begin with # are left out.

In every list of classes that a layout carries, the names void, ignore, ignored, unlabeled,
unlabelled and `__ignore__`, in upper or lower case, stand for no class: their pixels count nowhere.
background and `_background_` are the class of what nobody outlined.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ccfnet_tf.errors import ColoursError, DataError, nearest
from ccfnet_tf.io.images import NO_CLASS, count_colours
from ccfnet_tf.labels import IGNORED, VOID, Taxonomy, distinct_colours, is_void_name

PARTS = ("train", "val", "test")

_PART_WORDS = {
    "train": ("train", "training", "default"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "test-dev", "testdev"),
}
BACKGROUND = "background"
BACKGROUND_NAMES = (BACKGROUND, "_background_")

MAX_CLASSES = 65_000
"""Ids of 16 bits, with room for void and for what is not a class."""

Colour = tuple[int, int, int]


def void_notes(source: str | Path, names: Iterable[str]) -> tuple[str, ...]:
    """Returns a note on the names of a list that stand for no class.

    None on labelme's `__ignore__`, which can mean nothing else.

    Args:
        source: The list.
        names: All names in it.
    """
    other = (name for name in dict.fromkeys(names) if name.casefold() != IGNORED)
    void = [f"'{name}'" for name in other if is_void_name(name)]
    if not void:
        return ()
    stands = "stands" if len(void) == 1 else "stand"
    said = f"{', '.join(void)} {stands} for no class (void), whose pixels count nowhere"
    return (f"{source}: {said}; to learn it as a class, give it another name",)


def is_background_name(name: str) -> bool:
    """Returns whether a class is that of what nobody outlined."""
    return name.casefold() in BACKGROUND_NAMES


@dataclass(frozen=True)
class ColourTable:
    """Which colour of a mask means which class.

    Attributes:
        path: File it came from, or another name for it, for messages.
        taxonomy: The classes; their palette is these colours.
        names: Colour -> name, those of void too.
        ids: uint16 [2^24], packed colour -> class id minus `NO_CLASS`, so that 0 is not a class.
            Only the pages of colours that are used take memory.
        fix: What else a user can do about a colour that is not there, for messages.
        notes: What is worth knowing of the list.
    """

    path: Path | str
    taxonomy: Taxonomy
    names: Mapping[Colour, str]
    ids: np.ndarray
    fix: str = "add a row"

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing of the table."""
        return void_notes(self.path, self.names.values())

    def classes_of(self, colours: np.ndarray, mask: str | Path) -> np.ndarray:
        """Translates the colours of a mask exactly.

        Args:
            colours: uint8 [H, W, 3] RGB.
            mask: The file, for messages.

        Returns:
            int32 [H, W], class ids or `VOID`.

        Raises:
            ColoursError: A colour that is not in the table.
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
            raise ColoursError(
                f"{mask}: colour {red} {green} {blue} on {counts[worst]} pixels{more}: not in "
                f"{self.path}, whose nearest row is '{self._nearest((red, green, blue))}': correct "
                f"the mask (no smoothing, no JPEG), or {self.fix}",
                count_colours(colours[label == NO_CLASS]),
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

    They may also be called training, valid, validation, dev or testing, in upper or lower case.

    Args:
        root: Folder of the list files.
        known: Every way to write a name -> the sample it means.
        what: What a name must be, such as `an image of the set`, for messages.

    Returns:
        Part -> samples, in the order of its file; empty where `root` has no list.

    Raises:
        DataError: A name that is not known, or is listed twice; two lists of one part; no train.txt
            beside another.
    """
    spelled = {plain_name(name): sample for name, sample in known.items()}
    paths = part_lists(root)
    if paths and "train" not in paths:
        first = next(iter(paths.values()))
        raise DataError(f"{first}: but no train.txt: list what is to be learned too")
    parts: dict[str, list[str]] = {}
    taken: dict[str, str] = {}
    for part, path in paths.items():
        parts[part] = []
        for line, name in read_names(path):
            sample = known.get(name, spelled.get(plain_name(name)))
            if sample is None:
                raise DataError(
                    f"{path}: line {line}: '{name}' is not {what}{nearest(name, known)}"
                )
            if sample in taken:
                raise DataError(f"{path}: line {line}: '{name}' is on {taken[sample]} already")
            taken[sample] = f"line {line} of {path.name}"
            parts[part].append(sample)
    return parts


def part_lists(root: Path) -> dict[str, Path]:
    """Returns part -> the list in `root` that is named after it.

    Raises:
        DataError: Two lists of one part.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.glob("*.[tT][xX][tT]")):
        part = part_named(path.stem) if path.stem.casefold() != "default" else ""
        if part in found:
            raise DataError(
                f"{path}: {found[part].name} is the list of the {part} split too: keep one of them"
            )
        if part and path.is_file():
            found[part] = path
    return {part: found[part] for part in PARTS if part in found}


def part_named(word: str) -> str:
    """Returns `train`, `val` or `test` for what tools call it; an empty string for other words."""
    lowered = word.casefold()
    return next((part for part, words in _PART_WORDS.items() if lowered in words), "")


class ClassList(NamedTuple):
    """What a class list says.

    Attributes:
        taxonomy: The classes.
        values: The value of each class in a mask.
        void: Values of masks that the list calls void.
        notes: What is worth knowing of the list.
    """

    taxonomy: Taxonomy
    values: tuple[int, ...]
    void: tuple[int, ...]
    notes: tuple[str, ...] = ()


def read_classes(path: Path, *, background: str = BACKGROUND_NAMES[0]) -> Taxonomy:
    """Returns the classes of a class list; see `read_class_list`."""
    return read_class_list(path, background=background).taxonomy


def read_class_list(path: Path, *, background: str = BACKGROUND_NAMES[0]) -> ClassList:
    """Reads a class list: the first line is value 0, or each line has its value before the name.

    Names that stand for no class make the value of their line void; but `__ignore__` on the first
    line is -1 to labelme, so that the line after it is 0. One name alone is a class against
    background.

    Args:
        path: Text, one name per line.
        background: Name of what one name alone is told from.

    Raises:
        DataError: Missing, not text, no class or too many, a name or a value twice, a blank line
            between names (it would shift the ids after it), or another kind of file.
    """
    rows = read_class_rows(path)
    void = tuple(value for value, name in rows.items() if is_void_name(name) and value >= 0)
    values = {name: value for value, name in rows.items() if not is_void_name(name)}
    notes = void_notes(path, rows.values())
    if len(values) == 1:
        only = next(iter(values))
        refuse_one_beside_void(path, only, [rows[value] for value in void])
        if values[only] > 1:
            raise DataError(f"{path}: '{only}' alone: name what the other values are as well")
        values, void = _against_background(only, background, path), ()
    taxonomy = taxonomy_of(list(values), path, ", one a line")
    return ClassList(taxonomy, tuple(values.values()), void, notes)


def read_class_rows(path: Path) -> dict[int, str]:
    """Reads a list of names: value of a mask -> name, in order of the values.

    The value is the place of the line, or the number before each name. labelme's `__ignore__` on
    the first line has the value -1.

    Raises:
        DataError: As `read_class_list`.
    """
    lines = [line.strip() for line in _lines(path, "it names the classes, one a line")]
    rows = [(number, line) for number, line in enumerate(lines, start=1) if line[:1] != "#"]
    _refuse_other_files(path, [line for _, line in rows])
    seen: dict[str | int, int] = {}
    found: dict[int, str] = {}
    for number, value, name in _with_values(rows):
        if not name:
            raise DataError(f"{path}: line {number} is blank: the line of a name is its class id")
        void = is_void_name(name) and name.casefold() != IGNORED
        for key in (value,) if void else (value, name):
            if key in seen:
                raise DataError(f"{path}: '{key}' is on line {seen[key]} and {number}: once each")
            seen[key] = number
        found[value] = name
    return dict(sorted(found.items()))


def _with_values(rows: list[tuple[int, str]]) -> list[tuple[int, int, str]]:
    """Returns the number of each line, and the value and the name on it."""
    numbered = [re.fullmatch(r"([0-9]{1,5})(\s*[:,;=]\s*|\s+)(\S.*)", line) for _, line in rows]
    titled = len(rows) > 2 and re.search(r"[,;:=\t]", rows[0][1]) and not numbered[0]
    if titled and all(numbered[1:]):  # `id,name`
        rows, numbered = rows[1:], numbered[1:]
    found = [match for match in numbered if match]
    values = [int(match[1]) for match in found]
    consecutive = sorted(values) in (list(range(len(rows))), list(range(1, len(rows) + 1)))
    if rows and len(found) == len(rows) and (consecutive or all(m[2].strip() for m in found)):
        return [(row[0], int(m[1]), m[3]) for row, m in zip(rows, found, strict=True)]
    first = -1 if rows and rows[0][1].casefold() == IGNORED else 0
    return [(number, value, name) for value, (number, name) in enumerate(rows, start=first)]


def _refuse_other_files(path: Path, lines: Sequence[str]) -> None:
    """Refuses a class list that is a table of colours, or YAML, JSON or names on one line."""
    if lines and all(re.fullmatch(r"\d{1,3}([\s,]+\d{1,3}){2}[\s,]+\S.*", line) for line in lines):
        raise DataError(
            f"{path}: '{lines[0][:60]}': rows of `R G B name` are a table of colours: rename the "
            "file to colours.txt"
        )
    first = lines[0] if lines else ""
    on_one = len(lines) == 1 and re.search("[,;]", first)
    if on_one or re.match(r"[\[{]|- |\w+\s*[:=]\s*([\[{].*)?$", first):
        raise DataError(f"{path}: '{first[:60]}': expected one name a line, and nothing else")


def refuse_one_beside_void(path: Path, only: str, void: Sequence[str]) -> None:
    """Refuses a list of one class and rows that stand for none: nothing could be told apart.

    Raises:
        DataError: There are such rows.
    """
    if void:
        raise DataError(
            f"{path}: '{only}' is the only class, for '{void[0]}' stands for no class (void): if "
            f"it is what is to be told from '{only}', call it background"
        )


def _against_background(name: str, background: str, path: Path) -> dict[str, int]:
    """Returns the values of background and of the one class of a list."""
    if is_background_name(name):
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
    class alone is learned against background. Names that stand for no class are void.

    Args:
        names: What outlines are called, in order.
        source: Where they come from, for messages.

    Raises:
        DataError: No class, or too many.
    """
    classes = [name for name in names if not is_void_name(name)]
    backgrounds = [name for name in classes if is_background_name(name)]
    if len(classes) == 1 and not backgrounds:
        backgrounds = [BACKGROUND]
        classes = [*backgrounds, *classes]
    taxonomy = taxonomy_of(classes, source, "; label something")
    ids = {name: index for index, name in enumerate(classes)}
    background = ids[backgrounds[0]] if backgrounds else VOID
    return taxonomy, dict.fromkeys(names, VOID) | ids, background


def read_colour_table(path: Path) -> ColourTable:
    """Reads a table of colours: `R G B name` a line, apart by spaces, tabs or commas.

    The order of the rows is the order of the ids. Rows of names that stand for no class, of which
    there may be several, give colours of pixels without a label.

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
        stored = path.read_bytes()
        utf16 = stored.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = stored.decode("utf-16" if utf16 else "utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: {what}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error}): save it as UTF-8") from error
    return text.rstrip().splitlines()


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
