from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin, TiffTags

from ccfnet_tf.datasets.mask_values_to_classes import index_values, read_index_mask
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.read_images import MAX_PIXELS, extra_band, image_size, read_image
from ccfnet_tf.labels import VOID
from tests.memory import grows_at_most


def photo(height: int = 24, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 6, y * 10, (x + y) * 3], -1).astype(np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_rgb_unchanged(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image, photo())
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image_size(tmp_path / "a.png") == (24, 40)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(photo()[..., 0]).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image, np.repeat(photo()[..., :1], 3, -1))


def test_palette_images_become_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8))
    picture.putpalette([9, 8, 7, 200, 100, 50])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[9, 8, 7], [200, 100, 50]]])


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 1000, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, :, 0], [0, 1, 4, 128, 255])


def test_sixteen_bit_colours_are_scaled(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">6H", 0, 32768, 65535, 1000, 2000, 3000)
    (tmp_path / "a.png").write_bytes(raw_png(2, 1, 16, 2, row))
    image = read_image(tmp_path / "a.png").astype(int)
    assert np.abs(image - [[[0, 128, 255], [4, 8, 12]]]).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_regions_are_white(tmp_path: Path, mode: str) -> None:
    bands = [np.full((1, 3), 100, np.uint8)] * (len(mode) - 1)
    alpha = np.array([[0, 128, 255]], np.uint8)
    Image.merge(mode, [Image.fromarray(b) for b in (*bands, alpha)]).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[0, :, 0], [255, 177, 100], atol=1)


NEAR_INFRARED = np.dstack([np.full((6, 5), v, np.uint8) for v in (60, 80, 40, 25)])


def four_bands(path: Path, extra: int, compression: str | None = None) -> Path:
    """Writes a TIFF with a fourth band: unspecified (0), premultiplied alpha (1) or alpha (2)."""
    buffer = io.BytesIO()
    Image.fromarray(NEAR_INFRARED).save(buffer, "TIFF", compression=compression)
    content = bytearray(buffer.getvalue())
    at = content.index(struct.pack("<HHI", 338, 3, 1)) + 8
    content[at : at + 2] = struct.pack("<H", extra)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_fourth_band_of_a_tiff_does_not_change_the_colours(
    tmp_path: Path, extra: int, compression: str | None
) -> None:
    path = four_bands(tmp_path / "a.tif", extra, compression)
    np.testing.assert_array_equal(read_image(path), NEAR_INFRARED[..., :3])
    assert extra_band(path)


def test_a_second_band_of_a_tiff_does_not_change_the_grey_values(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.merge("LA", [Image.new("L", (3, 2), 60), Image.new("L", (3, 2), 25)]).save(path)
    assert (read_image(path) == 60).all()
    assert extra_band(path)


@pytest.mark.parametrize("suffix", ["png", "webp", "tga"])
def test_alpha_means_transparency_only_in_some_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    keys = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(NEAR_INFRARED).save(path, **keys)
    flat = suffix != "tga"
    expected = [236, 238, 234] if flat else [60, 80, 40]
    np.testing.assert_allclose(read_image(path)[0, 0], expected, atol=1)
    assert extra_band(path) is not flat


def test_extra_band_of_images_without_one(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.tif")
    assert not extra_band(tmp_path / "a.tif")
    assert not extra_band(tmp_path / "missing.tif")


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_rotated_image_is_blended_with_white_too(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(NEAR_INFRARED).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[0, 0], [236, 238, 234], atol=1)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.jpg")
    red, green, blue = read_image(tmp_path / "a.jpg")[4, 4]
    assert red < 30
    assert green > 200
    assert blue > 200


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # Bright in the top left corner.
    back = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: np.rot90(a, -1),
    }.get(orientation, lambda a: a)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(back(upright))).save(path, exif=exif, quality=95)
    image = read_image(path)
    assert image.shape == (16, 32, 3)
    assert image_size(path) == (16, 32)
    assert np.abs(image.astype(int) - upright).mean() < 8


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").shape == (24, 40, 3)


def fails(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_image(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    for word in words:
        assert word in text


def test_missing(tmp_path: Path) -> None:
    fails(tmp_path / "no.jpg", "no such file")


def test_folder_instead_of_file(tmp_path: Path) -> None:
    fails(tmp_path, "cannot be opened")


def test_text_file_renamed_to_png(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    fails(tmp_path / "a.png", "not an image")
    (tmp_path / "b.png").write_bytes(b"")
    fails(tmp_path / "b.png", "not an image")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    original = io.BytesIO()
    Image.fromarray(noise).save(original, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(original.getvalue()[: int(share * len(original.getvalue()))])
    fails(path)


def test_thirty_two_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    fails(tmp_path / "a.tif", "32 bits")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "b.tif")
    fails(tmp_path / "b.tif", "32 bits")


@pytest.mark.parametrize("side", [9_100, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(raw_png(side, side, 8, 2, bytes(1000)))
    for strict in (False, True):
        with warnings.catch_warnings(), grows_at_most(50 << 20):
            warnings.simplefilter("error" if strict else "ignore", Image.DecompressionBombWarning)
            fails(path, "pixels", "80 million")
            with pytest.raises(DataError, match="80 million"):
                image_size(path)
            with pytest.raises(DataError, match="80 million"):
                read_index_mask(write_grey_bomb(path.with_name("m.png"), side), RULE)
    assert side**2 > MAX_PIXELS


RULE = index_values("abcde", None, void=[255])


def write_grey_bomb(path: Path, side: int) -> Path:
    path.write_bytes(raw_png(side, side, 8, 0, bytes(1000)))
    return path


def whole_files() -> list[bytes]:
    files = []
    for kind in ("jpeg", "png", "bmp", "tiff", "webp", "gif"):
        buffer = io.BytesIO()
        Image.fromarray(photo(12, 16)).save(buffer, kind)
        files.append(buffer.getvalue())
    return files


FILES = whole_files()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_damaged_file_is_an_image_or_a_data_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Decoders warn about unusual metadata.
        for read in (read_image, image_size, lambda p: read_index_mask(p, RULE)):
            try:
                read(path)
            except DataError as error:
                assert str(path) in str(error)  # noqa: PT017


# ---- masks


def test_mask_of_grey_and_of_palette_indices(tmp_path: Path) -> None:
    values = np.array([[0, 1, 4], [255, 2, 3]], np.uint8)
    grey = Image.fromarray(values)
    grey.save(tmp_path / "grey.png")
    coloured = Image.fromarray(values)
    coloured.putpalette(np.random.default_rng(0).integers(0, 255, 768, np.uint8).tobytes())
    coloured.save(tmp_path / "palette.png")
    for name in ("grey", "palette"):
        mask = read_index_mask(tmp_path / f"{name}.png", RULE)
        np.testing.assert_array_equal(mask, [[0, 1, 4], [VOID, 2, 3]])
        assert mask.dtype == np.int32


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("colour", [0, 3])
def test_mask_of_few_bits_keeps_its_ids(tmp_path: Path, depth: int, colour: int) -> None:
    ids = np.arange(8) % min(2**depth, 5)
    bits = "".join(f"{i:0{depth}b}" for i in ids)
    row = b"\0" + int(bits, 2).to_bytes(depth, "big")
    content = raw_png(8, 1, depth, colour, row)
    if colour == 3:
        palette = chunk(b"PLTE", bytes(range(3 * 2**depth)))
        content = content[:33] + palette + content[33:]
    (tmp_path / "a.png").write_bytes(content)
    np.testing.assert_array_equal(read_index_mask(tmp_path / "a.png", RULE), [ids])


def test_void_has_priority_over_a_class(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(tmp_path / "a.png")
    mask = read_index_mask(tmp_path / "a.png", index_values("abcde", None, void=[0]))
    np.testing.assert_array_equal(mask, [[VOID, 1]])


def mask_fails(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_index_mask(path, RULE)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_invalid_mask_value(tmp_path: Path) -> None:
    values = np.zeros((4, 4), np.uint8)
    values[0] = 9
    values[1, 0] = 5
    Image.fromarray(values).save(tmp_path / "a.png")
    mask_fails(
        tmp_path / "a.png", "value 9 on 4 pixels", "1 other", "0..4", "255", "data.void_value"
    )


IDS = np.array([[0, 1, 4, 255], [2, 3, 3, 0]], np.uint8)


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA", "I;16"])
def test_grey_in_another_mode_is_a_mask(tmp_path: Path, mode: str) -> None:
    opaque = [np.full_like(IDS, 255)] if mode.endswith("A") else []
    bands = [*[IDS] * len(mode.removesuffix("A")), *opaque]
    picture = Image.fromarray(IDS.astype(np.uint16))
    if mode != "I;16":
        picture = Image.merge(mode, [Image.fromarray(band) for band in bands])
    picture.save(tmp_path / "a.png")
    mask = read_index_mask(tmp_path / "a.png", RULE)
    np.testing.assert_array_equal(mask, [[0, 1, 4, VOID], [2, 3, 3, 0]])


@pytest.mark.parametrize(
    ("mode", "colour", "result"),
    [
        ("RGB", (1, 1, 2), "RGB colours: a mask has one class id per pixel"),
        ("RGBA", (1, 2, 1, 255), "RGB colours with alpha: a mask has one class id per pixel"),
        ("RGBA", (1, 1, 1, 254), "RGB colours with alpha, and some pixels are transparent"),
        ("LA", (1, 0), "grey with alpha, and some pixels are transparent"),
    ],
)
def test_mask_of_another_kind(
    tmp_path: Path, mode: str, colour: tuple[int, ...], result: str
) -> None:
    Image.new(mode, (4, 4), colour).save(tmp_path / "a.png")
    mask_fails(tmp_path / "a.png", result)


def test_a_mask_of_16_bit_colours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(raw_png(1, 1, 16, 2, b"\0" + bytes(6)))
    mask_fails(tmp_path / "a.png", "RGB colours of 16 bits")


def test_mask_that_is_not_png(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png", "jpeg")
    mask_fails(tmp_path / "a.png", "not a PNG")
    mask_fails(tmp_path / "no.png", "no such file")
    mask_fails(tmp_path, "cannot be opened")


def test_truncated_mask(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 5, (60, 60), np.uint8)
    Image.fromarray(values).save(buffer, "png")
    (tmp_path / "a.png").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    mask_fails(tmp_path / "a.png", "damaged or truncated")


def tiff(path: Path, pixels: np.ndarray, *, planar: bool = False, **tags: list[int]) -> None:
    """Writes an uncompressed TIFF: [H, W, C] interleaved, or `planar` band by band."""
    height, width, bands = pixels.shape
    planes = np.moveaxis(pixels, -1, 0) if planar else pixels[None]
    strips = [plane.tobytes() for plane in planes]
    bits = pixels.dtype.itemsize * 8
    numbers = {"photometric": 262, "extra": 338, "sample_format": 339}
    entries = {
        256: [width],
        257: [height],
        258: [bits] * bands,
        259: [1],
        262: [2 if bands > 2 else 1],
        273: [0] * len(strips),
        277: [bands],
        278: [height],
        279: [len(strip) for strip in strips],
        284: [2 if planar else 1],
    }
    entries |= {numbers[name]: values for name, values in tags.items()}
    directory = 8 + 2 + 12 * len(entries) + 4
    extra = sum(4 * len(values) for values in entries.values() if len(values) > 1)
    starts = np.cumsum([directory + extra, *entries[279]])[:-1].tolist()
    entries[273] = starts
    head, more = struct.pack("<2sHIH", b"II", 42, 8, len(entries)), b""
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        target = packed if len(values) == 1 else struct.pack("<I", directory + len(more))
        more += packed if len(values) > 1 else b""
        head += struct.pack("<HHI", tag, 4, len(values)) + target
    path.write_bytes(head + bytes(4) + more + b"".join(strips))


def bands(count: int, kind: type[np.generic] = np.uint8) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 256, (7, 9, count))
    scale = 257 if kind is np.uint16 else 1
    return (values * scale).astype(kind)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("count", "tags"),
    [
        (3, {}),
        (4, {"extra": [0]}),
        (4, {"extra": [1]}),
        (4, {"extra": [2]}),
        (4, {}),
        (5, {"extra": [0, 0]}),
        (8, {"extra": [0] * 5}),
        (1, {}),
        (1, {"photometric": [0]}),
        (2, {"extra": [2]}),
        (2, {"extra": [0]}),
    ],
)
def test_bands_of_tiffs_are_read_correctly_or_refused(
    tmp_path: Path, planar: bool, kind: type[np.generic], count: int, tags: dict[str, list[int]]
) -> None:
    pixels, path = bands(count, kind), tmp_path / "a.tif"
    stored = pixels if tags.get("photometric") != [0] else np.iinfo(kind).max - pixels
    tiff(path, stored, planar=planar, **tags)
    expected = bands(count)[..., [0, 1, 2] if count > 2 else [0, 0, 0]]
    try:
        np.testing.assert_array_equal(read_image(path), expected)
    except DataError as error:
        refused = str(error)
    else:
        return
    assert planar or count == 8 or kind is np.uint16  # Interleaved pixels are read.
    named = f"{count} bands" if count > 1 else "1 band"
    bits = np.dtype(kind).itemsize * 8
    assert refused.startswith(f"{path}: a TIFF of {named} of {bits} bits")
    assert ("band by band" in refused) == planar
    assert "gdal_translate" in refused
    assert "\n" not in refused


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (np.float32, "3 bands of 32 floating-point bits"),
        (np.float64, "3 bands of 64 floating-point bits"),
        (np.uint32, "3 bands of 32 bits"),
    ],
)
def test_tiffs_of_many_bits_are_refused(tmp_path: Path, kind: type[np.generic], words: str) -> None:
    formats = {"sample_format": [3] * 3} if np.dtype(kind).kind == "f" else {}
    tiff(tmp_path / "a.tif", bands(3, kind), **formats)
    with pytest.raises(DataError, match=words):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_kinds_and_compressions_of_tiffs(tmp_path: Path, mode: str, compression: str) -> None:
    image = Image.fromarray(bands(3)).convert(mode)
    image.save(tmp_path / "a.tif", compression=compression)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)


def test_a_jpeg_in_a_tiff(tmp_path: Path) -> None:
    smooth = np.repeat(np.arange(0, 240, 5, np.uint8)[:, None, None], 40, axis=1).repeat(3, axis=2)
    Image.fromarray(smooth).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    difference = read_image(tmp_path / "a.tif").astype(int) - smooth
    assert np.abs(difference).max() < 8


@pytest.mark.parametrize("bands", [b"xx", 7.5])
def test_a_tiff_with_an_invalid_number_of_bands(bands: bytes | float, tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[256], tags[257], tags[258], tags[262] = 4, 3, 8, 1
    tags[273], tags[279] = 8, 12
    tags.tagtype[277] = TiffTags.ASCII if isinstance(bands, bytes) else TiffTags.FLOAT
    tags[277] = bands.decode() if isinstance(bands, bytes) else bands
    content = io.BytesIO()
    tags.save(content)
    (tmp_path / "a.tif").write_bytes(content.getvalue())
    with pytest.raises(DataError, match="not an image in a format that can be read"):
        read_image(tmp_path / "a.tif")
