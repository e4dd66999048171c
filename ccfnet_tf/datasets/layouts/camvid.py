"""CamVid as the SegNet tutorial published it: 367, 101 and 233 frames of 480x360, 11 classes.

    ROOT/{train,val,test}/<name>.png               frames
    ROOT/{train,val,test}annot/<name>.png          masks: 0..10, 11 without a label
    ROOT/{train,val,test}.txt                      .../train/<name>.png .../trainannot/<name>.png
    ROOT/label_colors.txt, labelmap.txt, ...       the set's own classes (see `class_files`)

The lists hold absolute paths of their authors' machine: the last two parts of each count. Where a
list is missing, every frame of the folder is taken; its mask has the same name, or
`trainannot_1.png` belongs to `train_1.png`.

CVAT and Datumaro write sets in this layout, with classes of their own and masks in their colours.
Their folders may be called otherwise, such as default/ and defaultannot/.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.base import Listing, LoadLabel, with_pictures
from ccfnet_tf.datasets.catalogue import CODINGS, taxonomy
from ccfnet_tf.datasets.class_files import find_own_classes
from ccfnet_tf.datasets.mask_values import MaskValues, index_values
from ccfnet_tf.datasets.name_lists import PARTS, part_named, plain_name
from ccfnet_tf.datasets.pairing import (
    MASKS,
    PHOTOS,
    files_in,
    folders_seen,
    not_there,
    pair,
    read_list,
    require,
    require_pictures,
)
from ccfnet_tf.errors import ColoursError, DataError
from ccfnet_tf.io.images import count_colours, read_mask
from ccfnet_tf.labels import Sample

_OWN = "for a set with its own classes add label_colors.txt, `R G B name` a line"
_RULE = f"a mask of CamVid holds 0..10 (the classes) or 11 (no label): correct it, or {_OWN}"
_ANNOT = "annot"

_Part = tuple[tuple[Sample, ...], tuple[DataError, ...]]


def signs(root: Path) -> str:
    """Returns what of this layout is in `root`, or an empty string."""
    return folders_seen(root, "train", "trainannot") or next(
        (folders_seen(root, name, name + _ANNOT) for name in _folders(root).values()), ""
    )


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the parts; no image is opened.

    A sample's name is the part's folder and the frame's name: `train/0001TP_006690`.

    Raises:
        DataError: The folder is not the set, its training split holds no images, a list cannot be
            understood, or the set's own class list is damaged or contradicts another.
    """
    require(root, signs, "CamVid (train/, trainannot/ and so on)")
    folders = _folders(root)
    if "train" not in folders:
        there = ", ".join(f"{name}/" for name in folders.values())
        raise DataError(f"{root}: {there} but no train/ and trainannot/: add what is to be learned")
    parts = {part: _part(root, name) for part, name in folders.items()}
    require_pictures(parts["train"], root / folders["train"] / "<name>.png")
    nothing: _Part = ((), ())
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
        parts.get("test", nothing)[0],
        with_pictures(load),
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
                f"{sample.label}: RGB colours, and no list says which class each is: {_OWN}",
                count_colours(mask),
            )
        return meaning.classes_of(mask, sample.label)

    return load_label


def _folders(root: Path) -> dict[str, str]:
    """Returns part -> name of the folder of its frames, beside which one of masks lies.

    Raises:
        DataError: Two folders of one part.
    """
    found: dict[str, str] = {}
    try:
        names = sorted(path.name.removesuffix(_ANNOT) for path in root.glob(f"*{_ANNOT}/"))
    except OSError:  # not ours to read; whatever opens it will say so
        return {}
    for name in names:
        part = part_named(name)
        if not part or not (root / name).is_dir():
            continue
        if part in found:
            raise DataError(f"{root / name}: {found[part]}/ is the {part} split too: join them")
        found[part] = name
    return {part: found[part] for part in PARTS if part in found}


def _foreign_names(root: Path, part: _Part) -> tuple[str, ...]:
    """Returns a note where the frames are not CamVid's, such as 0001TP_006690, Seq05VD_f02370."""
    names = [sample.name.split("/")[-1] for sample in part[0]]
    ours = r"(\d{4}[A-Z0-9]{2}|Seq05VD)_f?\d{5,6}"
    strange = next((name for name in names if not re.fullmatch(ours, name)), None)
    if strange is None:
        return ()
    what = f"'{strange[:60]}' is not a name of CamVid's frames: {_OWN}"
    return (f"{root}: no class list in it, so the classes are CamVid's 11; {what}",)


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
    """Returns the pairs that a list names, in its order."""
    samples: list[Sample] = []
    absent: list[DataError] = []
    there = {plain_name(f"{part}/{file.name}"): file for file in images.values()}
    there |= {plain_name(f"{part}{_ANNOT}/{file.name}"): file for file in labels.values()}
    seen: set[str] = set()
    for image, label in _pairs(path, part):
        files = (f"{part}/{image}", f"{part}{_ANNOT}/{label}")
        for file in files:
            if file in seen:
                raise DataError(f"{path}: {file} is named twice: once each")
        seen.update(files)
        missing = [file for file in files if file not in there]
        absent += [not_there(path.parent / file, path) for file in missing]
        if not missing:
            name = PurePosixPath(files[0]).with_suffix("").as_posix()
            samples.append(Sample(name, str(there[files[0]]), str(there[files[1]])))
    return tuple(samples), tuple(absent)


def _pairs(path: Path, part: str) -> list[tuple[str, str]]:
    """Returns the file names of frames and masks; a pair or many on a line.

    Raises:
        DataError: A line that is not made of pairs from the two folders of the part.
    """
    pairs: list[tuple[str, str]] = []
    for number, text in read_list(path, "a frame's path and its mask's"):
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
    """Returns the paths on a line: in quotes, or apart by blanks."""
    if '"' in text:
        return re.findall(r'"([^"]+)"', text)
    # A blank inside a foreign folder's name only cuts off what does not count.
    return [word for word in text.split() if PurePosixPath(word).suffix.lower() in PHOTOS]
