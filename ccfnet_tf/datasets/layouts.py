"""Which layouts there are, and which of them a folder has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ccfnet_tf.config import DataConfig, DataFormat
from ccfnet_tf.datasets import (
    ade20k,
    camvid,
    cityscapes,
    coco,
    coco_panoptic,
    folder,
    labelme,
    scenes,
    shards,
    sift_flow,
    stanford_background,
    voc,
)
from ccfnet_tf.datasets.listing import Listing
from ccfnet_tf.datasets.pairing import contents
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
}


def detect(root: Path) -> DataFormat:
    """Returns the layout of a folder, a key of `READERS`.

    Raises:
        DataError: None fits, or several do.
    """
    found = {name: reader.signs(root) for name, reader in READERS.items()}
    found = {name: signs for name, signs in found.items() if signs}
    if len(found) == 1:
        return next(iter(found))
    if found:
        seen = "; ".join(f"{name} ({signs})" for name, signs in found.items())
        raise DataError(
            f"{root}: looks like more than one layout: {seen}: say which with --data.format"
        )
    raise DataError(
        f"{root}: no known layout (found: {contents(root)}): expected images/ and masks/ with "
        f"classes.txt, or one of {', '.join(name for name in READERS if name != 'scenes')}; "
        "see data/README.md, or say which with --data.format"
    )
