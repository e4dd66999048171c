"""Writes predictions as files `<name>.<kind>`.

label            grey PNG of class ids, 8 bits up to 256 classes, else 16; void, if pixels were left
                 without a label, is 255 or 65535
color            RGB PNG in the colours of the palette
overlay          60 % image, 40 % palette, light lines between classes, a legend below
MAP              attention, difficulty or risk in OpenCV's colour map magma, black = 0, pale
                 yellow = 1; the scale is fixed so that images can be compared, and shown below
MAP_grey         the same as 8-bit grey, round(255 p)
MAP_npy          the same as float32, NumPy's .npy
MAP_tiff         the same as float32, TIFF of one channel
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import cv2
import numpy as np
from PIL import Image

from ccfnet_tf.inference.segmenter_protocol import MAPS, MapName, Maps, Prediction
from ccfnet_tf.io.atomic_file import write_atomic
from ccfnet_tf.io.draw_sheet import blank, legend, shown_ids
from ccfnet_tf.io.draw_text import draw_text, text_width
from ccfnet_tf.labels import VOID, VOID_COLOUR, Taxonomy

Kind = Literal[
    "label",
    "color",
    "overlay",
    "attention",
    "attention_grey",
    "attention_npy",
    "attention_tiff",
    "difficulty",
    "difficulty_grey",
    "difficulty_npy",
    "difficulty_tiff",
    "risk",
    "risk_grey",
    "risk_npy",
    "risk_tiff",
]

ENDINGS: dict[Kind, str] = {
    "label": ".label.png",
    "color": ".color.png",
    "overlay": ".overlay.png",
    "attention": ".attention.png",
    "attention_grey": ".attention_grey.png",
    "attention_npy": ".attention.npy",
    "attention_tiff": ".attention.tiff",
    "difficulty": ".difficulty.png",
    "difficulty_grey": ".difficulty_grey.png",
    "difficulty_npy": ".difficulty.npy",
    "difficulty_tiff": ".difficulty.tiff",
    "risk": ".risk.png",
    "risk_grey": ".risk_grey.png",
    "risk_npy": ".risk.npy",
    "risk_tiff": ".risk.tiff",
}
"""File name suffixes by kind."""

KINDS: tuple[Kind, ...] = ("label", "color", "overlay", "difficulty")
"""The kinds written by default."""

_EASY_HARD = ("easy 0", "1 hard")
_SCALE_ENDS: dict[MapName, tuple[str, str]] = {
    "attention": ("attention: easy 0", "1 hard"),
    "difficulty": ("difficulty: easy 0", "1 hard"),
    "risk": ("risk: right 0", "1 wrong"),
}

_FREE_SPACE = "free space, then resume (predict --skip-existing)"
_IMAGE_SHARE = 0.6
_BORDER_COLOUR = (255, 255, 255)
_PIXELS_PER_LINE = 500  # of the longer side, per pixel of width of the lines between classes
_WIDTH_PER_LETTER = 45  # pixels of width, per pixel of letter height in the legend
_LETTERS = (13, 72)  # smallest and largest letter height in pixels
_NARROWEST = 240  # smallest width of a legend in pixels


def output_paths(folder: Path, name: str, kinds: Sequence[Kind] = KINDS) -> list[Path]:
    """Returns the files that `write_prediction` writes for `name`."""
    # Not with_suffix: the name may contain dots.
    return [folder / f"{name}{ENDINGS[kind]}" for kind in kinds]


def write_prediction(
    prediction: Prediction | Maps,
    image: np.ndarray,
    folder: Path,
    name: str,
    taxonomy: Taxonomy,
    *,
    kinds: Sequence[Kind] = KINDS,
    legends: bool = True,
) -> list[Path]:
    """Writes a prediction as files.

    Args:
        prediction: The prediction for `image`.
        image: uint8 [H, W, 3] RGB, drawn in the overlay.
        folder: Output folder; created if missing.
        name: Relative path without suffix; its folders are created.
        taxonomy: Names and colours of the classes.
        kinds: Which files are written.
        legends: Whether overlay and coloured maps have a legend below the image; without it, all
            files have the size of the image.

    Returns:
        The files, in the order of `kinds`.

    Raises:
        ResourceError: The disk is full or not writable; none of the files is kept.
    """
    labels = prediction.labels

    def overlay() -> np.ndarray:
        drawn = overlay_image(labels, image, taxonomy)
        return with_legend(drawn, shown_ids([labels]), taxonomy) if legends else drawn

    contents: dict[Kind, Callable[[], bytes]] = {
        "label": lambda: _png(label_image(labels, classes=len(taxonomy.names))),
        "color": lambda: _png(colour_image(labels, taxonomy)),
        "overlay": lambda: _png(overlay()),
    }
    for map_name in MAPS:
        contents |= _map_contents(map_name, getattr(prediction, map_name), legends=legends)
    written: list[Path] = []
    try:
        for kind, path in zip(kinds, output_paths(folder, name, kinds), strict=True):
            _write(path, contents[kind](), _FREE_SPACE)
            written.append(path)
    except BaseException:  # including Ctrl-C: all files of an image are written, or none
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    return written


def _map_contents(
    name: MapName, values: np.ndarray, *, legends: bool
) -> dict[Kind, Callable[[], bytes]]:
    """Returns how the files of one map [H, W] are made."""

    def coloured() -> np.ndarray:
        drawn = map_image(values)
        return with_scale(drawn, *_SCALE_ENDS[name]) if legends else drawn

    forms: dict[str, Callable[[], bytes]] = {
        "": lambda: _png(coloured()),
        "_grey": lambda: _png(grey_image(values)),
        "_npy": lambda: _npy(values),
        "_tiff": lambda: _tiff(values),
    }
    return {kind: forms[kind.removeprefix(name)] for kind in ENDINGS if kind.startswith(name)}


def label_image(labels: np.ndarray, *, classes: int) -> np.ndarray:
    """Returns class ids [H, W] as uint8, or uint16 if needed; void is the largest value."""
    values = classes + bool((labels == VOID).any())
    return labels.astype(np.uint8 if values <= 256 else np.uint16)


def colour_image(labels: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Returns labels int32 [H, W] (`VOID` is black) as uint8 [H, W, 3] RGB."""
    colours = np.array([*taxonomy.palette, VOID_COLOUR], np.uint8)
    return colours[np.where(labels == VOID, len(taxonomy.palette), labels)]


def overlay_image(labels: np.ndarray, image: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Returns the image uint8 [H, W, 3] RGB tinted by class, with lines between classes."""
    colours = colour_image(labels, taxonomy)
    blend = cv2.addWeighted(image, _IMAGE_SHARE, colours, 1 - _IMAGE_SHARE, 0)
    border = _borders(labels)
    blend[border] = blend[border] // 2 + np.array(_BORDER_COLOUR, np.uint8) // 2
    return np.asarray(blend)


def _borders(labels: np.ndarray) -> np.ndarray:
    """Returns bool [H, W]: lines between classes, whose width grows with the image."""
    border = np.zeros(labels.shape, np.uint8)
    border[:-1] |= labels[:-1] != labels[1:]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    wide = max(1, round(max(labels.shape) / _PIXELS_PER_LINE))
    return cv2.dilate(border, np.ones((wide, wide), np.uint8)) > 0


def with_legend(picture: np.ndarray, ids: Sequence[int], taxonomy: Taxonomy) -> np.ndarray:
    """Returns an image, uint8 [H, W, 3], with a legend of these classes below."""
    width = max(picture.shape[1], _NARROWEST)
    size = _letters(width)
    names = legend(ids, taxonomy, width, size=size, margin=size // 2)
    return _above(picture, np.vstack([blank(size // 2, width), names]))


def with_scale(
    picture: np.ndarray, left: str = _EASY_HARD[0], right: str = _EASY_HARD[1]
) -> np.ndarray:
    """Returns a coloured map, uint8 [H, W, 3], with its colour scale below.

    Args:
        picture: The map.
        left: Text at the dark end of the scale.
        right: Text at its bright end.
    """
    width = max(picture.shape[1], _NARROWEST)
    size = _letters(width)
    strip = blank(2 * size + size // 4, width)
    begin, end = size + text_width(left, size), width - size - text_width(right, size)
    draw_text(strip, left, (size // 2, size // 2), size)
    draw_text(strip, right, (end + size // 2, size // 2), size)
    ramp = np.tile(np.linspace(0.0, 1.0, end - begin, dtype=np.float32), (size, 1))
    strip[size // 2 : size // 2 + size, begin:end] = map_image(ramp)
    return _above(picture, strip)


def _letters(width: int) -> int:
    low, high = _LETTERS
    return min(max(width // _WIDTH_PER_LETTER, low), high)


def _above(picture: np.ndarray, strip: np.ndarray) -> np.ndarray:
    """Stacks two images vertically; the narrower one is padded with white."""
    filler = blank(picture.shape[0], strip.shape[1] - picture.shape[1])
    return np.vstack([np.hstack([picture, filler]), strip])


def map_image(difficulty: np.ndarray) -> np.ndarray:
    """Returns a map [H, W] 0..1 as uint8 [H, W, 3] RGB; dark = 0, bright = 1."""
    # Magma is perceptually uniform.
    coloured = cv2.applyColorMap(grey_image(difficulty), cv2.COLORMAP_MAGMA)
    return np.asarray(cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB))


def grey_image(difficulty: np.ndarray) -> np.ndarray:
    """Returns a map [H, W] 0..1 as uint8 [H, W], round(255 p)."""
    return np.rint(np.clip(difficulty, 0.0, 1.0) * 255).astype(np.uint8)


def write_png(path: Path, picture: np.ndarray, *, fix: str = "free space") -> None:
    """Writes uint8 or uint16 [H, W] or uint8 [H, W, 3] RGB as PNG.

    Args:
        path: The file; an existing one is replaced.
        picture: The image.
        fix: What to do if the disk is full; ends the error message.

    Raises:
        ResourceError: The disk is full or not writable.
    """
    _write(path, _png(picture), fix)


def _png(picture: np.ndarray) -> bytes:
    # Not cv2.imwrite: on a full disk it returns False and leaves a truncated file.
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", picture)[1].tobytes()


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values.astype(np.float32), allow_pickle=False)
    return file.getvalue()


def _tiff(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values.astype(np.float32)).save(file, format="TIFF")
    return file.getvalue()


def _write(path: Path, content: bytes, fix: str) -> None:
    def write(file: BinaryIO) -> None:
        file.write(content)

    cure = "give a writable folder"
    write_atomic(path, write, fix=fix, otherwise=cure, durable=False)
