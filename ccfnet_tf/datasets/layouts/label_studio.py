"""Images labelled with Label Studio, in its export formats JSON and JSON-MIN.

    ROOT/project-1-at-2024-01-31.json      a list of tasks
    ROOT/**/<name>                         the images, looked up by the file name of their address

Polygons, rectangles, ellipses and brush strokes are drawn in the order of the file, later ones over
earlier ones. Regions of other kinds have no area and are left out. If a task has several
annotations, the one marked as ground truth is used, or else the first that was not cancelled. Tasks
without an annotation are left out. Notes count what is left out. Classes are the labels in
alphabetical order. A pixel without a region is void, unless a label is named background: then it
has that class. A single label is learned against background. The format has no splits: create them
with `ccfnet-tf data split`, or with list files.

The COCO export (result.json) is read by `coco`. Only the JSON exports contain brush strokes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.class_and_split_lists import plain_name, void_notes, with_background
from ccfnet_tf.datasets.layout_helpers import PHOTOS
from ccfnet_tf.datasets.locate_images import FoundImages, path_parts
from ccfnet_tf.datasets.samples import Listing, with_images
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.annotation_json import Record, picture_size, read_any_json, shown
from ccfnet_tf.io.label_studio_rle import to_brush
from ccfnet_tf.io.polygons import FARTHEST, Ellipse, draw, points, turned
from ccfnet_tf.io.read_images import image_size
from ccfnet_tf.labels import Sample

_MAX_FILES = 20  # JSON files of a folder that are examined


class _Region(NamedTuple):
    """A region: an outline float64 [N, 2] in pixels, an ellipse, or the encoded runs of a brush."""

    label: str
    where: str
    area: np.ndarray | Ellipse | bytes


class _Task(NamedTuple):
    """A labelled image; `size` is (H, W), or `None` if no region states it."""

    size: tuple[int, int] | None
    regions: tuple[_Region, ...]


def signs(root: Path) -> str:
    """Returns the name of the first export in `root`, or an empty string if there is none."""
    try:
        return next((path.name for path in _files(root)), "")
    except OSError:
        return ""  # an unreadable folder is not recognised


def read(data: DataConfig, root: Path, seed: int) -> Listing:
    """Reads the exports. Opens no image; label maps are drawn when they are loaded.

    Raises:
        DataError: There is no export, one is damaged, or none contains a label.
    """
    files = _files(root)
    if not files:
        raise DataError(
            f"{root}: contains no JSON export of Label Studio: expected a list of tasks"
        )
    finder = FoundImages(root)
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
                image = finder.find(address, f"{where}: image {shown(address)}")
            except DataError as missing:
                faults.append(missing)
                continue
            name = plain_name(image.relative_to(root).with_suffix("").as_posix())
            if name in tasks:
                faults.append(
                    DataError(f"{where}: {image} is also the image of another task: keep one")
                )
                continue
            tasks[name] = _task(results, where, left_out)
            samples.append(Sample(name, str(image), where))
    labels = sorted({region.label for task in tasks.values() for region in task.regions})
    if faults and not labels:
        raise faults[0]  # the reason why there are no labels
    taxonomy, ids, background = with_background(labels, f"{root}: labels of the export")
    load_label = partial(_load_label, tasks, ids, background)
    counts = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    return Listing(
        taxonomy,
        tuple(samples),
        None,
        (),
        with_images(load_label),
        load_label,
        unpaired=tuple(faults),
        notes=(
            *void_notes(f"{root}: labels of the export", labels),
            *((f"{root}: left out: {counts}",) if counts else ()),
        ),
    )


def _files(root: Path) -> list[Path]:
    paths = sorted(path for path in root.glob("*.json") if path.name[0] != ".")
    return [path for path in paths[:_MAX_FILES] if _looks_like(path)]


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
    """Returns the regions of the annotation that is used, or `None` if there is none."""
    annotations = task.get("annotations")
    if annotations is None:  # JSON-MIN: lists of regions under keys that the user chose
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
    """Returns the address of a task's image: the first string with the suffix of an image."""
    holder = task.get("data")
    values = holder.values() if isinstance(holder, dict) else task.values()
    for value in values:
        if isinstance(value, str) and Path("/".join(path_parts(value))).suffix.lower() in PHOTOS:
            return value
    raise DataError(f"{where}: no image address in 'data': expected one such as .../a.jpg")


def _task(results: list[Record], where: str, left_out: dict[str, int]) -> _Task:
    """Returns the size and the regions of a task; counts in `left_out` those that are not drawn."""
    size: tuple[int, int] | None = None
    regions: list[_Region] = []
    for number, result in enumerate(results):
        item = f"{where}: region {number}"
        value = result.get("value")
        label = _label(value) if isinstance(value, dict) else ""
        if not isinstance(value, dict) or not label:
            if result.get("type") not in ("polygon", "rectangle", "ellipse", "brush", "relation"):
                left_out["regions without an area or a label"] += 1
            continue  # the same region follows with its label
        if result.get("image_rotation"):
            raise DataError(
                f"{item}: image_rotation is {shown(result['image_rotation'])}: the image was "
                "rotated in Label Studio: rotate it back there, and export the project again"
            )
        own = picture_size(result, "original_height", "original_width", item)
        size = size or own
        if own != size:
            raise DataError(
                f"{item}: the image is {own[::-1]} pixels, but {size[::-1]} in earlier regions"
            )
        area = _area(value, size, item)
        if area is None:
            left_out["regions without an area or a label"] += 1
            continue
        regions.append(_Region(label, item, area))
    return _Task(size, tuple(regions))


def _label(value: Record) -> str:
    """Returns the label of a region: the first in `polygonlabels`, `brushlabels`, `labels`, ..."""
    for key, names in value.items():
        if key.endswith("labels") and isinstance(names, list) and names:
            return " ".join(names[0].split()) if isinstance(names[0], str) else ""
    return ""


def _area(value: Record, size: tuple[int, int], where: str) -> np.ndarray | Ellipse | bytes | None:
    """Returns the area of a region, or `None` if it has none."""
    scale = np.array([size[1], size[0]]) / 100  # coordinates are percentages of width and height
    if "rle" in value:
        return _brush_bytes(value["rle"], where)
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
        return corner + turned(box, _degrees(value, where))  # rotated about its first corner
    return None


def _pixels(percent: np.ndarray, scale: np.ndarray, where: str) -> np.ndarray:
    """Returns coordinates or lengths in pixels.

    Raises:
        DataError: One is greater than `FARTHEST`.
    """
    pixels = percent * scale
    if (farthest := float(np.abs(pixels).max())) > FARTHEST:
        raise DataError(
            f"{where}: a coordinate or length of {farthest:.0f} pixels: expected at most {FARTHEST}"
        )
    return pixels


def _pair(value: Record, first: str, second: str, where: str) -> np.ndarray:
    return points([value.get(first), value.get(second)], where, least=1)[0]


def _degrees(value: Record, where: str) -> float:
    """Returns the clockwise rotation of a region in degrees."""
    return float(points([value.get("rotation") or 0, 0], where, least=1)[0][0])


def _brush_bytes(rle: Any, where: str) -> bytes:
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
