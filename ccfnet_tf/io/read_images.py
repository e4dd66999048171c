"""Reads image files into arrays: photographs of all kinds, and masks of class ids.

The header is always checked before the pixels are decoded, so that a small file that declares a
huge image is refused before memory is allocated.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from ccfnet_tf.errors import ColoursError, DataError
from ccfnet_tf.labels import VOID

MAX_PIXELS = 80_000_000
"""Larger images are refused. The limit is just below the size at which Pillow warns."""

# Pillow logs problems of a TIFF file in addition to raising them.
logging.getLogger("PIL.TiffImagePlugin").addHandler(logging.NullHandler())

# Exceptions of Pillow's decoders on damaged files. TypeError and AttributeError are excluded, since
# they would hide bugs in this module: with bytes flipped in thousands of files, they occurred only
# for the second page of a file.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)

_TURNS = {  # EXIF orientation -> transposition that brings the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

VALUES = 1 << 16
"""Number of possible mask values: those of a 16-bit greyscale PNG."""

_TRANSPARENT = ("PNG", "WEBP", "GIF", "AVIF")
"""Formats in which the alpha channel means transparency."""

NO_CLASS = -2
"""Marks invalid values in a table that maps mask values to class ids."""

# TIFF tags and tag values.
_BITS, _PHOTOMETRIC, _SAMPLES_PER_PIXEL, _PLANAR = 258, 262, 277, 284
_EXTRA, _SAMPLE_FORMAT = 338, 339
_BAND_BY_BAND, _PREMULTIPLIED = 2, 1

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6  # PNG colour types
_WITH_ALPHA = (_GREY_ALPHA, _RGBA)
_PNG_COLOURS = {
    _RGB: "RGB colours",
    _GREY_ALPHA: "grey with alpha",
    _RGBA: "RGB colours with alpha",
}


def read_image(path: str | Path, data: bytes | None = None) -> np.ndarray:
    """Reads an image as RGB.

    Greyscale, CMYK and palette images are converted to RGB, 16-bit channels are scaled to 8 bits,
    and the EXIF orientation is applied. Transparent regions of PNG, WebP, GIF and AVIF images are
    blended with white, as in most viewers. In other formats a channel tagged as alpha often holds
    something else, such as near infrared in TIFF; it is ignored, and the colour channels are read
    unchanged. `extra_band` detects such images.

    Args:
        path: File in any format that Pillow reads; the first frame or page is read.
        data: Content of the file; `path` is then only used in error messages.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        DataError: The file is missing, not an image, damaged or truncated, or has more than
            `MAX_PIXELS` pixels.
    """
    with _open(path, data) as image:
        return _upright_rgb(image, path)


def from_pillow(image: Image.Image) -> np.ndarray:
    """Converts a Pillow image as `read_image` does: uint8 [H, W, 3] RGB.

    Raises:
        DataError: The image is damaged or empty, or has more than `MAX_PIXELS` pixels.
    """
    name = getattr(image, "filename", "") or "the image"
    _refuse_huge(name, image.size)
    if not all(image.size):
        raise DataError(f"{name}: {image.size[0]}x{image.size[1]} pixels: the image is empty")
    try:
        return _upright_rgb(image, name)
    except _DAMAGE as error:
        raise _damaged(name, error) from error


def _upright_rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    _keep_stored_colours(image)
    image.load()
    turn = _TURNS.get(_orientation(image))
    upright = image if turn is None else image.transpose(turn)
    transparent = image.format is None or image.format in _TRANSPARENT  # None: created in memory
    return np.array(_to_rgb(upright, path, transparent=transparent))


def extra_band(path: str | Path, data: bytes | None = None) -> bool:
    """Returns whether an image has a channel that `read_image` ignores.

    Only the header is read. Returns False for a file that is not an image.
    """
    try:
        with _open(path, data) as image:
            if image.format == "TIFF":
                bands = cast(Any, image).tag_v2.get(_SAMPLES_PER_PIXEL, 1)
                return bands > len(image.getbands()) or image.mode in ("RGBA", "LA")
            return image.mode in ("RGBA", "LA") and image.format not in _TRANSPARENT
    except DataError:
        return False


def is_deep(path: str | Path) -> bool:
    """Returns whether an image has more than 8 bits per channel; False if it is not an image."""
    try:
        with _open(path) as image:
            tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
            return image.mode.startswith("I") or any("16" in str(tile.args) for tile in tiles)
    except DataError:
        return False


def image_size(path: str | Path) -> tuple[int, int]:
    """Returns the size (H, W) of the array that `read_image` returns, from the header only.

    Raises:
        DataError: The file is missing or not an image, or has more than `MAX_PIXELS` pixels.
    """
    with _open(path) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def count_frames(path: str | Path) -> int:
    """Returns the number of frames or pages of an image; `read_image` reads the first one.

    Smaller copies of the first page, as in image pyramids, and additional images that phones embed
    in a JPEG are not counted.

    Raises:
        DataError: The file is missing, not an image, or damaged.
    """
    with _open(path) as image:
        try:
            return _count_frames(image)
        except TypeError as error:  # Raised for a TIFF page without a size.
            raise _damaged(path, error) from error


def _count_frames(image: Image.Image) -> int:
    frames = int(getattr(image, "n_frames", 1))
    if frames < 2 or image.format in ("MPO", "JPEG"):
        return 1
    first = image.size
    image.seek(1)
    return frames if image.size == first else 1


def read_index_values(path: str | Path) -> np.ndarray:
    """Reads the stored values of an index mask.

    Args:
        path: PNG file, greyscale (at most 16 bits) or palette. For a palette image the indices are
            read. Grey values stored as opaque RGB or with an opaque alpha channel are accepted.

    Returns:
        int32 [H, W], 0..65535.

    Raises:
        ColoursError: The mask has colours.
        DataError: The file is missing, damaged, or another kind of image.
    """
    return _values(path, *_mask_kind(path))


def _values(path: str | Path, depth: int, colour: int) -> np.ndarray:
    if colour in (_GREY, _PALETTE):
        return _index_values(path, depth)
    colours = _opaque(path, colour)
    if not np.array_equal(colours, np.repeat(colours[..., :1], 3, axis=-1)):
        raise ColoursError(
            f"{path}: {_PNG_COLOURS[colour]}: a mask has one class id per pixel; save it as a grey "
            "or palette PNG, or list its colours in colours.txt next to classes.txt (one "
            "`R G B NAME` per line)",
            count_colours(colours),
        )
    return colours[..., 0].astype(np.int32)


def _index_values(path: str | Path, depth: int) -> np.ndarray:
    with _open(path) as image:
        return _values_of(image, depth)


def _values_of(image: Image.Image, depth: int) -> np.ndarray:
    values = np.array(image).astype(np.int32)
    if image.mode in ("1", "L"):
        # Pillow scales grey values of 1, 2 and 4 bits to 0..255 (mode 1: to 0..1).
        values //= 1 if image.mode == "1" else 255 // (2**depth - 1)
    return values


def _opaque(path: str | Path, colour: int) -> np.ndarray:
    """Returns the colours, uint8 [H, W, 3], of a PNG with colour or alpha channels."""
    with _open(path) as image:
        pixels = np.array(image.convert("RGBA" if colour in _WITH_ALPHA else "RGB"))
    if colour in _WITH_ALPHA and pixels[..., 3].min(initial=255) < 255:
        raise DataError(
            f"{path}: {_PNG_COLOURS[colour]}, and some pixels are transparent: a mask has no "
            "transparent pixels; save it without alpha"
        )
    return pixels[..., :3]


def read_grey_values(path: str | Path, data: bytes) -> np.ndarray:
    """Reads the values of a greyscale PNG of 8 or 16 bits.

    Args:
        path: Name used in error messages.
        data: Content of the file.

    Returns:
        int32 [H, W].

    Raises:
        DataError: The image is damaged or of another kind.
    """
    with _open(path, data) as image:
        if image.mode not in ("L", "I;16"):
            raise DataError(f"{path}: expected a grey PNG of 8 or 16 bits")
        return np.array(image).astype(np.int32)


def read_mask(path: str | Path) -> np.ndarray:
    """Reads a mask of class ids or of colours.

    Args:
        path: PNG file; an alpha channel must be opaque.

    Returns:
        For an RGB image its colours, uint8 [H, W, 3]; otherwise its values, int32 [H, W],
        0..65535.

    Raises:
        DataError: The file is missing, damaged, or another kind of image.
    """
    depth, colour = _mask_kind(path)
    return _opaque(path, colour) if colour in (_RGB, _RGBA) else _values(path, depth, colour)


def read_coloured_mask(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a mask as `read_mask` does, together with its palette.

    Returns:
        The mask, and the colours of its palette, uint8 [256, 3], or `None` if it has no palette.

    Raises:
        DataError: See `read_mask`.
    """
    depth, colour = _mask_kind(path)
    if colour in (_RGB, _RGBA):
        return _opaque(path, colour), None
    if colour != _PALETTE:
        return _values(path, depth, colour), None
    with _open(path) as image:
        values = _values_of(image, depth)
        stored = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(stored)] = stored
    return values, palette


def count_colours(colours: np.ndarray) -> dict[tuple[int, int, int], int]:
    """Counts the pixels of each colour of uint8 [..., 3]; returns the 256 most frequent ones."""
    packed = colours.reshape(-1, 3).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    values, counts = np.unique(packed, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:256]
    return {
        (value >> 16, value >> 8 & 255, value & 255): count
        for value, count in zip(values[order].tolist(), counts[order].tolist(), strict=True)
    }


def to_classes(values: np.ndarray, table: np.ndarray, path: str | Path, rule: str) -> np.ndarray:
    """Maps the values of a mask to class ids.

    Args:
        values: int [H, W], 0..65535.
        table: int32 [N], maps a value to a class id, `VOID` or `NO_CLASS`; values of N and above
            are invalid too.
        path: Path of the mask, used in error messages.
        rule: Allowed values and the fix, used in error messages.

    Returns:
        int32 [H, W], class ids or `VOID`.

    Raises:
        DataError: The mask has a value that maps to `NO_CLASS`; its `kind` is `value`.
    """
    if values.max(initial=0) >= len(table):
        table = np.pad(table, (0, VALUES - len(table)), constant_values=NO_CLASS)
    mask = table[values]
    if mask.min(initial=VOID) == NO_CLASS:
        invalid, counts = np.unique(values[mask == NO_CLASS], return_counts=True)
        worst = int(counts.argmax())
        more = f" and {len(invalid) - 1} other invalid values" if len(invalid) > 1 else ""
        raise DataError(
            f"{path}: value {invalid[worst]} on {counts[worst]} pixels{more}: {rule}",
            kind="value",
        )
    return mask


@contextmanager
def _open(path: str | Path, data: bytes | None = None) -> Iterator[Image.Image]:
    """Opens an image, checks its size, and converts exceptions of the decoders to DataError."""
    try:
        with Image.open(path if data is None else io.BytesIO(data)) as image:
            _refuse_huge(path, image.size)
            _refuse_planar(path, image)
            yield image
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large(path, "far more pixels")) from error
    except UnidentifiedImageError as error:
        raise _unidentified(path, data) from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _refuse_planar(path: str | Path, image: Image.Image) -> None:
    """Refuses TIFF files with band-sequential storage that Pillow decodes wrongly.

    Pillow decodes three or four 8-bit bands correctly, and others as if they were interleaved.
    """
    if image.format != "TIFF":
        return
    tags = cast(Any, image).tag_v2
    if tags.get(_PLANAR) == _BAND_BY_BAND:
        bits, extra = set(tags.get(_BITS, (1,))), tags.get(_EXTRA, (0,))
        plain = image.mode in ("RGB", "RGBA", "CMYK") and _PREMULTIPLIED not in extra
        grey = image.mode == "L" and tags.get(_PHOTOMETRIC) == 1
        if bits != {8} or not (plain or grey):
            raise DataError(f"{path}: {_describe_tiff(tags)}")


def _unidentified(path: str | Path, data: bytes | None) -> DataError:
    """Returns the error for a file that Pillow cannot identify, with details for a TIFF."""
    try:
        with Path(path).open("rb") if data is None else io.BytesIO(data) as file:
            header = file.read(8)
            if header[:4] in (b"II*\0", b"MM\0*"):
                tags = TiffImagePlugin.ImageFileDirectory_v2(header)
                file.seek(tags.next)
                tags.load(file)
                return DataError(f"{path}: {_describe_tiff(tags)}")
    except (*_DAMAGE, TypeError):
        pass  # The header is unreadable, or its tags have unexpected types.
    return DataError(f"{path}: not an image in a format that can be read")


def _describe_tiff(tags: Any) -> str:
    """Describes an unsupported TIFF file and how to convert it."""
    bands, bits = tags.get(_SAMPLES_PER_PIXEL, 1), tags.get(_BITS, (1,))
    if not isinstance(bands, int):
        raise TypeError(f"{bands!r} bands")
    kind = {2: " signed", 3: " floating-point"}.get(next(iter(tags.get(_SAMPLE_FORMAT, (1,)))), "")
    stored = ", band by band" if tags.get(_PLANAR) == _BAND_BY_BAND else ""
    named = "1 band" if bands == 1 else f"{bands} bands"
    fix = "only red, green and blue, 8 or 16 bits each" if bands > 2 else "8 or 16 bits of grey"
    chosen = "-b 1 -b 2 -b 3" if bands > 2 else "-b 1"
    return (
        f"a TIFF of {named} of {max(bits, default=1)}{kind} bits{stored}, which is not supported: "
        f"save {fix}, pixel by pixel, for example with gdal_translate {chosen} -ot Byte -scale -co "
        "INTERLEAVE=PIXEL"
    )


def _damaged(path: str | Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path}: damaged or truncated image ({reason}); replace it")


def _refuse_huge(path: str | Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(_too_large(path, f"{size[0]}x{size[1]} pixels"))


def _too_large(path: str | Path, problem: str) -> str:
    limit = MAX_PIXELS // 1_000_000
    return f"{path}: {problem}: at most {limit} million are supported; crop or downsample the image"


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation 1..8 from the header, or 1 if there is none.

    `image.getexif()` is not used, since it decodes the pixels of a PNG first. Pillow applies the
    orientation of a TIFF itself.
    """
    exif = image.info.get("exif")
    if image.format == "TIFF" or not isinstance(exif, bytes):
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        value: Any = tags.get(0x0112, 1)
    except _DAMAGE:
        return 1  # The pixels are intact; viewers also ignore unreadable EXIF data.
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _keep_stored_colours(image: Image.Image) -> None:
    """Prevents Pillow from dividing the colours of a TIFF by a premultiplied alpha channel."""
    if isinstance(image, ImageFile.ImageFile) and image.format == "TIFF":
        image.tile = [_without_division(tile) for tile in image.tile]


def _without_division(tile: Any) -> Any:
    mode, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    return tile._replace(args=(mode.replace("RGBa", "RGBA"), *rest))


def _to_rgb(image: Image.Image, path: str | Path, *, transparent: bool) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.getextrema()[1] > 0xFFFF):  # type: ignore[operator]
        raise DataError(f"{path}: 32 bits per pixel: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's conversion clips at 255.
        values = np.asarray(image).astype(np.uint32)
        if _white_is_zero(image):  # Pillow inverts only images of up to 8 bits.
            values = 0xFFFF - values
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data and transparent:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _white_is_zero(image: Image.Image) -> bool:
    return image.format == "TIFF" and cast(Any, image).tag_v2.get(_PHOTOMETRIC) == 0


def _mask_kind(path: str | Path) -> tuple[int, int]:
    """Returns bits per channel and colour type from the PNG header.

    Raises:
        DataError: The file is missing, not PNG, or has 16-bit colours.
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
    if depth > 8 and colour != _GREY:
        raise DataError(
            f"{path}: {_PNG_COLOURS.get(colour, 'colours')} of {depth} bits: save a coloured "
            "mask with 8 bits per channel, a mask of class ids as grey or palette"
        )
    if colour not in (_GREY, _PALETTE, *_PNG_COLOURS):
        raise DataError(f"{path}: damaged image (PNG colour type {colour}); replace it")
    return depth, colour
