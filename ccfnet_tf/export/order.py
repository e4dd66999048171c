"""What `export` is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ccfnet_tf.artifacts.contract import Format
from ccfnet_tf.artifacts.fit import Size, parse_size
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.export.litert import LiteRTOptions
from ccfnet_tf.export.reference import reference_pictures, run_parts
from ccfnet_tf.inference.prediction import SMALLEST
from ccfnet_tf.inference.runs import RunInfo, read_run

NAME = "ccfnet"
"""What the model is called in TF Serving: the folder that holds its versions."""

LARGEST_USUAL = 512
"""Longest side of a LiteRT file whose size was not asked for."""


@dataclass(frozen=True)
class Order:
    """What is to be written.

    Attributes:
        format: The format.
        litert: What a LiteRT file is to be; None for the other formats.
        max_loss: Points of pixel accuracy that an int8 file may lose.
    """

    format: Format
    litert: LiteRTOptions | None = None
    max_loss: float = 1.0

    @property
    def options(self) -> dict[str, str]:
        """What `export.json` says of it."""
        if self.litert is None:
            return {}
        return {
            "quantize": self.litert.quantize,
            "size": self.litert.size_text,
            "outputs": self.litert.outputs,
            "batch": str(self.litert.batch),
        }

    @property
    def kind(self) -> str:
        """Which tolerance holds; see `contract.tolerance`."""
        return " ".join(filter(None, (self.format, self.options.get("quantize"))))

    def place(self, out: Path) -> Path:
        """Returns the artifact's folder; TF Serving serves the highest number of `OUT/ccfnet`."""
        if self.litert is not None:
            return out / self.litert.folder
        return _next_version(out / NAME) if self.format == "saved_model" else out / self.format


def new_order(
    format_: Format, run: Path, given: Mapping[str, Any], *, data_root: str | None
) -> Order:
    """Returns what the options of the command line ask for.

    Args:
        format_: The format.
        run: The run folder, whose pictures say what size is usual.
        given: `quantize`, `size`, `outputs`, `batch` and `max_loss`, where they were given.
        data_root: Where the run's data lie now, if they were moved.

    Raises:
        ConfigError: A value is not allowed.
        RunError: The run cannot be used.
    """
    if format_ != "tflite":
        return Order(format_)
    options = dict(given)
    max_loss = options.pop("max_loss", 1.0)
    if not max_loss >= 0.0:
        raise ConfigError(f"--max-loss is {max_loss:g}: it must be 0 or more")
    if "size" in options:
        options["size"] = parse_size(options["size"])
    # Tried with a size that is allowed first: reading a data set takes its time.
    LiteRTOptions(**{"size": (SMALLEST, SMALLEST), **options})
    size = options.pop("size", None) or _usual_size(run, data_root)
    return Order(format_, LiteRTOptions(size=size, **options), max_loss)


def _usual_size(run: Path, data_root: str | None) -> Size:
    (picture,) = reference_pictures(run_parts(read_moved_run(run, data_root)), 1)
    scale = min(1.0, LARGEST_USUAL / max(picture.shape[:2]))
    height, width = (max(SMALLEST, round(scale * side)) for side in picture.shape[:2])
    return height, width


def read_moved_run(run: Path, data_root: str | None) -> RunInfo:
    """Reads a run whose data may lie elsewhere now; raises RunError."""
    info = read_run(run)
    if data_root is None:
        return info
    data = replace(info.config.data, root=data_root)
    return replace(info, config=replace(info.config, data=data))


def _next_version(model: Path) -> Path:
    """Returns the folder of the next version."""
    taken = [int(each.name) for each in model.glob("*") if each.name.isdigit()]
    return model / str(max(taken, default=0) + 1)
