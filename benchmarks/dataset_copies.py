"""The same drawn scenes in the layouts of published sets, so that their readers can be timed.

Stanford Background and SIFT Flow are not imitated: give the real folders to the benchmark.
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


def folder(root: Path, pictures: Scenes) -> None:
    """Index masks."""
    for i, (image, label) in enumerate(pictures):
        _jpeg(root / "images" / f"{i:05d}.jpg", image)
        _png(root / "masks" / f"{i:05d}.png", np.where(label == VOID, 255, label))
    _lines(root / "classes.txt", TAXONOMY.names)


def coloured(root: Path, pictures: Scenes) -> None:
    """The folder layout with RGB masks."""
    palette = np.array([*TAXONOMY.palette, (0, 0, 0)], np.uint8)  # -1, void, is the last
    for i, (image, label) in enumerate(pictures):
        _jpeg(root / "images" / f"{i:05d}.jpg", image)
        _png(root / "masks" / f"{i:05d}.png", palette[label][..., ::-1])
    rows = [f"{r} {g} {b} {name}" for (r, g, b), name in zip(*_colours(), strict=True)]
    _lines(root / "colours.txt", rows)


def camvid(root: Path, pictures: Scenes) -> None:
    """SegNet's layout of CamVid."""
    for part in ("train", "val", "test"):
        for i, (image, label) in enumerate(pictures):
            _png(root / part / f"{i:05d}.png", image[..., ::-1])
            _png(root / f"{part}annot" / f"{i:05d}.png", np.where(label == VOID, 11, label))


def voc(root: Path, pictures: Scenes) -> None:
    """PASCAL VOC with index masks."""
    names = [f"{i:05d}" for i in range(len(pictures))]
    for name, (image, label) in zip(names, pictures, strict=True):
        _jpeg(root / "JPEGImages" / f"{name}.jpg", image)
        _png(root / "SegmentationClass" / f"{name}.png", np.where(label == VOID, 255, label))
    for part, chosen in (("train", names[1:]), ("val", names[:1])):
        _lines(root / "ImageSets" / "Segmentation" / f"{part}.txt", chosen)


def cityscapes(root: Path, pictures: Scenes) -> None:
    """Cityscapes; ids 7 and up are classes."""
    for part in ("train", "val"):
        for i, (image, label) in enumerate(pictures):
            stem = f"{part}/town/town_{i:06d}_000019"
            _png(root / "leftImg8bit" / f"{stem}_leftImg8bit.png", image[..., ::-1])
            ids = np.where(label == VOID, 0, label + 7)
            _png(root / "gtFine" / f"{stem}_gtFine_labelIds.png", ids)


def ade20k(root: Path, pictures: Scenes) -> None:
    """ADE20K's scene parsing benchmark; 0 is void."""
    for part in ("training", "validation"):
        for i, (image, label) in enumerate(pictures):
            _jpeg(root / "images" / part / f"{i:08d}.jpg", image)
            _png(root / "annotations" / part / f"{i:08d}.png", label + 1)


def labelme(root: Path, pictures: Scenes) -> None:
    """Polygons in a JSON file beside each image."""
    for i, (image, label) in enumerate(pictures):
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


def coco(root: Path, pictures: Scenes) -> None:
    """Polygons of all images in one JSON file."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (image, label) in enumerate(pictures):
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
    found = []
    for k in range(len(TAXONOMY.names)):
        mask = (label == k).astype(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        found += [(k, c[:, 0].astype(float).tolist()) for c in contours if len(c) > 2]
    return found


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
