r"""SIFT Flow (Liu, Yuen, Torralba): 2688 outdoor images of LabelMe, 33 classes.

    ROOT/Images/<sub>/<name>.jpg
    ROOT/SemanticLabels/<sub>/<name>.mat     matrix S: 0 is unlabelled, 1..33 are classes
    ROOT/TestSet1.txt                        <sub>\<name>.jpg of the 200 test images

All other images are for training, except two that have no labelled pixel.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_helpers import (
    DEEP,
    IMAGE_SUFFIXES,
    files_in,
    folders_seen,
    not_there,
    pair,
    read_list,
    require,
)
from ccfnet_tf.datasets.published_classes import taxonomy
from ccfnet_tf.datasets.samples import Listing, with_images
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.matlab import read_matrix
from ccfnet_tf.labels import Sample

UNLABELLED = frozenset(("highway_bost181", "street_urb506"))
"""Images in which every pixel is unlabelled. They are left out of the training split.

They are listed by name, because finding them would require opening all 2688 label files.
"""

TWINS = (("insidecity_urb992", "tallbuilding_urb992"), ("mountain_sclos4", "mountain_sharp59"))
"""Pairs of the same image, all for training; both go to the same side of a validation split."""

_LIST = "TestSet1.txt"


def signs(root: Path) -> str:
    """Returns the folders that identify this layout in `root`, or an empty string."""
    return folders_seen(root, "Images", "SemanticLabels")


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the training split and the 200 test images without opening images or labels.

    A sample is named after its path below Images, without suffix.

    Raises:
        DataError: The folder does not have this layout, or the list is missing or empty.
    """
    require(root, signs, f"SIFT Flow (Images/, SemanticLabels/, {_LIST})")
    images = files_in(root / "Images", IMAGE_SUFFIXES, DEEP)
    labels = files_in(root / "SemanticLabels", (".mat",), DEEP)
    samples, unpaired = pair(images, labels, within="Images/ or SemanticLabels/")
    known = {sample.name: sample for sample in samples}
    listed = _test_names(root / _LIST)
    test = tuple(known[name] for name in listed if name in known)
    train = tuple(
        sample
        for sample in samples
        if sample.name not in listed and _last(sample.name) not in UNLABELLED
    )
    absent = [name for name in listed if name not in images and name not in labels]
    unpaired += tuple(not_there(root / "Images" / f"{n}.jpg", root / _LIST) for n in absent)
    return Listing(
        taxonomy("sift_flow"),
        train,
        None,
        test,
        with_images(load_label),
        load_label,
        near_duplicates=_near_duplicates(train),
        unpaired=unpaired,
    )


def load_label(sample: Sample) -> np.ndarray:
    """Reads a label.

    Returns:
        int32 [H, W], 0..32 or `VOID`.

    Raises:
        DataError: The file is missing or damaged, or contains a value outside 0..33 (of kind
            `value`).
    """
    values = read_matrix(sample.label, "S")
    last = len(taxonomy("sift_flow").names)
    if values.min() < 0 or values.max() > last:
        invalid = values[(values < 0) | (values > last)]
        raise DataError(
            f"{sample.label}: value {invalid[0]} ({invalid.size} pixels out of range): S contains "
            f"1..{last} (classes) or 0 (unlabelled); unpack the data set again",
            kind="value",
        )
    return values.astype(np.int32) - 1  # 0 becomes VOID


def _test_names(path: Path) -> dict[str, int]:
    """Returns sample name -> line number, for the test images."""
    names: dict[str, int] = {}
    for line, text in read_list(path, "the name of a test image"):
        name = PurePosixPath(text.replace("\\", "/")).with_suffix("").as_posix()
        if name in names:
            raise DataError(
                f"{path}: {text} is on lines {names[name]} and {line}: list each image once"
            )
        names[name] = line
    return names


def _near_duplicates(samples: tuple[Sample, ...]) -> dict[str, str]:
    group = {name: pair[0] for pair in TWINS for name in pair}
    return {s.name: group[_last(s.name)] for s in samples if _last(s.name) in group}


def _last(name: str) -> str:
    return name.rpartition("/")[2]
