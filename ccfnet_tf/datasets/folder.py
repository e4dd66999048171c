"""Any folder of pictures and masks.

    ROOT/classes.txt                             a class name a line; the line is the class id
    ROOT/{images,masks}/...                      one set; there is no test part
    ROOT/{train,val,test}/{images,masks}/...     val and test may be missing

A mask is a PNG of class ids and lies where its picture lies: `images/a/b.jpg`, `masks/a/b.png`.

One set may be split by ROOT/train.txt, val.txt and test.txt: a picture a line, relative to images/,
with or without suffix; val and test may be missing. Pictures in no list are then left out, and so
are their masks.

Where colours are the labels, ROOT/colours.txt (or colors.txt) with `R G B name` a line takes the
place of classes.txt, or stands beside it with the same names. Beside index masks it says in which
colours the classes are shown. Each mask is then read by what it is: RGB by
its colours, grey and palette by its ids.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.listing import Listing, LoadLabel, with_pictures
from ccfnet_tf.datasets.name_lists import (
    PARTS,
    ColourTable,
    read_classes,
    read_colour_table,
    read_part_lists,
)
from ccfnet_tf.datasets.pairing import ANYWHERE, MASKS, contents, files_in
from ccfnet_tf.datasets.pictures import read_index_mask, read_mask, to_ids
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample, Taxonomy

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".avif")
)

COLOURS = ("colours.txt", "colors.txt")
"""Names that the table of colours may have."""

_BESIDE = re.compile(r"[\s._-]*(mask|masks|label|labels|labelids|gt|seg|segmentation|l)[\s._-]*")
"""What tools put before or behind a picture's name to name its mask."""


def signs(root: Path) -> str:
    """Returns which folders of this layout `root` has; empty where it is another."""
    for folder in ("", "train/"):
        if (root / folder / "images").is_dir() and (root / folder / "masks").is_dir():
            return f"{folder}images/ and {folder}masks/"
    return ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the parts of a folder; no picture is opened.

    Raises:
        DataError: An unknown layout, a part of another name, two pictures of one name, a list, a
            class list or a table of colours that does not fit.
    """
    found = [part for part in PARTS if (root / part).is_dir()]
    unpaired: list[DataError] = []
    if "train" in found:
        _refuse_strange_parts(root)
        parts = {part: _pairs(root / part, part, unpaired) for part in found}
    elif (root / "images").is_dir():
        parts = _flat(root, unpaired, split=not data.lists)
        twice = sorted(parts.keys() & set(found))
        if twice:
            raise DataError(f"{root}: {twice[0]}.txt and {twice[0]}/ in it: keep one of them")
        parts |= {part: _pairs(root / part, part, unpaired) for part in found}
    else:
        raise DataError(
            f"{root}: no images/ and no train/ in it (found: {contents(root)}): expected "
            "images/ and masks/, or train/, val/, test/ with images/ and masks/ in each"
        )
    taxonomy, table = _classes(root)
    load_label = _loader(len(taxonomy.names), data.void_value, table)
    return Listing(
        taxonomy,
        parts["train"],
        parts.get("val"),
        parts.get("test", ()),
        with_pictures(load_label),
        load_label,
        unpaired=tuple(unpaired),
    )


def _refuse_strange_parts(root: Path) -> None:
    """Refuses a folder such as valid/ beside train/, whose pictures nobody would see."""
    for folder in sorted(root.iterdir()):
        hidden = folder.name.startswith(".")
        if not hidden and folder.name not in PARTS and (folder / "images").is_dir():
            raise DataError(
                f"{folder}: holds images/ but is no part: parts are train, val and test; rename it "
                "or move it away"
            )


def _classes(root: Path) -> tuple[Taxonomy, ColourTable | None]:
    colours = [root / name for name in COLOURS if (root / name).is_file()]
    if not colours:
        return read_classes(root / "classes.txt"), None
    if len(colours) > 1:
        raise DataError(f"{colours[1]}: {colours[0].name} is there too: keep one of them")
    table = read_colour_table(colours[0])
    names = table.taxonomy.names
    if (root / "classes.txt").is_file():
        listed = read_classes(root / "classes.txt").names
        if listed != names:
            pairs = zip((*listed, "nothing"), (*names, "nothing"), strict=False)
            one, other = next(pair for pair in pairs if pair[0] != pair[1])
            raise DataError(
                f"{root / 'classes.txt'}: '{one}' where colours.txt has '{other}': the two name "
                "the same classes in the same order; remove one"
            )
    return table.taxonomy, table


def _loader(classes: int, void_value: int, table: ColourTable | None) -> LoadLabel:
    def load_label(sample: Sample) -> np.ndarray:
        if table is None:
            return read_index_mask(sample.label, classes=classes, void_value=void_value)
        mask = read_mask(sample.label)
        if mask.ndim == 3:
            return table.classes_of(mask, sample.label)
        return to_ids(mask, sample.label, classes=classes, void_value=void_value)

    return load_label


def _flat(root: Path, unpaired: list[DataError], *, split: bool) -> dict[str, tuple[Sample, ...]]:
    """Returns the parts that list files name; without any, or without `split`, all is train."""
    images, masks = _sides(root)
    known = {stem: stem for stem in images}
    known |= {path.relative_to(root / "images").as_posix(): stem for stem, path in images.items()}
    lists = read_part_lists(root, known, f"picture in {root / 'images'}") if split else {}
    if not lists:
        return {"train": _paired(root, "", images, masks, unpaired)}
    listed = {stem for stems in lists.values() for stem in stems}
    images = {stem: path for stem, path in images.items() if stem in listed}
    masks = {stem: path for stem, path in masks.items() if stem in listed}
    samples = {s.name: s for s in _paired(root, "", images, masks, unpaired)}
    return {
        part: tuple(samples[stem] for stem in stems if stem in samples)
        for part, stems in lists.items()
    }


def _pairs(folder: Path, prefix: str, unpaired: list[DataError]) -> tuple[Sample, ...]:
    return _paired(folder, prefix, *_sides(folder), unpaired)


def _paired(
    folder: Path,
    prefix: str,
    images: dict[str, Path],
    masks: dict[str, Path],
    unpaired: list[DataError],
) -> tuple[Sample, ...]:
    """Returns the pictures that have a mask; adds what lacks the other to `unpaired`."""
    lonely = sorted(images.keys() - masks.keys())
    others = _other_files(folder / "masks") if lonely else {}
    for stem in lonely:
        text = f"{images[stem]}: no mask {folder / 'masks' / stem}.png"
        if relabelled := _masks_of(stem, masks):
            text += f"; {relabelled} lies there: a mask has its picture's name: rename it"
        elif stem in others:
            text += f"; {others[stem]} lies there, but masks are PNG: export it anew as PNG"
        unpaired.append(DataError(text, kind="missing"))
    for stem in sorted(masks.keys() - images.keys()):
        text = f"{masks[stem]}: no picture of that name in {folder / 'images'}"
        unpaired.append(DataError(text, kind="missing"))
    return tuple(
        Sample(f"{prefix}/{stem}" if prefix else stem, str(images[stem]), str(masks[stem]))
        for stem in sorted(images.keys() & masks.keys())
    )


def _masks_of(stem: str, masks: dict[str, Path]) -> Path | None:
    """Returns the mask whose name is a picture's with `_mask` or the like around it."""
    folder, _, name = stem.rpartition("/")
    for key, path in masks.items():
        beside, _, other = key.lower().rpartition("/")
        if beside != folder.lower() or other == name.lower():
            continue
        behind, before = other.removeprefix(name.lower()), other.removesuffix(name.lower())
        if any(part != other and _BESIDE.fullmatch(part) for part in (behind, before)):
            return path
    return None


def _sides(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Returns pictures and masks, each as relative path without suffix -> file."""
    for side in ("images", "masks"):
        if not (folder / side).is_dir():
            raise DataError(f"{folder}: no {side}/ in it (found: {contents(folder)})")
    images = files_in(folder / "images", SUFFIXES, ANYWHERE)
    if not images:
        raise DataError(
            f"{folder / 'images'}: no pictures (found: {contents(folder / 'images')}): expected "
            "files such as .jpg or .png"
        )
    return images, files_in(folder / "masks", MASKS, ANYWHERE)


def _other_files(masks: Path) -> dict[str, Path]:
    """Returns relative path without suffix -> file of whatever is no PNG."""
    return {
        path.relative_to(masks).with_suffix("").as_posix(): path
        for path in sorted(masks.rglob("*"))
        if path.is_file() and path.suffix.lower() != ".png"
    }
