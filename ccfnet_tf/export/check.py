"""Holds an artifact against what Keras answered; runs in a process of its own.

    python -m ccfnet_tf.export.check FOLDER FORMAT

FOLDER holds the artifact, `reference.npz` beside it. The last line is JSON: the figures, or an
`error`. This process must not know the network's code, as a server does not; it refuses to judge
if it does.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ccfnet_tf.artifacts.contract import MODEL, Difference
from ccfnet_tf.export.reference import Gaps, beyond_rounding, read_references, same_shape
from ccfnet_tf.inference.prediction import Network, Prediction
from ccfnet_tf.labels import Taxonomy


def main() -> None:
    """Checks the folder that is named, and prints what came of it."""
    folder, format_ = Path(sys.argv[1]), sys.argv[2]
    try:
        result: dict[str, Any] = asdict(_check(folder, format_))
    except Exception as error:  # whatever it is, the artifact is not fit to be handed over
        result = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    known = sorted(name for name in sys.modules if name.startswith("ccfnet_tf.network"))
    if known:
        result = {"error": f"the check itself imported {known[0]}"}
    print(json.dumps(result))  # noqa: T201


def compare(folder: Path, network: Network) -> Difference:
    """Returns how far a network's answers are from the references in a folder.

    Raises:
        ValueError: An answer has another form, or is not finite.
    """
    gaps = Gaps()
    for image, probabilities, difficulty in read_references(folder):
        found = network.predict(image)
        same_shape("difficulty", found.difficulty, difficulty)
        if isinstance(found, Prediction):
            same_shape("probabilities", found.probabilities, probabilities)
            gaps.add(np.abs(found.probabilities - probabilities))
            gaps.add(np.abs(found.difficulty - difficulty))
        else:
            gaps.add(beyond_rounding(np.round(255.0 * found.difficulty), difficulty))
        gaps.add_labels(found.labels, probabilities.argmax(-1))
    return gaps.difference()


def _check(folder: Path, format_: str) -> Difference:
    if format_ == "saved_model":
        from ccfnet_tf.export.check_saved_model import check_saved_model

        return check_saved_model(folder)
    nameless = Taxonomy((), ())  # answers are compared by class id
    if format_ == "tflite":
        from ccfnet_tf.artifacts.litert import LiteRTNetwork

        return compare(folder, LiteRTNetwork(folder / MODEL["tflite"], nameless))
    from ccfnet_tf.artifacts.onnx import OnnxNetwork

    return compare(folder, OnnxNetwork(folder / MODEL["onnx"], nameless))


if __name__ == "__main__":
    main()
