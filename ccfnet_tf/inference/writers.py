"""What a prediction looks like as files: `<name>.{label,color,overlay,difficulty}.png`.

label       grey PNG whose values are the class ids, 8 bits up to 256 classes, else 16
color       the palette's colours, RGB
overlay     60 % picture, 40 % palette, thin light lines where classes meet
difficulty  P(coarse is wrong): the map magma of OpenCV, black = 0 (easy), pale yellow = 1
(hard), always on this fixed scale so that pictures can be compared
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from ccfnet_tf.inference.atomic import write_atomic
from ccfnet_tf.inference.prediction import Maps, Prediction
from ccfnet_tf.labels import VOID, Taxonomy

KINDS = ("label", "color", "overlay", "difficulty")

VOID_COLOUR = (0, 0, 0)
_PICTURE_SHARE = 0.6
_BORDER_COLOUR = (255, 255, 255)


def output_paths(folder: Path, name: str) -> list[Path]:
    """Returns the files that `write_prediction` writes for `name`."""
    # Not with_suffix: a name may hold dots of its own.
    return [folder / f"{name}.{kind}.png" for kind in KINDS]


def write_prediction(
    prediction: Prediction | Maps, image: np.ndarray, folder: Path, name: str, taxonomy: Taxonomy
) -> None:
    """Writes the four pictures of a prediction.

    Args:
        prediction: For `image`.
        image: uint8 [H, W, 3] RGB, which the overlay shows.
        folder: Where to; made when missing.
        name: Relative path without suffix; its folders are made.
        taxonomy: Colours of the classes.

    Raises:
        ResourceError: The disk is full or cannot be written; none of the four stays.
    """
    pictures = (
        label_picture(prediction.labels, classes=len(taxonomy.names)),
        colour_picture(prediction.labels, taxonomy),
        overlay_picture(prediction.labels, image, taxonomy),
        difficulty_picture(prediction.difficulty),
    )
    written: list[Path] = []
    try:
        for path, picture in zip(output_paths(folder, name), pictures, strict=True):
            write_png(path, picture)
            written.append(path)
    except BaseException:  # Ctrl-C too: all four of a picture, or none
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise


def label_picture(labels: np.ndarray, *, classes: int) -> np.ndarray:
    """Returns class ids [H, W] as uint8, or uint16 above 256 classes."""
    return labels.astype(np.uint8 if classes <= 256 else np.uint16)


def colour_picture(labels: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Returns labels int32 [H, W] (`VOID` is black) as uint8 [H, W, 3] RGB."""
    colours = np.array([*taxonomy.palette, VOID_COLOUR], np.uint8)
    return colours[np.where(labels == VOID, len(taxonomy.palette), labels)]


def overlay_picture(labels: np.ndarray, image: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
    """Returns the picture uint8 [H, W, 3] RGB tinted by class, with lines between classes."""
    colours = colour_picture(labels, taxonomy)
    blend = cv2.addWeighted(image, _PICTURE_SHARE, colours, 1 - _PICTURE_SHARE, 0)
    border = np.zeros(labels.shape, bool)
    border[:-1] |= labels[:-1] != labels[1:]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    blend[border] = blend[border] // 2 + np.array(_BORDER_COLOUR, np.uint8) // 2
    return np.asarray(blend)


def difficulty_picture(difficulty: np.ndarray) -> np.ndarray:
    """Returns P(coarse is wrong) [H, W] 0..1 as uint8 [H, W, 3] RGB; dark = easy."""
    grey = np.rint(np.clip(difficulty, 0.0, 1.0) * 255).astype(np.uint8)
    coloured = cv2.applyColorMap(grey, cv2.COLORMAP_MAGMA)  # perceptually uniform
    return np.asarray(cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB))


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes uint8 or uint16 [H, W] or uint8 [H, W, 3] RGB as PNG.

    Raises:
        ResourceError: The disk is full or cannot be written.
    """
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    # Encoded here and written by us: cv2.imwrite answers False to a full disk and leaves a stump.
    encoded = cv2.imencode(".png", picture)[1].tobytes()

    def write(file: BinaryIO) -> None:
        file.write(encoded)

    cure = "give a folder that can be written"
    write_atomic(path, write, mend="free space", otherwise=cure, durable=False)
