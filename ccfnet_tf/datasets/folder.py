"""Any folder of pictures and masks.

    ROOT/classes.txt                             a class name a line; the line is the class id
    ROOT/{images,masks}/...                      one set; there is no test part
    ROOT/{train,val,test}/{images,masks}/...     val and test may be missing

A mask is a PNG of class ids and lies where its picture lies: `images/a/b.jpg`, `masks/a/b.png`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.listing import Listing
from ccfnet_tf.datasets.pictures import read_image, read_index_mask
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample, Taxonomy, distinct_colours

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".avif")
)
_PARTS = ("train", "val", "test")


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists the parts of a folder; no picture is opened.

    Raises:
        DataError: An unknown layout, a picture without its mask or the reverse, two pictures of
            one name, a class list that is missing or does not fit.
    """
    found = [part for part in _PARTS if (root / part).is_dir()]
    if "train" in found:
        lists = {part: _pairs(root / part, prefix=part) for part in found}
    elif (root / "images").is_dir():
        lists = {"train": _pairs(root, prefix="")}
        lists |= {part: _pairs(root / part, prefix=part) for part in found}
    else:
        raise DataError(
            f"{root}: no images/ and no train/ in it (found: {_seen(root)}): expected "
            "images/ and masks/, or train/, val/, test/ with images/ and masks/ in each"
        )
    taxonomy = read_classes(root / "classes.txt")
    return Listing(taxonomy, lists["train"], lists.get("val"), lists.get("test", ()))


def load(sample: Sample, data: DataConfig, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns picture and label, whose sizes may still differ."""
    return read_image(sample.image), load_label(sample, data, classes)


def load_label(sample: Sample, data: DataConfig, classes: int) -> np.ndarray:
    """Returns the label, int32 [H, W]."""
    return read_index_mask(sample.label, classes=classes, void_value=data.void_value)


def read_classes(path: Path) -> Taxonomy:
    """Reads a class list: UTF-8, a name a line, the first line is class 0.

    Raises:
        DataError: Missing, not text, fewer than 2 or more than 256 names, a name twice, or a
            blank line between names (it would shift the ids after it).
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: it names the classes, one a line") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error})") from error
    names = [line.strip() for line in lines]
    seen: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"{path}: line {number} is blank: the line of a name is its class id")
        if name in seen:
            raise DataError(f"{path}: '{name}' is on line {seen[name]} and {number}: once each")
        seen[name] = number
    if not 2 <= len(names) <= 256:
        raise DataError(f"{path}: {len(names)} class names: expected 2 to 256, one a line")
    return Taxonomy(tuple(names), distinct_colours(len(names)))


def _pairs(folder: Path, *, prefix: str) -> tuple[Sample, ...]:
    for side in ("images", "masks"):
        if not (folder / side).is_dir():
            raise DataError(f"{folder}: no {side}/ in it (found: {_seen(folder)})")
    images = _by_stem(folder / "images", SUFFIXES)
    if not images:
        raise DataError(
            f"{folder / 'images'}: no pictures (found: {_seen(folder / 'images')}): expected "
            "files such as .jpg or .png"
        )
    masks = _by_stem(folder / "masks", frozenset((".png",)))
    _refuse_lonely(images, masks, f"no mask {folder / 'masks'}/{{}}.png")
    _refuse_lonely(masks, images, f"no picture of that name in {folder / 'images'}")
    return tuple(
        Sample(f"{prefix}/{stem}" if prefix else stem, str(images[stem]), str(masks[stem]))
        for stem in sorted(images)
    )


def _by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Returns relative path without suffix -> file, hidden files left out."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(piece.startswith(".") for piece in relative.parts)
        if hidden or path.suffix.lower() not in suffixes or not path.is_file():
            continue
        stem = relative.with_suffix("").as_posix()
        if stem in found:
            raise DataError(
                f"{path}: {found[stem].name} has the same name without suffix: they would share "
                "one mask; rename or remove one"
            )
        found[stem] = path
    return found


def _refuse_lonely(those: dict[str, Path], others: dict[str, Path], rule: str) -> None:
    lonely = sorted(those.keys() - others.keys())
    if lonely:
        more = f" (and {len(lonely) - 1} more such files)" if len(lonely) > 1 else ""
        raise DataError(f"{those[lonely[0]]}: {rule.format(lonely[0])}{more}")


def _seen(folder: Path) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name[0] != ".")
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "nothing"
