"""TensorBoard's log of a run: figures and an image an epoch.

TensorFlow's writer says nothing of a full disk: what does not fit is left out of the file, and what
follows cannot be read. So the file is looked at after each epoch.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ccfnet_tf.errors import ResourceError

_LENGTH, _SUM = 8, 4
"""Bytes of a record's length and of each of its two checksums; the content lies between these."""


class TensorBoardLog:
    """Writes into a new file of the folder.

    Args:
        folder: `tensorboard/` of a run; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        # Which file is ours TensorFlow does not say.
        name = f".{secrets.token_hex(4)}.v2"
        self._writer = tf.summary.create_file_writer(str(folder), filename_suffix=name)
        (self._file,) = folder.glob(f"*{name}")
        self._begun = 0
        self._records = 1  # the first says what kind of file it is

    def write(self, epoch: int, row: Mapping[str, Any], sheet: np.ndarray) -> None:
        """Adds an epoch.

        Args:
            epoch: Its number, from 1.
            row: Figures; those that are floats are written.
            sheet: An image, uint8 [H, W, 3] RGB.

        Raises:
            ResourceError: Not all of it is in the file.
        """
        figures = {key: value for key, value in row.items() if isinstance(value, float)}
        with self._writer.as_default(step=epoch):
            for key, value in figures.items():
                tf.summary.scalar(key, value)
            tf.summary.image("preview", sheet[np.newaxis])
        self._writer.flush()
        self._records += len(figures) + 1
        self._refuse_cut()

    def _refuse_cut(self) -> None:
        with self._file.open("rb") as file:
            size = file.seek(0, 2)
            while self._begun < size:
                file.seek(self._begun)
                length = int.from_bytes(file.read(_LENGTH), "little")
                self._begun += _LENGTH + _SUM + length + _SUM
                self._records -= 1
        if self._begun != size or self._records:
            raise ResourceError(
                f"{self._file}: is cut, as on a full disk; no checkpoint was damaged: free space "
                "and go on with --resume"
            )
