"""Which layouts there are, and which of them a folder has."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ccfnet_tf.config import DataConfig, DataFormat
from ccfnet_tf.datasets.base import Listing
from ccfnet_tf.datasets.layouts import (
    ade20k,
    ade20k_full,
    camvid,
    cityscapes,
    coco,
    coco_panoptic,
    cvat_images,
    folder,
    hugging_face,
    kitti,
    label_studio,
    labelme,
    mapillary,
    roboflow_masks,
    shards,
    sift_flow,
    stanford_background,
    voc,
)
from ccfnet_tf.datasets.scenes import scene as scenes
from ccfnet_tf.datasets.suggest_layout import nearest_layout
from ccfnet_tf.errors import DataError


class Reader(NamedTuple):
    """The one module that knows a layout, as two functions."""

    signs: Callable[[Path], str]
    read: Callable[[DataConfig, Path, int], Listing]


READERS: dict[DataFormat, Reader] = {
    "scenes": Reader(scenes.signs, scenes.read),
    "folder": Reader(folder.signs, folder.read),
    "shards": Reader(shards.signs, shards.read),
    "stanford_background": Reader(stanford_background.signs, stanford_background.read),
    "sift_flow": Reader(sift_flow.signs, sift_flow.read),
    "camvid": Reader(camvid.signs, camvid.read),
    "voc": Reader(voc.signs, voc.read),
    "cityscapes": Reader(cityscapes.signs, cityscapes.read),
    "ade20k": Reader(ade20k.signs, ade20k.read),
    "labelme": Reader(labelme.signs, labelme.read),
    "coco": Reader(coco.signs, coco.read),
    "coco_panoptic": Reader(coco_panoptic.signs, coco_panoptic.read),
    "cvat_images": Reader(cvat_images.signs, cvat_images.read),
    "label_studio": Reader(label_studio.signs, label_studio.read),
    "roboflow_masks": Reader(roboflow_masks.signs, roboflow_masks.read),
    "hugging_face": Reader(hugging_face.signs, hugging_face.read),
    "kitti": Reader(kitti.signs, kitti.read),
    "mapillary": Reader(mapillary.signs, mapillary.read),
    "ade20k_full": Reader(ade20k_full.signs, ade20k_full.read),
}


_NEARBY = 50  # folders looked at for a hint


def detect(root: Path) -> DataFormat:
    """Returns the layout of a folder, a key of `READERS`.

    Raises:
        DataError: None fits, or several do.
    """
    found = {name: reader.signs(root) for name, reader in READERS.items()}
    found = {name: signs for name, signs in found.items() if signs}
    if len(found) > 1 and not folder.has_classes(root):  # what cannot be read is not meant
        found.pop("folder", None)
    if len(found) == 1:
        return next(iter(found))
    if found:
        seen = "; ".join(f"{name} ({signs})" for name, signs in found.items())
        raise DataError(
            f"{root}: looks like more than one layout: {seen}: say which with --data.format"
        )
    near = _below(root) or _above(root)
    if near:
        raise DataError(f"{root}: no known layout here, but {near}")
    raise DataError(f"{root}: no known layout: {nearest_layout(root)}")


def _below(root: Path) -> str:
    """Returns the first folder in `root` that has a layout, which, and what to do about it.

    Empty where none has.
    """
    below = (path for pattern in ("*/", "*/*/") for path in sorted(root.glob(pattern)))
    for near in islice(below, _NEARBY):
        if near.name.startswith("."):
            continue
        for name, reader in READERS.items():
            if signs := reader.signs(near):
                beside = sorted(path for path in near.parent.iterdir() if path.is_dir())
                alike = [path for path in beside if path != near and reader.signs(path)]
                fix = "give that folder"
                if alike:
                    fix = (
                        f"so is {alike[0].name}/ beside it ({len(alike) + 1} in all): name them "
                        "train/, val/ and test/, or put them together, or give one of them"
                    )
                return f"{near} is {name} ({signs}): {fix}"
    return ""


def _above(root: Path) -> str:
    """Returns which layout the folder above has, where `root` is a part of it; else empty."""
    above = root.absolute().parent
    for name, reader in READERS.items():
        if f"{root.name}/" in (signs := reader.signs(above)):
            return f"{above}, which holds it, is {name} ({signs}): give that folder"
    return ""
