"""Any folder of images and masks.

    ROOT/classes.txt                             one class name per line; the line is the class id
    ROOT/{images,masks}/...                      no splits: all images are for training
    ROOT/{images,masks}/{train,val,test}/...     val and test are optional
    ROOT/{train,val,test}/{images,masks}/...     val and test are optional

The folders may also be named img_dir/ and ann_dir/, or images/ and labels/. Splits may also be
named training; valid, validation and dev; testing; see `part_of`. A mask is a PNG of class ids with
the relative path of its image: `images/a/b.jpg`, `masks/a/b.png`.

Without folders of splits, the lists ROOT/train.txt, val.txt and test.txt can define the splits: one
image per line, relative to images/ or to ROOT, with or without suffix; val and test are optional.
Images that are in no list are then left out, and so are their masks.

Names such as void, ignore or unlabeled stand for no class.

For colour-coded labels, ROOT/colours.txt (or colors.txt) with one `R G B name` per line replaces
classes.txt. It may also accompany a classes.txt with the same names; for index masks it defines the
display colours. The type of each mask decides how it is read: RGB masks by colour, palette masks by
colour if all their colours are in the table, grey and other palette masks by class id.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.class_and_split_lists import (
    ClassList,
    ColourTable,
    part_lists,
    plain_name,
    read_class_list,
    read_colour_table,
    read_part_lists,
)
from ccfnet_tf.datasets.class_files import NAMES
from ccfnet_tf.datasets.layout_helpers import (
    ANYWHERE,
    MASKS,
    contents,
    files_in,
    plain_words,
    unambiguous,
)
from ccfnet_tf.datasets.layouts.shards import void_value
from ccfnet_tf.datasets.mask_values_to_classes import MaskValues, index_values, read_index_mask
from ccfnet_tf.datasets.samples import Listing, LoadLabel, with_images
from ccfnet_tf.datasets.split_names import part_folders, part_of
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.read_images import read_coloured_mask
from ccfnet_tf.labels import VOID, Sample

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".avif")
)

SIDES = (("images", "masks"), ("img_dir", "ann_dir"), ("images", "labels"))
"""Pairs of folder names for images and masks."""

_LIST_SUFFIXES = (".txt", ".csv", ".json", ".yaml", ".yml", ".names")

COLOURS = ("colours.txt", "colors.txt")
"""File names of the colour table."""


def signs(root: Path) -> str:
    """Returns the folders that identify this layout in `root`, or an empty string."""
    folders = [root]
    try:
        folders += part_folders(root).get("train", [])
    except OSError:  # reported when the folder is opened
        return ""
    for folder in folders:
        sides = _sides_of(folder)
        # Several layouts have a folder labels/; a class list identifies this one.
        if sides and (has_classes(root) or "labels" not in sides):
            below = "" if folder == root else f"{folder.name}/"
            return f"{below}{sides[0]}/ and {below}{sides[1]}/"
    return ""


def missing_sides(root: Path) -> str:
    """Returns the folders that a split of `root` lacks, such as `train/masks/`; empty if none.

    That it should have them is known from another split that is complete, or from a class list.
    """
    parts = part_folders(root)
    folders = [folder for each in parts.values() for folder in each]
    complete = next(filter(None, map(_sides_of, folders)), None)
    images, masks = complete or SIDES[0]
    if complete and "train" not in parts:
        return f"train/{images}/ and train/{masks}/"
    for folder in folders:
        lacking = [side for side in (images, masks) if not (folder / side).is_dir()]
        half = len(lacking) == 1 and has_classes(root) and not (folder / "labels").is_dir()
        if lacking and not _sides_of(folder) and (complete or half):
            return " and ".join(f"{folder.name}/{side}/" for side in lacking)
    return ""


def has_classes(root: Path) -> bool:
    """Returns whether `root` has a class list or a colour table."""
    return any((root / name).is_file() for name in ("classes.txt", *COLOURS))


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the splits of a folder without opening images.

    Raises:
        DataError: The layout is unknown, a folder of images is not a split, two images have the
            same name, or a list, the class list or the colour table is invalid.
        ConfigError: `data.mask_values` does not match the classes.
    """
    unpaired: list[DataError] = []
    folders = _one_folder_each(root)
    if "train" in folders:
        _refuse_unknown_folders(root)
        parts = {part: _pairs(folder, unpaired) for part, folder in folders.items()}
    elif _has_images(root):
        parts = _flat(root, unpaired, split=not data.lists)
        for part, folder in folders.items():
            if part in parts:
                by_list = (root / f"{part}.txt").is_file()
                other = f"{part}.txt" if by_list else f"{parts[part][0].name.split('/')[0]}/"
                within = "" if by_list else f" below {_names_of_sides(root)[0]}/"
                raise DataError(
                    f"{root}: both {other}{within} and {folder.name}/ are there: keep one of them"
                )
        parts |= {part: _pairs(folder, unpaired) for part, folder in folders.items()}
    else:
        raise DataError(
            f"{root}: contains neither images/ nor train/ (found: {contents(root)}): expected "
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
        with_images(load_label),
        load_label,
        unpaired=tuple(unpaired),
        mask_values=meaning,
        notes=classes.notes,
    )


def _own_void(classes: ClassList) -> set[int]:
    """Returns the default value of void, or an empty set if the class list uses it for a class."""
    return {void_value(len(classes.values))} - set(classes.values)


def _one_folder_each(root: Path) -> dict[str, Path]:
    """Returns split -> the folder in `root` that contains its images and masks."""
    found: dict[str, Path] = {}
    for part, folders in part_folders(root).items():
        with_sides = [folder for folder in folders if _has_images(folder) or part == folder.name]
        if len(with_sides) > 1:
            names = " and ".join(f"{folder.name}/" for folder in with_sides)
            raise DataError(f"{root}: {names} are both the {part} split: merge them")
        if with_sides:
            found[part] = with_sides[0]
    return found


def _has_images(folder: Path) -> bool:
    return any((folder / images).is_dir() for images, _ in SIDES)


def _refuse_unknown_folders(root: Path) -> None:
    """Raises an error for a folder such as extra/ next to train/, which would be ignored."""
    for folder in sorted(root.iterdir()):
        hidden = folder.name.startswith(".")
        if not hidden and part_of(folder.name) is None and _has_images(folder):
            raise DataError(
                f"{folder}: contains images but is not a split: splits are train, val and test; "
                "rename it or move it away"
            )


def _classes(root: Path) -> tuple[ClassList, ColourTable | None]:
    colours = [root / name for name in COLOURS if (root / name).is_file()]
    if not colours:
        _refuse_without_list(root)
        return read_class_list(root / "classes.txt"), None
    if len(colours) > 1:
        raise DataError(f"{colours[1]}: {colours[0].name} is also there: keep one of them")
    table = read_colour_table(colours[0])
    names = table.taxonomy.names
    classes = ClassList(table.taxonomy, tuple(range(len(names))), (), table.notes)
    if (root / "classes.txt").is_file():
        listed = read_class_list(root / "classes.txt")
        if listed.taxonomy.names != names:
            pairs = zip((*listed.taxonomy.names, "nothing"), (*names, "nothing"), strict=False)
            one, other = next(pair for pair in pairs if pair[0] != pair[1])
            raise DataError(
                f"{root / 'classes.txt'}: '{one}' where colours.txt has '{other}': both must list "
                "the same classes in the same order; correct or remove one"
            )
        classes = listed._replace(taxonomy=table.taxonomy)
    return classes, table


def _refuse_without_list(root: Path) -> None:
    """Raises an error if classes.txt is missing; suggests a file that may be the class list.

    Tools number the rows of such files differently, so none is used as classes.txt automatically.
    """
    if (root / "classes.txt").is_file():
        return
    lists = set(part_lists(root).values())
    texts = [path for path in sorted(root.iterdir()) if path.suffix.lower() in _LIST_SUFFIXES]
    others = [path.name for path in texts if path not in lists and path.name[0] != "."]
    others.sort(key=lambda name: name not in NAMES)
    there = (
        f"{others[0]} is there: save it as classes.txt, with the class of value 0 on the first "
        "line, or as colours.txt (one `R G B name` per line) for colour-coded labels"
        if others
        else "for colour-coded labels add colours.txt with one `R G B name` per line; found: "
        f"{contents(root)}"
    )
    raise DataError(
        f"{root / 'classes.txt'}: no such file: add it with one class name per line; {there}"
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
    """Returns int32 [256], the class of each index by its colour in the palette.

    Returns `None` if some colour in use is not in the table: the indices are then the class ids.
    The value of void is void whatever its colour.

    Raises:
        DataError: Some colours are not in the table, and others are there with a class that
            contradicts their index.
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
            unlisted = next(value for value in used if value not in named)
            raise DataError(
                f"{path}: its palette gives value {value} the colour of '{name}' in "
                f"{table.path}, and value {unlisted} a colour that is not in it: add that colour, "
                "or save the mask as a grey PNG to use its values",
                kind="value",
            )
    return None


def _flat(root: Path, unpaired: list[DataError], *, split: bool) -> dict[str, tuple[Sample, ...]]:
    """Returns the splits of one pair of folders: by list files, or else by their subfolders.

    Without either, or with `split=False`, all images are for training.
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
                f"{within}: images for {' and '.join(lists)} only: add train/ with the training "
                "images"
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
    """Returns split -> images, by the first folder of their paths.

    Without a training folder, all images outside the other splits are for training.

    Raises:
        DataError: A split has two folders, or there are images outside the training folder that
            belong to no split.
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
            raise DataError(f"{within}: {names} are both the {part} split: merge them")
        parts.setdefault(part, []).append(stem)
    if others and "train" in parts:
        raise DataError(
            f"{images[others[0]]}: one of {len(others)} images next to {folders['train']}/ that "
            "are in no split: move them into a split, or elsewhere"
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
    """Returns the images that have a mask; adds an error for every other file to `unpaired`."""
    image_folder, labels = (folder / side for side in _names_of_sides(folder))
    without_mask = sorted(images.keys() - masks.keys())
    free = masks.keys() - images.keys()
    others = _other_files(labels, MASKS) if without_mask else {}
    by_plain_name = unambiguous((plain_words(stem), stem) for stem in [*free, *others])
    by_file_name = unambiguous((_last(stem), stem) for stem in free)
    for stem in without_mask:
        text = f"{images[stem]}: no mask {labels / stem}.png"
        found = stem if stem in others else by_plain_name.get(plain_words(stem))
        if found in others:
            text += f"; found {others[found]}, but masks must be PNG: export it again as PNG"
            text += " with the name of its image" if found != stem else ""
        elif found := found or by_file_name.get(_last(stem)):
            moved = _last(found) == _last(stem)
            rule = (
                "the folder of its image: move it" if moved else "the name of its image: rename it"
            )
            text += f"; found {masks[found]}: a mask must have {rule}"
        free -= {found}  # already reported
        unpaired.append(DataError(text, kind="missing"))
    others = _other_files(image_folder, SUFFIXES) if free else {}
    for stem in sorted(free):
        text = f"{masks[stem]}: no image of that name in {image_folder}"
        if stem in others:
            text += f"; found {others[stem]}, an unsupported format: save it as JPEG or PNG"
        unpaired.append(DataError(text, kind="missing"))
    return tuple(
        Sample(f"{prefix}/{stem}" if prefix else stem, str(images[stem]), str(masks[stem]))
        for stem in sorted(images.keys() & masks.keys())
    )


def _sides_of(folder: Path) -> tuple[str, str] | None:
    """Returns the names of the image folder and the mask folder in `folder`, if it has both.

    A folder labels/ must contain PNG files: with text files it belongs to another layout.
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
            raise DataError(f"{folder}: contains no {side}/ (found: {contents(folder)}): add it")
    image_folder = folder / names[0]
    images = files_in(image_folder, SUFFIXES, ANYWHERE)
    if not images:
        raise DataError(
            f"{image_folder}: no images (found: {contents(image_folder)}): expected files such as "
            ".jpg or .png"
        )
    return images, files_in(folder / names[1], MASKS, ANYWHERE)


def _other_files(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Returns relative path without suffix -> file, for files with any other suffix."""
    return {
        plain_name(path.relative_to(folder).with_suffix("").as_posix()): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix.lower() not in suffixes
    }


def _last(stem: str) -> str:
    """Returns the last component of a path."""
    return stem.rpartition("/")[2]
