"""Any folder of images and masks.

    ROOT/classes.txt                             a class name a line; the line is the class id
    ROOT/{images,masks}/...                      one set; there is no test split
    ROOT/{images,masks}/{train,val,test}/...     val and test may be missing
    ROOT/{train,val,test}/{images,masks}/...     val and test may be missing

In place of images/ and masks/ there may be img_dir/ and ann_dir/, or images/ and labels/. Parts may
also be called training; valid, validation and dev; testing; see `part_of`. A mask is a PNG of class
ids and lies where its image lies: `images/a/b.jpg`, `masks/a/b.png`.

One set may be split by ROOT/train.txt, val.txt and test.txt: one image per line, relative to
images/ or to ROOT, with or without suffix; val and test may be missing. Images in no list are then
left out, and so are their masks.

Names such as void, ignore or unlabeled stand for no class (see `name_lists`).

Where colours are the labels, ROOT/colours.txt (or colors.txt) with `R G B name` a line takes the
place of classes.txt, or stands beside it with the same names. Beside index masks it says in which
colours the classes are shown. Each mask is then read by what it is: RGB by its colours, and so a
palette whose colours are all in the table; grey and other palettes by their ids.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.base import Listing, LoadLabel, with_pictures
from ccfnet_tf.datasets.class_files import NAMES
from ccfnet_tf.datasets.layouts.shards import void_value
from ccfnet_tf.datasets.mask_values import MaskValues, index_values, read_index_mask
from ccfnet_tf.datasets.name_lists import (
    ClassList,
    ColourTable,
    part_lists,
    plain_name,
    read_class_list,
    read_colour_table,
    read_part_lists,
)
from ccfnet_tf.datasets.pairing import ANYWHERE, MASKS, contents, files_in, plain_words, unambiguous
from ccfnet_tf.datasets.split_names import part_folders, part_of
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.images import read_coloured_mask
from ccfnet_tf.labels import VOID, Sample

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".avif")
)

SIDES = (("images", "masks"), ("img_dir", "ann_dir"), ("images", "labels"))
"""Folders of images and of masks, by the names that people give them."""

_LIST_SUFFIXES = (".txt", ".csv", ".json", ".yaml", ".yml", ".names")

COLOURS = ("colours.txt", "colors.txt")
"""Names that the table of colours may have."""


def signs(root: Path) -> str:
    """Returns which folders of this layout `root` has; empty where it is another."""
    folders = [root]
    try:
        folders += part_folders(root).get("train", [])
    except OSError:  # it is reported where it is opened
        return ""
    for folder in folders:
        sides = _sides_of(folder)
        # Folders called labels/ are of several layouts; a class list tells this one.
        if sides and (has_classes(root) or "labels" not in sides):
            below = "" if folder == root else f"{folder.name}/"
            return f"{below}{sides[0]}/ and {below}{sides[1]}/"
    return ""


def has_classes(root: Path) -> bool:
    """Returns whether `root` has a file that names its classes."""
    return any((root / name).is_file() for name in ("classes.txt", *COLOURS))


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the parts of a folder; no image is opened.

    Raises:
        DataError: An unknown layout, a folder that is not a part, two images of one name, a list, a
            class list or a table of colours that does not fit.
        ConfigError: `data.mask_values` does not fit the classes.
    """
    unpaired: list[DataError] = []
    folders = _one_folder_each(root)
    if "train" in folders:
        _refuse_strange_parts(root)
        parts = {part: _pairs(folder, unpaired) for part, folder in folders.items()}
    elif _has_pictures(root):
        parts = _flat(root, unpaired, split=not data.lists)
        for part, folder in folders.items():
            if part in parts:
                by_list = (root / f"{part}.txt").is_file()
                other = f"{part}.txt" if by_list else f"{parts[part][0].name.split('/')[0]}/"
                within = "" if by_list else f" below {_names_of_sides(root)[0]}/"
                raise DataError(
                    f"{root}: {other}{within} and {folder.name}/ in it: keep one of them"
                )
        parts |= {part: _pairs(folder, unpaired) for part, folder in folders.items()}
    else:
        raise DataError(
            f"{root}: no images/ and no train/ in it (found: {contents(root)}): expected "
            "images/ and masks/, or train/, val/, test/ with images/ and masks/ in each"
        )
    classes, table = _classes(root)
    void = {data.void_value} if data.void_value != "auto" else _own_void(classes)
    meaning = index_values(
        classes.taxonomy.names,
        data.mask_values,
        values=classes.values,
        void={*void, *classes.void},
    )
    load_label = _loader(meaning, table)
    return Listing(
        classes.taxonomy,
        parts["train"],
        parts.get("val"),
        parts.get("test", ()),
        with_pictures(load_label),
        load_label,
        unpaired=tuple(unpaired),
        mask_values=meaning,
        notes=classes.notes,
    )


def _own_void(classes: ClassList) -> set[int]:
    """Returns the value of void where none is given; none where the list has it as a class."""
    return {void_value(len(classes.values))} - set(classes.values)


def _one_folder_each(root: Path) -> dict[str, Path]:
    """Returns part -> the folder in `root` that holds its images and masks."""
    found: dict[str, Path] = {}
    for part, folders in part_folders(root).items():
        with_sides = [folder for folder in folders if _has_pictures(folder) or part == folder.name]
        if len(with_sides) > 1:
            names = " and ".join(f"{folder.name}/" for folder in with_sides)
            raise DataError(f"{root}: {names} are both the part {part}: put them together")
        if with_sides:
            found[part] = with_sides[0]
    return found


def _has_pictures(folder: Path) -> bool:
    return any((folder / images).is_dir() for images, _ in SIDES)


def _refuse_strange_parts(root: Path) -> None:
    """Refuses a folder such as extra/ beside train/, whose images nobody would see."""
    for folder in sorted(root.iterdir()):
        hidden = folder.name.startswith(".")
        if not hidden and part_of(folder.name) is None and _has_pictures(folder):
            raise DataError(
                f"{folder}: holds images but is not a part: parts are train, val and test; rename "
                "it or move it away"
            )


def _classes(root: Path) -> tuple[ClassList, ColourTable | None]:
    colours = [root / name for name in COLOURS if (root / name).is_file()]
    if not colours:
        _refuse_without_list(root)
        return read_class_list(root / "classes.txt"), None
    if len(colours) > 1:
        raise DataError(f"{colours[1]}: {colours[0].name} is there too: keep one of them")
    table = read_colour_table(colours[0])
    names = table.taxonomy.names
    classes = ClassList(table.taxonomy, tuple(range(len(names))), (), table.notes)
    if (root / "classes.txt").is_file():
        listed = read_class_list(root / "classes.txt")
        if listed.taxonomy.names != names:
            pairs = zip((*listed.taxonomy.names, "nothing"), (*names, "nothing"), strict=False)
            one, other = next(pair for pair in pairs if pair[0] != pair[1])
            raise DataError(
                f"{root / 'classes.txt'}: '{one}' where colours.txt has '{other}': the two name "
                "the same classes in the same order; remove one"
            )
        classes = listed._replace(taxonomy=table.taxonomy)
    return classes, table


def _refuse_without_list(root: Path) -> None:
    """Refuses a folder without classes.txt; says which of its files may be its class list.

    Tools count the rows of some of these lists otherwise, so none is taken for classes.txt unasked.
    """
    if (root / "classes.txt").is_file():
        return
    lists = set(part_lists(root).values())
    texts = [path for path in sorted(root.iterdir()) if path.suffix.lower() in _LIST_SUFFIXES]
    others = [path.name for path in texts if path not in lists and path.name[0] != "."]
    others.sort(key=lambda name: name not in NAMES)
    there = (
        f"{others[0]} is there: make it classes.txt, with the class of value 0 on the first line, "
        "or colours.txt (`R G B name` a line) where colours are the labels"
        if others
        else "where colours are the labels, colours.txt says `R G B name` a line; found: "
        f"{contents(root)}"
    )
    raise DataError(
        f"{root / 'classes.txt'}: no such file: it names the classes, one a line; {there}"
    )


def _loader(meaning: MaskValues, table: ColourTable | None) -> LoadLabel:
    def load_label(sample: Sample) -> np.ndarray:
        if table is None:
            return read_index_mask(sample.label, meaning)
        mask, palette = read_coloured_mask(sample.label)
        if mask.ndim == 3:
            return table.classes_of(mask, sample.label)
        ids = None if palette is None else _by_colour(mask, palette, meaning, table, sample.label)
        return meaning.classes_of(mask, sample.label) if ids is None else ids[mask]

    return load_label


def _by_colour(
    values: np.ndarray, palette: np.ndarray, meaning: MaskValues, table: ColourTable, path: str
) -> np.ndarray | None:
    """Returns int32 [256], the class of each value by its colour in a palette.

    `None` where the indices count: not all colours that are used are in the table. The value of
    void is void whatever its colour.

    Raises:
        DataError: Some colours are in the table, as other classes than their indices, and some not.
    """
    used = [value for value in np.unique(values).tolist() if value not in meaning.void]
    colours = [(int(red), int(green), int(blue)) for red, green, blue in palette[used]]
    order = {name: index for index, name in enumerate(table.taxonomy.names)}
    named = {v: table.names[c] for v, c in zip(used, colours, strict=True) if c in table.names}
    if len(named) == len(used):
        ids = np.full(256, VOID, np.int32)
        ids[list(named)] = [order.get(name, VOID) for name in named.values()]
        return ids
    for value, name in named.items():
        if order.get(name, VOID) != meaning.ids.get(value):
            strange = next(value for value in used if value not in named)
            raise DataError(
                f"{path}: its palette gives value {value} the colour of '{name}' in "
                f"{table.path}, and value {strange} a colour that is not in it: add that colour, "
                "or save the mask in grey where its values count",
                kind="value",
            )
    return None


def _flat(root: Path, unpaired: list[DataError], *, split: bool) -> dict[str, tuple[Sample, ...]]:
    """Returns the parts of one pair of folders: by list files, else by folders in them.

    Without either, or without `split`, all is train.
    """
    folders = _names_of_sides(root)
    images, masks = _sides(root, folders)
    within = root / folders[0]
    known = {stem: stem for stem in images}
    known |= {path.relative_to(within).as_posix(): stem for stem, path in images.items()}
    known = {f"{folders[0]}/{name}": stem for name, stem in known.items()} | known
    lists = read_part_lists(root, known, f"an image in {within}") if split else {}
    if split and not lists:
        lists = _by_folder(within, images)
        if not lists.get("train"):
            raise DataError(
                f"{within}: images for {' and '.join(lists)} alone: add train/ with images to "
                "learn from"
            )
        return _of_lists(lists, {s.name: s for s in _paired(root, "", images, masks, unpaired)})
    if not lists:
        return {"train": _paired(root, "", images, masks, unpaired)}
    listed = {stem for stems in lists.values() for stem in stems}
    images = {stem: path for stem, path in images.items() if stem in listed}
    masks = {stem: path for stem, path in masks.items() if stem in listed}
    return _of_lists(lists, {s.name: s for s in _paired(root, "", images, masks, unpaired)})


def _of_lists(
    lists: Mapping[str, list[str]], samples: Mapping[str, Sample]
) -> dict[str, tuple[Sample, ...]]:
    return {
        part: tuple(samples[stem] for stem in stems if stem in samples)
        for part, stems in lists.items()
    }


def _by_folder(within: Path, images: Mapping[str, Path]) -> dict[str, list[str]]:
    """Returns part -> images, by the first folder of their paths.

    Without a folder for training, all that lies in no other part is for training.

    Raises:
        DataError: Two folders of one part, or images beside the folder for training.
    """
    parts: dict[str, list[str]] = {}
    folders: dict[str, str] = {}
    others: list[str] = []
    for stem in sorted(images):
        first, _, rest = stem.partition("/")
        part = part_of(first) if rest else None
        if part is None:
            others.append(stem)
            continue
        if folders.setdefault(part, first) != first:
            names = f"{folders[part]}/ and {first}/"
            raise DataError(f"{within}: {names} are both the part {part}: put them together")
        parts.setdefault(part, []).append(stem)
    if others and "train" in parts:
        raise DataError(
            f"{images[others[0]]}: one of {len(others)} images beside {folders['train']}/ that "
            "are in no part: move them into a part, or away"
        )
    return {"train": others, **parts} if others else parts


def _pairs(folder: Path, unpaired: list[DataError]) -> tuple[Sample, ...]:
    return _paired(folder, folder.name, *_sides(folder, _names_of_sides(folder)), unpaired)


def _paired(
    folder: Path,
    prefix: str,
    images: dict[str, Path],
    masks: dict[str, Path],
    unpaired: list[DataError],
) -> tuple[Sample, ...]:
    """Returns the images that have a mask; adds what lacks the other to `unpaired`."""
    pictures, labels = (folder / side for side in _names_of_sides(folder))
    lonely = sorted(images.keys() - masks.keys())
    free = masks.keys() - images.keys()
    others = _other_files(labels, MASKS) if lonely else {}
    by_name = unambiguous((plain_words(stem), stem) for stem in [*free, *others])
    by_place = unambiguous((_last(stem), stem) for stem in free)
    for stem in lonely:
        text = f"{images[stem]}: no mask {labels / stem}.png"
        found = stem if stem in others else by_name.get(plain_words(stem))
        if found in others:
            text += f"; {others[found]} lies there, but masks are PNG: export it anew as PNG"
            text += " under its image's name" if found != stem else ""
        elif found := found or by_place.get(_last(stem)):
            moved = _last(found) == _last(stem)
            rule = "lies as its image does: move it" if moved else "has its image's name: rename it"
            text += f"; {masks[found]} lies there: a mask {rule}"
        free -= {found}  # said already
        unpaired.append(DataError(text, kind="missing"))
    others = _other_files(pictures, SUFFIXES) if free else {}
    for stem in sorted(free):
        text = f"{masks[stem]}: no image of that name in {pictures}"
        if stem in others:
            text += f"; {others[stem]} lies there, which is not read: save it as JPEG or PNG"
        unpaired.append(DataError(text, kind="missing"))
    return tuple(
        Sample(f"{prefix}/{stem}" if prefix else stem, str(images[stem]), str(masks[stem]))
        for stem in sorted(images.keys() & masks.keys())
    )


def _sides_of(folder: Path) -> tuple[str, str] | None:
    """Returns the names of the folders of images and masks in `folder`, if it has both.

    labels/ must hold PNG files: text files in it are of other layouts.
    """
    for images, masks in SIDES:
        both = (folder / images).is_dir() and (folder / masks).is_dir()
        if both and (masks != "labels" or next((folder / masks).rglob("*.[pP][nN][gG]"), None)):
            return images, masks
    return None


def _names_of_sides(folder: Path) -> tuple[str, str]:
    return _sides_of(folder) or SIDES[0]


def _sides(folder: Path, names: tuple[str, str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Returns images and masks, each as relative path without suffix -> file."""
    for side in names:
        if not (folder / side).is_dir():
            raise DataError(f"{folder}: no {side}/ in it (found: {contents(folder)})")
    pictures = folder / names[0]
    images = files_in(pictures, SUFFIXES, ANYWHERE)
    if not images:
        raise DataError(
            f"{pictures}: no images (found: {contents(pictures)}): expected files such as .jpg "
            "or .png"
        )
    return images, files_in(folder / names[1], MASKS, ANYWHERE)


def _other_files(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Returns relative path without suffix -> file of whatever has none of these suffixes."""
    return {
        plain_name(path.relative_to(folder).with_suffix("").as_posix()): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix.lower() not in suffixes
    }


def _last(stem: str) -> str:
    """Returns the name at the end of a path."""
    return stem.rpartition("/")[2]
