"""KITTI's semantic segmentation benchmark (2018): 200 street scenes with the ids of Cityscapes.

    ROOT/training/image_2/<name>.png
    ROOT/training/semantic/<name>.png      labelIds of Cityscapes: 0..33

The labels of testing/ are not public: there is no test part. Where the folder carries a class list
(see `own_classes`), the values are its rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.catalogue import CODINGS, taxonomy
from ccfnet_tf.datasets.listing import Listing, with_pictures
from ccfnet_tf.datasets.own_classes import find_own_classes
from ccfnet_tf.datasets.pairing import (
    MASKS,
    PICTURES,
    files_in,
    folders_seen,
    pair,
    require,
    require_pictures,
)
from ccfnet_tf.datasets.pictures import read_index_values, to_classes
from ccfnet_tf.labels import Sample

_TABLE = CODINGS["cityscapes"].table()
_RULE = "a mask of KITTI holds Cityscapes' labelIds 0..33, or 255; unpack the set anew"


def signs(root: Path) -> str:
    """Returns what of this layout is in `root`, or an empty string."""
    return folders_seen(root, "training/image_2", "training/semantic")


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists training as the training part; no picture is opened.

    Raises:
        DataError: The folder is not the set, holds no pictures, or its own class list is damaged.
    """
    require(root, signs, "KITTI semantics (training/image_2/ and training/semantic/)")
    own = find_own_classes(root)
    images = files_in(root / "training" / "image_2", PICTURES)
    labels = files_in(root / "training" / "semantic", MASKS)
    train = pair(images, labels, within="training/image_2/ or training/semantic/")
    require_pictures(train, root / "training" / "image_2" / "<name>.png")
    load = load_label if own is None else lambda sample: own.read_label(sample.label)
    classes = taxonomy("cityscapes") if own is None else own.taxonomy
    return Listing(classes, train[0], None, (), with_pictures(load), load, unpaired=train[1])


def load_label(sample: Sample) -> np.ndarray:
    """Reads a label, int32 [H, W], 0..18 or `VOID`.

    Raises:
        DataError: Missing, damaged, or an id that Cityscapes does not have; of kind `value`.
    """
    return to_classes(read_index_values(sample.label), _TABLE, sample.label, _RULE)
