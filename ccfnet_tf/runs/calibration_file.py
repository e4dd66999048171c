"""`calibration.json` of a run: the calibration of one checkpoint.

It holds the checkpoint's name and SHA-256 and the precision of the kernels, so that a calibration
is never applied to other weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccfnet_tf.errors import RunError, first_line, unreadable
from ccfnet_tf.io.checksum import sha256_of
from ccfnet_tf.io.untrusted_yaml_json import mapping, parse_json
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runs.checkpoint_file import MODEL, read_arrays

if TYPE_CHECKING:
    from ccfnet_tf.config import ComputeType

_SMALLEST_SCALE, _LARGEST_SCALE = 1e-6, 1e6  # far outside of what is fitted, and safe in float32

CALIBRATION = "calibration.json"

_FIX = "run `ccfnet-tf calibrate` again, or remove the file"


def calibration_text(
    checkpoint: Path,
    calibration: Calibration,
    measured: dict[str, Any],
    *,
    kernels: ComputeType = "float32",
) -> str:
    """Returns the content of `calibration.json`.

    Args:
        checkpoint: The file whose weights were calibrated.
        calibration: What was fitted.
        measured: What it was fitted to, and the figures before and after, for the record.
        kernels: Precision that the kernels of the calibrated network were rounded to.
    """
    tree = {
        "checkpoint": checkpoint.name,
        "sha256": _digest(checkpoint),
        "kernels": kernels,
        **asdict(calibration),
        "measured": measured,
    }
    return json.dumps(tree, indent=1) + "\n"


def read_calibration(
    run: Path,
    checkpoint: Path,
    *,
    classes: int,
    kernels: ComputeType = "float32",
    requested: bool = False,
) -> Calibration:
    """Returns the calibration of a checkpoint; `UNCALIBRATED` where the run has none for it.

    Args:
        run: The run folder.
        checkpoint: The file that weights are read from.
        classes: Number of classes of the network.
        kernels: Precision that the kernels of the network are rounded to.
        requested: Whether this checkpoint was asked for by name. Only then may the calibration be
            that of another one, and is not applied.

    Raises:
        RunError: The file cannot be read, is of another checkpoint than the run's own choice, the
            checkpoint is damaged or was written after the calibration, or kernels of another
            precision were calibrated.
    """
    path = run / CALIBRATION
    if not path.is_file():
        return UNCALIBRATED
    try:
        tree = mapping(parse_json(path.read_text(encoding="utf-8")))
        name, digest = str(tree["checkpoint"]), str(tree["sha256"])
        calibrated = str(tree.get("kernels", "float32"))  # missing in older files
        calibration = parse_calibration(tree, classes)
    except KeyError as error:
        raise RunError(f"{path}: not a calibration (no key {error}): {_FIX}") from error
    except OSError as error:
        raise RunError(f"{path}: {unreadable(error)}") from error
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: not a calibration ({first_line(error)}): {_FIX}") from error
    if name != checkpoint.name:
        if requested:
            return UNCALIBRATED
        raise RunError(
            f"{path}: is of {name}, but the weights of the run are now those of "
            f"{checkpoint.name}: {_FIX}"
        )
    if digest != _digest(checkpoint):
        read_arrays(checkpoint, prefix=MODEL)  # raises an error if it is damaged
        raise RunError(f"{path}: {name} was written again after it was calibrated: {_FIX}")
    if calibrated != kernels:
        raise RunError(
            f"{path}: is of kernels in {calibrated}; those of a run trained in {kernels} are now "
            f"rounded to it: {_FIX}"
        )
    return calibration


def parse_calibration(tree: Mapping[str, Any], classes: int) -> Calibration:
    """Returns the calibration of JSON.

    Args:
        tree: Has the fields of a `Calibration`, lists for tuples.
        classes: Number of classes of the network.

    Raises:
        KeyError, TypeError, ValueError: A value is missing or wrong.
    """
    scale, bias = _numbers(tree["scale"]), _numbers(tree["bias"])
    if len(scale) not in (1, classes) or len(bias) not in (0, classes):
        raise ValueError(f"{len(scale)} scales and {len(bias)} biases for {classes} classes")
    attention = [tree["attention_scale"], tree["attention_bias"]]
    attention_scale, attention_bias = _numbers(attention)
    if not all(_SMALLEST_SCALE <= each <= _LARGEST_SCALE for each in (*scale, attention_scale)):
        raise ValueError(f"a scale is outside {_SMALLEST_SCALE:g}..{_LARGEST_SCALE:g}")
    threshold = tree.get("blend_threshold")  # missing in older files
    if threshold is not None:
        (threshold,) = _numbers([threshold])
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"blend_threshold is {threshold}, outside 0..1")
    return Calibration(scale, bias, attention_scale, attention_bias, threshold)


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(type(each) in (int, float) for each in values):
        raise TypeError("expected a list of numbers")
    try:
        numbers = tuple(float(each) for each in values)
    except OverflowError as error:  # an integer of hundreds of digits
        raise ValueError("a number is too large") from error
    if not all(math.isfinite(each) for each in numbers):
        raise ValueError("a number is not finite")
    return numbers


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise RunError(f"{path}: {unreadable(error)}") from error
