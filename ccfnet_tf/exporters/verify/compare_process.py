"""Holds an artifact against what Keras answered; runs in a process of its own.

    python -m ccfnet_tf.exporters.verify.compare_process FOLDER FORMAT

FOLDER holds the artifact, `reference.npz` beside it. The last line is JSON: the figures, an
`error`, or that a disk is `full`. This process must not know the network's code, as a server does
not; it refuses to judge if it does.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ccfnet_tf.errors import first_line, is_disk_full
from ccfnet_tf.exporters.verify.reference import Gaps, beyond_rounding, read_references, same_shape
from ccfnet_tf.inference.segmenter import Maps, Network, Prediction
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runtimes.litert import LiteRTNetwork
from ccfnet_tf.runtimes.manifest import LEVELS, MODEL, Difference


def main() -> None:
    """Checks the folder that is named, and prints what came of it."""
    folder, format_ = Path(sys.argv[1]), sys.argv[2]
    try:
        result: dict[str, Any] = asdict(_check(folder, format_))
    except OSError as error:
        kind = "full" if is_disk_full(error) else "error"
        result = {kind: _line(error)}
    except Exception as error:  # whatever it is, the artifact is not fit to be published
        result = {"error": _line(error)}
    known = sorted(name for name in sys.modules if name.startswith("ccfnet_tf.network"))
    if known:
        result = {"error": f"the check itself imported {known[0]}"}
    print(json.dumps(result))  # noqa: T201


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def compare(folder: Path, network: Network) -> Difference:
    """Returns how far a network's answers are from the references in a folder.

    Where a file takes several images at once, each place gets another one, and all are compared.

    Raises:
        ValueError: An answer has another form, or is not finite.
    """
    gaps, references = Gaps(), list(read_references(folder))
    batch = network.batch if isinstance(network, LiteRTNetwork) else 1
    for start in range(0, len(references), batch):
        asked = [references[(start + place) % len(references)] for place in range(batch)]
        images = [image for image, _, _ in asked]
        if isinstance(network, LiteRTNetwork):
            answers = network.predict_together(images)
        else:
            answers = [network.predict(images[0])]
        for reference, found in zip(asked, answers, strict=True):
            _add(gaps, found, reference)
    return gaps.difference()


def _add(gaps: Gaps, found: Prediction | Maps, reference: tuple[np.ndarray, ...]) -> None:
    _, probabilities, difficulty = reference
    same_shape("difficulty", found.difficulty, difficulty)
    if isinstance(found, Prediction):
        same_shape("probabilities", found.probabilities, probabilities)
        gaps.add(np.abs(found.probabilities - probabilities))
        gaps.add(np.abs(found.difficulty - difficulty))
    else:
        gaps.add(beyond_rounding(np.round(LEVELS * found.difficulty), difficulty))
    gaps.add_labels(found.labels, probabilities.argmax(-1))


def _check(folder: Path, format_: str) -> Difference:
    if format_ == "saved_model":
        from ccfnet_tf.exporters.verify.compare_saved_model import check_saved_model

        return check_saved_model(folder)
    # Answers are compared by class id, but there must be as many classes.
    classes = next(read_references(folder))[1].shape[-1]
    nameless = Taxonomy(("",) * classes, ((0, 0, 0),) * classes)
    if format_ == "tflite":
        return compare(folder, LiteRTNetwork(folder / MODEL["tflite"], nameless))
    from ccfnet_tf.runtimes.onnx import OnnxNetwork

    return compare(folder, OnnxNetwork(folder / MODEL["onnx"], nameless))


if __name__ == "__main__":
    main()
