"""Images of a split with all layers of a prediction, small enough for embedding in an HTML page.

Photographs and maps are lossy WebP, label maps PNG with a palette. Memory is bounded by one image
with its outputs, and by the size of the page.

Shapes: an image [H, W, 3] uint8, its label int32 [H, W].
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ccfnet_tf.datasets.samples import Load
from ccfnet_tf.evaluation.read_image_table import ImageRow
from ccfnet_tf.inference.segmenter_protocol import MAPS, CascadeSegmenter, Prediction
from ccfnet_tf.inference.writers import colour_image, map_image
from ccfnet_tf.labels import VOID, VOID_COLOUR, Sample, Taxonomy

LAYERS = ("image", "label", "coarse", "attention", "difficulty", "risk", "refine", "errors")

ALL = 160
"""Largest number of images of a split for which all images are shown."""

EACH = 40
"""Number of images shown of each sorting if the split is larger."""

LONGEST = 400
"""Longest side of a layer in pixels; larger images are downscaled."""

QUALITY = 80
"""Quality of WebP, 0 to 100."""

DIFFERENT = 0.01
"""Largest accepted difference of an image's accuracy or mean risk from the evaluation."""

RIGHT, CORRECTED, SPOILED, WRONG, NOTHING = range(5)
ERRORS = (
    ("right in both", (44, 52, 62)),
    ("corrected", (38, 189, 170)),
    ("spoiled", (222, 73, 160)),
    ("wrong in both", (245, 158, 66)),
    ("void", VOID_COLOUR),
)
"""Name and RGB colour of each kind of pixel in the layer `errors`."""


@dataclass(frozen=True)
class Entry:
    """An image of a gallery.

    Attributes:
        row: Its figures.
        size: (H, W) of its layers.
        layers: A `data:` URL for each of `LAYERS`.
        classes: Ids of the classes in label, coarse or refine.
        other: Whether the prediction differs from the one that was evaluated.
    """

    row: ImageRow
    size: tuple[int, int]
    layers: tuple[str, ...]
    classes: tuple[int, ...]
    other: bool


SORTINGS: dict[str, tuple[str, Callable[[ImageRow], float]]] = {
    "worst": ("Worst", lambda row: -2.0 if row.accuracy is None else -row.accuracy),
    "corrected": ("Most corrected", lambda row: row.corrected / max(row.pixels, 1)),
    "spoiled": ("Most spoiled", lambda row: row.spoiled / max(row.pixels, 1)),
    "risk": ("Most at risk", lambda row: -1.0 if row.risk is None else row.risk),
}
"""Name and key of each sorting; the image with the largest key comes first."""


def choose(rows: Sequence[ImageRow]) -> list[int]:
    """Returns the indices of the images of a gallery: all, or the first of each sorting."""
    if len(rows) <= ALL:
        return list(range(len(rows)))
    chosen: set[int] = set()
    for _, key in SORTINGS.values():
        chosen.update(sorted(range(len(rows)), key=lambda place: -key(rows[place]))[:EACH])
    return sorted(chosen)


def gallery(
    network: CascadeSegmenter,
    shown: Iterable[tuple[Sample, ImageRow]],
    load: Load,
    taxonomy: Taxonomy,
    *,
    advance: Callable[[], None] = lambda: None,
) -> list[Entry]:
    """Predicts images and draws their layers.

    Args:
        network: The network; maps are calibrated if it is.
        shown: The images and their figures.
        load: Reads a sample, `Parts.load`.
        taxonomy: Names and colours of the classes.
        advance: Called after each image.

    Raises:
        DataError: An image or label cannot be read.
        ResourceError: Memory runs out.
    """
    entries = []
    for sample, row in shown:
        image, label = load(sample)
        outputs = network.head_outputs(image)
        coarse = outputs.coarse.argmax(axis=-1)
        layers = _Layers(image, label, coarse, network.prediction(outputs))
        entries.append(_entry(layers, row, taxonomy))
        advance()
    return entries


def sorted_places(entries: Sequence[Entry]) -> dict[str, list[int]]:
    """Returns the order of the images for each sorting."""
    places = range(len(entries))
    return {
        name: sorted(places, key=lambda place: -key(entries[place].row))
        for name, (_, key) in SORTINGS.items()
    }


def compared(label: np.ndarray, coarse: np.ndarray, refine: np.ndarray) -> np.ndarray:
    """Returns the index in `ERRORS` of each pixel, uint8 [H, W], of label maps [H, W]."""
    before, after = coarse == label, refine == label
    kinds = np.where(after, np.where(before, RIGHT, CORRECTED), np.where(before, SPOILED, WRONG))
    return np.where(label == VOID, NOTHING, kinds).astype(np.uint8)


class _Layers(NamedTuple):
    """An image, its label [H, W], the labels of coarse [H, W], and the prediction."""

    image: np.ndarray
    label: np.ndarray
    coarse: np.ndarray
    prediction: Prediction


def _entry(layers: _Layers, row: ImageRow, taxonomy: Taxonomy) -> Entry:
    label, prediction = layers.label, layers.prediction
    errors = compared(label, layers.coarse, prediction.labels)
    size = _small(label.shape)
    drawn: dict[str, str] = {
        "image": _webp(_shrunk(layers.image, size)),
        **{name: _webp(map_image(_shrunk(getattr(prediction, name), size))) for name in MAPS},
        "errors": _png(_nearest(errors, size), [colour for _, colour in ERRORS]),
    }
    classes: set[int] = set()
    for name, ids in (("label", label), ("coarse", layers.coarse), ("refine", prediction.labels)):
        small = _nearest(ids, size)
        classes.update(np.unique(small).tolist())
        drawn[name] = _labels_png(small, taxonomy)
    addresses = tuple(drawn[name] for name in LAYERS)
    shown = tuple(sorted(classes - {VOID}))
    return Entry(row, size, addresses, shown, _is_other(errors, prediction.risk, row))


def _is_other(errors: np.ndarray, risk: np.ndarray, row: ImageRow) -> bool:
    """Returns whether accuracy or mean risk of an image differ from the evaluation."""
    labelled = errors != NOTHING
    if row.accuracy is None or row.risk is None or not labelled.any():
        return row.pixels != int(labelled.sum())
    accuracy = float(np.isin(errors[labelled], (RIGHT, CORRECTED)).mean())
    mean_risk = float(risk[labelled].mean())
    return max(abs(accuracy - row.accuracy), abs(mean_risk - row.risk)) > DIFFERENT


def _small(shape: tuple[int, ...]) -> tuple[int, int]:
    factor = min(1.0, LONGEST / max(shape[:2]))
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _shrunk(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image or a map; pixels are averages."""
    return np.asarray(cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA))


def _nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = cv2.resize(ids.astype(np.int32), size[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized)


def _labels_png(ids: np.ndarray, taxonomy: Taxonomy) -> str:
    colours = [*taxonomy.palette, VOID_COLOUR]
    if len(colours) > 256:
        return _address(Image.fromarray(colour_image(ids, taxonomy)), "png", optimize=True)
    return _png(np.where(ids == VOID, len(taxonomy.palette), ids).astype(np.uint8), colours)


def _png(ids: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> str:
    picture = Image.fromarray(ids.astype(np.uint8), mode="P")
    picture.putpalette([value for colour in colours for value in colour])
    return _address(picture, "png", optimize=True)


def _webp(picture: np.ndarray) -> str:
    return _address(Image.fromarray(picture), "webp", quality=QUALITY, method=4)


def _address(picture: Image.Image, kind: str, **how: Any) -> str:
    file = io.BytesIO()
    picture.save(file, format=kind, **how)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
