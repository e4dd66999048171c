"""ADE20K, the scene parsing benchmark (ADEChallengeData2016): 20210 + 2000 images, 150 classes.

    ROOT/images/{training,validation}/<name>.jpg
    ROOT/annotations/{training,validation}/<name>.png     masks: 0 is unlabelled, 1..150 are classes

The labels of the benchmark's test split are not public, so results are usually reported on the
validation images. They are the test split here; a validation split is held out from training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.class_files import find_own_classes
from ccfnet_tf.datasets.layout_helpers import (
    IMAGE_SUFFIXES,
    MASKS,
    files_in,
    folders_seen,
    pair,
    require,
    require_images,
)
from ccfnet_tf.datasets.mask_values_to_classes import index_values, read_index_mask
from ccfnet_tf.datasets.published_classes import CODINGS, taxonomy
from ccfnet_tf.datasets.samples import Listing, with_images
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample

_CODING = CODINGS["ade20k"]
_RULE = "a mask of ADE20K contains 1..150 (classes) or 0 (unlabelled); unpack the data set again"


def signs(root: Path) -> str:
    """Returns the folders that identify this layout in `root`, or an empty string."""
    return folders_seen(root, "images/training", "annotations/training")


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists `training` as the training split and `validation` as the test split.

    Images are not opened. A sample is named after its folder and its image:
    `training/ADE_train_00000001`.

    Raises:
        DataError: The folder does not have this layout, its training split contains no images, or
            it contains a list of other classes. Such masks are ambiguous: their first class may
            have the value 0 or 1.
    """
    require(root, signs, "ADE20K scene parsing (images/training/, annotations/training/)")
    _refuse_own_classes(root)
    train, test = _part(root, "training"), _part(root, "validation")
    require_images(train, root / "images" / "training" / "<name>.jpg")
    names = taxonomy("ade20k").names
    meaning = index_values(
        names, data.mask_values, values=_CODING.values, void=_CODING.void, rule=_RULE
    )

    def load_label(sample: Sample) -> np.ndarray:
        return read_index_mask(sample.label, meaning)

    return Listing(
        taxonomy("ade20k"),
        train[0],
        None,
        test[0],
        with_images(load_label),
        load_label,
        unpaired=train[1] + test[1],
        mask_values=meaning,
    )


def _refuse_own_classes(root: Path) -> None:
    own = find_own_classes(root)
    if own is not None and own.taxonomy.names != taxonomy("ade20k").names:
        raise DataError(
            f"{own.path}: lists classes other than ADE20K's 150: for a data set with its own "
            "classes, rename images/training to train/images, annotations/training to "
            "train/masks, the validation folders to val/images and val/masks, and the list to "
            "classes.txt (its first line is value 0)"
        )


def _part(root: Path, part: str) -> tuple[tuple[Sample, ...], tuple[DataError, ...]]:
    return pair(
        files_in(root / "images" / part, IMAGE_SUFFIXES),
        files_in(root / "annotations" / part, MASKS),
        within=f"images/{part}/ or annotations/{part}/",
        prefix=f"{part}/",
    )
