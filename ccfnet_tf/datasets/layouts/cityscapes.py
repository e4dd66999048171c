"""Cityscapes with fine labels: 2975 and 500 street scenes of 2048x1024, 19 evaluated classes.

    ROOT/leftImg8bit/{train,val}/<city>/<name>_leftImg8bit.png
    ROOT/gtFine/{train,val}/<city>/<name>_gtFine_labelIds.png          ids 0..33
    ROOT/gtFine/{train,val}/<city>/<name>_gtFine_labelTrainIds.png     alternatively 0..18, 255
    ROOT/label_colors.txt                                              classes of the data set

Ids that are not evaluated become void. The labels of the published test split are not public (the
files contain only void), so results are usually reported on val. It is the test split here; a
validation split is held out from train. If the folder contains a class list (see `class_files`),
labelIds are row numbers of that list. CVAT stores the images in imgsFine/leftImg8bit/.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.class_files import find_own_classes
from ccfnet_tf.datasets.layout_helpers import (
    DEEP,
    IMAGE_SUFFIXES,
    MASKS,
    files_in,
    folders_seen,
    pair,
    require,
    require_images,
)
from ccfnet_tf.datasets.mask_values_to_classes import MaskValues, index_values, read_index_mask
from ccfnet_tf.datasets.published_classes import CODINGS, taxonomy
from ccfnet_tf.datasets.samples import Listing, LoadLabel, with_images
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample

_IMAGE, _IDS, _TRAIN_IDS = "_leftImg8bit", "_gtFine_labelIds", "_gtFine_labelTrainIds"
_IMAGE_FOLDERS = ("leftImg8bit", "imgsFine/leftImg8bit")
_RULES = {
    "cityscapes": "labelIds of Cityscapes are 0..33, or 255 (licence plate); unpack the data set "
    "again",
    "cityscapes_train_ids": "labelTrainIds are 0..18 (classes) or 255 (not evaluated); create them "
    "again with createTrainIdLabelImgs.py of cityscapesScripts",
}


def signs(root: Path) -> str:
    """Returns the folders that identify this layout in `root`, or an empty string."""
    return folders_seen(root, _IMAGE_FOLDERS[0], "gtFine") or folders_seen(
        root, _IMAGE_FOLDERS[1], "gtFine"
    )


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists `train` as the training split and `val` as the test split.

    Images are not opened. A sample is named after its path without the common ending:
    `train/aachen/aachen_000000_000019`.

    Raises:
        DataError: The folder does not have this layout, its training split contains no images, or
            its class list is damaged or contradicts another.
    """
    require(root, signs, "Cityscapes (leftImg8bit/ and gtFine/)")
    image_folder = next(name for name in _IMAGE_FOLDERS if (root / name).is_dir())
    own = find_own_classes(root)
    train, test = (
        _part(root, image_folder, part, train_ids=own is None) for part in ("train", "val")
    )
    require_images(train, root / image_folder / "train" / "<city>" / f"<name>{_IMAGE}.png")
    meanings = {
        coding: index_values(
            taxonomy("cityscapes").names,
            data.mask_values if own is None else None,
            values=CODINGS[coding].values,
            void=CODINGS[coding].void,
            rule=rule,
        )
        for coding, rule in _RULES.items()
    }
    own = own and own.with_mask_values(data.mask_values)
    load = _loader(meanings) if own is None else lambda sample: own.read_label(sample.label)
    return Listing(
        taxonomy("cityscapes") if own is None else own.taxonomy,
        train[0],
        None,
        test[0],
        with_images(load),
        load,
        unpaired=train[1] + test[1],
        mask_values=meanings["cityscapes"] if own is None else own.meaning,
        notes=() if own is None else own.notes,
    )


def _loader(meanings: dict[str, MaskValues]) -> LoadLabel:
    def load_label(sample: Sample) -> np.ndarray:
        train_ids = Path(sample.label).stem.endswith(_TRAIN_IDS)
        meaning = meanings["cityscapes_train_ids" if train_ids else "cityscapes"]
        return read_index_mask(sample.label, meaning)

    return load_label


def _part(
    root: Path, image_folder: str, part: str, *, train_ids: bool
) -> tuple[tuple[Sample, ...], tuple[DataError, ...]]:
    """Pairs the images of a split; with `train_ids`, labelTrainIds replace missing labelIds."""
    images = _by_stem(files_in(root / image_folder / part, IMAGE_SUFFIXES, DEEP), _IMAGE)
    masks = files_in(root / "gtFine" / part, MASKS, DEEP)
    labels = _by_stem(masks, _IDS)
    if train_ids:
        labels = _by_stem(masks, _TRAIN_IDS) | labels
    return pair(
        images, labels, within=f"{image_folder}/{part}/ or gtFine/{part}/", prefix=f"{part}/"
    )


def _by_stem(files: dict[str, Path], ending: str) -> dict[str, Path]:
    return {key.removesuffix(ending): path for key, path in files.items() if key.endswith(ending)}
