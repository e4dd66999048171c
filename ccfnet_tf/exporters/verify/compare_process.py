"""Compares an artifact with Keras's stored outputs, in a separate process.

    python -m ccfnet_tf.exporters.verify.compare_process FOLDER FORMAT

FOLDER contains the artifact and `reference.npz`. The last line of the output is JSON: the
differences, an `error`, or `full` if a disk is full. Like a server, this process must not import
the network's code; if it did, it reports an error.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ccfnet_tf.errors import first_line, is_disk_full
from ccfnet_tf.exporters.verify.reference import Gaps, read_references
from ccfnet_tf.inference.segmenter_protocol import Segmenter
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runtimes.litert import LiteRTNetwork
from ccfnet_tf.runtimes.manifest import MODEL, Difference

_NUMBERS = "ccfnet_tf.network.calibration_parameters"
"""Module of `ccfnet_tf.network` without a network."""


def main() -> None:
    """Compares the artifact of the command line and prints the result."""
    folder, format_ = Path(sys.argv[1]), sys.argv[2]
    try:
        result: dict[str, Any] = asdict(_check(folder, format_))
    except OSError as error:
        kind = "full" if is_disk_full(error) else "error"
        result = {kind: _line(error)}
    except Exception as error:  # after any error the artifact must not be published
        result = {"error": _line(error)}
    imported = sorted(
        name for name in sys.modules if name.startswith("ccfnet_tf.network.") and name != _NUMBERS
    )
    if imported:
        result = {"error": f"the comparison imported {imported[0]}"}
    print(json.dumps(result))  # noqa: T201


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def compare(folder: Path, network: Segmenter) -> Difference:
    """Returns the differences between a network's outputs and the references in a folder.

    A file with a batch size above 1 gets different images in one batch; all are compared.

    Raises:
        ValueError: An output has a wrong shape or is not finite.
    """
    gaps, references = Gaps(), list(read_references(folder))
    batch = network.batch if isinstance(network, LiteRTNetwork) else 1
    for start in range(0, len(references), batch):
        batch_references = [references[(start + index) % len(references)] for index in range(batch)]
        images = [reference.image for reference in batch_references]
        if isinstance(network, LiteRTNetwork):
            predictions = network.predict_together(images)
        else:
            predictions = [network.predict(images[0])]
        for reference, prediction in zip(batch_references, predictions, strict=True):
            gaps.add_prediction(prediction, reference)
    return gaps.difference()


def _check(folder: Path, format_: str) -> Difference:
    if format_ == "saved_model":
        from ccfnet_tf.exporters.verify.compare_saved_model import check_saved_model

        return check_saved_model(folder)
    # Only class ids are compared, so names and colours are placeholders.
    classes = next(read_references(folder)).prediction.probabilities.shape[-1]
    taxonomy = Taxonomy(("",) * classes, ((0, 0, 0),) * classes)
    if format_ == "tflite":
        return compare(folder, LiteRTNetwork(folder / MODEL["tflite"], taxonomy))
    from ccfnet_tf.runtimes.onnx import OnnxNetwork

    return compare(folder, OnnxNetwork(folder / MODEL["onnx"], taxonomy))


if __name__ == "__main__":
    main()
