"""Registry of data set layouts, and detection of the layout of a folder."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ccfnet_tf.config import DataConfig, DataFormat
from ccfnet_tf.datasets.layout_helpers import contents
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
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.datasets.scenes import scene as scenes
from ccfnet_tf.datasets.suggest_layout import nearest_layout
from ccfnet_tf.errors import DataError


class Reader(NamedTuple):
    """Functions of a layout module.

    Attributes:
        signs: Returns what in a folder indicates the layout; empty if nothing does.
        read: Lists the data set.
    """

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


_NEARBY = 50  # maximum number of folders searched for a hint


def detect(root: Path) -> DataFormat:
    """Detects the layout of a folder, a key of `READERS`.

    Raises:
        DataError: No layout matches, or several do.
    """
    found = {name: reader.signs(root) for name, reader in READERS.items()}
    found = {name: signs for name, signs in found.items() if signs}
    if len(found) > 1 and not folder.has_classes(
        root
    ):  # without classes it cannot be read as `folder`
        found.pop("folder", None)
    if len(found) == 1:
        return next(iter(found))
    if found:
        seen = "; ".join(f"{name} ({signs})" for name, signs in found.items())
        raise DataError(
            f"{root}: matches more than one layout: {seen}: choose one with --data.format"
        )
    if lacking := folder.missing_sides(root):
        raise DataError(
            f"{root}: {lacking} missing (found: {contents(root)}): add what is missing; every "
            "split of the layout 'folder' has images and masks"
        )
    near = _below(root) or _above(root)
    if near:
        raise DataError(f"{root}: no known layout here, but {near}")
    raise DataError(f"{root}: no known layout: {nearest_layout(root)}")


def _below(root: Path) -> str:
    """Returns advice on the first folder below `root` that has a layout; empty if none has."""
    below = (path for pattern in ("*/", "*/*/") for path in sorted(root.glob(pattern)))
    for near in islice(below, _NEARBY):
        if near.name.startswith("."):
            continue
        for name, reader in READERS.items():
            if signs := reader.signs(near):
                siblings = sorted(path for path in near.parent.iterdir() if path.is_dir())
                alike = [path for path in siblings if path != near and reader.signs(path)]
                fix = "use that folder"
                if alike:
                    fix = (
                        f"so is {alike[0].name}/ next to it ({len(alike) + 1} in all): name them "
                        "train/, val/ and test/, merge them, or use one of them"
                    )
                return f"{near} is {name} ({signs}): {fix}"
    return ""


def _above(root: Path) -> str:
    """Returns advice if `root` belongs to the layout of its parent folder; else empty."""
    parent = root.absolute().parent
    for name, reader in READERS.items():
        if f"{root.name}/" in (signs := reader.signs(parent)):
            return f"its parent folder {parent} is {name} ({signs}): use that folder"
    return ""
