"""Exports SavedModels, for TensorFlow Serving."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ccfnet_tf.config import ComputeType
from ccfnet_tf.datasets.open_data_set import Parts
from ccfnet_tf.exporters.base import Exporter, check_choice
from ccfnet_tf.exporters.saved_model.warmup import write_warmup
from ccfnet_tf.exporters.saved_model.writer import INPUTS, OUTPUTS, write_saved_model
from ccfnet_tf.io.new_folder import being_written
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runtimes.manifest import Format

NAME = "ccfnet"
"""Model name in TensorFlow Serving, and the folder that contains the numbered versions."""


PRECISIONS: tuple[ComputeType, ...] = ("float32", "bfloat16")


@dataclass(frozen=True)
class SavedModelExporter(Exporter):
    """Writes SavedModels that accept any batch and image size.

    Args:
        precision: Data type of the computation: `float32`, or `bfloat16` for processors that
            support it (avx512_bf16, amx_bf16); it is slow on others.

    Raises:
        ConfigError: `precision` has another value.
    """

    format: ClassVar[Format] = "saved_model"
    inputs = INPUTS
    outputs = OUTPUTS
    precision: ComputeType = "float32"

    def __post_init__(self) -> None:
        check_choice("--precision", self.precision, PRECISIONS)

    @property
    def options(self) -> dict[str, str]:
        """Export options, as recorded in `export.json`."""
        return {} if self.precision == "float32" else {"precision": self.precision}

    def artifact_folder(self, out: Path) -> Path:
        """Returns the folder of the next version: TensorFlow Serving serves the highest number."""
        return _next_version(out / NAME)

    def write(
        self, model: Any, parts: Parts, folder: Path, calibration: Calibration = UNCALIBRATED
    ) -> dict[str, str]:
        """Writes the model and its warm-up records; see `Exporter.write`."""
        write_saved_model(model, parts.taxonomy, folder, calibration)
        if write_warmup(folder, NAME):
            return {}
        return {"warm-up": "not written: needs pip install 'ccfnet-tf[serving]'"}


def _next_version(model: Path) -> Path:
    """Returns the folder of the next version that no other export is writing at the moment."""
    taken = [int(each.name) for each in model.glob("*") if each.name.isdecimal()]
    number = max(taken, default=0) + 1
    while being_written(model / str(number)):
        number += 1
    return model / str(number)
