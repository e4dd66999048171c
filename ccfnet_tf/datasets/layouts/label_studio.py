"""Images labelled with Label Studio, in its own exports JSON and JSON-MIN.

    ROOT/project-1-at-2024-01-31.json      a list of tasks
    ROOT/**/<name>                         the images, found by the last part of their address

Polygons, rectangles, ellipses and brush strokes are drawn in the order of the file, later ones over
earlier ones; other regions have no area and are noted. Of several annotations of a task the one
marked as ground truth counts, else the first that was not cancelled. Tasks without an annotation
are left out and noted. Classes are the labels in alphabetical order. A pixel without a region is
void, unless a label is named background: then it is of that class. A single label is learned
against background. There are no parts: split with `ccfnet-tf data split`, or by lists.

Its COCO export (result.json) is read by `coco`; brush strokes are in the JSON exports alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.base import Listing, with_pictures
from ccfnet_tf.datasets.find_images import FoundPictures, path_parts
from ccfnet_tf.datasets.name_lists import plain_name, void_notes, with_background
from ccfnet_tf.datasets.pairing import PHOTOS
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.images import image_size
from ccfnet_tf.io.json_files import Record, picture_size, read_any_json, shown
from ccfnet_tf.io.label_studio_rle import to_brush
from ccfnet_tf.io.polygons import FARTHEST, Ellipse, draw, points, turned
from ccfnet_tf.labels import Sample

_MOST_FILES = 20  # JSON files beside each other that are looked at


class _Region(NamedTuple):
    """What is drawn: an outline float64 [N, 2] of pixels, an ellipse, or a brush's packed runs."""

    label: str
    where: str
    area: np.ndarray | Ellipse | bytes


class _Task(NamedTuple):
    """A labelled image; `size` is (H, W), or `None` where no region states it."""

    size: tuple[int, int] | None
    regions: tuple[_Region, ...]


def signs(root: Path) -> str:
    """Returns the first export in `root`; empty where there is none."""
    try:
        return next((path.name for path in _files(root)), "")
    except OSError:
        return ""  # what cannot be looked at shows no sign


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Reads the exports; no image is opened, and no region is drawn yet.

    Raises:
        DataError: No export, one that is damaged, or no label.
    """
    files = _files(root)
    if not files:
        raise DataError(f"{root}: no JSON export of Label Studio in it: expected a list of tasks")
    found = FoundPictures(root)
    tasks: dict[str, _Task] = {}
    samples: list[Sample] = []
    faults: list[DataError] = []
    left_out = {"tasks without an annotation": 0, "regions without an area or a label": 0}
    for path in files:
        for number, task in enumerate(_task_list(path)):
            where = f"{path}: task {number}"
            results = _results(task, where)
            if results is None:
                left_out["tasks without an annotation"] += 1
                continue
            try:
                address = _address(task, where)
                image = found.find(address, f"{where}: image {shown(address)}")
            except DataError as missing:
                faults.append(missing)
                continue
            name = plain_name(image.relative_to(root).with_suffix("").as_posix())
            if name in tasks:
                faults.append(DataError(f"{where}: {image} is the image of another task: keep one"))
                continue
            tasks[name] = _task(results, where, left_out)
            samples.append(Sample(name, str(image), where))
    labels = sorted({region.label for task in tasks.values() for region in task.regions})
    if faults and not labels:
        raise faults[0]  # says more than that there are no labels
    taxonomy, ids, background = with_background(labels, f"{root}: labels of the export")
    load_label = partial(_load_label, tasks, ids, background)
    said = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    return Listing(
        taxonomy,
        tuple(samples),
        None,
        (),
        with_pictures(load_label),
        load_label,
        unpaired=tuple(faults),
        notes=(
            *void_notes(f"{root}: labels of the export", labels),
            *((f"{root}: left out: {said}",) if said else ()),
        ),
    )


def _files(root: Path) -> list[Path]:
    paths = sorted(path for path in root.glob("*.json") if path.name[0] != ".")
    return [path for path in paths[:_MOST_FILES] if _looks_like(path)]


def _looks_like(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(65536)
    a_list = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    return a_list and (b'"original_width"' in head or b'"annotations"' in head)


def _task_list(path: Path) -> list[Record]:
    tree = read_any_json(path)
    if not isinstance(tree, list) or not all(isinstance(task, dict) for task in tree):
        raise DataError(f"{path}: {shown(tree)}: expected a list of tasks, [{{...}}, ...]")
    return tree


def _results(task: Record, where: str) -> list[Record] | None:
    """Returns the regions of the annotation that counts; `None` where there is none."""
    annotations = task.get("annotations")
    if annotations is None:  # JSON-MIN: lists of regions under names of the user's
        lists = [value for value in task.values() if isinstance(value, list)]
        regions = [each for values in lists for each in values if isinstance(each, dict)]
        return [{"value": region} | region for region in regions] or None
    if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
        raise DataError(f"{where}: 'annotations' is {shown(annotations)}: expected a list")
    kept = [each for each in annotations if not each.get("was_cancelled")]
    kept.sort(key=lambda each: not each.get("ground_truth"))
    if not kept:
        return None
    results = kept[0].get("result")
    if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
        raise DataError(f"{where}: 'result' is {shown(results)}: expected a list of regions")
    return results


def _address(task: Record, where: str) -> str:
    """Returns the address of a task's image: the first text that ends as one does."""
    holder = task.get("data")
    values = holder.values() if isinstance(holder, dict) else task.values()
    for value in values:
        if isinstance(value, str) and Path("/".join(path_parts(value))).suffix.lower() in PHOTOS:
            return value
    raise DataError(f"{where}: no address of an image in 'data': expected one such as .../a.jpg")


def _task(results: list[Record], where: str, left_out: dict[str, int]) -> _Task:
    """Returns what a task shows; counts the regions that are not drawn."""
    size: tuple[int, int] | None = None
    regions: list[_Region] = []
    for number, result in enumerate(results):
        place = f"{where}: region {number}"
        value = result.get("value")
        label = _label(value) if isinstance(value, dict) else ""
        if not isinstance(value, dict) or not label:
            if result.get("type") not in ("polygon", "rectangle", "ellipse", "brush", "relation"):
                left_out["regions without an area or a label"] += 1
            continue  # `polygon` and the like: the same region comes again, with its label
        if result.get("image_rotation"):
            raise DataError(
                f"{place}: image_rotation is {shown(result['image_rotation'])}: the image was "
                "turned in Label Studio: turn it back there, and export the project anew"
            )
        own = picture_size(result, "original_height", "original_width", place)
        size = size or own
        if own != size:
            raise DataError(
                f"{place}: the image has {own[::-1]} pixels, before it had {size[::-1]}"
            )
        area = _area(value, size, place)
        if area is None:
            left_out["regions without an area or a label"] += 1
            continue
        regions.append(_Region(label, place, area))
    return _Task(size, tuple(regions))


def _label(value: Record) -> str:
    """Returns the label of a region: the first in `polygonlabels`, `brushlabels`, `labels`, ..."""
    for key, names in value.items():
        if key.endswith("labels") and isinstance(names, list) and names:
            return " ".join(names[0].split()) if isinstance(names[0], str) else ""
    return ""


def _area(value: Record, size: tuple[int, int], where: str) -> np.ndarray | Ellipse | bytes | None:
    """Returns what a region covers; `None` where it has no area."""
    scale = np.array([size[1], size[0]]) / 100  # coordinates are percent of the sides
    if "rle" in value:
        return _packed(value["rle"], where)
    if "points" in value:
        pairs = value["points"]
        if not isinstance(pairs, list) or any(
            not isinstance(p, list) or len(p) != 2 for p in pairs
        ):
            raise DataError(f"{where}: 'points' is {shown(pairs)}: expected a list of [x, y]")
        corners = points([number for pair in pairs for number in pair], where, least=0)
        return _pixels(corners, scale, where) if len(corners) > 2 else None
    if "radiusX" in value:
        centre, radii = _pair(value, "x", "y", where), _pair(value, "radiusX", "radiusY", where)
        centre, radii = _pixels(centre, scale, where), _pixels(radii, scale, where)
        return Ellipse(centre, radii, _degrees(value, where)) if radii.max() > 0 else None
    if "width" in value and "height" in value:
        corner, sides = _pair(value, "x", "y", where), _pair(value, "width", "height", where)
        corner, sides = _pixels(corner, scale, where), _pixels(sides, scale, where)
        box = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * sides
        return corner + turned(box, _degrees(value, where))  # about its first corner
    return None


def _pixels(percent: np.ndarray, scale: np.ndarray, where: str) -> np.ndarray:
    """Returns coordinates or lengths in pixels; raises DataError beyond `FARTHEST`."""
    pixels = percent * scale
    if (farthest := float(np.abs(pixels).max())) > FARTHEST:
        raise DataError(
            f"{where}: {farthest:.0f} pixels from the corner or wide: expected at most {FARTHEST}"
        )
    return pixels


def _pair(value: Record, first: str, second: str, where: str) -> np.ndarray:
    return points([value.get(first), value.get(second)], where, least=1)[0]


def _degrees(value: Record, where: str) -> float:
    """Returns by how much a region is turned, clockwise."""
    return float(points([value.get("rotation") or 0, 0], where, least=1)[0][0])


def _packed(rle: Any, where: str) -> bytes:
    try:
        return bytes(rle) if isinstance(rle, list) else b""
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: 'rle' is {shown(rle)}: expected bytes 0..255") from error


def _load_label(
    tasks: Mapping[str, _Task], ids: Mapping[str, int], background: int, sample: Sample
) -> np.ndarray:
    task = tasks[sample.name]
    size = task.size or image_size(sample.image)
    return draw(size, _shapes(task, size, ids), background, where=sample.label)


def _shapes(
    task: _Task, size: tuple[int, int], ids: Mapping[str, int]
) -> Iterator[tuple[int, np.ndarray]]:
    for region in task.regions:
        area = region.area
        if isinstance(area, bytes):
            area = to_brush(area, size, region.where)
        elif isinstance(area, Ellipse):
            area = area.outline()
        yield ids[region.label], area
