"""PASCAL VOC (2007 to 2012), the segmentation task: 20 classes and background.

    ROOT/JPEGImages/<name>.jpg
    ROOT/SegmentationClass/<name>.png                masks: 0..20, 255 at borders; as palette
                                                     indices, or as the colours of VOC's palette
    ROOT/ImageSets/Segmentation/{train,val}.txt      a name a line

ROOT is VOCdevkit/VOC2012 or the like. Without SegmentationClass, SegmentationClassAug is read.
The labels of VOC's test list are not public: figures are usually reported on val.txt, which is
the test part here, and a validation share is taken from train.txt.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.catalogue import CODINGS, class_file, taxonomy
from ccfnet_tf.datasets.listing import Listing, with_pictures
from ccfnet_tf.datasets.name_lists import ColourTable, read_colour_table
from ccfnet_tf.datasets.pairing import (
    MASKS,
    PICTURES,
    files_in,
    folders_seen,
    read_list,
    require,
)
from ccfnet_tf.datasets.pictures import read_mask, to_classes
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample

_TABLE = CODINGS["voc"].table()
_RULE = "a mask of VOC holds 0..20 (the classes) or 255 (border); unpack the set anew"
_LISTS = Path("ImageSets", "Segmentation")

_Part = tuple[tuple[Sample, ...], tuple[DataError, ...]]


def signs(root: Path) -> str:
    """Returns what of this layout is in `root`, or an empty string."""
    return folders_seen(root, "JPEGImages", "SegmentationClass") or folders_seen(
        root, "JPEGImages", "SegmentationClassAug"
    )


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists train.txt as the training part and val.txt as the test part; no picture is opened.

    Raises:
        DataError: The folder is not the set, or a list is missing or names no pictures.
    """
    require(root, signs, "PASCAL VOC (JPEGImages/, SegmentationClass/, ImageSets/Segmentation/)")
    masks = root / "SegmentationClass"
    if not masks.is_dir():
        masks = root / "SegmentationClassAug"
    images, labels = files_in(root / "JPEGImages", PICTURES), files_in(masks, MASKS)
    taken: dict[str, str] = {}
    train, test = (
        _part(root / _LISTS / f"{part}.txt", images, labels, taken) for part in ("train", "val")
    )
    return Listing(
        taxonomy("voc"),
        train[0],
        None,
        test[0],
        with_pictures(load_label),
        load_label,
        unpaired=train[1] + test[1],
    )


def load_label(sample: Sample) -> np.ndarray:
    """Reads a label, int32 [H, W], 0..20 or `VOID`.

    Raises:
        DataError: Missing, damaged, or a value or colour outside VOC's; of kind `value`.
    """
    mask = read_mask(sample.label)
    if mask.ndim == 3:
        return _colours().classes_of(mask, sample.label)
    return to_classes(mask, _TABLE, sample.label, _RULE)


def _part(
    path: Path, images: dict[str, Path], labels: dict[str, Path], taken: dict[str, str]
) -> _Part:
    """Returns the samples that a list names, in its order; notes them in `taken`."""
    samples: list[Sample] = []
    absent: list[DataError] = []
    for line, name in read_list(path, "a picture's name"):
        if name in taken:
            raise DataError(f"{path}: line {line}: '{name[:60]}' is in {taken[name]} already")
        taken[name] = path.name
        if name in images and name in labels:
            samples.append(Sample(name, str(images[name]), str(labels[name])))
            continue
        what = "mask" if name in images else "picture"
        message = f"{path}: line {line}: '{name[:60]}' has no {what}: unpack the set anew"
        absent.append(DataError(message, kind="missing"))
    return tuple(samples), tuple(absent)


@cache
def _colours() -> ColourTable:
    return read_colour_table(class_file("voc"))
