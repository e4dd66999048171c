"""PASCAL VOC segmentation (2007 to 2012), and data sets that tools write in its layout.

    ROOT/JPEGImages/<name>.jpg
    ROOT/SegmentationClass/<name>.png                masks: 0..20, 255 at borders; as palette
                                                     indices, or as the colours of VOC's palette
    ROOT/ImageSets/Segmentation/{train,val}.txt      one name per line, or the paths of an image and
                                                     its mask
    ROOT/labelmap.txt, class_names.txt, ...          classes of the data set (see `class_files`)

ROOT is the folder of one year, such as VOCdevkit/VOC2012. If SegmentationClass is missing or
contains no PNG (older versions of labelme), SegmentationClassPNG or SegmentationClassAug is read.
The labels of VOC's test list are not public, so results are usually reported on val.txt. It is the
test split here; a validation split is held out from train.txt.

A data set with its own classes may have other lists. default.txt (CVAT) is the training list,
val.txt is optional, and with a test.txt, val.txt is the validation split. Without any list, as
labelme writes it, all images are for training.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.class_and_split_lists import (
    PARTS,
    ColourTable,
    colour_table,
    part_named,
    plain_name,
)
from ccfnet_tf.datasets.class_files import BOUNDARY, NAMES, find_own_classes
from ccfnet_tf.datasets.layout_helpers import (
    ANYWHERE,
    MASKS,
    PHOTOS,
    files_in,
    folders_seen,
    pair,
    read_list,
    require,
    require_images,
)
from ccfnet_tf.datasets.mask_values_to_classes import MaskValues, index_values
from ccfnet_tf.datasets.published_classes import CODINGS, taxonomy
from ccfnet_tf.datasets.samples import Listing, LoadLabel, with_images
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.read_images import read_mask
from ccfnet_tf.labels import Sample, Taxonomy

_ADD_CLASS_LIST = f"for a data set with its own classes, add {NAMES[0]} or {NAMES[3]}"
_RULE = (
    "a mask of VOC contains 0..20 (classes) or 255 (border): unpack the data set again, or "
    f"{_ADD_CLASS_LIST}"
)
_MASKS = ("SegmentationClass", "SegmentationClassPNG", "SegmentationClassAug")
_LISTS = Path("ImageSets", "Segmentation")

_Part = tuple[tuple[Sample, ...], tuple[DataError, ...]]


def signs(root: Path) -> str:
    """Returns the folders that identify this layout in `root`, or an empty string."""
    return next(filter(None, (folders_seen(root, "JPEGImages", name) for name in _MASKS)), "")


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists train.txt as the training split and val.txt as the test split.

    Images are not opened.

    Raises:
        DataError: The folder does not have this layout, a list is missing or contains no images, or
            the class list is damaged or contradicts another.
    """
    require(root, signs, "PASCAL VOC (JPEGImages/, SegmentationClass/, ImageSets/Segmentation/)")
    images = files_in(root / "JPEGImages", PHOTOS, ANYWHERE)
    folders = [root / name for name in _MASKS if (root / name).is_dir()]
    found = ((folder, files_in(folder, MASKS, ANYWHERE)) for folder in folders)
    masks, labels = next((each for each in found if each[1]), (folders[0], {}))
    own = find_own_classes(root)
    own = own and own.with_mask_values(data.mask_values)
    if own is None:
        parts = _parts({part: root / _LISTS / f"{part}.txt" for part in PARTS[:2]}, images, labels)
        parts["test"] = parts.pop("val")
        meaning = index_values(
            taxonomy("voc").names, data.mask_values, void=CODINGS["voc"].void, rule=_RULE
        )
        load = _loader(meaning)
        return _listing(taxonomy("voc"), parts, load, _foreign_names(root, images), meaning)
    lists = _own_lists(root / _LISTS)
    if lists:
        parts = _parts(lists, images, labels)
    else:
        within = f"JPEGImages/ or {masks.name}/"
        parts = {"train": pair(images, labels, within=within)}
        require_images(parts["train"], root / "JPEGImages" / "<name>.jpg")
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
    return _listing(
        own.taxonomy, parts, lambda sample: own.read_label(sample.label), own.notes, own.meaning
    )


def _loader(meaning: MaskValues) -> LoadLabel:
    def load_label(sample: Sample) -> np.ndarray:
        mask = read_mask(sample.label)
        if mask.ndim == 3:
            return _colours().classes_of(mask, sample.label)
        return meaning.classes_of(mask, sample.label)

    return load_label


def _listing(
    classes: Taxonomy,
    parts: dict[str, _Part],
    load: LoadLabel,
    notes: tuple[str, ...],
    meaning: MaskValues,
) -> Listing:
    return Listing(
        classes,
        parts["train"][0],
        parts["val"][0] if "val" in parts else None,
        parts["test"][0] if "test" in parts else (),
        with_images(load),
        load,
        unpaired=tuple(error for part in parts.values() for error in part[1]),
        notes=notes,
        mask_values=meaning,
    )


def _own_lists(folder: Path) -> dict[str, Path]:
    """Returns split -> its list, which may have any name of that split; default.txt is train.

    Raises:
        DataError: A split has two lists, or there is no training list.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.txt")):
        part = part_named(path.stem)
        if part in found:
            raise DataError(
                f"{path}: {found[part].name} is also the list of the {part} split: keep one"
            )
        if part:
            found[part] = path
    if "train" not in found and (folder / "trainval.txt").is_file():
        found = {"train": folder / "trainval.txt"} | found
        found.pop("val", None)  # trainval.txt contains it
    if found and "train" not in found:
        names = ", ".join(path.name for path in found.values())
        raise DataError(f"{folder}: no train.txt or default.txt (found: {names}): add one")
    return {part: found[part] for part in PARTS if part in found}


def _parts(
    lists: dict[str, Path], images: dict[str, Path], labels: dict[str, Path]
) -> dict[str, _Part]:
    taken: dict[str, str] = {}
    return {part: _part(path, images, labels, taken) for part, path in lists.items()}


def _foreign_names(root: Path, images: dict[str, Path]) -> tuple[str, ...]:
    """Returns a note if an image is not named as VOC's are (2007_000032 or 000032)."""
    foreign = next((name for name in images if not re.fullmatch(r"(\d{4}_)?\d{6}", name)), None)
    if foreign is None:
        return ()
    reason = f"'{foreign[:60]}' is not the name of a VOC image: {_ADD_CLASS_LIST}"
    return (f"{root}: no class list found, so VOC's 20 classes and background are used; {reason}",)


def _part(
    path: Path, images: dict[str, Path], labels: dict[str, Path], taken: dict[str, str]
) -> _Part:
    """Returns the samples of a list, in its order; adds them to `taken`."""
    samples: list[Sample] = []
    absent: list[DataError] = []
    for line, text in read_list(path, "an image's name"):
        name = _name(text, images)
        if name in taken:
            raise DataError(f"{path}: line {line}: '{name[:60]}' is already in {taken[name]}")
        taken[name] = path.name
        if name in images and name in labels:
            samples.append(Sample(name, str(images[name]), str(labels[name])))
            continue
        what = "mask" if name in images else "image"
        message = f"{path}: line {line}: '{name[:60]}' has no {what}: add it, or remove the line"
        absent.append(DataError(message, kind="missing"))
    return tuple(samples), tuple(absent)


def _name(text: str, images: dict[str, Path]) -> str:
    """Returns the image of a line such as `a`, `a.jpg` or `JPEGImages/a.jpg .../a.png`."""
    name = plain_name(text)
    first, *others = name.split() or [name]
    if others and others[-1].casefold().endswith(MASKS):
        name = first
    inside = name.rpartition("JPEGImages/")[2]
    stem = PurePosixPath(inside).with_suffix("").as_posix() if inside else inside
    return next((each for each in (name, inside, stem) if each in images), name)


@cache
def _colours() -> ColourTable:
    classes = taxonomy("voc")
    colours = dict(zip(classes.palette, classes.names, strict=True)) | {BOUNDARY: "void"}
    return colour_table("the colours of PASCAL VOC", classes.names, colours, _ADD_CLASS_LIST)
