r"""SIFT Flow (Liu, Yuen, Torralba): 2688 outdoor images of LabelMe, 33 classes.

    ROOT/Images/<sub>/<name>.jpg
    ROOT/SemanticLabels/<sub>/<name>.mat     matrix S: 0 without a label, 1..33
    ROOT/TestSet1.txt                        <sub>\<name>.jpg of the 200 test images

Everything that is not listed is for training, less two images that have no label at all.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.base import Listing, with_pictures
from ccfnet_tf.datasets.catalogue import taxonomy
from ccfnet_tf.datasets.pairing import (
    DEEP,
    IMAGE_SUFFIXES,
    files_in,
    folders_seen,
    not_there,
    pair,
    read_list,
    require,
)
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.matlab import read_matrix
from ccfnet_tf.labels import Sample

UNLABELLED = frozenset(("highway_bost181", "street_urb506"))
"""Every pixel of these is 0: nothing can be learned from them, and they would count as images.

By name, since telling it from the files would open all 2688 of them.
"""

TWINS = (("insidecity_urb992", "tallbuilding_urb992"), ("mountain_sclos4", "mountain_sharp59"))
"""Pairs of the same image, all in the training split, that a validation share must not split."""

_LIST = "TestSet1.txt"


def signs(root: Path) -> str:
    """Returns what of this layout is in `root`, or an empty string."""
    return folders_seen(root, "Images", "SemanticLabels")


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the training split and the 200 test images; no image or label is opened.

    A sample's name is its path below Images, without suffix.

    Raises:
        DataError: The folder is not the set, or the list is missing or holds no names.
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
        with_pictures(load_label),
        load_label,
        near_duplicates=_near_duplicates(train),
        unpaired=unpaired,
    )


def load_label(sample: Sample) -> np.ndarray:
    """Reads a label.

    Returns:
        int32 [H, W], 0..32 or `VOID`.

    Raises:
        DataError: Missing, damaged, or a value above 33; of kind `value`.
    """
    values = read_matrix(sample.label, "S")
    last = len(taxonomy("sift_flow").names)
    if values.min() < 0 or values.max() > last:
        strange = values[(values < 0) | (values > last)]
        raise DataError(
            f"{sample.label}: value {strange[0]} ({strange.size} pixels outside): S holds "
            f"1..{last} (the classes) or 0 (no label); unpack the set anew",
            kind="value",
        )
    return values.astype(np.int32) - 1  # 0 becomes VOID


def _test_names(path: Path) -> dict[str, int]:
    """Returns the names of the test images, as samples are named, and their lines."""
    names: dict[str, int] = {}
    for line, text in read_list(path, "the name of a test image"):
        name = PurePosixPath(text.replace("\\", "/")).with_suffix("").as_posix()
        if name in names:
            raise DataError(f"{path}: {text} is on line {names[name]} and {line}: once each")
        names[name] = line
    return names


def _near_duplicates(samples: tuple[Sample, ...]) -> dict[str, str]:
    group = {name: pair[0] for pair in TWINS for name in pair}
    return {s.name: group[_last(s.name)] for s in samples if _last(s.name) in group}


def _last(name: str) -> str:
    return name.rpartition("/")[2]
