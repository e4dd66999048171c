"""Picture files to arrays: every kind of photograph, and masks of class ids.

The header is always looked at before the pixels, so that a small file that claims to be huge is
refused before memory is asked for.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID

MAX_PIXELS = 80_000_000
"""Larger pictures are refused; just below the size at which Pillow starts to warn."""

# What Pillow's decoders may raise on damaged files. Not TypeError and AttributeError, which would
# hide a fault of ours: flipping bytes in thousands of files never raised one.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
)

_TURNS = {  # EXIF orientation: what brings the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

NO_CLASS = -2
"""In a table from values to class ids: the value is refused."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = {2: "RGB colours", 4: "grey with alpha", 6: "RGB colours with alpha"}


def read_image(path: str | Path, data: bytes | None = None) -> np.ndarray:
    """Reads a photograph.

    Grey, CMYK and palette pictures become RGB, 16 bits are scaled to 8, transparent parts show
    white (as most viewers do), EXIF orientation is applied.

    Args:
        path: File in any format that Pillow reads; of several frames the first counts.
        data: The file's bytes, where `path` is only what messages call it.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        DataError: Missing, not a picture, damaged or truncated, more than `MAX_PIXELS`.
    """
    with _opened(path, data) as image:
        return _upright_rgb(image, path)


def from_pillow(image: Image.Image) -> np.ndarray:
    """Returns a picture of Pillow as `read_image` gives its file: uint8 [H, W, 3] RGB.

    Raises:
        DataError: It is damaged, without pixels, or of more than `MAX_PIXELS`.
    """
    name = getattr(image, "filename", "") or "the picture"
    _refuse_huge(name, image.size)
    if not all(image.size):
        raise DataError(f"{name}: {image.size[0]}x{image.size[1]} pixels: nothing to look at")
    try:
        return _upright_rgb(image, name)
    except _DAMAGE as error:
        raise _damaged(name, error) from error


def _upright_rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    image.load()
    turn = _TURNS.get(_orientation(image))
    upright = image if turn is None else image.transpose(turn)
    return np.array(_to_rgb(upright, path))


def image_size(path: str | Path) -> tuple[int, int]:
    """Returns (H, W) of a picture as `read_image` would give it, from its header alone.

    Raises:
        DataError: Missing, not a picture, more than `MAX_PIXELS`.
    """
    with _opened(path) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def count_frames(path: str | Path) -> int:
    """Returns how many frames or pages a picture has, of which `read_image` gives the first.

    Smaller copies of the first page, as in pyramids, and what phones add to a JPEG do not count.

    Raises:
        DataError: Missing, not a picture, damaged.
    """
    with _opened(path) as image:
        frames = int(getattr(image, "n_frames", 1))
        if frames < 2 or image.format in ("MPO", "JPEG"):
            return 1
        first = image.size
        image.seek(1)
        return frames if image.size == first else 1


def read_index_mask(path: str | Path, *, classes: int, void_value: int) -> np.ndarray:
    """Reads a mask of class ids.

    Args:
        path: PNG, grey or palette, at most 8 bits; a palette's indices count, not its colours.
        classes: Number of classes C.
        void_value: Value of pixels without a label; wins over a class of the same id.

    Returns:
        int32 [H, W], 0..C-1 or `VOID`.

    Raises:
        DataError: Missing, damaged, another kind of picture, or a value outside the rule.
    """
    return to_ids(read_index_values(path), path, classes=classes, void_value=void_value)


def to_ids(values: np.ndarray, path: str | Path, *, classes: int, void_value: int) -> np.ndarray:
    """Takes the values of a mask, int32 [H, W], for class ids; the rest as in `read_index_mask`."""
    table = np.full(256, NO_CLASS, np.int32)
    table[:classes] = np.arange(classes)
    table[void_value] = VOID
    rule = (
        f"a mask holds 0..{classes - 1} (the {classes} classes) or {void_value} "
        "(data.void_value); mend the mask, set data.void_value, or name the class in classes.txt"
    )
    return to_classes(values, table, path, rule)


def read_index_values(path: str | Path) -> np.ndarray:
    """Reads the values of a mask as they are in the file.

    Args:
        path: PNG, grey or palette, at most 8 bits; a palette's indices count, not its colours.

    Returns:
        int32 [H, W], 0..255.

    Raises:
        DataError: Missing, damaged, or another kind of picture.
    """
    return _index_values(path, _mask_kind(path, {0, 3})[0])


def _index_values(path: str | Path, depth: int) -> np.ndarray:
    with _opened(path) as image:
        values = np.array(image).astype(np.int32)
        if image.mode in ("1", "L"):
            # Pillow stretches grey of 1, 2 and 4 bits to 0..255 (booleans: to 0..1).
            values //= 1 if image.mode == "1" else 255 // (2**depth - 1)
    return values


def read_grey_values(path: str | Path, data: bytes) -> np.ndarray:
    """Reads the values of a grey PNG of 8 or 16 bits.

    Args:
        path: What messages call it.
        data: The file's bytes.

    Returns:
        int32 [H, W].

    Raises:
        DataError: Damaged, or another kind of picture.
    """
    with _opened(path, data) as image:
        if image.mode not in ("L", "I;16"):
            raise DataError(f"{path}: expected a grey PNG of 8 or 16 bits")
        return np.array(image).astype(np.int32)


def read_mask(path: str | Path) -> np.ndarray:
    """Reads a mask that is of class ids or of colours, whichever the file says.

    Args:
        path: PNG without alpha, 8 bits a channel or fewer.

    Returns:
        RGB: its colours, uint8 [H, W, 3]. Grey or palette: its values, int32 [H, W], 0..255.

    Raises:
        DataError: Missing, damaged, or another kind of picture.
    """
    depth, colour = _mask_kind(path, {0, 2, 3})
    if colour != 2:
        return _index_values(path, depth)
    with _opened(path) as image:
        return np.array(image.convert("RGB"))


def to_classes(values: np.ndarray, table: np.ndarray, path: str | Path, rule: str) -> np.ndarray:
    """Translates the values of a file to class ids.

    Args:
        values: int [H, W], 0..N-1.
        table: int32 [N]: value -> class id, `VOID`, or `NO_CLASS`.
        path: The file, for the message.
        rule: What values are allowed and the mend, for the message.

    Returns:
        int32 [H, W], class ids or `VOID`.

    Raises:
        DataError: A value that the table has as `NO_CLASS`; of kind `value`.
    """
    mask = table[values]
    if mask.min(initial=VOID) == NO_CLASS:
        strange, counts = np.unique(values[mask == NO_CLASS], return_counts=True)
        worst = int(counts.argmax())
        more = f" and {len(strange) - 1} other values outside" if len(strange) > 1 else ""
        raise DataError(
            f"{path}: value {strange[worst]} on {counts[worst]} pixels{more}: {rule}", kind="value"
        )
    return mask


@contextmanager
def _opened(path: str | Path, data: bytes | None = None) -> Iterator[Image.Image]:
    """Opens a picture whose size is allowed; turns what decoders raise into one line."""
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as image:
            _refuse_huge(path, image.size)
            yield image
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large(path, "far more pixels")) from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not a picture in a format that can be read") from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: str | Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path}: damaged or truncated picture ({reason}); replace it")


def _refuse_huge(path: str | Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(_too_large(path, f"{size[0]}x{size[1]} pixels"))


def _too_large(path: str | Path, found: str) -> str:
    limit = MAX_PIXELS // 1_000_000
    return f"{path}: {found}: at most {limit} million are read; cut or shrink the picture"


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation 1..8 that the header states; 1 where there is none.

    Not `image.getexif()`: for PNG it decodes the pixels first. TIFF is turned by Pillow itself.
    """
    exif = image.info.get("exif")
    if image.format == "TIFF" or not isinstance(exif, bytes):
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        value: Any = tags.get(0x0112, 1)
    except _DAMAGE:
        return 1  # the pixels are sound: viewers show such a picture as it lies
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.getextrema()[1] > 0xFFFF):  # type: ignore[operator]
        raise DataError(f"{path}: 32 bits a pixel: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips at 255
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _mask_kind(path: str | Path, allowed: set[int]) -> tuple[int, int]:
    """Returns bits a channel and colour type (0 grey, 2 RGB, 3 palette), from the PNG header.

    Raises:
        DataError: Missing, not PNG, 16 bits, or a colour type that is not `allowed`.
    """
    try:
        with Path(path).open("rb") as file:
            header = file.read(26)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", kind="missing") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    if len(header) < 26 or not header.startswith(_PNG_SIGNATURE):
        raise DataError(f"{path}: not a PNG file: a mask is a PNG of class ids, grey or palette")
    depth, colour = header[24], header[25]
    if colour not in allowed:
        found = _PNG_COLOURS.get(colour, f"PNG colour type {colour}")
    elif depth > 8:
        found = f"{depth} bits a pixel"
    else:
        return depth, colour
    if 2 in allowed:
        rule = "a coloured mask has 8 bits a channel and no alpha; save it so"
    else:
        rule = "a mask holds one class id a pixel; save it as an 8-bit grey or palette PNG"
        if colour == 2:
            rule += ", or name its colours in colours.txt beside classes.txt (`R G B NAME` a line)"
        elif colour == 6:
            rule += "; or save it as RGB and name its colours in colours.txt (`R G B NAME` a line)"
    raise DataError(f"{path}: {found}: {rule}")
