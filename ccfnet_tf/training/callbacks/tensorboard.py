"""TensorBoard log of a run: metrics and one preview image per epoch.

TensorFlow's writer does not report a full disk: it omits the data that do not fit, and all later
records cannot be read. The file is therefore checked after each epoch.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ccfnet_tf.errors import ResourceError
from ccfnet_tf.io.parent_command import CONTINUE_WITH

_LENGTH, _SUM = 8, 4
"""Sizes in bytes of a record's length field and of each of its two checksums, which enclose the
content."""


class TensorBoardLog:
    """Writes a new log file.

    Args:
        folder: `tensorboard/` of a run; created if missing.
    """

    def __init__(self, folder: Path) -> None:
        # TensorFlow does not report the name of the file, so a unique suffix identifies it.
        name = f".{secrets.token_hex(4)}.v2"
        self._writer = tf.summary.create_file_writer(str(folder), filename_suffix=name)
        (self._file,) = folder.glob(f"*{name}")
        self._offset = 0
        self._records = 1  # the first record contains the file version

    def write(self, epoch: int, row: Mapping[str, Any], sheet: np.ndarray) -> None:
        """Writes the metrics and the image of an epoch.

        Args:
            epoch: Number of the epoch, from 1.
            row: Metrics; only floats are written.
            sheet: An image, uint8 [H, W, 3] RGB.

        Raises:
            ResourceError: The file is incomplete.
        """
        figures = {key: value for key, value in row.items() if isinstance(value, float)}
        with self._writer.as_default(step=epoch):
            for key, value in figures.items():
                tf.summary.scalar(key, value)
            tf.summary.image("preview", sheet[np.newaxis])
        self._writer.flush()
        self._records += len(figures) + 1
        self._check_complete()

    def _check_complete(self) -> None:
        with self._file.open("rb") as file:
            size = file.seek(0, 2)
            while self._offset < size:
                file.seek(self._offset)
                length = int.from_bytes(file.read(_LENGTH), "little")
                self._offset += _LENGTH + _SUM + length + _SUM
                self._records -= 1
        if self._offset != size or self._records:
            raise ResourceError(
                f"{self._file}: truncated, probably by a full disk; no checkpoint was damaged: "
                f"free disk space and continue with {CONTINUE_WITH}"
            )
