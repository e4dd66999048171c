"""Whether the evaluation in a run's folder is one of the network that the run has now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ccfnet_tf.errors import RunError
from ccfnet_tf.evaluation.read_image_table import IMAGES_NPZ
from ccfnet_tf.evaluation.shard_files import weights_digest
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED
from ccfnet_tf.report.read_evaluation_json import EVALUATION
from ccfnet_tf.runs.run_folder import read_run


def is_evaluated(run: Path, split: str, *, calibrated: bool) -> bool:
    """Returns whether `evaluation.json` is of the run's present weights and calibration.

    Args:
        run: The run's folder.
        split: The split that has to be evaluated, whole images at one scale.
        calibrated: Whether the run has to be calibrated, as `calibrate` does by default: with one
            temperature, not with numbers for each class.
    """
    if not (run / IMAGES_NPZ).is_file():
        return False
    try:
        info = read_run(run)
        calibration = info.calibration()
        weights = weights_digest(info, calibration)
    except RunError:  # no checkpoint, or a calibration of another one
        return False
    if calibrated and (calibration is UNCALIBRATED or calibration.bias):
        return False
    try:
        tree: Any = json.loads((run / EVALUATION).read_text(encoding="utf-8"))
        same = (tree["split"], tree["weights"]) == (split, weights)
        return same and not tree.get("wrapping")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False  # missing or damaged: it is evaluated again
