"""KITTI's semantic segmentation benchmark (2018): 200 street scenes with the ids of Cityscapes.

    ROOT/training/image_2/<name>.png
    ROOT/training/semantic/<name>.png      labelIds of Cityscapes: 0..33

The labels of testing/ are not public, so there is no test split. If the folder contains a class
list (see `class_files`), mask values are row numbers of that list.
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
from ccfnet_tf.labels import Sample

_RULE = "a mask of KITTI contains Cityscapes' labelIds 0..33, or 255; unpack the data set again"


def signs(root: Path) -> str:
    """Returns the folders that identify this layout in `root`, or an empty string."""
    return folders_seen(root, "training/image_2", "training/semantic")


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists `training` as the training split without opening images.

    Raises:
        DataError: The folder does not have this layout, contains no images, or its class list is
            damaged.
    """
    require(root, signs, "KITTI semantics (training/image_2/ and training/semantic/)")
    own = find_own_classes(root)
    own = own and own.with_mask_values(data.mask_values)
    meaning = index_values(
        taxonomy("cityscapes").names,
        data.mask_values if own is None else {},
        values=CODINGS["cityscapes"].values,
        void=CODINGS["cityscapes"].void,
        rule=_RULE,
    )
    images = files_in(root / "training" / "image_2", IMAGE_SUFFIXES)
    labels = files_in(root / "training" / "semantic", MASKS)
    train = pair(images, labels, within="training/image_2/ or training/semantic/")
    require_images(train, root / "training" / "image_2" / "<name>.png")

    def load_label(sample: Sample) -> np.ndarray:
        if own is not None:
            return own.read_label(sample.label)
        return read_index_mask(sample.label, meaning)

    return Listing(
        taxonomy("cityscapes") if own is None else own.taxonomy,
        train[0],
        None,
        (),
        with_images(load_label),
        load_label,
        unpaired=train[1],
        mask_values=meaning if own is None else own.meaning,
        notes=() if own is None else own.notes,
    )
