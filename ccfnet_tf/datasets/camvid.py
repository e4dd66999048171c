"""CamVid as the SegNet tutorial published it: 367, 101 and 233 frames of 480x360, 11 classes.

    ROOT/{train,val,test}/<name>.png               frames
    ROOT/{train,val,test}annot/<name>.png          masks: 0..10, 11 without a label
    ROOT/{train,val,test}.txt                      .../train/<name>.png .../trainannot/<name>.png

The lists hold absolute paths of their authors' machine: the last two parts of each count. Where a
list is missing, every frame of the folder is taken; its mask has the same name, or
`trainannot_1.png` belongs to `train_1.png`.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.catalogue import CODINGS, taxonomy
from ccfnet_tf.datasets.listing import Listing, with_pictures
from ccfnet_tf.datasets.pairing import (
    MASKS,
    PICTURES,
    files_in,
    folders_seen,
    not_there,
    pair,
    read_list,
    require,
    require_pictures,
)
from ccfnet_tf.datasets.pictures import read_index_values, to_classes
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample

_TABLE = CODINGS["camvid"].table()
_RULE = "a mask of CamVid holds 0..10 (the classes) or 11 (no label); unpack the set anew"

_Part = tuple[tuple[Sample, ...], tuple[DataError, ...]]


def signs(root: Path) -> str:
    """Returns what of this layout is in `root`, or an empty string."""
    return folders_seen(root, "train", "trainannot")


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the three parts; no picture is opened.

    A sample's name is the part and the frame's name: `train/0001TP_006690`.

    Raises:
        DataError: The folder is not the set, its training part holds no pictures, or a list cannot
            be understood.
    """
    require(root, signs, "CamVid (train/, trainannot/ and so on)")
    parts = {part: _part(root, part) for part in ("train", "val", "test") if (root / part).is_dir()}
    require_pictures(parts["train"], root / "train" / "<name>.png")
    nothing: _Part = ((), ())
    return Listing(
        taxonomy("camvid"),
        parts["train"][0],
        parts["val"][0] if "val" in parts else None,
        parts.get("test", nothing)[0],
        with_pictures(load_label),
        load_label,
        unpaired=tuple(error for part in parts.values() for error in part[1]),
    )


def load_label(sample: Sample) -> np.ndarray:
    """Reads a label, int32 [H, W], 0..10 or `VOID`.

    Raises:
        DataError: Missing, damaged, or a value above 11; of kind `value`.
    """
    return to_classes(read_index_values(sample.label), _TABLE, sample.label, _RULE)


def _part(root: Path, part: str) -> _Part:
    images = files_in(root / part, PICTURES)
    labels = files_in(root / f"{part}annot", MASKS)
    if (root / f"{part}.txt").is_file():
        return _listed(root / f"{part}.txt", part, images, labels)
    labels = {
        re.sub(f"^{part}annot_", f"{part}_", key) if key not in images else key: path
        for key, path in labels.items()
    }
    return pair(images, labels, within=f"{part}/ or {part}annot/", prefix=f"{part}/")


def _listed(path: Path, part: str, images: dict[str, Path], labels: dict[str, Path]) -> _Part:
    """Returns the pairs that a list names, in its order."""
    samples: list[Sample] = []
    absent: list[DataError] = []
    there = {f"{part}/{key}.png" for key in images} | {f"{part}annot/{key}.png" for key in labels}
    seen: set[str] = set()
    for image, label in _pairs(path, part):
        name = f"{part}/{image}"
        files = (f"{name}.png", f"{part}annot/{label}.png")
        for file in files:
            if file in seen:
                raise DataError(f"{path}: {file} is named twice: once each")
        seen.update(files)
        missing = [file for file in files if file not in there]
        absent += [not_there(path.parent / file, path) for file in missing]
        if not missing:
            samples.append(Sample(name, str(images[image]), str(labels[label])))
    return tuple(samples), tuple(absent)


def _pairs(path: Path, part: str) -> list[tuple[str, str]]:
    """Returns the names, without suffix, of frames and masks; a pair or many on a line.

    Raises:
        DataError: A line that is not made of pairs from the two folders of the part.
    """
    pairs: list[tuple[str, str]] = []
    for number, text in read_list(path, "a frame's path and its mask's"):
        # A blank inside a foreign folder's name only cuts off what does not count.
        words = re.findall(r"\S+\.png(?!\S)", text.replace("\\", "/"), re.IGNORECASE)
        files = [PurePosixPath(word) for word in words]
        images, labels = files[::2], files[1::2]
        good = all(file.parent.name == part for file in images) and all(
            file.parent.name == f"{part}annot" for file in labels
        )
        if not files or len(images) != len(labels) or not good:
            raise DataError(
                f"{path}: line {number} is '{text[:60]}': expected .../{part}/<name>.png and "
                f".../{part}annot/<name>.png"
            )
        pairs += [(image.stem, label.stem) for image, label in zip(images, labels, strict=True)]
    return pairs
