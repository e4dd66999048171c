"""Images labelled with CVAT, in its own format "CVAT for images": one XML file of outlines.

    ROOT/annotations.xml              of a project, a task or a job
    ROOT/images/[<subset>/]<name>     or elsewhere in ROOT

The subset decides: Validation and Test are those parts, any other is train. Classes are the labels
that the file lists, in its order. Polygons, masks, boxes and ellipses are drawn in the order of
`z_order`, as in CVAT's masks; polylines, points, skeletons, cuboids and tags have no area and are
noted. A pixel without a shape is void, unless a label is named background: then it is of that
class. A single label is learned against background. "CVAT for video" (tracks) is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.base import Listing, with_pictures
from ccfnet_tf.datasets.find_images import FoundPictures, path_parts
from ccfnet_tf.datasets.name_lists import part_named, void_notes, with_background
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.coco_rle import to_mask
from ccfnet_tf.io.json_files import is_there, picture_size, shown
from ccfnet_tf.io.polygons import Ellipse, draw, points, turned
from ccfnet_tf.io.xml_files import read_xml
from ccfnet_tf.labels import VOID, Sample

FILE = "annotations.xml"

_DRAWN = ("polygon", "mask", "box", "ellipse")
_NOT_DRAWN = ("polyline", "points", "cuboid", "skeleton", "tag")


class _Mask(NamedTuple):
    """Runs along the rows of a box: how many pixels outside and inside follow each other."""

    left: int
    top: int
    width: int
    height: int
    runs: list[int]


class _Shape(NamedTuple):
    """What is drawn: an outline float64 [N, 2], an ellipse, or a mask."""

    label: str
    where: str
    area: np.ndarray | Ellipse | _Mask


class _Picture(NamedTuple):
    """An entry of the file; its shapes in the order in which they are drawn."""

    size: tuple[int, int]
    shapes: tuple[_Shape, ...]


def signs(root: Path) -> str:
    """Returns the XML file in `root`; empty where there is none of CVAT's."""
    try:
        for path in (root / FILE, *sorted(root.glob("*.xml"))[:3]):
            if path.is_file():
                with path.open("rb") as file:
                    head = file.read(65536)
                if b"<annotations" in head:
                    return path.name
    except OSError:
        pass  # what cannot be looked at shows no sign
    return ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Reads the file; no image is opened, and no shape is drawn yet.

    Raises:
        DataError: No such file, one that is damaged or holds tracks, or a shape whose label is not
            listed.
    """
    path = root / (signs(root) or FILE)
    tree = read_xml(path)
    if tree.tag != "annotations" or tree.find("track") is not None:
        kind = "tracks" if tree.tag == "annotations" else f"<{tree.tag[:60]}>"
        raise DataError(f"{path}: {kind}: export it from CVAT as 'CVAT for images 1.1'")
    not_drawn: dict[str, int] = {}
    pictures: dict[str, _Picture] = {}
    parts: dict[str, list[Sample]] = {"train": []}
    faults: list[DataError] = []
    found = FoundPictures(root)
    for number, entry in enumerate(tree.iterfind("image")):
        where = f"{path}: image {number} ({shown(entry.get('name', ''))})"
        subset, named = entry.get("subset") or "", entry.get("name") or ""
        parts_of_name = path_parts(named)
        if not parts_of_name:
            raise DataError(f"{where}: expected the path of an image as its name")
        name = PurePosixPath(*path_parts(subset), *parts_of_name).with_suffix("").as_posix()
        if name in pictures:
            raise DataError(f"{where}: the name is there already")
        pictures[name] = _picture(entry, where, not_drawn)
        try:
            image = _find(root, subset, named, where, found)
        except DataError as missing:
            faults.append(missing)
            continue
        part = part_named(subset) or "train"
        parts.setdefault(part, []).append(Sample(name, str(image), where))
    labels = _labels(tree, path, pictures)
    taxonomy, ids, background = with_background(labels, f"{path}: labels")
    load_label = partial(_load_label, pictures, ids, background)
    left_out = ", ".join(f"{count} {kind}" for kind, count in sorted(not_drawn.items()))
    not_drawn_notes = (f"{path}: without an area, not drawn: {left_out}",) if left_out else ()
    return Listing(
        taxonomy,
        tuple(parts["train"]),
        tuple(parts["val"]) if "val" in parts else None,
        tuple(parts.get("test", ())),
        with_pictures(load_label),
        load_label,
        unpaired=tuple(faults),
        notes=(*void_notes(f"{path}: labels", labels), *not_drawn_notes),
    )


def _labels(tree: Element, path: Path, pictures: Mapping[str, _Picture]) -> list[str]:
    """Returns the labels that the file lists; those of its shapes where it lists none."""
    meta = tree.find("meta")
    listed = (
        []
        if meta is None
        else [
            " ".join((label.findtext("name") or "").split())
            for label in meta.iter("label")
            if not label.findtext("parent")  # the points of a skeleton
        ]
    )
    used = {shape.label: shape.where for picture in pictures.values() for shape in picture.shapes}
    names = list(dict.fromkeys(name for name in listed if name)) or sorted(used)
    strange = next((name for name in used if name not in names), None)
    if strange is not None:
        raise DataError(
            f"{used[strange]}: label {shown(strange)} is not among those that {path.name} lists"
        )
    return names


def _find(root: Path, subset: str, named: str, where: str, found: FoundPictures) -> Path:
    relative, below = Path(*path_parts(named)), Path(*path_parts(subset))
    folders = [root / "images" / below, root / "images", root / below, root]
    for folder in folders:
        if is_there(folder / relative):
            return folder / relative
    return found.find(named, where)


def _picture(entry: Element, where: str, not_drawn: dict[str, int]) -> _Picture:
    """Returns an entry; counts the shapes that are not drawn."""
    sides = {key: _whole(entry, key, where) for key in ("height", "width")}
    size = picture_size(dict(sides), "height", "width", where)
    ordered: list[tuple[float, _Shape]] = []
    for number, element in enumerate(entry):
        place = f"{where}: shape {number} ({element.tag[:20]})"
        if element.tag not in _DRAWN:
            if element.tag not in _NOT_DRAWN:
                raise DataError(f"{place}: expected one of {', '.join((*_DRAWN, *_NOT_DRAWN))}")
            not_drawn[element.tag] = not_drawn.get(element.tag, 0) + 1
            continue
        area = _area(element, place)
        if area is None:
            kind = f"{element.tag} of fewer than 3 points"
            not_drawn[kind] = not_drawn.get(kind, 0) + 1
            continue
        label = " ".join(element.get("label", "").split())
        order = _number(element, "z_order", place) if element.get("z_order") else 0.0
        ordered.append((order, _Shape(label, place, area)))
    ordered.sort(key=lambda pair: pair[0])
    return _Picture(size, tuple(shape for _, shape in ordered))


def _area(element: Element, where: str) -> np.ndarray | Ellipse | _Mask | None:
    """Returns what a shape covers; `None` for polygons of fewer than 3 points."""
    if element.tag == "polygon":
        texts = [text for pair in element.get("points", "").split(";") for text in pair.split(",")]
        numbers = [_float(text, where) for text in texts if text.strip()]
        corners = points(numbers, where, least=0)
        return corners if len(corners) > 2 else None
    if element.tag == "mask":
        left, top, width, height = (
            _whole(element, key, where) for key in ("left", "top", "width", "height")
        )
        runs = [_int(run, "rle", where) for run in element.get("rle", "").split(",")]
        if min(width, height) < 1 or min(runs) < 0 or sum(runs) != width * height:
            raise DataError(
                f"{where}: runs of {shown(sum(runs))} pixels together in a box of "
                f"{shown(width)}x{shown(height)}"
            )
        return _Mask(left, top, width, height, runs)
    if element.tag == "ellipse":
        centre = _numbers(element, ("cx", "cy"), where)
        radii = _numbers(element, ("rx", "ry"), where)
        return Ellipse(centre, radii, _degrees(element, where)) if radii.max() > 0 else None
    left, top, right, bottom = _numbers(element, ("xtl", "ytl", "xbr", "ybr"), where)
    box = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    centre = box.mean(axis=0)
    return centre + turned(box - centre, _degrees(element, where))


def _degrees(element: Element, where: str) -> float:
    """Returns by how much a shape is turned, clockwise."""
    degrees = _number(element, "rotation", where) if element.get("rotation") else 0.0
    return float(points([degrees, 0.0], f"{where}: rotation", least=1)[0][0])


def _numbers(element: Element, keys: tuple[str, ...], where: str) -> np.ndarray:
    values = [_number(element, key, where) for key in keys]
    return points(values, where, least=0).reshape(-1)


def _number(element: Element, key: str, where: str) -> float:
    return _float(element.get(key, ""), f"{where}: {key}")


def _float(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{where}: {shown(text)}: expected a number") from error


def _whole(element: Element, key: str, where: str) -> int:
    return _int(element.get(key, ""), key, where)


def _int(text: str, key: str, where: str) -> int:
    if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text):
        raise DataError(f"{where}: {key} {shown(text)}: expected a whole number")
    return int(text)


def _load_label(
    pictures: Mapping[str, _Picture], ids: Mapping[str, int], background: int, sample: Sample
) -> np.ndarray:
    picture = pictures[sample.name]
    return draw(picture.size, _shapes(picture, ids), background, where=sample.label)


def _shapes(picture: _Picture, ids: Mapping[str, int]) -> Iterator[tuple[int, np.ndarray]]:
    for shape in picture.shapes:
        area = shape.area
        if isinstance(area, _Mask):
            area = _placed(area, picture.size, shape.where)
        elif isinstance(area, Ellipse):
            area = area.outline()
        yield ids.get(shape.label, VOID), area


def _placed(mask: _Mask, size: tuple[int, int], where: str) -> np.ndarray:
    """Returns bool [H, W]: a mask at its place in the image."""
    left, top = mask.left, mask.top
    if min(left, top) < 0 or top + mask.height > size[0] or left + mask.width > size[1]:
        raise DataError(
            f"{where}: box {mask.width}x{mask.height} at {left}, {top}: the image has "
            f"{size[1]}x{size[0]}",
            kind="size",
        )
    whole = np.zeros(size, bool)
    # `to_mask` counts down the columns: rows and columns change places.
    inside = to_mask(mask.runs, (mask.width, mask.height)).T
    whole[top : top + mask.height, left : left + mask.width] = inside
    return whole
