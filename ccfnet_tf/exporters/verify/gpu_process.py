"""Runs a LiteRT file on this machine's GPU and on its CPU; in a process of its own.

    python -m ccfnet_tf.exporters.verify.gpu_process FOLDER

The last line is JSON: `largest` and `mean` difference between the two on the first reference
picture and whether the file was `accelerated` as a whole, or an `error`. LiteRT says on stderr, and
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
from ccfnet_tf.runtimes.litert import SIGNATURE
from ccfnet_tf.runtimes.manifest import MODEL


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
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator

    gpu, accelerated = _run(path, image, HardwareAccelerator.GPU)
    cpu, _ = _run(path, image, HardwareAccelerator.CPU)
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
        "accelerated": accelerated,
    }


def _run(path: Path, image: np.ndarray, hardware: Any) -> tuple[dict[str, np.ndarray], bool]:
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.options import CpuOptions, GpuOptions, Options

    options = Options(
        hardware_accelerators=hardware,
        gpu_options=GpuOptions(enforce_f32=True),
        cpu_options=CpuOptions(num_threads=2),
    )
    model = CompiledModel.from_file(str(path), options=options)
    details = model.get_input_tensor_details(SIGNATURE)["images"]
    batch = np.repeat(image[np.newaxis], details["shape"][0], axis=0)
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    inputs[0].write(np.ascontiguousarray(batch))
    model.run_by_index(0, inputs, outputs)
    names = model.get_signature_list()[SIGNATURE]["outputs"]
    found = {}
    for name, buffer in zip(names, outputs, strict=True):
        of = model.get_output_tensor_details(SIGNATURE)[name]
        kind = np.dtype(of["dtype"])
        values = buffer.read(int(np.prod(of["shape"])), kind).reshape(of["shape"])
        scale = 255.0 if kind == np.uint8 and name == "difficulty" else 1.0
        found[name] = values.astype(np.float64) / scale
    return found, bool(model.is_fully_accelerated())


if __name__ == "__main__":
    main()
