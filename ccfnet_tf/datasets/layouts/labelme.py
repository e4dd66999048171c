"""Images labelled with the labelme tool: a JSON file of outlines an image.

    ROOT/**/<name>.json              names its image in `imagePath`, relative to itself
    ROOT/{val,test}/...              these are the val and test splits (valid, validation, dev and
                                     testing as well); everything else is train
    ROOT/classes.txt                 a class name a line; may be missing. labels.txt and
                                     class_names.txt, as labelme calls it, are read as well
    ROOT/{train,val,test}.txt        lists that split the set otherwise; may be missing

Without such a list, the classes are all labels of the set in alphabetical order. Names that stand
for no class are void (see `name_lists`). background, or `_background_`, is the class of every pixel
that no shape covers; there is one where the list names it, where there is no list and a shape has
that label, or where there is one other class alone. Else pixels that no shape covers are void.

Shapes are drawn in the order of the file, later ones over earlier ones: polygon, rectangle,
oriented_rectangle, rotation, circle and mask. Points and lines have no area and label nothing;
`group_id` and `holes` change nothing. Shapes with too few points are not drawn, but noted. JSON
files with neither `shapes` nor `imagePath` are not labelme's and left out.

The image is the file that `imagePath` names, if it lies below ROOT and has the size that the JSON
file states. Else
it is a file of that name beside the JSON file, `imageData` (the image inside the JSON file), a
file of the JSON file's own name, or the only file of that name below ROOT.

A line of train.txt, val.txt or test.txt is an image or its JSON file, relative to ROOT, with or
without suffix; images in no list are left out.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.audit.scan import in_threads
from ccfnet_tf.datasets.base import Listing, LoadLabel, bytes_fingerprint, fingerprint, stored_bytes
from ccfnet_tf.datasets.find_images import FoundPictures, is_below, path_parts
from ccfnet_tf.datasets.name_lists import (
    is_background_name,
    plain_name,
    read_class_list,
    read_classes,
    read_part_lists,
    taxonomy_of,
    void_notes,
)
from ccfnet_tf.datasets.pairing import PHOTOS
from ccfnet_tf.datasets.split_names import part_of
from ccfnet_tf.errors import DataError, nearest
from ccfnet_tf.io.images import image_size, read_image
from ccfnet_tf.io.json_files import (
    Record,
    is_there,
    path_text,
    picture_size,
    read_json,
    records,
    shown,
    text,
)
from ccfnet_tf.io.polygons import circle, draw, is_outside, points
from ccfnet_tf.labels import BACKGROUND, VOID, Sample, Taxonomy, is_void_name

# Shape type -> numbers of points that it may have; `None` is any from 3 on.
_AREAS: Mapping[str, tuple[int, ...] | None] = {
    "polygon": None,
    "rectangle": (2, 4),
    "oriented_rectangle": (4,),
    "rotation": (4,),
    "circle": (2,),
    "mask": (2,),
}
CLASS_LISTS = ("classes.txt", "labels.txt", "class_names.txt")
_OUTLINED = ("polygon", "rectangle", "oriented_rectangle", "rotation")
_NO_AREA = ("point", "points", "line", "linestrip")


class _Shape(NamedTuple):
    """A shape that has an area: its place in the file, its points float64 [N, 2] of (x, y).

    `mask` is base64, and empty for other kinds than mask.
    """

    number: int
    kind: str
    label: str
    corners: np.ndarray
    mask: str


class _File(NamedTuple):
    """What is kept of a JSON file.

    `image` is the JSON file itself where the image is in it. `size` is (H, W), or `None` where it
    states none. `without_area` has the numbers of shapes that have too few points.
    """

    image: str
    size: tuple[int, int] | None
    shapes: tuple[_Shape, ...]
    without_area: tuple[int, ...]


def signs(root: Path) -> str:
    """Returns a JSON file of labelme's near the top of `root`; empty where there is none."""
    try:
        for pattern in ("*.json", "*/*.json", "*/*/*.json"):
            for path in islice(root.glob(pattern), 3):
                with path.open("rb") as file:
                    head = file.read(65536)
                if b'"shapes"' in head or b'"imagePath"' in head:
                    return path.relative_to(root).as_posix()
    except OSError:
        pass  # what cannot be looked at shows no sign
    return ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Reads the JSON files below `root`, and keeps their shapes; no image is opened.

    JSON files that cannot be used, and images that lie among labelled ones and have none, are
    in `unpaired`.

    Raises:
        DataError: No JSON file of labelme's, a list or a class list that does not fit, fewer than
            2 labels.
    """
    samples, files, faults = _find(root)
    if not samples and not faults:
        raise DataError(
            f"{root}: no JSON files of labelme in it: expected <image>.json beside each image"
        )
    labels = {shape.label for file in files.values() for shape in file.shapes}
    notes = _notes(root, files)
    if notes and not labels:
        raise DataError(f"{notes[0]}: nothing is left to learn from")
    classes = _class_list(root)
    named = {label for label in labels if not is_void_name(label)}
    taxonomy = _taxonomy(root, classes, named, faults)
    source = classes or f"{root}: labels of its JSON files"
    void = read_class_list(classes).notes if classes else void_notes(source, sorted(labels))
    known = _ways_to_write(root, samples, faults)
    lists = {} if data.lists else read_part_lists(root, known, "a labelled image of the set")
    if lists:
        listed = {name for names in lists.values() for name in names}
        faults = {name: fault for name, fault in faults.items() if name in listed}
    else:
        lists = _by_folder(samples)
        faults |= _unlabelled(root, samples)
    parts = {
        part: tuple(samples[name] for name in names if name in samples)
        for part, names in lists.items()
    }
    load_label = _loader(taxonomy.names, files, classes.name if classes else "")
    return Listing(
        taxonomy,
        parts["train"],
        parts.get("val"),
        parts.get("test", ()),
        lambda sample: (_load_image(sample), load_label(sample)),
        load_label,
        _bytes_of,
        _fingerprint,
        unpaired=tuple(faults[name] for name in sorted(faults)),
        notes=(*notes, *void),
    )


def _inside(sample: Sample) -> bool:
    """Returns whether the image is in the JSON file."""
    return sample.image == sample.label


def _bytes_of(sample: Sample) -> bytes:
    if _inside(sample):
        return _embedded(read_json(sample.label), sample.label)
    return stored_bytes(sample)


def _fingerprint(sample: Sample) -> str:
    return bytes_fingerprint(_bytes_of(sample)) if _inside(sample) else fingerprint(sample)


def _load_image(sample: Sample) -> np.ndarray:
    return read_image(sample.image, _bytes_of(sample) if _inside(sample) else None)


def _embedded(tree: Record, path: str | Path) -> bytes:
    """Returns the image file that a JSON file holds.

    Raises:
        DataError: It is not base64.
    """
    try:
        return base64.b64decode(text(tree, "imageData", str(path)), validate=True)
    except ValueError as error:
        raise DataError(f"{path}: 'imageData' is damaged ({error}): expected base64") from error


def _notes(root: Path, files: Mapping[str, _File]) -> tuple[str, ...]:
    """Returns a note of the shapes that are not drawn."""
    places = [f"{name}.json: shape {n}" for name, file in files.items() for n in file.without_area]
    if not places:
        return ()
    shapes = "shape" if len(places) == 1 else "shapes"
    more = ", ..." if len(places) > 3 else ""
    named = f"({', '.join(places[:3])}{more})"
    why = "without an area (too few points, or outside the image)"
    return (f"{root}: {len(places)} {shapes} {why} not drawn {named}",)


def _find(root: Path) -> tuple[dict[str, Sample], dict[str, _File], dict[str, DataError]]:
    """Returns samples and their files by name, and faults by the name of the JSON file."""
    samples: dict[str, Sample] = {}
    files: dict[str, _File] = {}
    faults: dict[str, DataError] = {}
    taken: dict[str, Path] = {}
    paths = [
        path
        for path in sorted(root.rglob("*.json"), key=lambda path: [*map(plain_name, path.parts)])
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(root).parts)
    ]
    pictures = FoundPictures(root)
    reads = in_threads(partial(_read, pictures=pictures), paths)
    for path, found in zip(paths, reads, strict=True):
        name = plain_name(path.relative_to(root).with_suffix("").as_posix())
        if isinstance(found, DataError):
            faults[name] = found
        elif found is not None and name in samples:
            text = f"{path}: {samples[name].label} has that name in other characters: keep one"
            faults[str(path)] = DataError(text)
        elif found is not None and found.image in taken:
            other = taken[found.image]
            faults[name] = DataError(f"{path}: {other} labels the same image: keep one")
        elif found is not None:
            taken[found.image] = path
            samples[name] = Sample(name, found.image, str(path))
            files[name] = found
    return samples, files, faults


def _read(path: Path, pictures: FoundPictures) -> _File | DataError | None:
    """Returns a JSON file, or what is wrong with it; `None` where it is not labelme's."""
    try:
        tree = read_json(path)
        if "shapes" not in tree and "imagePath" not in tree:
            return None
        size = _size(tree, path)
        without_area: list[int] = []
        shapes = tuple(_shapes(tree, path, size, without_area))
        return _File(_picture_of(tree, path, size, pictures), size, shapes, tuple(without_area))
    except DataError as fault:
        return fault


def _size(tree: Record, path: Path) -> tuple[int, int] | None:
    if tree.get("imageHeight") is None and tree.get("imageWidth") is None:
        return None  # files of the first versions state none
    return picture_size(tree, "imageHeight", "imageWidth", str(path))


def _picture_of(
    tree: Record, path: Path, size: tuple[int, int] | None, pictures: FoundPictures
) -> str:
    """Returns the image of a JSON file, which may be in it."""
    embedded = bool(tree.get("imageData"))
    named = path_text(tree, "imagePath", str(path)) if tree.get("imagePath") is not None else ""
    for image in (path.parent / named, path.parent / "/".join(path_parts(named)[-1:])):
        plain = Path(os.path.normpath(image))
        there = named and is_below(plain, pictures.root) and is_there(plain)
        if there and not (embedded and size and _differs(plain, size)):
            return str(plain)
    if embedded:
        return str(path)
    for suffix in sorted(PHOTOS):
        for image in (path.with_suffix(suffix), path.with_suffix(suffix.upper())):
            if is_there(image):
                return str(image)
    named = path_text(tree, "imagePath", str(path))
    where = f"{path}: imagePath {shown(named)}"
    if not is_below(path.parent / named, pictures.root):
        where += f" leads out of {pictures.root}: give the folder that holds both with --data.root"
    return str(pictures.find(named, where))


def _differs(image: Path, size: tuple[int, int]) -> bool:
    try:
        return image_size(image) != size
    except DataError:
        return False  # said when the image is read


def _class_list(root: Path) -> Path | None:
    """Returns the set's class list, if it has one.

    Raises:
        DataError: It has two that differ.
    """
    found = [path for name in CLASS_LISTS if (path := root / name).is_file()]
    for other in found[1:]:
        if read_classes(other).names != read_classes(found[0]).names:
            raise DataError(
                f"{other}: names other classes than {found[0].name}: remove the one that is wrong"
            )
    return found[0] if found else None


def _taxonomy(
    root: Path, classes: Path | None, labels: set[str], faults: Mapping[str, DataError]
) -> Taxonomy:
    if classes is not None:
        return read_classes(classes, background=BACKGROUND)
    if faults and len(labels) < 2:
        raise next(iter(faults.values()))  # says more than that there are too few classes
    others = sorted(label for label in labels if not is_background_name(label))
    if len(others) == 1 or len(others) < len(labels):
        background = next(iter(sorted(labels.difference(others))), BACKGROUND)
        others = [background, *others]
    return taxonomy_of(others, f"{root}: labels of its JSON files", "; label something else too")


def _ways_to_write(
    root: Path, samples: Mapping[str, Sample], faults: Mapping[str, DataError]
) -> dict[str, str]:
    """Returns what a list may call a sample -> its name."""
    known = {name: name for name in (*samples, *faults)}
    known |= {f"{name}.json": name for name in (*samples, *faults)}
    for name, sample in samples.items():
        picture = Path(os.path.relpath(sample.image, root))
        known.setdefault(picture.as_posix(), name)
        known.setdefault(picture.with_suffix("").as_posix(), name)
    return known


def _by_folder(samples: Mapping[str, Sample]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {"train": []}
    for name in samples:
        top = name.split("/")[0] if "/" in name else ""
        parts.setdefault(part_of(top) or "train", []).append(name)
    return parts


def _unlabelled(root: Path, samples: Mapping[str, Sample]) -> dict[str, DataError]:
    """Returns a fault for each image without a JSON file in the folders of labelled images."""
    labelled = {sample.image for sample in samples.values()}
    faults: dict[str, DataError] = {}
    for folder in sorted({Path(image).parent for image in labelled}):
        for path in sorted(folder.iterdir()):
            used = str(path) in labelled or path.with_suffix(".json").exists()
            if path.suffix.lower() in PHOTOS and path.name[0] != "." and not used:
                faults[str(path)] = DataError(
                    f"{path}: no JSON file of labelme names it: label it, remove it, or list the "
                    f"labelled ones in {root / 'train.txt'}",
                    kind="missing",
                )
    return faults


def _loader(names: tuple[str, ...], files: Mapping[str, _File], listed: str) -> LoadLabel:
    ids = {name: index for index, name in enumerate(names)}
    background = next((ids[name] for name in names if is_background_name(name)), VOID)

    def load_label(sample: Sample) -> np.ndarray:
        file, path = files[sample.name], sample.label
        size = file.size or image_size(sample.image)
        drawn = (
            (_class_of(s, ids, background, path, listed), _region(s, size, path))
            for s in file.shapes
        )
        return draw(size, drawn, background, where=path)

    return load_label


def _shapes(
    tree: Record, path: Path, size: tuple[int, int] | None, without_area: list[int]
) -> Iterator[_Shape]:
    """Yields the shapes that have an area in an image of (H, W); adds the others' numbers."""
    for number, shape in enumerate(records(tree, "shapes", str(path)), start=1):
        where = f"{path}: shape {number}"
        kind = _kind(shape)
        if isinstance(kind, str) and kind in _AREAS:
            label = text(shape, "label", where)
            mask = text(shape, "mask", where) if kind == "mask" else ""
            corners = _corners(shape, where, _AREAS[kind])
            least = 3 if _AREAS[kind] is None else 2
            if len(corners) < least or (kind in _OUTLINED and is_outside(corners, size)):
                without_area.append(number)
                continue
            yield _Shape(number, kind, label, corners, mask)
        elif kind not in _NO_AREA:
            known = (*_AREAS, *_NO_AREA)
            hint = nearest(kind, known) if isinstance(kind, str) else ""
            raise DataError(
                f"{where}: shape_type {shown(kind)}: expected one of {', '.join(known)}{hint}"
            )


def _kind(shape: Record) -> object:
    kind = shape.get("shape_type")
    if isinstance(kind, (list, dict)):
        return shown(kind)  # cannot be looked up
    return "polygon" if kind is None else kind


def _class_of(
    shape: _Shape, ids: Mapping[str, int], background: int, path: str, listed: str
) -> int:
    if is_void_name(shape.label):
        return VOID
    if is_background_name(shape.label):
        return background
    if shape.label not in ids:
        raise DataError(
            f"{path}: shape {shape.number}: label '{shape.label[:60]}' is not in {listed}"
            f"{nearest(shape.label, ids)}",
            kind="value",
        )
    return ids[shape.label]


def _region(shape: _Shape, size: tuple[int, int], path: str) -> np.ndarray:
    """Returns the outline float64 [N, 2] of a shape, or its mask bool [H, W]."""
    corners = shape.corners
    if shape.kind == "mask":
        return _mask(shape.mask, corners[0], size, f"{path}: shape {shape.number}")
    if shape.kind == "circle":
        return circle(corners[0], corners[1])
    if shape.kind == "rectangle" and len(corners) == 2:
        (left, top), (right, bottom) = corners
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    return corners


def _corners(shape: Record, where: str, counts: tuple[int, ...] | None) -> np.ndarray:
    pairs = shape.get("points")
    if not isinstance(pairs, list) or any(
        not isinstance(pair, list) or len(pair) != 2 for pair in pairs
    ):
        raise DataError(f"{where}: 'points' is {shown(pairs)}: expected a list of [x, y]")
    corners = points([number for pair in pairs for number in pair], where, least=0)
    if counts and len(corners) > 1 and len(corners) not in counts:
        allowed = " or ".join(map(str, counts))
        raise DataError(f"{where}: {len(corners)} points: a {_kind(shape)} has {allowed}")
    return corners


def _mask(packed: str, corner: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    """Returns bool [H, W]: the mask that a shape holds as a PNG, laid at its top left corner."""
    try:
        stored = base64.b64decode(packed, validate=True)
    except ValueError as error:
        raise DataError(f"{where}: 'mask' is damaged ({error}): expected base64") from error
    patch = read_image(f"{where}: mask", stored)[..., 0] > 0
    whole = np.zeros(size, bool)
    left, top = (int(side) for side in np.round(corner))
    patch = patch[max(0, -top) :, max(0, -left) :]
    room = whole[max(0, top) :, max(0, left) :]
    height, width = min(len(patch), len(room)), min(patch.shape[1], room.shape[1])
    room[:height, :width] = patch[:height, :width]
    return whole
