"""The full ADE20K (Zhou et al., CVPR 2017), 2021 version: 27574 images, over 3000 classes.

    ROOT/images/ADE/{training,validation}/<scene>/.../<name>.jpg
    ROOT/images/ADE/{training,validation}/<scene>/.../<name>_seg.png     class and instance
    ROOT/images/ADE/{training,validation}/<scene>/.../<name>.json        objects of the image
    ROOT/index_ade20k.pkl                                                all names, in order
    ROOT/classes.txt                                                     optional: names to learn

The class of a pixel is R / 10 * 256 + G, the position of its name in the index, counted from 1; 0
is void. Names are read from the index, which is scanned and never unpickled; without an index they
are read from the JSON files. A line of classes.txt is a name or its first synonym (`car` for
`car, auto, automobile`); all other names are void. Without classes.txt every name is a class; at
most 256 are accepted.

Masks of object parts (<name>_parts_1.png) are not read. Validation is the test split.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from functools import partial
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, cast

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.class_and_split_lists import MAX_CLASSES, read_names, taxonomy_of
from ccfnet_tf.datasets.layout_helpers import (
    ANYWHERE,
    MASKS,
    files_in,
    pair,
    require,
    require_images,
)
from ccfnet_tf.datasets.samples import Listing, with_images
from ccfnet_tf.errors import DataError, nearest
from ccfnet_tf.io.annotation_json import read_json, records, text, whole
from ccfnet_tf.io.in_threads import in_threads
from ccfnet_tf.io.read_images import read_mask
from ccfnet_tf.labels import VOID, Sample

INDEX = "index_ade20k.pkl"
_SEG = "_seg"
_MAX_WITHOUT_LIST = 256  # classes; more need a classes.txt that selects those to learn
_MAX_NUMBERS = 26 * 256 + 256  # class numbers that R / 10 and G can encode

_MEMOIZING = ("MEMOIZE", "BINPUT", "LONG_BINPUT")
_MEMOIZED = ("BINGET", "LONG_BINGET")

_Part = tuple[tuple[Sample, ...], tuple[DataError, ...]]


def signs(root: Path) -> str:
    """Returns a mask that identifies this layout in `root`, or an empty string."""
    try:
        folder = _image_folder(root)
        masks = islice((root / folder / "training").rglob(f"*{_SEG}.png"), 1) if folder else ()
        return next((path.relative_to(root).as_posix() for path in masks), "")
    except OSError:
        return ""  # an unreadable folder is not recognised


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists `training` as the training split and `validation` as the test split.

    Images are not opened.

    Raises:
        DataError: The folder does not have this layout, the class names cannot be found,
            classes.txt lists an unknown name, or there are too many classes.
    """
    require(root, signs, "ADE20K (images/ADE/training/**/*_seg.png)")
    folder = root / _image_folder(root)
    train, test = _part(folder, "training"), _part(folder, "validation")
    require_images(train, folder / "training" / "<scene>" / "<name>.jpg")
    names = _index_names(root / INDEX) if (root / INDEX).is_file() else _json_names(folder)
    chosen = _chosen(root / "classes.txt", names)
    table = np.full(_MAX_NUMBERS, VOID, np.int32)
    for class_id, number in enumerate(chosen):
        table[number] = class_id
    fix = f": list the names to learn in {root / 'classes.txt'}, one name per line"
    most = MAX_CLASSES if (root / "classes.txt").is_file() else _MAX_WITHOUT_LIST
    taxonomy = taxonomy_of([names[n] for n in chosen], f"{root}", fix, most=most)
    load = partial(_load_label, table)
    unpaired = train[1] + test[1]
    return Listing(taxonomy, train[0], None, test[0], with_images(load), load, unpaired=unpaired)


def _image_folder(root: Path) -> str:
    return next(
        (name for name in ("images/ADE", "images") if (root / name / "training").is_dir()), ""
    )


def _part(folder: Path, part: str) -> _Part:
    images = files_in(folder / part, (".jpg",), ANYWHERE)
    masks = files_in(folder / part, MASKS, ANYWHERE)
    labels = {key.removesuffix(_SEG): path for key, path in masks.items() if key.endswith(_SEG)}
    return pair(images, labels, within=f"{part}/ (<name>{_SEG}.png)", prefix=f"{part}/")


def _index_names(path: Path) -> dict[int, str]:
    """Returns position from 1 -> name: the strings of the list `objectnames` in the index.

    The pickle opcodes of the file are scanned; no object is constructed and no code is called.
    """
    try:
        # With a memory map, a damaged length in an opcode cannot cause a large allocation. A read
        # from a file object allocates the requested length.
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            found = list(islice(_texts_after(content, "objectnames"), _MAX_NUMBERS - 1))
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise DataError(f"{path}: damaged ({error}): unpack the data set again") from error
    if not found:
        raise DataError(f"{path}: contains no list 'objectnames': unpack the data set again")
    return dict(enumerate(found, start=1))


def _texts_after(file: mmap, key: str) -> Iterator[str]:
    """Yields the strings of the list that follows the string `key` in a pickle.

    A pickle writes an empty list, then fills it in batches: MARK, the strings, APPENDS. A string
    that occurred before is written as its index in the memo.
    """
    memo: dict[int, str] = {}
    memo_index, state, last = 0, "before", ""
    for opcode, value, _ in pickletools.genops(cast(IO[bytes], file)):  # a map has `read` as well
        name = opcode.name
        if name in _MEMOIZING:
            memo[memo_index if value is None else int(value)] = last
            memo_index += 1
            continue
        if name == "FRAME":
            continue
        last = str(value) if "UNICODE" in name else ""
        if name in _MEMOIZED and value is not None:
            last = memo.get(int(value), "")
        is_text = "UNICODE" in name or bool(last)
        if state == "before":
            state = "key" if is_text and last == key else "before"
        elif state == "key":
            state = "list" if name == "EMPTY_LIST" else "before"
        elif state == "list":
            if name != "MARK":
                return
            state = "batch"
        elif name == "APPENDS":
            state = "list"
        elif is_text:
            yield last
        else:
            raise ValueError(f"{name} in the list of names")


def _json_names(folder: Path) -> dict[int, str]:
    """Returns position in the index -> name, as the JSON files state them."""
    names: dict[int, str] = {}
    for found in in_threads(_names_in, sorted(folder.rglob("*.json"))):
        names |= found
    if not names:
        raise DataError(
            f"{folder}: no JSON files with object names, and no {INDEX} in the data set: use the "
            "2021 version, or add its index"
        )
    return names


def _names_in(path: Path) -> dict[int, str]:
    tree = read_json(path).get("annotation")
    if not isinstance(tree, dict):
        return {}
    found: dict[int, str] = {}
    for number, each in enumerate(records(tree, "object", str(path))):
        where = f"{path}: object {number}"
        position = whole(each, "name_ndx", where)
        if 0 < position < _MAX_NUMBERS:
            found[position] = text(each, "name", where)
    return found


def _chosen(path: Path, names: dict[int, str]) -> list[int]:
    """Returns the positions in the index of the names to learn, in order of their class ids."""
    if not path.is_file():
        return sorted(names)
    positions: dict[str, int] = {}
    for position in sorted(names, reverse=True):  # the first of equal names wins
        positions[names[position].split(",")[0].strip()] = position
    positions |= {name: position for position, name in names.items()}
    chosen = []
    for line, name in read_names(path):
        if name not in positions:
            raise DataError(
                f"{path}: line {line}: '{name[:60]}' is not an object of ADE20K"
                f"{nearest(name, positions)}"
            )
        chosen.append(positions[name])
    return chosen


def _load_label(table: np.ndarray, sample: Sample) -> np.ndarray:
    """Reads a label as int32 [H, W] of class ids or `VOID`."""
    mask = read_mask(sample.label)
    if mask.ndim != 3:
        raise DataError(f"{sample.label}: not RGB: a mask of ADE20K encodes classes in R and G")
    number = mask[..., 0].astype(np.int32) // 10 * 256 + mask[..., 1]
    return table[number]
