"""Measures one network that answers images; runs in a process of its own.

    python -m ccfnet_tf.benchmark.measure_process REQUEST

REQUEST is a `Request` as JSON. The last line printed is JSON: an `Answered`, or an `error`.
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
from ccfnet_tf.inference.segmenter import Network
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runtimes.letterbox import Size
from ccfnet_tf.runtimes.litert import LiteRTNetwork
from ccfnet_tf.runtimes.litert_compiled import CompiledLiteRT
from ccfnet_tf.runtimes.onnx import OnnxNetwork
from ccfnet_tf.runtimes.sources import Source, find_source

Engine = Literal["own", "litert_gpu", "openvino_float32", "openvino_bfloat16"]

SECONDS = 60.0
"""No further answer is begun after so long: a simulated GPU takes half a minute for each."""
_LEAST = 3
_HINTS = {"openvino_float32": "f32", "openvino_bfloat16": "bf16"}


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        source: As `predict` takes it.
        engine: `own`: what runs this kind of source on the CPU; or another one for the same file.
        size: Height and width of the image in pixels.
        warm_up: Answers that are not counted, the first among them.
        count: Answers that are.
        threads: How many compute; all cores if None.
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
class Answered:
    """What was measured: one image at a time, from its array to labels and difficulty.

    Attributes:
        cold_start_s: Seconds from the start of the process to its first answer.
        ms: Milliseconds of each counted answer, in their order.
        warm_up: Answers before them.
        peak_memory_mb: The most that was resident in the process; of a server, its client.
        others_share: Share of the processors that other processes took meanwhile, 0..1; None where
            it is not known.
    """

    cold_start_s: float
    ms: list[float]
    warm_up: int
    peak_memory_mb: float
    others_share: float | None


def main() -> None:
    """Measures what is asked for, and prints what came of it."""
    request = Request(**json.loads(sys.argv[1]))
    try:
        result = asdict(measure(request))
    except Exception as error:  # the others go on; whatever it is, their table names it
        result = {"error": first_line(error)}
    print(json.dumps(result))  # noqa: T201


def measure(request: Request) -> Answered:
    """Opens the network and times its answers.

    Raises:
        CCFNetError: It cannot be opened, or not by this engine.
    """
    source = find_source(request.source)
    if source.needs_tensorflow:
        _start_tensorflow(request.threads)
    network = _opened(source, request)
    picture, _ = scenes.draw(0, (request.size[0], request.size[1]))  # a list in JSON
    network.predict(picture)
    cold = time.time() - request.began
    deadline, others = time.perf_counter() + SECONDS, Others()
    warm_up, ms = 1, list[float]()
    while warm_up < request.warm_up and time.perf_counter() < deadline:
        network.predict(picture)
        warm_up += 1
    while len(ms) < request.count and (len(ms) < _LEAST or time.perf_counter() < deadline):
        began = time.perf_counter()
        network.predict(picture)
        ms.append(1000 * (time.perf_counter() - began))
    return Answered(cold, ms, warm_up, memory.peak(), others.share())


def _start_tensorflow(threads: int | None) -> None:
    start_tensorflow()
    if threads is not None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)


def _opened(source: Source, request: Request) -> Network:
    if request.engine == "own" or source.manifest is None:
        return source.open(request.threads)
    file, taxonomy = Path(source.place), source.manifest.taxonomy
    if request.engine == "litert_gpu":
        return OnGpu(file, taxonomy)
    return InOpenVino(file, taxonomy, _HINTS[request.engine], request.threads)


class InOpenVino(OnnxNetwork):
    """An ONNX file in OpenVINO on the CPU.

    Args:
        path: The `.onnx` file.
        taxonomy: Its classes.
        precision: OpenVINO's name of what is computed in: `f32` or `bf16`.
        threads: How many compute; all cores if None.

    Raises:
        RunError: This processor has no such precision.
    """

    def __init__(
        self, path: Path, taxonomy: Taxonomy, precision: str, threads: int | None = None
    ) -> None:
        self.taxonomy = taxonomy
        import openvino

        core = openvino.Core()
        known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in known:
            raise RunError("OpenVINO computes no bfloat16 on this processor")
        options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        self._compiled = core.compile_model(str(path), "CPU", options)
        self._session = self

    def run(self, names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Answers as a session of onnxruntime does."""
        found = self._compiled(given)
        return [found[name] for name in names]


class OnGpu(LiteRTNetwork):
    """A LiteRT file on the GPU alone.

    Raises:
        RunError: There is no GPU that LiteRT can use, or not everything runs there.
    """

    def __init__(self, path: Path, taxonomy: Taxonomy) -> None:
        super().__init__(path, taxonomy, threads=1)
        self._runner = _on_gpu(path)
        self._interpreter = None  # the CPU's


def _on_gpu(path: Path) -> CompiledLiteRT:
    try:
        network = CompiledLiteRT(path, "GPU")
    except Exception as error:  # its errors have no base of their own
        reason = first_line(error)
        raise RunError(f"there is no GPU that LiteRT can use here ({reason})") from error
    if not network.accelerated:
        raise RunError("LiteRT does not run the whole network on this GPU")
    return network


if __name__ == "__main__":
    main()
