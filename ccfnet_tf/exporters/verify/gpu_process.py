"""Runs a LiteRT file on this machine's GPU and on its CPU; in a process of its own.

    python -m ccfnet_tf.exporters.verify.gpu_process FOLDER

The last line is JSON: `largest` and `mean` difference between the two on the first reference
image and whether the file was `accelerated` as a whole, or an `error`. LiteRT says on stderr, and
nowhere else, that a kernel was refused (`Validation error`) and which operators it cannot run; the
caller reads it there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ccfnet_tf.exporters.verify.reference import read_references
from ccfnet_tf.runtimes.litert_compiled import CompiledLiteRT
from ccfnet_tf.runtimes.manifest import LEVELS, MODEL


def main() -> None:
    """Runs the file of the folder that is named, and prints what came of it."""
    folder = Path(sys.argv[1])
    image = next(read_references(folder))[0].astype(np.float32)
    try:
        result = _both(folder / MODEL["tflite"], image)
    except (RuntimeError, ImportError, OSError) as error:  # what LiteRT raises where it cannot
        result = {"error": (str(error).splitlines() or [type(error).__name__])[-1]}
    print(json.dumps(result), flush=True)  # noqa: T201


def _both(path: Path, image: np.ndarray) -> dict[str, Any]:
    on_gpu = CompiledLiteRT(path, "GPU")
    gpu, cpu = _run(on_gpu, image), _run(CompiledLiteRT(path, "CPU"), image)
    gaps = [
        # Of class ids, the share that differs.
        np.atleast_1d(
            (gpu[name] != cpu[name]).mean() if name == "labels" else gpu[name] - cpu[name]
        )
        for name in cpu
    ]
    every = np.abs(np.concatenate([gap.ravel() for gap in gaps]))
    return {
        "largest": float(every.max()),
        "mean": float(every.mean()),
        "accelerated": on_gpu.accelerated,
    }


def _run(network: CompiledLiteRT, image: np.ndarray) -> dict[str, np.ndarray]:
    found = network(images=np.repeat(image[np.newaxis], network.batch, axis=0))
    levels = {name: LEVELS if value.dtype == np.uint8 else 1.0 for name, value in found.items()}
    scales = levels | {"labels": 1.0}
    return {name: value.astype(np.float64) / scales[name] for name, value in found.items()}


if __name__ == "__main__":
    main()
