"""Measures the prediction speed of one network, in a separate process.

    python -m ccfnet_tf.benchmark.latency_process REQUEST

REQUEST is a `Request` as JSON. The last line of the output is JSON: a `Measurement`, or an `error`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ccfnet_tf.benchmark import memory
from ccfnet_tf.benchmark.machine import Others
from ccfnet_tf.datasets.scenes import scene as scenes
from ccfnet_tf.errors import RunError, first_line
from ccfnet_tf.inference.segmenter_protocol import Segmenter
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.runtimes.letterbox import Size
from ccfnet_tf.runtimes.litert import LiteRTNetwork
from ccfnet_tf.runtimes.litert_compiled import CompiledLiteRT
from ccfnet_tf.runtimes.manifest import Manifest
from ccfnet_tf.runtimes.onnx import OnnxNetwork
from ccfnet_tf.runtimes.open_segmenter import Source, find_source

Engine = Literal["own", "litert_gpu", "openvino_float32", "openvino_bfloat16"]

SECONDS = 60.0
"""Time limit: no prediction starts later; a simulated GPU takes half a minute for each."""
_MIN_COUNT = 3
_HINTS = {"openvino_float32": "f32", "openvino_bfloat16": "bf16"}


@dataclass(frozen=True)
class Request:
    """Parameters of a measurement.

    Attributes:
        source: Source as accepted by `predict`.
        engine: `own`, the default engine of this kind of source on the CPU, or another engine.
        size: Height and width of the image in pixels.
        warm_up: Predictions before the timed ones, including the first.
        count: Timed predictions.
        threads: Number of threads; one per core if None.
        began: `time.time()` just before this process was started.
    """

    source: str
    engine: Engine
    size: Size
    warm_up: int
    count: int
    threads: int | None
    began: float


@dataclass(frozen=True)
class Measurement:
    """Figures of a network, for one image at a time, from its array to labels and maps.

    Attributes:
        cold_start_s: Seconds from the start of the process to its first prediction.
        ms: Milliseconds of each timed prediction, in order.
        warm_up: Predictions before the timed ones.
        peak_memory_mb: Peak resident memory of the process; for a server, of its client.
        others_share: Share of the processors that other processes used meanwhile, 0..1; None if
            unknown.
    """

    cold_start_s: float
    ms: list[float]
    warm_up: int
    peak_memory_mb: float
    others_share: float | None


def main() -> None:
    """Measures the request of the command line and prints the result."""
    request = Request(**json.loads(sys.argv[1]))
    try:
        result = asdict(measure(request))
    except Exception as error:  # reported in the table; other rows continue
        result = {"error": first_line(error)}
    print(json.dumps(result))  # noqa: T201


def measure(request: Request) -> Measurement:
    """Opens the network and times its predictions.

    Raises:
        CCFNetError: The network cannot be opened with this engine.
    """
    source = find_source(request.source)
    if source.needs_tensorflow:
        _start_tensorflow(request.threads)
    network = _open(source, request)
    image, _ = scenes.draw(0, (request.size[0], request.size[1]))  # a list in JSON
    network.predict(image)
    cold = time.time() - request.began
    deadline, others = time.perf_counter() + SECONDS, Others()
    warm_up, ms = 1, list[float]()
    while warm_up < request.warm_up and time.perf_counter() < deadline:
        network.predict(image)
        warm_up += 1
    while len(ms) < request.count and (len(ms) < _MIN_COUNT or time.perf_counter() < deadline):
        began = time.perf_counter()
        network.predict(image)
        ms.append(1000 * (time.perf_counter() - began))
    return Measurement(cold, ms, warm_up, memory.peak(), others.share())


def _start_tensorflow(threads: int | None) -> None:
    start_tensorflow()
    if threads is not None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)


def _open(source: Source, request: Request) -> Segmenter:
    if request.engine == "own" or source.manifest is None:
        return source.open(request.threads)
    file, manifest = Path(source.place), source.manifest
    if request.engine == "litert_gpu":
        return GpuLiteRTNetwork(file, manifest)
    return OpenVinoNetwork(file, manifest, _HINTS[request.engine], request.threads)


class OpenVinoNetwork(OnnxNetwork):
    """Runs an ONNX file in OpenVINO on the CPU.

    Args:
        path: The `.onnx` file.
        manifest: The file's.
        precision: OpenVINO's name of the data type: `f32` or `bf16`.
        threads: Number of threads; one per core if None.

    Raises:
        RunError: The processor does not support bfloat16.
    """

    def __init__(
        self, path: Path, manifest: Manifest, precision: str, threads: int | None = None
    ) -> None:
        self.taxonomy = manifest.taxonomy
        self.calibration = manifest.fitted
        import openvino

        core = openvino.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in capabilities:
            raise RunError("OpenVINO does not support bfloat16 on this processor")
        options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        self._compiled = core.compile_model(str(path), "CPU", options)
        self._session = self

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Runs the network with the interface of an onnxruntime session."""
        outputs = self._compiled(inputs)
        return [outputs[name] for name in names]


class GpuLiteRTNetwork(LiteRTNetwork):
    """Runs a LiteRT file completely on the GPU.

    Raises:
        RunError: There is no GPU that LiteRT can use, or it cannot run the complete network.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        super().__init__(path, manifest.taxonomy, threads=1, calibration=manifest.fitted)
        self._runner = _on_gpu(path)
        self._interpreter = None  # of the CPU


def _on_gpu(path: Path) -> CompiledLiteRT:
    try:
        network = CompiledLiteRT(path, "GPU")
    except Exception as error:  # LiteRT has no common base class of errors
        reason = first_line(error)
        raise RunError(f"LiteRT outputs no usable GPU on this machine ({reason})") from error
    if not network.accelerated:
        raise RunError("LiteRT does not run the complete network on this GPU")
    return network


if __name__ == "__main__":
    main()
