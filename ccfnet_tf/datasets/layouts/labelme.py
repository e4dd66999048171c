"""Images labelled with the labelme tool: one JSON file of shapes per image.

    ROOT/**/<name>.json              has the path of its image in `imagePath`, relative to itself
    ROOT/{val,test}/...              the val and test splits (also valid, validation, dev and
                                     testing); everything else is train
    ROOT/classes.txt                 optional: one class name per line. labels.txt, and labelme's
                                     own class_names.txt, are read as well
    ROOT/{train,val,test}.txt        optional: lists that define other splits

Without a class list, the classes are all labels of the data set in alphabetical order. Names that
stand for no class are void. background, or `_background_`, is the class of all
pixels that no shape covers. It exists if the class list contains it, if there is no list and a
shape has that label, or if there is only one other class. Otherwise such pixels are void.

Shapes are drawn in the order of the file, later ones over earlier ones: polygon, rectangle,
oriented_rectangle, rotation, circle and mask. Points and lines have no area and are ignored, as are
`group_id` and `holes`. Shapes with too few points are not drawn; a note counts them. JSON files
with neither `shapes` nor `imagePath` are not labelme files and are left out.

The image is the file at `imagePath`, if it is below ROOT and has the size that the JSON file
states. Otherwise it is the first of: a file of that name next to the JSON file, `imageData` (the
image embedded in the JSON file), an image with the name of the JSON file, or the only file of that
name below ROOT.

A line of train.txt, val.txt or test.txt is an image or its JSON file, relative to ROOT, with or
without suffix. Images that are in no list are left out.
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
from ccfnet_tf.datasets.class_and_split_lists import (
    is_background_name,
    plain_name,
    read_class_list,
    read_classes,
    read_part_lists,
    taxonomy_of,
    void_notes,
)
from ccfnet_tf.datasets.layout_helpers import PHOTOS
from ccfnet_tf.datasets.locate_images import FoundImages, is_below, path_parts
from ccfnet_tf.datasets.samples import (
    Listing,
    LoadLabel,
    bytes_fingerprint,
    fingerprint,
    stored_bytes,
)
from ccfnet_tf.datasets.split_names import part_of
from ccfnet_tf.errors import DataError, nearest
from ccfnet_tf.io.annotation_json import (
    Record,
    is_there,
    path_text,
    picture_size,
    read_json,
    records,
    shown,
    text,
)
from ccfnet_tf.io.in_threads import in_threads
from ccfnet_tf.io.polygons import circle, draw, is_outside, points
from ccfnet_tf.io.read_images import image_size, read_image
from ccfnet_tf.labels import BACKGROUND, VOID, Sample, Taxonomy, is_void_name

# Shape type -> allowed numbers of points; `None` allows 3 or more.
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
    """A shape with an area: its position in the file from 1, its points float64 [N, 2] of (x, y).

    `mask` is a base64 string, empty unless the kind is mask.
    """

    number: int
    kind: str
    label: str
    corners: np.ndarray
    mask: str


class _File(NamedTuple):
    """The content of a JSON file.

    `image` is the path of the JSON file itself if the image is embedded in it. `size` is (H, W), or
    `None` if the file does not state it. `without_area` has the positions of the shapes that have
    too few points.
    """

    image: str
    size: tuple[int, int] | None
    shapes: tuple[_Shape, ...]
    without_area: tuple[int, ...]


def signs(root: Path) -> str:
    """Returns a labelme JSON file from the top levels of `root`, or an empty string."""
    try:
        for pattern in ("*.json", "*/*.json", "*/*/*.json"):
            for path in islice(root.glob(pattern), 3):
                with path.open("rb") as file:
                    head = file.read(65536)
                if b'"shapes"' in head or b'"imagePath"' in head:
                    return path.relative_to(root).as_posix()
    except OSError:
        pass  # an unreadable folder is not recognised
    return ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Reads the JSON files below `root` and keeps their shapes. Opens no image.

    `unpaired` has an error for each invalid JSON file, and for each image without a JSON file in
    the folder of a labelled image.

    Raises:
        DataError: There is no labelme JSON file, a list or the class list is invalid, or there are
            fewer than 2 labels.
    """
    samples, files, faults = _find(root)
    if not samples and not faults:
        raise DataError(
            f"{root}: contains no labelme JSON files: expected <image>.json next to each image"
        )
    labels = {shape.label for file in files.values() for shape in file.shapes}
    notes = _notes(root, files)
    if notes and not labels:
        raise DataError(f"{notes[0]}: no other shape is left to learn from")
    classes = _class_list(root)
    named = {label for label in labels if not is_void_name(label)}
    taxonomy = _taxonomy(root, classes, named, faults)
    source = classes or f"{root}: labels of its JSON files"
    void = read_class_list(classes).notes if classes else void_notes(source, sorted(labels))
    known = _list_entries(root, samples, faults)
    lists = {} if data.lists else read_part_lists(root, known, "a labelled image of the data set")
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


def _is_embedded(sample: Sample) -> bool:
    """Returns whether the image is embedded in the JSON file."""
    return sample.image == sample.label


def _bytes_of(sample: Sample) -> bytes:
    if _is_embedded(sample):
        return _embedded(read_json(sample.label), sample.label)
    return stored_bytes(sample)


def _fingerprint(sample: Sample) -> str:
    return bytes_fingerprint(_bytes_of(sample)) if _is_embedded(sample) else fingerprint(sample)


def _load_image(sample: Sample) -> np.ndarray:
    return read_image(sample.image, _bytes_of(sample) if _is_embedded(sample) else None)


def _embedded(tree: Record, path: str | Path) -> bytes:
    """Returns the encoded image that is embedded in a JSON file.

    Raises:
        DataError: `imageData` is not base64.
    """
    try:
        return base64.b64decode(text(tree, "imageData", str(path)), validate=True)
    except ValueError as error:
        raise DataError(f"{path}: 'imageData' is damaged ({error}): expected base64") from error


def _notes(root: Path, files: Mapping[str, _File]) -> tuple[str, ...]:
    """Returns a note about the shapes that are not drawn."""
    places = [f"{name}.json: shape {n}" for name, file in files.items() for n in file.without_area]
    if not places:
        return ()
    shapes = "shape" if len(places) == 1 else "shapes"
    more = ", ..." if len(places) > 3 else ""
    named = f"({', '.join(places[:3])}{more})"
    why = "without an area (too few points, or outside the image)"
    return (f"{root}: {len(places)} {shapes} {why} not drawn {named}",)


def _find(root: Path) -> tuple[dict[str, Sample], dict[str, _File], dict[str, DataError]]:
    """Returns samples and JSON files by sample name, and errors by the name of the JSON file."""
    samples: dict[str, Sample] = {}
    files: dict[str, _File] = {}
    faults: dict[str, DataError] = {}
    taken: dict[str, Path] = {}
    paths = [
        path
        for path in sorted(root.rglob("*.json"), key=lambda path: [*map(plain_name, path.parts)])
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(root).parts)
    ]
    finder = FoundImages(root)
    reads = in_threads(partial(_read, finder=finder), paths)
    for path, found in zip(paths, reads, strict=True):
        name = plain_name(path.relative_to(root).with_suffix("").as_posix())
        if isinstance(found, DataError):
            faults[name] = found
        elif found is not None and name in samples:
            text = f"{path}: {samples[name].label} has the same name in other characters: keep one"
            faults[str(path)] = DataError(text)
        elif found is not None and found.image in taken:
            other = taken[found.image]
            faults[name] = DataError(f"{path}: {other} labels the same image: keep one of them")
        elif found is not None:
            taken[found.image] = path
            samples[name] = Sample(name, found.image, str(path))
            files[name] = found
    return samples, files, faults


def _read(path: Path, finder: FoundImages) -> _File | DataError | None:
    """Returns the content of a JSON file or its error; `None` if it is not a labelme file."""
    try:
        tree = read_json(path)
        if "shapes" not in tree and "imagePath" not in tree:
            return None
        size = _size(tree, path)
        without_area: list[int] = []
        shapes = tuple(_shapes(tree, path, size, without_area))
        return _File(_image_of(tree, path, size, finder), size, shapes, tuple(without_area))
    except DataError as fault:
        return fault


def _size(tree: Record, path: Path) -> tuple[int, int] | None:
    if tree.get("imageHeight") is None and tree.get("imageWidth") is None:
        return None  # the first versions of labelme do not write it
    return picture_size(tree, "imageHeight", "imageWidth", str(path))


def _image_of(tree: Record, path: Path, size: tuple[int, int] | None, finder: FoundImages) -> str:
    """Returns the path of the image; that of the JSON file if the image is embedded in it."""
    embedded = bool(tree.get("imageData"))
    named = path_text(tree, "imagePath", str(path)) if tree.get("imagePath") is not None else ""
    for image in (path.parent / named, path.parent / "/".join(path_parts(named)[-1:])):
        plain = Path(os.path.normpath(image))
        there = named and is_below(plain, finder.root) and is_there(plain)
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
    if not is_below(path.parent / named, finder.root):
        where += f" leads out of {finder.root}: set --data.root to a folder that contains both"
    return str(finder.find(named, where))


def _differs(image: Path, size: tuple[int, int]) -> bool:
    try:
        return image_size(image) != size
    except DataError:
        return False  # reported when the image is read


def _class_list(root: Path) -> Path | None:
    """Returns the class list, or `None` if there is none.

    Raises:
        DataError: There are two that differ.
    """
    found = [path for name in CLASS_LISTS if (path := root / name).is_file()]
    for other in found[1:]:
        if read_classes(other).names != read_classes(found[0]).names:
            raise DataError(
                f"{other}: lists other classes than {found[0].name}: remove the wrong one"
            )
    return found[0] if found else None


def _taxonomy(
    root: Path, classes: Path | None, labels: set[str], faults: Mapping[str, DataError]
) -> Taxonomy:
    if classes is not None:
        return read_classes(classes, background=BACKGROUND)
    if faults and len(labels) < 2:
        raise next(iter(faults.values()))  # the likely reason why there are too few classes
    others = sorted(label for label in labels if not is_background_name(label))
    if len(others) == 1 or len(others) < len(labels):
        background = next(iter(sorted(labels.difference(others))), BACKGROUND)
        others = [background, *others]
    return taxonomy_of(others, f"{root}: labels of its JSON files", "; label another class too")


def _list_entries(
    root: Path, samples: Mapping[str, Sample], faults: Mapping[str, DataError]
) -> dict[str, str]:
    """Returns entry of a list file -> sample name, for all spellings that are accepted."""
    known = {name: name for name in (*samples, *faults)}
    known |= {f"{name}.json": name for name in (*samples, *faults)}
    for name, sample in samples.items():
        image = Path(os.path.relpath(sample.image, root))
        known.setdefault(image.as_posix(), name)
        known.setdefault(image.with_suffix("").as_posix(), name)
    return known


def _by_folder(samples: Mapping[str, Sample]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {"train": []}
    for name in samples:
        top = name.split("/")[0] if "/" in name else ""
        parts.setdefault(part_of(top) or "train", []).append(name)
    return parts


def _unlabelled(root: Path, samples: Mapping[str, Sample]) -> dict[str, DataError]:
    """Returns an error for each image without a JSON file in the folders of labelled images."""
    labelled = {sample.image for sample in samples.values()}
    faults: dict[str, DataError] = {}
    for folder in sorted({Path(image).parent for image in labelled}):
        for path in sorted(folder.iterdir()):
            used = str(path) in labelled or path.with_suffix(".json").exists()
            if path.suffix.lower() in PHOTOS and path.name[0] != "." and not used:
                faults[str(path)] = DataError(
                    f"{path}: has no labelme JSON file: label it, remove it, or list the labelled "
                    f"images in {root / 'train.txt'}",
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
    """Yields the shapes that have an area in an image of (H, W).

    Adds the positions of the others to `without_area`.
    """
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
        return shown(kind)  # unhashable
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
    """Returns bool [H, W]: the mask of a shape, a base64 PNG, placed at its top left corner."""
    try:
        stored = base64.b64decode(packed, validate=True)
    except ValueError as error:
        raise DataError(f"{where}: 'mask' is damaged ({error}): expected base64") from error
    patch = read_image(f"{where}: mask", stored)[..., 0] > 0
    full = np.zeros(size, bool)
    left, top = (int(side) for side in np.round(corner))
    patch = patch[max(0, -top) :, max(0, -left) :]
    target = full[max(0, top) :, max(0, left) :]
    height, width = min(len(patch), len(target)), min(patch.shape[1], target.shape[1])
    target[:height, :width] = patch[:height, :width]
    return full
