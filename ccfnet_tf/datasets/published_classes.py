"""Published data sets: class names, colours and mask values.

Names and colours are stored in `classes/<set>.txt`, one `R G B name` per line, in id order. A row
named void gives the colour of pixels without a label.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from ccfnet_tf.io.read_images import NO_CLASS
from ccfnet_tf.labels import VOID, Taxonomy


@dataclass(frozen=True)
class Coding:
    """Meaning of the mask values of a data set.

    Attributes:
        values: Mask value of each class, in id order.
        void: Mask values of pixels without a label.
    """

    values: Sequence[int]
    void: Collection[int]

    def table(self) -> np.ndarray:
        """Returns int32 [256]: value -> class id, `VOID` or `NO_CLASS`, for `to_classes`."""
        table = np.full(256, NO_CLASS, np.int32)
        table[list(self.values)] = np.arange(len(self.values))
        table[list(self.void)] = VOID
        return table


_CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

CODINGS = {
    "camvid": Coding(range(11), void=(11,)),
    "voc": Coding(range(21), void=(255,)),
    # labelIds; licence plates have id -1, stored as 255 in 8 bits
    "cityscapes": Coding(_CITYSCAPES, void={*range(34), 255} - {*_CITYSCAPES}),
    "cityscapes_train_ids": Coding(range(19), void=(255,)),
    "ade20k": Coding(range(1, 151), void=(0,)),
}


@cache
def taxonomy(name: str) -> Taxonomy:
    """Returns the class names and colours of a published set.

    Args:
        name: File name in `classes/` without suffix, such as `voc`.
    """
    lines = class_file(name).read_text(encoding="ascii").splitlines()
    rows = [line.split(maxsplit=3) for line in lines if not line.startswith("#")]
    rows = [row for row in rows if row[3] != "void"]
    return Taxonomy(
        names=tuple(row[3] for row in rows),
        palette=tuple((int(row[0]), int(row[1]), int(row[2])) for row in rows),
    )


def class_file(name: str) -> Path:
    """Returns the file with the class names and colours of a published set."""
    return Path(str(resources.files("ccfnet_tf.datasets").joinpath("classes", f"{name}.txt")))
