"""Writes the same synthetic scenes in the layouts of published data sets, to time their readers.

Stanford Background and SIFT Flow are not imitated: pass the real folders to the benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ccfnet_tf.datasets.scenes.scene import TAXONOMY, draw
from ccfnet_tf.labels import VOID

SIZE = (256, 256)
Scenes = list[tuple[np.ndarray, np.ndarray]]


def scenes(count: int) -> Scenes:
    """Returns images uint8 [256, 256, 3] and labels int32 [256, 256]."""
    return [draw(seed, SIZE) for seed in range(count)]


def folder(root: Path, samples: Scenes) -> None:
    """Writes the folder layout with index masks."""
    for i, (image, label) in enumerate(samples):
        _jpeg(root / "images" / f"{i:05d}.jpg", image)
        _png(root / "masks" / f"{i:05d}.png", np.where(label == VOID, 255, label))
    _lines(root / "classes.txt", TAXONOMY.names)


def coloured(root: Path, samples: Scenes) -> None:
    """Writes the folder layout with RGB masks."""
    palette = np.array([*TAXONOMY.palette, (0, 0, 0)], np.uint8)  # index -1 (void) is the last row
    for i, (image, label) in enumerate(samples):
        _jpeg(root / "images" / f"{i:05d}.jpg", image)
        _png(root / "masks" / f"{i:05d}.png", palette[label][..., ::-1])
    rows = [f"{r} {g} {b} {name}" for (r, g, b), name in zip(*_colours(), strict=True)]
    _lines(root / "colours.txt", rows)


def camvid(root: Path, samples: Scenes) -> None:
    """Writes CamVid in the layout of SegNet."""
    for split in ("train", "val", "test"):
        for i, (image, label) in enumerate(samples):
            _png(root / split / f"{i:05d}.png", image[..., ::-1])
            _png(root / f"{split}annot" / f"{i:05d}.png", np.where(label == VOID, 11, label))


def voc(root: Path, samples: Scenes) -> None:
    """Writes PASCAL VOC with index masks."""
    names = [f"{i:05d}" for i in range(len(samples))]
    for name, (image, label) in zip(names, samples, strict=True):
        _jpeg(root / "JPEGImages" / f"{name}.jpg", image)
        _png(root / "SegmentationClass" / f"{name}.png", np.where(label == VOID, 255, label))
    for split, chosen in (("train", names[1:]), ("val", names[:1])):
        _lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", chosen)


def cityscapes(root: Path, samples: Scenes) -> None:
    """Writes Cityscapes; class ids start at 7."""
    for split in ("train", "val"):
        for i, (image, label) in enumerate(samples):
            stem = f"{split}/town/town_{i:06d}_000019"
            _png(root / "leftImg8bit" / f"{stem}_leftImg8bit.png", image[..., ::-1])
            ids = np.where(label == VOID, 0, label + 7)
            _png(root / "gtFine" / f"{stem}_gtFine_labelIds.png", ids)


def ade20k(root: Path, samples: Scenes) -> None:
    """Writes the scene parsing benchmark of ADE20K; 0 is void."""
    for split in ("training", "validation"):
        for i, (image, label) in enumerate(samples):
            _jpeg(root / "images" / split / f"{i:08d}.jpg", image)
            _png(root / "annotations" / split / f"{i:08d}.png", label + 1)


def labelme(root: Path, samples: Scenes) -> None:
    """Writes labelme: polygons in a JSON file next to each image."""
    for i, (image, label) in enumerate(samples):
        _jpeg(root / f"{i:05d}.jpg", image)
        shapes = [
            {"label": TAXONOMY.names[k], "shape_type": "polygon", "points": points}
            for k, points in _outlines(label)
        ]
        tree = {
            "imagePath": f"{i:05d}.jpg",
            "imageHeight": SIZE[0],
            "imageWidth": SIZE[1],
            "shapes": shapes,
        }
        (root / f"{i:05d}.json").write_text(json.dumps(tree), encoding="utf-8")


def coco(root: Path, samples: Scenes) -> None:
    """Writes COCO: the polygons of all images in one JSON file."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (image, label) in enumerate(samples):
        _jpeg(root / "train2017" / f"{i:012d}.jpg", image)
        images.append({"id": i, "file_name": f"{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]})
        for k, points in _outlines(label):
            row = {"id": len(annotations), "image_id": i, "category_id": k + 1, "iscrowd": 0}
            outline = np.array(points, np.float32)
            area = float(cv2.contourArea(outline))
            annotations.append(row | {"segmentation": [outline.ravel().tolist()], "area": area})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(TAXONOMY.names)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    path = root / "annotations" / "instances_train2017.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(tree), encoding="utf-8")


COPIES: dict[str, Callable[[Path, Scenes], None]] = {
    "folder": folder,
    "folder, coloured": coloured,
    "camvid": camvid,
    "voc": voc,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "labelme": labelme,
    "coco": coco,
}


def _outlines(label: np.ndarray) -> list[tuple[int, list[list[float]]]]:
    outlines = []
    for k in range(len(TAXONOMY.names)):
        mask = (label == k).astype(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        outlines += [(k, c[:, 0].astype(float).tolist()) for c in contours if len(c) > 2]
    return outlines


def _colours() -> tuple[list[tuple[int, int, int]], list[str]]:
    return [*TAXONOMY.palette, (0, 0, 0)], [*TAXONOMY.names, "void"]


def _jpeg(path: Path, image: np.ndarray) -> None:
    _write(path, cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1])


def _png(path: Path, values: np.ndarray) -> None:
    _write(path, cv2.imencode(".png", values.astype(np.uint8))[1])


def _write(path: Path, content: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.tobytes())


def _lines(path: Path, lines: tuple[str, ...] | list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
