"""What a prediction looks like as files, `<name>.<kind>`; which are written is chosen.

label            grey PNG whose values are the class ids, 8 bits up to 256 classes, else 16
color            the palette's colours, RGB
overlay          60 % image, 40 % palette, light lines where classes meet, a legend below
difficulty       P(coarse is wrong): the map magma of OpenCV, black = 0 (easy), pale yellow = 1
                 (hard), always on this fixed scale so that images can be compared; scale below
difficulty_grey  the same as 8-bit grey, round(255 p)
difficulty_npy   the same as float32, NumPy's .npy
difficulty_tiff  the same as float32, TIFF of one channel
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

from ccfnet_tf.inference.segmenter import Maps, Prediction
from ccfnet_tf.io.atomic_file import write_atomic
from ccfnet_tf.io.draw_sheet import blank, legend, shown_ids
from ccfnet_tf.io.draw_text import draw_text, text_width
from ccfnet_tf.labels import VOID, VOID_COLOUR, Taxonomy

Kind = Literal[
    "label",
    "color",
    "overlay",
    "difficulty",
    "difficulty_grey",
    "difficulty_npy",
    "difficulty_tiff",
]

ENDINGS: dict[Kind, str] = {
    "label": ".label.png",
    "color": ".color.png",
    "overlay": ".overlay.png",
    "difficulty": ".difficulty.png",
    "difficulty_grey": ".difficulty_grey.png",
    "difficulty_npy": ".difficulty.npy",
    "difficulty_tiff": ".difficulty.tiff",
}
"""How the files of each kind end."""

KINDS: tuple[Kind, ...] = ("label", "color", "overlay", "difficulty")
"""What is written where nothing else is asked for."""

_FREE_SPACE = "free space, then go on (predict --skip-existing)"
_PICTURE_SHARE = 0.6
_BORDER_COLOUR = (255, 255, 255)
_PIXELS_A_LINE = 500  # of an image's longer side, for one pixel of the lines between classes
_WIDTH_A_LETTER = 45  # of an image, for one pixel of the letters below it
_LETTERS = (13, 72)  # smallest and largest height
_NARROWEST = 240  # a legend needs room, however small the image


def output_paths(folder: Path, name: str, kinds: Sequence[Kind] = KINDS) -> list[Path]:
    """Returns the files that `write_prediction` writes for `name`."""
    # Not with_suffix: a name may hold dots of its own.
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
        prediction: For `image`.
        image: uint8 [H, W, 3] RGB, which the overlay shows.
        folder: Where to; made when missing.
        name: Relative path without suffix; its folders are made.
        taxonomy: Colours of the classes.
        kinds: Which files.
        legends: Overlay and difficulty have a legend below the image; without it, all files
            have the image's size.

    Returns:
        The files, in the order of `kinds`.

    Raises:
        ResourceError: The disk is full or cannot be written; none of the files stays.
    """
    labels, difficulty = prediction.labels, prediction.difficulty

    def overlay() -> np.ndarray:
        drawn = overlay_picture(labels, image, taxonomy)
        return with_legend(drawn, shown_ids([labels]), taxonomy) if legends else drawn

    def hard() -> np.ndarray:
        drawn = difficulty_picture(difficulty)
        return with_scale(drawn) if legends else drawn

    contents: dict[Kind, Callable[[], bytes]] = {
        "label": lambda: _png(label_picture(labels, classes=len(taxonomy.names))),
        "color": lambda: _png(colour_picture(labels, taxonomy)),
        "overlay": lambda: _png(overlay()),
        "difficulty": lambda: _png(hard()),
        "difficulty_grey": lambda: _png(grey_picture(difficulty)),
        "difficulty_npy": lambda: _npy(difficulty),
        "difficulty_tiff": lambda: _tiff(difficulty),
    }
    written: list[Path] = []
    try:
        for kind, path in zip(kinds, output_paths(folder, name, kinds), strict=True):
            _write(path, contents[kind](), _FREE_SPACE)
            written.append(path)
    except BaseException:  # Ctrl-C too: all files of an image, or none
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    return written


def label_picture(labels: np.ndarray, *, classes: int) -> np.ndarray:
    """Returns class ids [H, W] as uint8, or uint16 above 256 classes."""
    return labels.astype(np.uint8 if classes <= 256 else np.uint16)


def colour_picture(labels: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Returns labels int32 [H, W] (`VOID` is black) as uint8 [H, W, 3] RGB."""
    colours = np.array([*taxonomy.palette, VOID_COLOUR], np.uint8)
    return colours[np.where(labels == VOID, len(taxonomy.palette), labels)]


def overlay_picture(labels: np.ndarray, image: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Returns the image uint8 [H, W, 3] RGB tinted by class, with lines between classes."""
    colours = colour_picture(labels, taxonomy)
    blend = cv2.addWeighted(image, _PICTURE_SHARE, colours, 1 - _PICTURE_SHARE, 0)
    border = _borders(labels)
    blend[border] = blend[border] // 2 + np.array(_BORDER_COLOUR, np.uint8) // 2
    return np.asarray(blend)


def _borders(labels: np.ndarray) -> np.ndarray:
    """Returns bool [H, W], where classes meet; lines as wide as the image's size needs."""
    border = np.zeros(labels.shape, np.uint8)
    border[:-1] |= labels[:-1] != labels[1:]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    wide = max(1, round(max(labels.shape) / _PIXELS_A_LINE))
    return cv2.dilate(border, np.ones((wide, wide), np.uint8)) > 0


def with_legend(picture: np.ndarray, ids: Sequence[int], taxonomy: Taxonomy) -> np.ndarray:
    """Returns an image, uint8 [H, W, 3], above the names and colours of these classes."""
    width = max(picture.shape[1], _NARROWEST)
    size = _letters(width)
    names = legend(ids, taxonomy, width, size=size, margin=size // 2)
    return _above(picture, np.vstack([blank(size // 2, width), names]))


def with_scale(picture: np.ndarray) -> np.ndarray:
    """Returns a difficulty map, uint8 [H, W, 3], above the scale of its colours."""
    width = max(picture.shape[1], _NARROWEST)
    size = _letters(width)
    strip = blank(2 * size + size // 4, width)
    left, right = "easy 0", "1 hard"
    begin, end = size + text_width(left, size), width - size - text_width(right, size)
    draw_text(strip, left, (size // 2, size // 2), size)
    draw_text(strip, right, (end + size // 2, size // 2), size)
    ramp = np.tile(np.linspace(0.0, 1.0, end - begin, dtype=np.float32), (size, 1))
    strip[size // 2 : size // 2 + size, begin:end] = difficulty_picture(ramp)
    return _above(picture, strip)


def _letters(width: int) -> int:
    low, high = _LETTERS
    return min(max(width // _WIDTH_A_LETTER, low), high)


def _above(picture: np.ndarray, strip: np.ndarray) -> np.ndarray:
    """Returns one image below another, white beside the narrower."""
    beside = blank(picture.shape[0], strip.shape[1] - picture.shape[1])
    return np.vstack([np.hstack([picture, beside]), strip])


def difficulty_picture(difficulty: np.ndarray) -> np.ndarray:
    """Returns P(coarse is wrong) [H, W] 0..1 as uint8 [H, W, 3] RGB; dark = easy."""
    # The map is perceptually uniform.
    coloured = cv2.applyColorMap(grey_picture(difficulty), cv2.COLORMAP_MAGMA)
    return np.asarray(cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB))


def grey_picture(difficulty: np.ndarray) -> np.ndarray:
    """Returns P(coarse is wrong) [H, W] 0..1 as uint8 [H, W], round(255 p)."""
    return np.rint(np.clip(difficulty, 0.0, 1.0) * 255).astype(np.uint8)


def write_png(path: Path, picture: np.ndarray, *, fix: str = "free space") -> None:
    """Writes uint8 or uint16 [H, W] or uint8 [H, W, 3] RGB as PNG.

    Args:
        path: The file; an older one is replaced.
        picture: What is written.
        fix: What to do when the disk is full, the end of the error's line.

    Raises:
        ResourceError: The disk is full or cannot be written.
    """
    _write(path, _png(picture), fix)


def _png(picture: np.ndarray) -> bytes:
    # Encoded here and written by us: on a full disk cv2.imwrite returns False and leaves a
    # truncated file.
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

    cure = "give a folder that can be written"
    write_atomic(path, write, fix=fix, otherwise=cure, durable=False)
