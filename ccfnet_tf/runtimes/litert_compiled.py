"""Runs a LiteRT file with `CompiledModel`, either on the GPU or on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from ccfnet_tf.runtimes.litert import SIGNATURE


class CompiledLiteRT:
    """Runs a LiteRT file on one kind of hardware.

    Args:
        path: The `.tflite` file, as `ccfnet-tf export` writes it.
        hardware: `GPU`, in float32, or `CPU`, with two threads.

    Attributes:
        batch: Number of images per call.
        accelerated: Whether the GPU runs every operator; LiteRT silently runs others on the CPU.

    Raises:
        ImportError: LiteRT is not installed.
        RuntimeError: The hardware does not exist or cannot run the file.
    """

    def __init__(self, path: Path, hardware: Literal["GPU", "CPU"]) -> None:
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.hardware_accelerator import HardwareAccelerator
        from ai_edge_litert.options import CpuOptions, GpuOptions, Options

        options = Options(
            # Only one: with both, LiteRT would silently divide the work between them.
            hardware_accelerators=HardwareAccelerator[hardware],
            gpu_options=GpuOptions(enforce_f32=True),
            cpu_options=CpuOptions(num_threads=2),
        )
        self._model = model = CompiledModel.from_file(str(path), options=options)
        self.accelerated = bool(model.is_fully_accelerated())
        self.batch = int(model.get_input_tensor_details(SIGNATURE)["images"]["shape"][0])
        self._details = model.get_output_tensor_details(SIGNATURE)
        self._inputs = {"images": model.create_input_buffer_by_name(SIGNATURE, "images")}
        self._outputs = {
            name: model.create_output_buffer_by_name(SIGNATURE, name) for name in self._details
        }

    def __call__(self, *, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs by name for images float32 [B, H, W, 3], RGB 0..255."""
        self._inputs["images"].write(np.ascontiguousarray(images))
        self._model.run_by_name(SIGNATURE, self._inputs, self._outputs)
        return {name: self._read(name) for name in self._outputs}

    def _read(self, name: str) -> np.ndarray:
        shape, kind = self._details[name]["shape"], np.dtype(self._details[name]["dtype"])
        values: np.ndarray = self._outputs[name].read(int(np.prod(shape)), kind)
        return values.reshape(shape)
