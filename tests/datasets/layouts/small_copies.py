"""Small synthetic copies of published data sets: their layouts with a few tiny images.

Every function writes below `root`, which may not exist yet, and returns it. Masks use every class
value of the set at least once over its images.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (12, 16)
SIFT_SUB = "spatial_envelope_256x256_static_8outdoorcategories"


def photo(path: Path, seed: int = 0) -> None:
    """Writes an image in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def values(allowed: list[int], seed: int = 0) -> np.ndarray:
    """Returns uint8 [H, W] that contains each allowed value."""
    label = np.resize(np.array(allowed, np.uint8), SIZE[0] * SIZE[1])
    return np.random.default_rng(seed).permutation(label).reshape(SIZE)


def mask(path: Path, label: np.ndarray, palette: bytes | None = None) -> None:
    """Writes a PNG of class values: grey, or with a palette if one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label)
    if palette:
        image.putpalette(palette)
    image.save(path)


def mat(label: np.ndarray, *, name: str = "S", order: str = "<", compressed: bool = False) -> bytes:
    """Returns a MATLAB 5 file of two variables: a 1x1 `before`, and `name`."""
    head = b"MATLAB 5.0 MAT-file".ljust(124) + (b"\0\1IM" if order == "<" else b"\1\0MI")
    variables = [_variable("before", np.ones((1, 1)), order), _variable(name, label, order)]
    if compressed:
        packed = [zlib.compress(variable) for variable in variables]
        variables = [struct.pack(f"{order}II", 15, len(body)) + body for body in packed]
    return head + b"".join(variables)


def _variable(name: str, label: np.ndarray, order: str) -> bytes:
    kinds = {"f8": (6, 9), "i1": (8, 1), "u1": (9, 2), "i2": (10, 3), "u2": (11, 4), "i4": (12, 5)}
    class_id, stored = kinds[label.dtype.str[1:]]
    body = b"".join(
        (
            _element(6, struct.pack(f"{order}II", class_id, 0), order),
            _element(5, struct.pack(f"{order}ii", *label.shape), order),
            _element(1, name.encode(), order),
            _element(stored, label.T.astype(label.dtype.newbyteorder(order)).tobytes(), order),
        )
    )
    return struct.pack(f"{order}II", 14, len(body)) + body


def _element(kind: int, body: bytes, order: str) -> bytes:
    if len(body) <= 4:
        return struct.pack(f"{order}I", len(body) << 16 | kind) + body.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(body)) + body + bytes(-len(body) % 8)


def sift_flow(root: Path) -> Path:
    """Eight images, two of them for testing, one of them without any label."""
    names = [f"coast_{i}" for i in range(7)] + ["street_urb506"]
    for seed, name in enumerate(names):
        photo(root / "Images" / SIFT_SUB / f"{name}.jpg", seed)
        label = values(list(range(34)), seed).astype(np.uint16) * (name != "street_urb506")
        path = root / "SemanticLabels" / SIFT_SUB / f"{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mat(label, compressed=seed % 2 == 0))
    lines = "".join(f"{SIFT_SUB}\\{name}.jpg\r\n" for name in ("coast_1", "coast_4"))
    (root / "TestSet1.txt").write_bytes(lines.encode())
    return root


def camvid(root: Path, *, lists: bool = True) -> Path:
    """Four frames for training, two each for validation and testing."""
    for part, count in (("train", 4), ("val", 2), ("test", 2)):
        rows = []
        for index in range(count):
            name = f"0001TP_{index:06d}.png"
            photo(root / part / name, index)
            mask(root / f"{part}annot" / name, values(list(range(12)), index))
            rows.append(f"/SegNet/CamVid/{part}/{name} /SegNet/CamVid/{part}annot/{name}\n")
        if lists:
            (root / f"{part}.txt").write_text("".join(rows))
    return root


def voc_palette() -> np.ndarray:
    """Returns VOC's palette, uint8 [256, 3]: index bits alternate between red, green and blue."""
    bits = np.arange(256)[:, None] >> np.arange(8) & 1  # lowest first
    channels = [(bits[:, c::3] << 7 - np.arange(len(range(c, 8, 3)))).sum(1) for c in range(3)]
    return np.stack(channels, -1).astype(np.uint8)


def voc(root: Path, *, coloured: bool = False) -> Path:
    """Four images for training, two for validation, one in no list; root is VOC2012."""
    names = [f"2007_{i:06d}" for i in range(7)]
    for seed, name in enumerate(names):
        photo(root / "JPEGImages" / f"{name}.jpg", seed)
        label = values([*range(21), 255], seed)
        path = root / "SegmentationClass" / f"{name}.png"
        if coloured:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(voc_palette()[label]).save(path)
        else:
            mask(path, label, voc_palette().tobytes())
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, listed in (("train", names[:4]), ("val", names[4:6]), ("trainval", names[:6])):
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in listed))
    return root


def cityscapes(root: Path, *, train_ids: bool = False) -> Path:
    """Four images of two cities for training, two for validation, one for testing."""
    cities = (
        ("train", "aachen", 2),
        ("train", "bonn", 2),
        ("val", "lindau", 2),
        ("test", "bern", 1),
    )
    for part, city, count in cities:
        for index in range(count):
            name = f"{city}_{index:06d}_000019"
            photo(root / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png", index)
            labels = root / "gtFine" / part / city
            ids = values([*range(34), 255] if part != "test" else [3], index)
            if train_ids:
                coded = values([*range(19), 255], index)
                mask(labels / f"{name}_gtFine_labelTrainIds.png", coded)
            else:
                mask(labels / f"{name}_gtFine_labelIds.png", ids)
            mask(labels / f"{name}_gtFine_instanceIds.png", ids)
    return root


def ade20k(root: Path) -> Path:
    """Four images for training, two for validation; root is ADEChallengeData2016."""
    for part, stem, count in (("training", "train", 4), ("validation", "val", 2)):
        for index in range(1, count + 1):
            name = f"ADE_{stem}_{index:08d}"
            photo(root / "images" / part / f"{name}.jpg", index)
            mask(root / "annotations" / part / f"{name}.png", values(list(range(151)), index))
    return root
