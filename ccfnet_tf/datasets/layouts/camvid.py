"""CamVid as the SegNet tutorial published it: 367, 101 and 233 frames of 480x360, 11 classes.

    ROOT/{train,val,test}/<name>.png               frames
    ROOT/{train,val,test}annot/<name>.png          masks: 0..10 are classes, 11 is unlabelled
    ROOT/{train,val,test}.txt                      .../train/<name>.png .../trainannot/<name>.png
    ROOT/label_colors.txt, labelmap.txt, ...       classes of the data set (see `class_files`)

The lists contain absolute paths of the authors' machine; only the folder and the file name of each
are used. Without a list, every frame of the folder is used. Its mask has the same name, or
`trainannot_1.png` for the frame `train_1.png`.

CVAT and Datumaro write data sets in this layout, with their own classes and with masks in the
colours of those classes. Their folders may have other names, such as default/ and defaultannot/.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.class_and_split_lists import PARTS, part_named, plain_name
from ccfnet_tf.datasets.class_files import find_own_classes
from ccfnet_tf.datasets.layout_helpers import (
    MASKS,
    PHOTOS,
    files_in,
    folders_seen,
    not_there,
    pair,
    read_list,
    require,
    require_images,
)
from ccfnet_tf.datasets.mask_values_to_classes import MaskValues, index_values
from ccfnet_tf.datasets.published_classes import CODINGS, taxonomy
from ccfnet_tf.datasets.samples import Listing, LoadLabel, with_images
from ccfnet_tf.errors import ColoursError, DataError
from ccfnet_tf.io.read_images import count_colours, read_mask
from ccfnet_tf.labels import Sample

_ADD_CLASS_LIST = (
    "for a data set with its own classes, add label_colors.txt with one `R G B name` per line"
)
_RULE = (
    "a mask of CamVid contains 0..10 (classes) or 11 (unlabelled): correct it, or "
    f"{_ADD_CLASS_LIST}"
)
_ANNOT = "annot"

_Part = tuple[tuple[Sample, ...], tuple[DataError, ...]]


def signs(root: Path) -> str:
    """Returns the folders that identify this layout in `root`, or an empty string."""
    return folders_seen(root, "train", "trainannot") or next(
        (folders_seen(root, name, name + _ANNOT) for name in _folders(root).values()), ""
    )


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the splits without opening images.

    A sample is named after the folder of its split and its frame: `train/0001TP_006690`.

    Raises:
        DataError: The folder does not have this layout, its training split contains no images, a
            list is malformed, or its class list is damaged or contradicts another.
    """
    require(root, signs, "CamVid (train/, trainannot/ and so on)")
    folders = _folders(root)
    if "train" not in folders:
        there = ", ".join(f"{name}/" for name in folders.values())
        raise DataError(f"{root}: {there} but no train/ and trainannot/: add the training images")
    parts = {part: _part(root, name) for part, name in folders.items()}
    require_images(parts["train"], root / folders["train"] / "<name>.png")
    empty: _Part = ((), ())
    own = find_own_classes(root)
    own = own and own.with_mask_values(data.mask_values)
    meaning = index_values(
        taxonomy("camvid").names,
        data.mask_values if own is None else None,
        void=CODINGS["camvid"].void,
        rule=_RULE,
    )
    load = _loader(meaning) if own is None else lambda sample: own.read_label(sample.label)
    return Listing(
        taxonomy("camvid") if own is None else own.taxonomy,
        parts["train"][0],
        parts["val"][0] if "val" in parts else None,
        parts.get("test", empty)[0],
        with_images(load),
        load,
        unpaired=tuple(error for part in parts.values() for error in part[1]),
        notes=own.notes if own else _foreign_names(root, parts["train"]),
        mask_values=meaning if own is None else own.meaning,
    )


def _loader(meaning: MaskValues) -> LoadLabel:
    def load_label(sample: Sample) -> np.ndarray:
        mask = read_mask(sample.label)
        if mask.ndim == 3:
            raise ColoursError(
                f"{sample.label}: an RGB mask, but no list assigns colours to classes: "
                f"{_ADD_CLASS_LIST}",
                count_colours(mask),
            )
        return meaning.classes_of(mask, sample.label)

    return load_label


def _folders(root: Path) -> dict[str, str]:
    """Returns split -> name of its folder of frames that has a folder of masks next to it.

    Raises:
        DataError: Two folders belong to the same split.
    """
    found: dict[str, str] = {}
    try:
        names = sorted(path.name.removesuffix(_ANNOT) for path in root.glob(f"*{_ANNOT}/"))
    except OSError:  # reported when the folder is opened
        return {}
    for name in names:
        part = part_named(name)
        if not part or not (root / name).is_dir():
            continue
        if part in found:
            raise DataError(
                f"{root / name}: {found[part]}/ is also the {part} split: merge the two"
            )
        found[part] = name
    return {part: found[part] for part in PARTS if part in found}


def _foreign_names(root: Path, part: _Part) -> tuple[str, ...]:
    """Returns a note if a frame is not named as CamVid's are (0001TP_006690, Seq05VD_f02370)."""
    names = [sample.name.split("/")[-1] for sample in part[0]]
    camvid_name = r"(\d{4}[A-Z0-9]{2}|Seq05VD)_f?\d{5,6}"
    foreign = next((name for name in names if not re.fullmatch(camvid_name, name)), None)
    if foreign is None:
        return ()
    reason = f"'{foreign[:60]}' is not the name of a CamVid frame: {_ADD_CLASS_LIST}"
    return (f"{root}: no class list found, so CamVid's 11 classes are used; {reason}",)


def _part(root: Path, part: str) -> _Part:
    images = files_in(root / part, PHOTOS)
    labels = files_in(root / f"{part}annot", MASKS)
    if (root / f"{part}.txt").is_file():
        return _listed(root / f"{part}.txt", part, images, labels)
    labels = {
        re.sub(f"^{part}annot_", f"{part}_", key) if key not in images else key: path
        for key, path in labels.items()
    }
    return pair(images, labels, within=f"{part}/ or {part}annot/", prefix=f"{part}/")


def _listed(path: Path, part: str, images: dict[str, Path], labels: dict[str, Path]) -> _Part:
    """Returns the pairs that a list contains, in its order."""
    samples: list[Sample] = []
    absent: list[DataError] = []
    there = {plain_name(f"{part}/{file.name}"): file for file in images.values()}
    there |= {plain_name(f"{part}{_ANNOT}/{file.name}"): file for file in labels.values()}
    seen: set[str] = set()
    for image, label in _pairs(path, part):
        files = (f"{part}/{image}", f"{part}{_ANNOT}/{label}")
        for file in files:
            if file in seen:
                raise DataError(f"{path}: {file} is listed twice: list each file once")
        seen.update(files)
        missing = [file for file in files if file not in there]
        absent += [not_there(path.parent / file, path) for file in missing]
        if not missing:
            name = PurePosixPath(files[0]).with_suffix("").as_posix()
            samples.append(Sample(name, str(there[files[0]]), str(there[files[1]])))
    return tuple(samples), tuple(absent)


def _pairs(path: Path, part: str) -> list[tuple[str, str]]:
    """Returns the file names of frames and masks; a line may contain several pairs.

    Raises:
        DataError: A line does not consist of pairs from the two folders of the split.
    """
    pairs: list[tuple[str, str]] = []
    for number, text in read_list(path, "the paths of a frame and its mask"):
        files = [PurePosixPath(word) for word in _paths(plain_name(text))]
        images, labels = files[::2], files[1::2]
        good = all(file.parent.name == part for file in images) and all(
            file.parent.name == part + _ANNOT and file.suffix.lower() in MASKS for file in labels
        )
        if not files or len(images) != len(labels) or not good:
            raise DataError(
                f"{path}: line {number} is '{text[:60]}': expected .../{part}/<name>.png and "
                f".../{part}annot/<name>.png"
            )
        pairs += [(image.name, label.name) for image, label in zip(images, labels, strict=True)]
    return pairs


def _paths(text: str) -> list[str]:
    """Returns the paths on a line, which are quoted or separated by blanks."""
    if '"' in text:
        return re.findall(r'"([^"]+)"', text)
    # A blank in a folder name truncates the start of a path, which is not used.
    return [word for word in text.split() if PurePosixPath(word).suffix.lower() in PHOTOS]
