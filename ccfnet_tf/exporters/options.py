"""What `export` is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.exporters.litert.writer import LiteRTOptions, check_choice
from ccfnet_tf.exporters.verify.reference import reference_pictures, run_parts
from ccfnet_tf.inference.segmenter import SMALLEST
from ccfnet_tf.io.new_folder import being_written
from ccfnet_tf.runs.run_folder import RunInfo, read_run
from ccfnet_tf.runtimes.letterbox import Size, at_most, parse_size
from ccfnet_tf.runtimes.manifest import Format, kind_of

NAME = "ccfnet"
"""What the model is called in TF Serving: the folder that holds its versions."""

Precision = Literal["float32", "bfloat16"]
"""bfloat16 is for processors that have it (avx512_bf16, amx_bf16), and slow on others."""

LARGEST_USUAL = 512
"""Longest side of a LiteRT file whose size was not asked for, and of pictures that are compared."""


@dataclass(frozen=True)
class Order:
    """What is to be written.

    Attributes:
        format: The format.
        litert: What a LiteRT file is to be; None for the other formats.
        max_loss: Points of pixel accuracy that an int8 file may lose.
        precision: What a SavedModel computes in.
    """

    format: Format
    litert: LiteRTOptions | None = None
    max_loss: float = 1.0
    precision: Precision = "float32"

    @property
    def options(self) -> dict[str, str]:
        """What `export.json` says of it."""
        if self.litert is None:
            return {} if self.precision == "float32" else {"precision": self.precision}
        return {
            "quantize": self.litert.quantize,
            "size": self.litert.size_text,
            "outputs": self.litert.outputs,
            "batch": str(self.litert.batch),
        }

    @property
    def kind(self) -> str:
        """Which tolerance holds; see `contract.tolerance`."""
        return kind_of(self.format, self.options)

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
        given: `quantize`, `size`, `outputs`, `batch`, `max_loss` and `precision`, where they were
            given; the last is of SavedModels alone, and the others of LiteRT.
        data_root: Where the run's data lie now, if they were moved.

    Raises:
        ConfigError: A value is not allowed.
        RunError: The run cannot be used.
    """
    options = dict(given)
    if format_ != "tflite":
        precision = options.get("precision", "float32")
        check_choice("--precision", precision, get_args(Precision))
        return Order(format_, precision=precision)
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
    height, width = (max(SMALLEST, side) for side in at_most(picture, LARGEST_USUAL).shape[:2])
    return height, width


def read_moved_run(run: Path, data_root: str | None) -> RunInfo:
    """Reads a run whose data may lie elsewhere now; raises RunError."""
    info = read_run(run)
    if data_root is None:
        return info
    data = replace(info.config.data, root=data_root)
    return replace(info, config=replace(info.config, data=data))


def _next_version(model: Path) -> Path:
    """Returns the folder of the next version; another export may be writing one just now."""
    taken = [int(each.name) for each in model.glob("*") if each.name.isdecimal()]
    number = max(taken, default=0) + 1
    while being_written(model / str(number)):
        number += 1
    return model / str(number)
