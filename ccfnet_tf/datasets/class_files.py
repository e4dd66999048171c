"""Reads the class list of a data folder, which maps mask values or colours to classes.

    class_names.txt, classes.txt, labels.txt    one name per line (labelme), or `value: name`
    labelmap.txt                                name:R,G,B:parts:actions (CVAT, Datumaro)
    label_colors.txt, colours.txt, colors.txt   R G B name, or one name per line (CamVid, CVAT)
    dataset_meta.json                           label_map and segmentation_colors (Datumaro)
    id2label.json                               {"0": "background", ...} (Hugging Face)

The row number of a class is its value in index masks. In labelmap.txt and label_colors.txt, a black
class has value 0 regardless of its row, as in CVAT and Datumaro. Names such as void or ignore mean
pixels without a class. A list without colours uses the PASCAL VOC colour map, as labelme and
Datumaro do. A text file with a single name defines that class and background, which has value 0 and
the colour black.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from ccfnet_tf.datasets.class_and_split_lists import (
    BACKGROUND,
    Colour,
    ColourTable,
    colour_table,
    is_background_name,
    read_class_rows,
    read_names,
    refuse_one_beside_void,
    taxonomy_of,
    void_notes,
)
from ccfnet_tf.datasets.mask_values_to_classes import MaskValues, with_given
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.annotation_json import read_json, shown
from ccfnet_tf.io.read_images import NO_CLASS, read_coloured_mask, to_classes
from ccfnet_tf.labels import IGNORED, VOID, Taxonomy, is_void_name

BOUNDARY = (224, 224, 192)
"""Colour of the borders between objects in PASCAL VOC, which have the mask value 255."""

_BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Row:
    """A row of a class list.

    Attributes:
        name: Class name; empty for a value that the list skips.
        colour: RGB; `None` if the row has no colour.
    """

    name: str
    colour: Colour | None

    @property
    def void(self) -> bool:
        """Whether the row is void: its pixels have no class."""
        return not self.name or is_void_name(self.name)


@dataclass(frozen=True)
class OwnClasses:
    """The classes defined by the class list of a folder.

    Attributes:
        path: The class list.
        taxonomy: The classes in order of their values.
        values: int32 [N], mask value -> class id, `VOID` or `NO_CLASS`.
        colours: Mask colour -> class id or `VOID`.
        stated: Whether the list itself contains the colours.
        notes: Remarks on the list.
    """

    path: Path
    taxonomy: Taxonomy
    values: np.ndarray
    colours: ColourTable
    stated: bool
    notes: tuple[str, ...] = ()

    @property
    def meaning(self) -> MaskValues:
        """Meaning of the values of greyscale masks."""
        known = np.flatnonzero(self.values != NO_CLASS).tolist()
        ids = {value: int(self.values[value]) for value in known}
        return MaskValues(self.taxonomy.names, ids, self._rule())

    def with_mask_values(self, given: Mapping[int, str | int] | None) -> OwnClasses:
        """Returns the classes with mask values replaced by those of `data.mask_values`.

        Raises:
            ConfigError: A name is not in the list, or a class loses its only value.
        """
        return replace(self, values=with_given(self.meaning, given).table) if given else self

    def read_label(self, mask: str | Path) -> np.ndarray:
        """Reads a mask: RGB and palette images by colour, greyscale images by value.

        Palette images are read by index if the list has no colours, or if the palette is a plain
        grey ramp, which carries no information.

        Returns:
            int32 [H, W], class ids or `VOID`.

        Raises:
            DataError: The file is missing or damaged, or has a value or colour that is not in the
                list (kind `value`).
        """
        pixels, palette = read_coloured_mask(mask)
        if pixels.ndim == 3:
            return self.colours.classes_of(pixels, mask)
        values = self.values
        if self.stated and palette is not None:
            values = self._by_palette(np.unique(pixels), palette, mask)
        return to_classes(pixels, values, mask, self._rule())

    def _by_palette(self, used: np.ndarray, palette: np.ndarray, mask: str | Path) -> np.ndarray:
        """Returns the table from values to classes that follows from a palette, uint8 [256, 3]."""
        greys = np.repeat(np.arange(256)[:, None], 3, axis=1)
        if (palette[used] == greys[used]).all():
            return self.values
        table = np.full(256, NO_CLASS, np.int32)
        table[255] = VOID
        used = used[used != 255]
        listed = [value for value in used if self._lists(palette[value])]
        others = [value for value in used if value not in listed]
        if others:
            colour = " ".join(map(str, palette[others[0]]))
            raise DataError(
                f"{mask}: its palette gives value {others[0]} the colour {colour}, which is not "
                f"in {self.path}: add a row with that colour, or remove the colours from the list "
                "so that masks are read by value",
                kind="value",
            )
        for value in listed:
            table[value] = self.colours.classes_of(palette[[value]][None], mask)[0, 0]
        return table

    def _lists(self, colour: np.ndarray) -> bool:
        red, green, blue = (int(channel) for channel in colour)
        return (red, green, blue) in self.colours.names

    def _rule(self) -> str:
        known = np.flatnonzero(self.values >= 0)
        return (
            f"{self.path} names {len(known)} classes, values {known.min()}..{known.max()}"
            f"{', and 255 is void' if self.values[255] == VOID else ''}: add the missing rows, "
            "correct the mask, or define the value with data.mask_values"
        )


def find_own_classes(root: Path) -> OwnClasses | None:
    """Returns the classes of the class list in a folder; `None` if there is no list.

    Raises:
        DataError: A list is damaged, or two lists have different classes or colours.
    """
    found = [
        _classes(rows, root / name, black_first=black_first)
        for name, (read, black_first) in _LISTS.items()
        if (root / name).is_file() and (rows := read(root / name))
    ]
    for one, other in pairwise(found):
        _require_consistent(one, other)
    stated = [each for each in found if each.stated]
    return next(iter((*stated, *found)), None)


def voc_colours(count: int) -> tuple[Colour, ...]:
    """Returns the first `count` colours of the VOC colour map, made from the bits of the index."""

    def channel(index: int, first: int) -> int:
        return sum((index >> 3 * turn + first & 1) << 7 - turn for turn in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count))


def _classes(rows: list[Row], path: Path, *, black_first: bool) -> OwnClasses:
    """Builds the classes from the rows of a list.

    Args:
        rows: Rows in file order.
        path: The file.
        black_first: Whether value 0 is the black row, or the background in a list without colours.
    """
    if len(rows) > 256:
        raise DataError(f"{path}: {len(rows)} rows: at most 256")
    stated, listed = any(row.colour for row in rows), rows
    if black_first:
        rows = _black_first(rows, stated)
    elif rows[0].name.casefold() == IGNORED and not stated:
        rows = rows[1:]  # value -1 in labelme
    voc_map = voc_colours(len(rows))
    names = [row.name for row in rows if not row.void]
    if len(names) == 1:
        void = [row.name for row in rows if row.void and row.name]
        refuse_one_beside_void(path, names[0], void)
    ids = {name: index for index, name in enumerate(names)}
    values = np.full(256, NO_CLASS, np.int32)
    values[255] = VOID
    colours: dict[Colour, str] = {BOUNDARY: "void"}
    for value, row in enumerate(rows):
        values[value] = VOID if row.void else ids[row.name]
        colour = row.colour if stated else voc_map[value]
        if colour is not None:
            colours[colour] = "void" if row.void else row.name
    taxonomy = taxonomy_of(names, path, ", one row each")
    table = colour_table(path, taxonomy.names, colours)
    if set(names) <= set(colours.values()):
        taxonomy = table.taxonomy
    notes = void_notes(path, [row.name for row in listed if row.name])
    return OwnClasses(path, taxonomy, values, table, stated, notes)


def _black_first(rows: list[Row], stated: bool) -> list[Row]:
    """Returns the rows in the order in which CVAT and Datumaro number them.

    These tools write a black void row first. A black void row elsewhere comes from another tool,
    and the order is kept.
    """
    first = [row for row in rows if row.colour == _BLACK and not row.void]
    if not stated:
        first = [row for row in rows if is_background_name(row.name)][:1]
        first = first or [Row(BACKGROUND, None)]
    return [*first, *(row for row in rows if row not in first)]


def _require_consistent(one: OwnClasses, other: OwnClasses) -> None:
    """Raises DataError if two lists of one folder contradict each other."""
    pairs = zip(
        (*map(_plain, one.taxonomy.names), "nothing"),
        (*map(_plain, other.taxonomy.names), "nothing"),
        strict=False,
    )
    different = next((pair for pair in pairs if pair[0] != pair[1]), None)
    if different:
        raise DataError(
            f"{other.path}: '{different[1]}' where {one.path.name} has '{different[0]}': the two "
            "must name the same classes in the same order; remove the wrong list"
        )
    both = (one.values != NO_CLASS) & (other.values != NO_CLASS)
    if (one.values != other.values)[both].any():
        value = int(np.flatnonzero(both & (one.values != other.values))[0])
        raise DataError(
            f"{other.path}: value {value} is a different class in {one.path.name}; remove the "
            "wrong list"
        )
    if one.stated and other.stated:
        for name, colour, other_colour in zip(
            one.taxonomy.names, one.taxonomy.palette, other.taxonomy.palette, strict=True
        ):
            if colour != other_colour:
                raise DataError(
                    f"{other.path}: '{name}' is {' '.join(map(str, other_colour))}, but "
                    f"{' '.join(map(str, colour))} in {one.path.name}; remove the wrong list"
                )


def _plain(name: str) -> str:
    return BACKGROUND if is_background_name(name) else name


def _require_unique(rows: Sequence[Row], path: Path) -> list[Row]:
    """Returns the rows; raises DataError if two share a name or a colour."""
    names: set[str] = set()
    colours: dict[Colour, str] = {}
    for row in rows:
        if row.name in names and not row.void:
            raise DataError(f"{path}: '{row.name}' occurs twice: list each class once")
        names.add(row.name)
        if row.colour is None:
            continue
        if row.colour in colours and not row.void:
            colour = " ".join(map(str, row.colour))
            raise DataError(
                f"{path}: '{colours[row.colour]}' and '{row.name}' have the colour {colour}: "
                "use a different colour for each class"
            )
        colours[row.colour] = row.name
    if not rows:
        raise DataError(f"{path}: contains no class: add one row per class, or remove the file")
    return list(rows)


def _against_background(rows: list[Row]) -> list[Row]:
    """Returns the rows of a text file; adds background if they contain a single class."""
    classes = [row for row in rows if row.name.casefold() != IGNORED]
    if len(classes) != 1 or classes[0].void or is_background_name(classes[0].name):
        return rows
    (only,) = classes
    black = any(row.colour == _BLACK for row in rows)  # leaves no colour for background
    return rows if black else [Row(BACKGROUND, only.colour and _BLACK), only]


def _read_names(path: Path) -> list[Row]:
    """Reads names by line number or by the value before the name; skipped values are void."""
    names = read_class_rows(path)
    first = min(0, *names) if names else 0
    rows = [Row(names.get(value, ""), None) for value in range(first, max(names, default=-1) + 1)]
    return _against_background(_require_unique(rows, path))


def _read_labelmap(path: Path) -> list[Row]:
    rows = []
    for number, line in read_names(path):
        name, *rest = line.rsplit(":", 3) if line.count(":") >= 3 else line.split(":")
        if not name.strip() or not rest:
            raise DataError(
                f"{path}: line {number}: '{line[:60]}': expected `name:R,G,B:parts:actions`, as in "
                "`leaf:128,0,0::`"
            )
        rows.append(Row(name.strip(), _colour(rest[0].split(","), f"{path}: line {number}")))
    return _against_background(_require_unique(rows, path))


def _read_label_colors(path: Path) -> list[Row]:
    rows = []
    for number, line in read_names(path):
        found = re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\S.*)", line)
        if found:
            colour = _colour(list(found.groups()[:3]), f"{path}: line {number}")
            rows.append(Row(found[4].strip(), colour))
        else:
            rows.append(Row(line, None))
    if 0 < sum(row.colour is None for row in rows) < len(rows):
        bare = next(row.name for row in rows if row.colour is None)
        raise DataError(
            f"{path}: '{bare[:60]}' has no colour while other rows have one: expected `R G B name`"
        )
    return _against_background(_require_unique(rows, path))


def _read_meta(path: Path) -> list[Row]:
    """Reads the JSON file of Datumaro; returns no rows if it names no classes."""
    tree = read_json(path)
    mapped, colours = tree.get("label_map") or {}, tree.get("segmentation_colors") or []
    if not isinstance(mapped, dict) or not isinstance(colours, list):
        raise DataError(f"{path}: label_map is not an object, or segmentation_colors is not a list")
    labels = tree.get("labels") or list(mapped.values())
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise DataError(f"{path}: 'labels' is {shown(labels)}: expected a list of names")
    if colours and len(colours) < len(mapped):
        raise DataError(
            f"{path}: {len(colours)} segmentation_colors for {len(mapped)} classes in label_map"
        )
    for key, label in mapped.items():
        if not re.fullmatch("[0-9]{1,3}", key) or labels[int(key) : int(key) + 1] != [label]:
            raise DataError(
                f"{path}: label_map has {shown(label)} as {shown(key)}, which is not its index in "
                "the list of labels; correct one of them"
            )
    of = {
        label: _colour(colour, f"{path}: segmentation_colors")
        for label, colour in zip(mapped.values(), colours, strict=False)
    }
    rows = [Row(" ".join(label.split()), of.get(label)) for label in labels]
    return _require_unique(rows, path) if rows else []


def _read_id2label(path: Path) -> list[Row]:
    """Reads a JSON object from values to names; skipped values are void."""
    tree = read_json(path)
    names: dict[int, str] = {}
    for key, name in tree.items():
        if not re.fullmatch("[0-9]{1,3}", key) or int(key) > 255 or not isinstance(name, str):
            raise DataError(f"{path}: {shown(key)}: {shown(name)}: expected 0..255 and a name")
        names[int(key)] = " ".join(name.split())
    values = range(max(names, default=-1) + 1)
    return _require_unique([Row(names.get(value, ""), None) for value in values], path)


def _colour(parts: object, where: str) -> Colour | None:
    """Parses a colour from three strings or numbers; returns `None` if it is empty."""
    if parts is None or parts == [""]:
        return None
    listed = [str(part).strip() for part in parts] if isinstance(parts, list) else []
    if len(listed) != 3 or not all(re.fullmatch("[0-9]{1,3}", part) for part in listed):
        raise DataError(f"{where}: {shown(parts)}: expected three numbers 0..255 for a colour")
    red, green, blue = map(int, listed)
    if max(red, green, blue) > 255:
        raise DataError(f"{where}: colour {red} {green} {blue}: expected numbers 0..255")
    return red, green, blue


# File name -> its reader, and whether value 0 is the black row.
_LISTS = {
    "class_names.txt": (_read_names, False),
    "classes.txt": (_read_names, False),
    "labels.txt": (_read_names, False),
    "labelmap.txt": (_read_labelmap, True),
    "label_colors.txt": (_read_label_colors, True),
    "colours.txt": (_read_label_colors, False),
    "colors.txt": (_read_label_colors, False),
    "dataset_meta.json": (_read_meta, False),
    "id2label.json": (_read_id2label, False),
}
NAMES = tuple(_LISTS)
"""File names of the supported class lists."""
