"""The class list that a folder carries in a published layout: which value or colour is which class.

    class_names.txt, classes.txt, labels.txt    one name per line (labelme), or `value: name`
    labelmap.txt                                name:R,G,B:parts:actions (CVAT, Datumaro)
    label_colors.txt, colours.txt, colors.txt   R G B name, or one name per line (CamVid, CVAT)
    dataset_meta.json                           label_map and segmentation_colors (Datumaro)
    id2label.json                               {"0": "background", ...} (Hugging Face)

A row is the value of a class in index masks. In labelmap.txt and label_colors.txt, a class of the
colour black is value 0 wherever its row stands, as CVAT and Datumaro count it. Names that stand for
no class are void (see `name_lists`). Where a list states no colours, those of PASCAL VOC's map
apply, as in labelme and Datumaro. One name alone in a text file is a class against background,
which is then value 0 and black.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from ccfnet_tf.datasets.mask_values import MaskValues, with_given
from ccfnet_tf.datasets.name_lists import (
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
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.images import NO_CLASS, read_coloured_mask, to_classes
from ccfnet_tf.io.json_files import read_json, shown
from ccfnet_tf.labels import IGNORED, VOID, Taxonomy, is_void_name

BOUNDARY = (224, 224, 192)
"""The colour of VOC's borders between objects, which have the value 255."""

_BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Row:
    """A row of a list; `colour` is `None` where it states none.

    A value that a list leaves out is a row without a name.
    """

    name: str
    colour: Colour | None

    @property
    def void(self) -> bool:
        """Whether pixels of this row have no class."""
        return not self.name or is_void_name(self.name)


@dataclass(frozen=True)
class OwnClasses:
    """A folder's own classes.

    Attributes:
        path: The list.
        taxonomy: The classes in order of their values.
        values: int32 [N]: value of a mask -> class id, `VOID` or `NO_CLASS`.
        colours: Colour of a mask -> class id or `VOID`.
        stated: The list itself states the colours.
        notes: What is worth knowing of the list.
    """

    path: Path
    taxonomy: Taxonomy
    values: np.ndarray
    colours: ColourTable
    stated: bool
    notes: tuple[str, ...] = ()

    @property
    def meaning(self) -> MaskValues:
        """What the values of grey masks mean."""
        known = np.flatnonzero(self.values != NO_CLASS).tolist()
        ids = {value: int(self.values[value]) for value in known}
        return MaskValues(self.taxonomy.names, ids, self._rule())

    def with_mask_values(self, given: Mapping[int, str | int] | None) -> OwnClasses:
        """Returns the classes with the values of `data.mask_values`.

        Raises:
            ConfigError: It names no class of the list, or takes the only value of a class.
        """
        return replace(self, values=with_given(self.meaning, given).table) if given else self

    def read_label(self, mask: str | Path) -> np.ndarray:
        """Reads a mask: RGB and palette by its colours, grey by its values.

        The indices of a palette count where the list states no colours, or where the palette is
        the ramp of greys, which says nothing.

        Returns:
            int32 [H, W], class ids or `VOID`.

        Raises:
            DataError: Missing, damaged, or a value or colour that the list does not have; of kind
                `value`.
        """
        pixels, palette = read_coloured_mask(mask)
        if pixels.ndim == 3:
            return self.colours.classes_of(pixels, mask)
        values = self.values
        if self.stated and palette is not None:
            values = self._by_palette(np.unique(pixels), palette, mask)
        return to_classes(pixels, values, mask, self._rule())

    def _by_palette(self, used: np.ndarray, palette: np.ndarray, mask: str | Path) -> np.ndarray:
        """Returns the table of values by the colours of a palette, uint8 [256, 3]."""
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
                "so that the values count",
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
            "correct the mask, or say what the value means with data.mask_values"
        )


def find_own_classes(root: Path) -> OwnClasses | None:
    """Returns the class list that a folder carries; `None` where it has none.

    Raises:
        DataError: A list that is damaged, or two that name other classes or give other colours.
    """
    found = [
        _classes(rows, root / name, black_first=black_first)
        for name, (read, black_first) in _LISTS.items()
        if (root / name).is_file() and (rows := read(root / name))
    ]
    for one, other in pairwise(found):
        _compare(one, other)
    stated = [each for each in found if each.stated]
    return next(iter((*stated, *found)), None)


def voc_colours(count: int) -> tuple[Colour, ...]:
    """Returns the first colours of VOC's map: the bits of an index in turn, highest last."""

    def channel(index: int, first: int) -> int:
        return sum((index >> 3 * turn + first & 1) << 7 - turn for turn in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count))


def _classes(rows: list[Row], path: Path, *, black_first: bool) -> OwnClasses:
    """Returns what the rows of a list mean.

    Args:
        rows: In order of the file.
        path: The file.
        black_first: Value 0 is the row of black; without colours, of the background.
    """
    if len(rows) > 256:
        raise DataError(f"{path}: {len(rows)} rows: at most 256")
    stated, listed = any(row.colour for row in rows), rows
    if black_first:
        rows = _black_first(rows, stated)
    elif rows[0].name.casefold() == IGNORED and not stated:
        rows = rows[1:]  # labelme gives it the value -1
    map_of_voc = voc_colours(len(rows))
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
        colour = row.colour if stated else map_of_voc[value]
        if colour is not None:
            colours[colour] = "void" if row.void else row.name
    taxonomy = taxonomy_of(names, path, ", one row each")
    table = colour_table(path, taxonomy.names, colours)
    if set(names) <= set(colours.values()):
        taxonomy = table.taxonomy
    notes = void_notes(path, [row.name for row in listed if row.name])
    return OwnClasses(path, taxonomy, values, table, stated, notes)


def _black_first(rows: list[Row], stated: bool) -> list[Row]:
    """Returns the rows as CVAT and Datumaro count them.

    They write a void row of black first themselves: where it is not, another tool counted.
    """
    first = [row for row in rows if row.colour == _BLACK and not row.void]
    if not stated:
        first = [row for row in rows if is_background_name(row.name)][:1]
        first = first or [Row(BACKGROUND, None)]
    return [*first, *(row for row in rows if row not in first)]


def _compare(one: OwnClasses, other: OwnClasses) -> None:
    """Refuses two lists of one folder that contradict each other."""
    pairs = zip(
        (*map(_plain, one.taxonomy.names), "nothing"),
        (*map(_plain, other.taxonomy.names), "nothing"),
        strict=False,
    )
    different = next((pair for pair in pairs if pair[0] != pair[1]), None)
    if different:
        raise DataError(
            f"{other.path}: '{different[1]}' where {one.path.name} has '{different[0]}': the two "
            "must name the same classes in the same order; remove the one that is wrong"
        )
    both = (one.values != NO_CLASS) & (other.values != NO_CLASS)
    if (one.values != other.values)[both].any():
        value = int(np.flatnonzero(both & (one.values != other.values))[0])
        raise DataError(
            f"{other.path}: value {value} is another class than in {one.path.name}; remove the "
            "one that is wrong"
        )
    if one.stated and other.stated:
        for name, mine, theirs in zip(
            one.taxonomy.names, one.taxonomy.palette, other.taxonomy.palette, strict=True
        ):
            if mine != theirs:
                raise DataError(
                    f"{other.path}: '{name}' is {' '.join(map(str, theirs))}, but "
                    f"{' '.join(map(str, mine))} in {one.path.name}; remove the one that is wrong"
                )


def _plain(name: str) -> str:
    return BACKGROUND if is_background_name(name) else name


def _refuse_twice(rows: Sequence[Row], path: Path) -> list[Row]:
    """Returns the rows, none of which has the name or the colour of another."""
    names: set[str] = set()
    colours: dict[Colour, str] = {}
    for row in rows:
        if row.name in names and not row.void:
            raise DataError(f"{path}: '{row.name}' is there twice: once each")
        names.add(row.name)
        if row.colour is None:
            continue
        if row.colour in colours and not row.void:
            colour = " ".join(map(str, row.colour))
            raise DataError(
                f"{path}: '{colours[row.colour]}' and '{row.name}' have the colour {colour}: "
                "give each its own"
            )
        colours[row.colour] = row.name
    if not rows:
        raise DataError(f"{path}: no class is named in it: write a row for each, or remove it")
    return list(rows)


def _against_background(rows: list[Row]) -> list[Row]:
    """Returns the rows of a text file; background is added where they name one class alone."""
    classes = [row for row in rows if row.name.casefold() != IGNORED]
    if len(classes) != 1 or classes[0].void or is_background_name(classes[0].name):
        return rows
    (only,) = classes
    black = any(row.colour == _BLACK for row in rows)  # then nothing says what background is
    return rows if black else [Row(BACKGROUND, only.colour and _BLACK), only]


def _read_names(path: Path) -> list[Row]:
    """Reads names, each on the line of its value or behind it; values left out are void."""
    names = read_class_rows(path)
    first = min(0, *names) if names else 0
    rows = [Row(names.get(value, ""), None) for value in range(first, max(names, default=-1) + 1)]
    return _against_background(_refuse_twice(rows, path))


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
    return _against_background(_refuse_twice(rows, path))


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
    return _against_background(_refuse_twice(rows, path))


def _read_meta(path: Path) -> list[Row]:
    """Reads Datumaro's JSON file; empty where it names no classes."""
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
                f"{path}: label_map has {shown(label)} as {shown(key)}, which is not its place in "
                "the list of labels; remove the one that is wrong"
            )
    of = {
        label: _colour(colour, f"{path}: segmentation_colors")
        for label, colour in zip(mapped.values(), colours, strict=False)
    }
    rows = [Row(" ".join(label.split()), of.get(label)) for label in labels]
    return _refuse_twice(rows, path) if rows else []


def _read_id2label(path: Path) -> list[Row]:
    """Reads values and names; values that it leaves out are void."""
    tree = read_json(path)
    names: dict[int, str] = {}
    for key, name in tree.items():
        if not re.fullmatch("[0-9]{1,3}", key) or int(key) > 255 or not isinstance(name, str):
            raise DataError(f"{path}: {shown(key)}: {shown(name)}: expected 0..255 and a name")
        names[int(key)] = " ".join(name.split())
    values = range(max(names, default=-1) + 1)
    return _refuse_twice([Row(names.get(value, ""), None) for value in values], path)


def _colour(parts: object, where: str) -> Colour | None:
    """Returns a colour of three numbers, as texts or numbers; `None` where nothing is stated."""
    if parts is None or parts == [""]:
        return None
    listed = [str(part).strip() for part in parts] if isinstance(parts, list) else []
    if len(listed) != 3 or not all(re.fullmatch("[0-9]{1,3}", part) for part in listed):
        raise DataError(f"{where}: {shown(parts)}: expected three numbers 0..255 for a colour")
    red, green, blue = map(int, listed)
    if max(red, green, blue) > 255:
        raise DataError(f"{where}: colour {red} {green} {blue}: expected numbers 0..255")
    return red, green, blue


# File -> its reader, and whether its rows are counted with black first.
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
"""The files that may hold a folder's own class list."""
