"""Text files of a data set: class lists, colour tables and lists of image names.

    classes.txt                   one class name per line; the line number, from 0, is the class id.
                                  Or `value: name`, also separated by a comma or a space. A single
                                  name defines that class and background, which is class 0
    colours.txt                   one `R G B name` per line, in id order; rows named void have no
                                  id. A single class implies background, which is black
    train.txt, val.txt, test.txt  one image name per line; also training.txt, valid.txt, ...

Files are UTF-8, or UTF-16 with a byte order mark, with any line endings. Lines starting with # are
comments.

In every class list, the names void, ignore, ignored, unlabeled, unlabelled and `__ignore__`, in any
case, mean no class: their pixels are ignored. background and `_background_` name the class of all
pixels that are not annotated.
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

from ccfnet_tf.errors import ColoursError, DataError, nearest, unreadable
from ccfnet_tf.io.read_images import NO_CLASS, count_colours
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
"""Maximum number of classes: 16-bit ids, with values reserved for void and for unknown."""

Colour = tuple[int, int, int]


def void_notes(source: str | Path, names: Iterable[str]) -> tuple[str, ...]:
    """Returns a note on the void names of a class list.

    The `__ignore__` of labelme is not reported, because it is unambiguous.

    Args:
        source: The list.
        names: All names in the list.
    """
    other = (name for name in dict.fromkeys(names) if name.casefold() != IGNORED)
    void = [f"'{name}'" for name in other if is_void_name(name)]
    if not void:
        return ()
    means = "means" if len(void) == 1 else "mean"
    remark = f"{', '.join(void)} {means} no class (void): these pixels are ignored"
    return (f"{source}: {remark}; to train it as a class, rename it",)


def is_background_name(name: str) -> bool:
    """Returns whether a name is that of the background class."""
    return name.casefold() in BACKGROUND_NAMES


@dataclass(frozen=True)
class ColourTable:
    """Maps mask colours to classes.

    Attributes:
        path: Source file, or a name of the table, for error messages.
        taxonomy: The classes, with these colours as palette.
        names: Colour -> name, including void.
        ids: uint16 [2^24], packed colour -> class id minus `NO_CLASS`, so that 0 means no class.
            Memory is only used for pages with a colour of the table.
        fix: Suggestion for unknown colours in error messages.
        notes: Remarks on the list.
    """

    path: Path | str
    taxonomy: Taxonomy
    names: Mapping[Colour, str]
    ids: np.ndarray
    fix: str = "add a row"

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the table."""
        return void_notes(self.path, self.names.values())

    def classes_of(self, colours: np.ndarray, mask: str | Path) -> np.ndarray:
        """Converts the colours of a mask to class ids; colours must match exactly.

        Args:
            colours: uint8 [H, W, 3] RGB.
            mask: The mask file, for error messages.

        Returns:
            int32 [H, W], class ids or `VOID`.

        Raises:
            ColoursError: A colour is not in the table.
        """
        packed = colours[..., 0].astype(np.int32)
        for channel in (1, 2):
            packed <<= 8
            packed |= colours[..., channel]
        label = self.ids[packed].astype(np.int32) + NO_CLASS
        if label.min(initial=VOID) == NO_CLASS:
            unknown, counts = np.unique(packed[label == NO_CLASS], return_counts=True)
            top = int(counts.argmax())
            more = f" and {len(unknown) - 1} other colours" if len(unknown) > 1 else ""
            red, green, blue = _unpack(int(unknown[top]))
            raise ColoursError(
                f"{mask}: colour {red} {green} {blue} on {counts[top]} pixels{more}: not in "
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
    """Reads a list of names, one per line; skips blank lines and lines starting with #.

    Returns:
        Pairs of line number, from 1, and name, in file order.

    Raises:
        DataError: The file is missing or not text.
    """
    lines = enumerate(_lines(path, "it must list one name per line"), start=1)
    names = [(number, line.strip()) for number, line in lines]
    return [(number, name) for number, name in names if name and not name.startswith("#")]


def plain_name(name: str) -> str:
    """Normalises a path: forward slashes and composed characters (Unicode NFC).

    macOS, and archives created there, store é as e and a combining accent; Windows uses
    backslashes.
    """
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def read_part_lists(root: Path, known: Mapping[str, str], what: str) -> dict[str, list[str]]:
    """Reads the split lists train.txt, val.txt and test.txt in `root`, as far as they exist.

    The names training, valid, validation, dev and testing are accepted as well, in any case.

    Args:
        root: Folder of the list files.
        known: Every accepted spelling of a name -> its sample.
        what: What a name must refer to, such as `an image of the set`, for error messages.

    Returns:
        Split -> samples in file order; empty if `root` has no lists.

    Raises:
        DataError: A name is unknown or listed twice, a split has two lists, or train.txt is
            missing next to other lists.
    """
    normalised = {plain_name(name): sample for name, sample in known.items()}
    paths = part_lists(root)
    if paths and "train" not in paths:
        first = next(iter(paths.values()))
        raise DataError(f"{first}: there is no train.txt next to it: add a list of training images")
    parts: dict[str, list[str]] = {}
    listed_on: dict[str, str] = {}
    for part, path in paths.items():
        parts[part] = []
        for line, name in read_names(path):
            sample = known.get(name, normalised.get(plain_name(name)))
            if sample is None:
                raise DataError(
                    f"{path}: line {line}: '{name}' is not {what}: correct the name, "
                    f"restore the image, or remove the line{nearest(name, known)}"
                )
            if sample in listed_on:
                raise DataError(f"{path}: line {line}: '{name}' is already on {listed_on[sample]}")
            listed_on[sample] = f"line {line} of {path.name}"
            parts[part].append(sample)
    return parts


def part_lists(root: Path) -> dict[str, Path]:
    """Returns split -> its list file in `root`.

    Raises:
        DataError: A split has two lists.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.glob("*.[tT][xX][tT]")):
        part = part_named(path.stem) if path.stem.casefold() != "default" else ""
        if part in found:
            raise DataError(
                f"{path}: {found[part].name} is also a list of the {part} split: keep one of them"
            )
        if part and path.is_file():
            found[part] = path
    return {part: found[part] for part in PARTS if part in found}


def part_named(word: str) -> str:
    """Returns the split (`train`, `val` or `test`) that a word names; empty for other words."""
    lowered = word.casefold()
    return next((part for part, words in _PART_WORDS.items() if lowered in words), "")


class ClassList(NamedTuple):
    """Contents of a class list.

    Attributes:
        taxonomy: The classes.
        values: Mask value of each class.
        void: Mask values that the list declares void.
        notes: Remarks on the list.
    """

    taxonomy: Taxonomy
    values: tuple[int, ...]
    void: tuple[int, ...]
    notes: tuple[str, ...] = ()


def read_classes(path: Path, *, background: str = BACKGROUND_NAMES[0]) -> Taxonomy:
    """Returns only the classes of a class list; see `read_class_list`."""
    return read_class_list(path, background=background).taxonomy


def read_class_list(path: Path, *, background: str = BACKGROUND_NAMES[0]) -> ClassList:
    """Reads a class list. The first line is value 0, or each line has its value before the name.

    Void names make the value of their line void. As in labelme, `__ignore__` on the first line has
    the value -1, so that the next line is value 0. A list with a single name defines that class and
    background.

    Args:
        path: Text file with one name per line.
        background: Name of the background class that is added to a single name.

    Raises:
        DataError: The file is missing, not text or another kind of file; it has no class or too
            many; a name or value occurs twice; or there is a blank line between names, which would
            shift the ids of later lines.
    """
    rows = read_class_rows(path)
    void = tuple(value for value, name in rows.items() if is_void_name(name) and value >= 0)
    values = {name: value for value, name in rows.items() if not is_void_name(name)}
    notes = void_notes(path, rows.values())
    if len(values) == 1:
        only = next(iter(values))
        refuse_one_beside_void(path, only, [rows[value] for value in void])
        if values[only] > 1:
            raise DataError(f"{path}: '{only}' is the only class: name the other values as well")
        values, void = _with_background_values(only, background, path), ()
    taxonomy = taxonomy_of(list(values), path, ", one per line")
    return ClassList(taxonomy, tuple(values.values()), void, notes)


def read_class_rows(path: Path) -> dict[int, str]:
    """Reads a list of names and returns mask value -> name, ordered by value.

    The value is the line number, from 0, or the number before each name. The `__ignore__` of
    labelme on the first line has the value -1.

    Raises:
        DataError: As in `read_class_list`.
    """
    lines = [line.strip() for line in _lines(path, "it must list one class name per line")]
    rows = [(number, line) for number, line in enumerate(lines, start=1) if line[:1] != "#"]
    _require_name_list(path, [line for _, line in rows])
    seen: dict[str | int, int] = {}
    found: dict[int, str] = {}
    for number, value, name in _with_values(rows):
        if not name:
            raise DataError(
                f"{path}: line {number} is blank: it would shift the class ids of later lines; "
                "remove it"
            )
        void = is_void_name(name) and name.casefold() != IGNORED
        for key in (value,) if void else (value, name):
            if key in seen:
                raise DataError(
                    f"{path}: '{key}' is on lines {seen[key]} and {number}: list it once"
                )
            seen[key] = number
        found[value] = name
    return dict(sorted(found.items()))


def _with_values(rows: list[tuple[int, str]]) -> list[tuple[int, int, str]]:
    """Returns line number, value and name of each row."""
    matches = [re.fullmatch(r"([0-9]{1,5})(\s*[:,;=]\s*|\s+)(\S.*)", line) for _, line in rows]
    has_header = len(rows) > 2 and re.search(r"[,;:=\t]", rows[0][1]) and not matches[0]
    if has_header and all(matches[1:]):  # `id,name`
        rows, matches = rows[1:], matches[1:]
    found = [match for match in matches if match]
    values = [int(match[1]) for match in found]
    consecutive = sorted(values) in (list(range(len(rows))), list(range(1, len(rows) + 1)))
    if rows and len(found) == len(rows) and (consecutive or all(m[2].strip() for m in found)):
        return [(row[0], int(m[1]), m[3]) for row, m in zip(rows, found, strict=True)]
    first = -1 if rows and rows[0][1].casefold() == IGNORED else 0
    return [(number, value, name) for value, (number, name) in enumerate(rows, start=first)]


def _require_name_list(path: Path, lines: Sequence[str]) -> None:
    """Raises DataError if a class list is a colour table, YAML, JSON, or a single line of names."""
    if lines and all(re.fullmatch(r"\d{1,3}([\s,]+\d{1,3}){2}[\s,]+\S.*", line) for line in lines):
        raise DataError(
            f"{path}: '{lines[0][:60]}': rows of `R G B name` form a colour table: rename the "
            "file to colours.txt"
        )
    first = lines[0] if lines else ""
    on_one = len(lines) == 1 and re.search("[,;]", first)
    if on_one or re.match(r"[\[{]|- |\w+\s*[:=]\s*([\[{].*)?$", first):
        raise DataError(f"{path}: '{first[:60]}': expected one name per line and nothing else")


def refuse_one_beside_void(path: Path, only: str, void: Sequence[str]) -> None:
    """Rejects a list with one class and void rows, which leaves nothing to distinguish.

    Raises:
        DataError: There are void rows.
    """
    if void:
        raise DataError(
            f"{path}: '{only}' is the only class, because '{void[0]}' means no class (void): if "
            f"it means everything except '{only}', rename it to background"
        )


def _with_background_values(name: str, background: str, path: Path) -> dict[str, int]:
    """Returns the values of background and of the only class of a list."""
    if is_background_name(name):
        raise DataError(f"{path}: '{name}' is the only class: add the other classes")
    return {background: 0, name: 1}


def taxonomy_of(
    names: list[str], source: str | Path, fix: str, *, most: int = MAX_CLASSES
) -> Taxonomy:
    """Builds a taxonomy with well separated colours.

    Args:
        names: Class names in id order.
        source: Source of the names, for error messages.
        fix: End of the error message.
        most: Maximum number of classes.

    Raises:
        DataError: There are fewer than 2 or more than `most` names.
    """
    if not 2 <= len(names) <= most:
        raise DataError(f"{source}: {len(names)} class names: expected 2 to {most}{fix}")
    return Taxonomy(tuple(names), distinct_colours(len(names)))


def with_background(
    names: Sequence[str], source: str | Path
) -> tuple[Taxonomy, dict[str, int], int]:
    """Builds the classes of a set with polygon labels.

    Pixels outside all polygons are void, unless a class is named background (or `_background_`, as
    in labelme). A single class is trained against background. Void names have no class.

    Args:
        names: Names of the polygons, in order.
        source: Source of the names, for error messages.

    Returns:
        The classes, name -> class id or `VOID`, and the class id of pixels outside all polygons.

    Raises:
        DataError: There is no class, or there are too many.
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
    """Reads a colour table: one `R G B name` per line, separated by spaces, tabs or commas.

    Rows are in id order. Void rows, of which there may be several, give the colours of pixels
    without a label.

    Raises:
        DataError: The file is missing, not text or has other lines; a colour or class occurs
            twice; or there is no class or too many.
    """
    names: dict[Colour, str] = {}
    seen: dict[Colour | str, int] = {}
    for number, line in read_names(path):
        colour, name = _colour_row(line, f"{path}: line {number}")
        void = is_void_name(name)
        for key in (colour,) if void else (colour, name):
            if key in seen:
                shown = " ".join(map(str, key)) if isinstance(key, tuple) else key
                raise DataError(
                    f"{path}: '{shown}' is on lines {seen[key]} and {number}: list it once"
                )
            seen[key] = number
        names[colour] = name
    classes = [name for name in names.values() if not is_void_name(name)]
    if len(classes) == 1 and (0, 0, 0) not in names:
        background, _ = _with_background_values(classes[0], BACKGROUND, path)
        names[0, 0, 0] = background
        classes = [background, *classes]
    checked = taxonomy_of(classes, path, ", one `R G B name` per line")
    return colour_table(path, checked.names, names)


def colour_table(
    path: Path | str, classes: Sequence[str], names: Mapping[Colour, str], fix: str = "add a row"
) -> ColourTable:
    """Builds a `ColourTable`.

    Args:
        path: Source file, or a name of the table, for error messages.
        classes: Names of the classes, in id order.
        names: Colour -> class name or void.
        fix: As in `ColourTable`.
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
    """Returns the lines of a text file without trailing blank lines."""
    try:
        stored = path.read_bytes()
        utf16 = stored.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = stored.decode("utf-16" if utf16 else "utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: {what}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {unreadable(error)}") from error
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
