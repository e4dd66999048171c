"""The full ADE20K (Zhou et al., CVPR 2017), version of 2021: 27574 images, over 3000 classes.

    ROOT/images/ADE/{training,validation}/<scene>/.../<name>.jpg
    ROOT/images/ADE/{training,validation}/<scene>/.../<name>_seg.png     class and instance
    ROOT/images/ADE/{training,validation}/<scene>/.../<name>.json        its objects
    ROOT/index_ade20k.pkl                                                all names, in order
    ROOT/classes.txt                                                     those to learn, yours

A pixel's class is R / 10 * 256 + G, the place of its name in the index from 1; 0 is void. Names are
taken from the index, which is looked through and never unpickled, else from the JSON files. A line
of classes.txt is a name, or its first word (`car` for `car, auto, automobile`); all others are
void. Without classes.txt all names are classes, of which there may be 256.

Parts of objects (<name>_parts_1.png) are not read. Validation is the test split.
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
from ccfnet_tf.datasets.audit.scan import in_threads
from ccfnet_tf.datasets.base import Listing, with_pictures
from ccfnet_tf.datasets.name_lists import MAX_CLASSES, read_names, taxonomy_of
from ccfnet_tf.datasets.pairing import ANYWHERE, MASKS, files_in, pair, require, require_pictures
from ccfnet_tf.errors import DataError, nearest
from ccfnet_tf.io.images import read_mask
from ccfnet_tf.io.json_files import read_json, records, text, whole
from ccfnet_tf.labels import VOID, Sample

INDEX = "index_ade20k.pkl"
_SEG = "_seg"
_MOST_UNCHOSEN = 256  # classes; the list of all objects is for nobody to learn
_MOST = 26 * 256 + 256  # what R / 10 and G can state

_MEMOIZING = ("MEMOIZE", "BINPUT", "LONG_BINPUT")
_MEMOIZED = ("BINGET", "LONG_BINGET")

_Part = tuple[tuple[Sample, ...], tuple[DataError, ...]]


def signs(root: Path) -> str:
    """Returns what of this layout is in `root`, or an empty string."""
    try:
        folder = _pictures(root)
        masks = islice((root / folder / "training").rglob(f"*{_SEG}.png"), 1) if folder else ()
        return next((path.relative_to(root).as_posix() for path in masks), "")
    except OSError:
        return ""  # what cannot be looked at shows no sign


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Lists training, and validation as the test split; no image is opened.

    Raises:
        DataError: The folder is not the set, its names cannot be found, classes.txt names what it
            does not have, or there are too many classes.
    """
    require(root, signs, "ADE20K (images/ADE/training/**/*_seg.png)")
    folder = root / _pictures(root)
    train, test = _part(folder, "training"), _part(folder, "validation")
    require_pictures(train, folder / "training" / "<scene>" / "<name>.jpg")
    names = _index_names(root / INDEX) if (root / INDEX).is_file() else _json_names(folder)
    chosen = _chosen(root / "classes.txt", names)
    table = np.full(_MOST, VOID, np.int32)
    for class_id, number in enumerate(chosen):
        table[number] = class_id
    fix = f": list those to learn in {root / 'classes.txt'}, one name per line"
    most = MAX_CLASSES if (root / "classes.txt").is_file() else _MOST_UNCHOSEN
    taxonomy = taxonomy_of([names[n] for n in chosen], f"{root}", fix, most=most)
    load = partial(_load_label, table)
    unpaired = train[1] + test[1]
    return Listing(taxonomy, train[0], None, test[0], with_pictures(load), load, unpaired=unpaired)


def _pictures(root: Path) -> str:
    return next(
        (name for name in ("images/ADE", "images") if (root / name / "training").is_dir()), ""
    )


def _part(folder: Path, part: str) -> _Part:
    images = files_in(folder / part, (".jpg",), ANYWHERE)
    masks = files_in(folder / part, MASKS, ANYWHERE)
    labels = {key.removesuffix(_SEG): path for key, path in masks.items() if key.endswith(_SEG)}
    return pair(images, labels, within=f"{part}/ (<name>{_SEG}.png)", prefix=f"{part}/")


def _index_names(path: Path) -> dict[int, str]:
    """Returns place from 1 -> name: the texts of the list `objectnames` in the index.

    The file's opcodes are looked through; nothing is built or called.
    """
    try:
        # Mapped: a damaged length asks a file, but no map, for more memory than there is to read.
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            found = list(islice(_texts_after(content, "objectnames"), _MOST - 1))
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise DataError(f"{path}: damaged ({error}): unpack the set anew") from error
    if not found:
        raise DataError(f"{path}: no list 'objectnames' in it: unpack the set anew")
    return dict(enumerate(found, start=1))


def _texts_after(file: mmap, key: str) -> Iterator[str]:
    """Yields the texts of the list that follows a text in a pickle.

    A list is written empty, then filled in batches: MARK, its texts, APPENDS. A text that was
    written before is named by its place among what was memoized.
    """
    memo: dict[int, str] = {}
    place, state, last = 0, "before", ""
    for opcode, value, _ in pickletools.genops(cast(IO[bytes], file)):  # it reads as a file does
        name = opcode.name
        if name in _MEMOIZING:
            memo[place if value is None else int(value)] = last
            place += 1
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
    """Returns the names that the JSON files give to places in the index."""
    names: dict[int, str] = {}
    for found in in_threads(_names_in, sorted(folder.rglob("*.json"))):
        names |= found
    if not names:
        raise DataError(
            f"{folder}: no JSON files with the names of objects, and no {INDEX} in the set: use "
            "the version of 2021, or add its index"
        )
    return names


def _names_in(path: Path) -> dict[int, str]:
    tree = read_json(path).get("annotation")
    if not isinstance(tree, dict):
        return {}
    found: dict[int, str] = {}
    for number, each in enumerate(records(tree, "object", str(path))):
        where = f"{path}: object {number}"
        place = whole(each, "name_ndx", where)
        if 0 < place < _MOST:
            found[place] = text(each, "name", where)
    return found


def _chosen(path: Path, names: dict[int, str]) -> list[int]:
    """Returns the places of the names to learn, in order of their ids."""
    if not path.is_file():
        return sorted(names)
    places: dict[str, int] = {}
    for place in sorted(names, reverse=True):  # of names alike, the first place
        places[names[place].split(",")[0].strip()] = place
    places |= {name: place for place, name in names.items()}
    chosen = []
    for line, name in read_names(path):
        if name not in places:
            raise DataError(
                f"{path}: line {line}: '{name[:60]}' is not an object of ADE20K"
                f"{nearest(name, places)}"
            )
        chosen.append(places[name])
    return chosen


def _load_label(table: np.ndarray, sample: Sample) -> np.ndarray:
    """Reads a label, int32 [H, W], class ids or `VOID`."""
    mask = read_mask(sample.label)
    if mask.ndim != 3:
        raise DataError(f"{sample.label}: not RGB: a mask of ADE20K states classes by R and G")
    number = mask[..., 0].astype(np.int32) // 10 * 256 + mask[..., 1]
    return table[number]
