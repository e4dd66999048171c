"""Runs a LiteRT file on this machine's GPU and on its CPU, in a separate process.

    python -m ccfnet_tf.exporters.verify.gpu_process FOLDER

The last line of the output is JSON: the `largest` and `mean` difference between GPU and CPU on the
first reference image and whether the complete file was `accelerated`, or an `error`. LiteRT reports
rejected kernels (`Validation error`) and unsupported operators only on stderr, which the caller
parses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ccfnet_tf.exporters.verify.gpu import MAX_DIFFERENCE
from ccfnet_tf.exporters.verify.reference import read_references
from ccfnet_tf.runtimes.litert_compiled import CompiledLiteRT
from ccfnet_tf.runtimes.manifest import LEVELS, MODEL


def main() -> None:
    """Runs the file in the folder of the command line and prints the result."""
    folder = Path(sys.argv[1])
    reference = next(read_references(folder))
    image, hard = reference.image.astype(np.float32), not reference.clear_branch.all()
    try:
        result = _both(folder / MODEL["tflite"], image, hard=hard)
    except (RuntimeError, ImportError, OSError) as error:  # raised by LiteRT
        result = {"error": (str(error).splitlines() or [type(error).__name__])[-1]}
    print(json.dumps(result), flush=True)  # noqa: T201


def _both(path: Path, image: np.ndarray, *, hard: bool = False) -> dict[str, Any]:
    jumping = {"difficulty", "risk", "probabilities"} if hard else {"difficulty"}
    on_gpu = CompiledLiteRT(path, "GPU")
    gpu, cpu = _run(on_gpu, image), _run(CompiledLiteRT(path, "CPU"), image)
    differences = [_difference(name, gpu[name], cpu[name], jumping) for name in cpu]
    magnitudes = np.concatenate([np.ravel(difference) for difference in differences])
    return {
        "largest": float(magnitudes.max()),
        "mean": float(magnitudes.mean()),
        "accelerated": on_gpu.accelerated,
    }


def _difference(name: str, gpu: np.ndarray, cpu: np.ndarray, jumping: set[str]) -> np.ndarray:
    """Returns differences of pixels; of labels, and of outputs that jump, the share that differs.

    Difficulty depends on coarse's label: where two classes nearly tie, it jumps. With a hard blend,
    everything but attention jumps where attention is at the threshold.
    """
    if name == "labels":
        return np.asarray((gpu != cpu).mean())
    gaps = np.abs(gpu - cpu)
    if name in jumping:
        return np.asarray((~(gaps <= MAX_DIFFERENCE)).mean())  # also true for NaN
    return np.asarray(gaps)


def _run(network: CompiledLiteRT, image: np.ndarray) -> dict[str, np.ndarray]:
    outputs = network(images=np.repeat(image[np.newaxis], network.batch, axis=0))
    levels = {name: LEVELS if value.dtype == np.uint8 else 1.0 for name, value in outputs.items()}
    scales = levels | {"labels": 1.0}
    return {name: value.astype(np.float64) / scales[name] for name, value in outputs.items()}


if __name__ == "__main__":
    main()
