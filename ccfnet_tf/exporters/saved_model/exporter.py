"""Exports SavedModels, which TF Serving serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ccfnet_tf.config import ComputeType
from ccfnet_tf.datasets.splits import Parts
from ccfnet_tf.exporters.base import Exporter, check_choice
from ccfnet_tf.exporters.saved_model.warmup import write_warmup
from ccfnet_tf.exporters.saved_model.writer import INPUTS, OUTPUTS, write_saved_model
from ccfnet_tf.io.new_folder import being_written
from ccfnet_tf.runtimes.manifest import Format

NAME = "ccfnet"
"""What the model is called in TF Serving: the folder that holds its versions."""


PRECISIONS: tuple[ComputeType, ...] = ("float32", "bfloat16")


@dataclass(frozen=True)
class SavedModelExporter(Exporter):
    """Writes SavedModels of any batch and image size.

    Args:
        precision: What they compute in: `float32`, or `bfloat16` for processors that have it
            (avx512_bf16, amx_bf16); it is slow on others.

    Raises:
        ConfigError: Another precision.
    """

    format: ClassVar[Format] = "saved_model"
    inputs = INPUTS
    outputs = OUTPUTS
    precision: ComputeType = "float32"

    def __post_init__(self) -> None:
        check_choice("--precision", self.precision, PRECISIONS)

    @property
    def options(self) -> dict[str, str]:
        """What `export.json` says of how the file was made."""
        return {} if self.precision == "float32" else {"precision": self.precision}

    def place(self, out: Path) -> Path:
        """Returns the folder of the next version: TF Serving serves the highest number."""
        return _next_version(out / NAME)

    def write(self, model: Any, parts: Parts, folder: Path) -> dict[str, str]:
        """Writes model and warm-up records; see `Exporter.write`."""
        write_saved_model(model, parts.taxonomy, folder)
        if write_warmup(folder, NAME):
            return {}
        return {"warm-up": "left out: it takes pip install 'ccfnet-tf[serving]'"}


def _next_version(model: Path) -> Path:
    """Returns the folder of the next version; another export may be writing one just now."""
    taken = [int(each.name) for each in model.glob("*") if each.name.isdecimal()]
    number = max(taken, default=0) + 1
    while being_written(model / str(number)):
        number += 1
    return model / str(number)
