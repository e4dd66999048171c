"""Images labelled with CVAT, in the format "CVAT for images": one XML file of shapes.

    ROOT/annotations.xml              of a project, a task or a job
    ROOT/images/[<subset>/]<name>     or elsewhere in ROOT

The subset of an image decides its split: Validation and Test are those splits, any other is train.
Classes are the labels that the file lists, in its order. Polygons, masks, boxes and ellipses are
drawn by ascending `z_order`, as in the masks that CVAT exports. Polylines, points, skeletons,
cuboids and tags have no area; they are not drawn, and a note counts them. A pixel without a shape
is void, unless a label is named background: then it has that class. A single label is learned
against background. "CVAT for video" (tracks) is not supported.
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
from ccfnet_tf.datasets.class_and_split_lists import part_named, void_notes, with_background
from ccfnet_tf.datasets.locate_images import FoundImages, path_parts
from ccfnet_tf.datasets.samples import Listing, with_images
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.annotation_json import is_there, picture_size, shown
from ccfnet_tf.io.coco_rle import to_mask
from ccfnet_tf.io.polygons import Ellipse, draw, points, turned
from ccfnet_tf.io.xml_files import read_xml
from ccfnet_tf.labels import VOID, Sample

FILE = "annotations.xml"

_DRAWN = ("polygon", "mask", "box", "ellipse")
_NOT_DRAWN = ("polyline", "points", "cuboid", "skeleton", "tag")


class _Mask(NamedTuple):
    """A mask in a box: lengths of alternating runs outside and inside it, row by row."""

    left: int
    top: int
    width: int
    height: int
    runs: list[int]


class _Shape(NamedTuple):
    """A shape with an area: an outline float64 [N, 2], an ellipse, or a mask."""

    label: str
    where: str
    area: np.ndarray | Ellipse | _Mask


class _Image(NamedTuple):
    """One image of the file: its size (H, W), and its shapes in drawing order."""

    size: tuple[int, int]
    shapes: tuple[_Shape, ...]


def signs(root: Path) -> str:
    """Returns the name of CVAT's XML file in `root`, or an empty string."""
    try:
        for path in (root / FILE, *sorted(root.glob("*.xml"))[:3]):
            if path.is_file():
                with path.open("rb") as file:
                    head = file.read(65536)
                if b"<annotations" in head:
                    return path.name
    except OSError:
        pass  # an unreadable folder is not recognised
    return ""


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Reads the XML file. Opens no image; label maps are drawn when they are loaded.

    Raises:
        DataError: The file is missing, is damaged or contains tracks, or the label of a shape is
            not listed.
    """
    path = root / (signs(root) or FILE)
    tree = read_xml(path)
    if tree.tag != "annotations" or tree.find("track") is not None:
        kind = "tracks" if tree.tag == "annotations" else f"<{tree.tag[:60]}>"
        raise DataError(f"{path}: {kind}: export it from CVAT as 'CVAT for images 1.1'")
    not_drawn: dict[str, int] = {}
    images: dict[str, _Image] = {}
    parts: dict[str, list[Sample]] = {"train": []}
    faults: list[DataError] = []
    finder = FoundImages(root)
    for number, entry in enumerate(tree.iterfind("image")):
        where = f"{path}: image {number} ({shown(entry.get('name', ''))})"
        subset, named = entry.get("subset") or "", entry.get("name") or ""
        parts_of_name = path_parts(named)
        if not parts_of_name:
            raise DataError(f"{where}: expected the path of an image in 'name'")
        name = PurePosixPath(*path_parts(subset), *parts_of_name).with_suffix("").as_posix()
        if name in images:
            raise DataError(f"{where}: the name is not unique")
        images[name] = _read_image(entry, where, not_drawn)
        try:
            image = _find(root, subset, named, where, finder)
        except DataError as missing:
            faults.append(missing)
            continue
        part = part_named(subset) or "train"
        parts.setdefault(part, []).append(Sample(name, str(image), where))
    labels = _labels(tree, path, images)
    taxonomy, ids, background = with_background(labels, f"{path}: labels")
    load_label = partial(_load_label, images, ids, background)
    left_out = ", ".join(f"{count} {kind}" for kind, count in sorted(not_drawn.items()))
    not_drawn_notes = (f"{path}: without an area, not drawn: {left_out}",) if left_out else ()
    return Listing(
        taxonomy,
        tuple(parts["train"]),
        tuple(parts["val"]) if "val" in parts else None,
        tuple(parts.get("test", ())),
        with_images(load_label),
        load_label,
        unpaired=tuple(faults),
        notes=(*void_notes(f"{path}: labels", labels), *not_drawn_notes),
    )


def _labels(tree: Element, path: Path, images: Mapping[str, _Image]) -> list[str]:
    """Returns the labels that the file lists, or those of its shapes if it lists none."""
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
    used = {shape.label: shape.where for image in images.values() for shape in image.shapes}
    names = list(dict.fromkeys(name for name in listed if name)) or sorted(used)
    unknown = next((name for name in used if name not in names), None)
    if unknown is not None:
        raise DataError(
            f"{used[unknown]}: label {shown(unknown)} is not among the labels of {path.name}"
        )
    return names


def _find(root: Path, subset: str, named: str, where: str, finder: FoundImages) -> Path:
    relative, below = Path(*path_parts(named)), Path(*path_parts(subset))
    folders = [root / "images" / below, root / "images", root / below, root]
    for folder in folders:
        if is_there(folder / relative):
            return folder / relative
    return finder.find(named, where)


def _read_image(entry: Element, where: str, not_drawn: dict[str, int]) -> _Image:
    """Reads one image; counts in `not_drawn` the shapes that are not drawn, by kind."""
    sides = {key: _integer(entry, key, where) for key in ("height", "width")}
    size = picture_size(dict(sides), "height", "width", where)
    ordered: list[tuple[float, _Shape]] = []
    for number, element in enumerate(entry):
        item = f"{where}: shape {number} ({element.tag[:20]})"
        if element.tag not in _DRAWN:
            if element.tag not in _NOT_DRAWN:
                raise DataError(f"{item}: expected one of {', '.join((*_DRAWN, *_NOT_DRAWN))}")
            not_drawn[element.tag] = not_drawn.get(element.tag, 0) + 1
            continue
        area = _area(element, item)
        if area is None:
            kind = f"{element.tag} of fewer than 3 points"
            not_drawn[kind] = not_drawn.get(kind, 0) + 1
            continue
        label = " ".join(element.get("label", "").split())
        order = _number(element, "z_order", item) if element.get("z_order") else 0.0
        ordered.append((order, _Shape(label, item, area)))
    ordered.sort(key=lambda pair: pair[0])
    return _Image(size, tuple(shape for _, shape in ordered))


def _area(element: Element, where: str) -> np.ndarray | Ellipse | _Mask | None:
    """Returns the area of a shape; `None` for a polygon of fewer than 3 points."""
    if element.tag == "polygon":
        texts = [text for pair in element.get("points", "").split(";") for text in pair.split(",")]
        numbers = [_float(text, where) for text in texts if text.strip()]
        corners = points(numbers, where, least=0)
        return corners if len(corners) > 2 else None
    if element.tag == "mask":
        left, top, width, height = (
            _integer(element, key, where) for key in ("left", "top", "width", "height")
        )
        runs = [_int(run, "rle", where) for run in element.get("rle", "").split(",")]
        if min(width, height) < 1 or min(runs) < 0 or sum(runs) != width * height:
            raise DataError(
                f"{where}: the runs of 'rle' sum to {shown(sum(runs))} pixels in a box of "
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
    """Returns the clockwise rotation of a shape in degrees."""
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


def _integer(element: Element, key: str, where: str) -> int:
    return _int(element.get(key, ""), key, where)


def _int(text: str, key: str, where: str) -> int:
    if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text):
        raise DataError(f"{where}: {key} {shown(text)}: expected an integer")
    return int(text)


def _load_label(
    images: Mapping[str, _Image], ids: Mapping[str, int], background: int, sample: Sample
) -> np.ndarray:
    image = images[sample.name]
    return draw(image.size, _shapes(image, ids), background, where=sample.label)


def _shapes(image: _Image, ids: Mapping[str, int]) -> Iterator[tuple[int, np.ndarray]]:
    for shape in image.shapes:
        area = shape.area
        if isinstance(area, _Mask):
            area = _to_image(area, image.size, shape.where)
        elif isinstance(area, Ellipse):
            area = area.outline()
        yield ids.get(shape.label, VOID), area


def _to_image(mask: _Mask, size: tuple[int, int], where: str) -> np.ndarray:
    """Returns bool [H, W] of the size of the image, true inside the mask."""
    left, top = mask.left, mask.top
    if min(left, top) < 0 or top + mask.height > size[0] or left + mask.width > size[1]:
        raise DataError(
            f"{where}: box {mask.width}x{mask.height} at {left}, {top} exceeds the image of "
            f"{size[1]}x{size[0]}",
            kind="size",
        )
    full = np.zeros(size, bool)
    # `to_mask` decodes column by column, CVAT's runs go row by row: decode the transposed box.
    inside = to_mask(mask.runs, (mask.width, mask.height)).T
    full[top : top + mask.height, left : left + mask.width] = inside
    return full
