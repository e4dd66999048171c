"""A LiteRT (TFLite) file on the CPU, through the protocol of all segmenters."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ccfnet_tf.errors import ConfigError, RunError, first_line
from ccfnet_tf.inference.segmenter import Maps, Prediction, refuse_other_answer
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runtimes.letterbox import Fitted, Size, fit, unfit, unfit_labels
from ccfnet_tf.runtimes.manifest import LEVELS

SIGNATURE = "serving_default"
LARGEST_TENSOR = 1 << 31
"""Bytes of a tensor."""

_TRIAL = f"""
import math, resource, sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
interpreter = Interpreter(model_path=sys.argv[1])
sizes = [
    math.prod(map(int, tensor["shape"])) * np.dtype(tensor["dtype"]).itemsize
    for tensor in interpreter.get_tensor_details()
]
if max(sizes, default=0) <= {LARGEST_TENSOR}:
    interpreter.allocate_tensors()
"""
"""What it refuses is refused again where the file is opened, and there with the reason."""

_TRIAL_SECONDS = 60.0


class LiteRTNetwork:
    """Answers images of any size by a file of one size; see `runtimes.letterbox`.

    Args:
        path: The `.tflite` file, as `ccfnet-tf export` writes it.
        taxonomy: Its classes.
        threads: How many the CPU takes; all where None.

    Attributes:
        taxonomy: The classes.
        at_once: 1; LiteRT takes all cores for one image.
        size: Height and width that the file takes.
        batch: Images that it takes at once.

    Raises:
        ConfigError: LiteRT is not installed.
        RunError: The file cannot be loaded.
    """

    at_once = 1

    def __init__(self, path: Path, taxonomy: Taxonomy, threads: int | None = None) -> None:
        self.taxonomy = taxonomy
        interpreter, content = import_interpreter(), _content(path)
        try:
            # Kept: the runner does not hold it.
            self._interpreter = interpreter(
                model_content=content, num_threads=threads or os.cpu_count() or 1
            )
            _refuse_large_tensors(self._interpreter)  # before any is made
            self._runner: Any = self._interpreter.get_signature_runner(SIGNATURE)
            self.batch, self.size = _input_shape(self._runner.get_input_details())
        except (ValueError, KeyError, RuntimeError) as error:
            raise RunError(
                f"{path}: not a file of ccfnet-tf export ({first_line(error)})"
            ) from error
        self._path = path

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        """Answers an image uint8 [H, W, 3]; `Maps` from a file that answers labels."""
        return self.predict_together([image] * self.batch)[0]

    def predict_together(self, images: Sequence[np.ndarray]) -> list[Prediction | Maps]:
        """Answers as many images as the file takes at once, `batch`."""
        fitted = [fit(image, self.size) for image in images]
        batch = np.stack([each.image for each in fitted]).astype(np.float32)
        try:
            answers = self._runner(images=batch)
            found = [
                _answer({name: values[place] for name, values in answers.items()}, each)
                for place, each in enumerate(fitted)
            ]
            for answer, image in zip(found, images, strict=True):
                refuse_other_answer(answer, image, len(self.taxonomy.names))
        except (ValueError, LookupError, RuntimeError, TypeError, cv2.error) as error:
            raise RunError(
                f"{self._path}: does not answer an image ({first_line(error)})"
            ) from error
        return found


def _input_shape(details: Mapping[str, Any]) -> tuple[int, Size]:
    """Returns how many images a file takes, and of which size; raises ValueError."""
    images = details["images"]
    shape = [int(side) for side in images["shape"]]
    if len(shape) != 4 or images["dtype"] != np.float32 or min(shape) < 1 or shape[3] != 3:
        raise ValueError(f"takes {images['dtype'].__name__} {shape}: expected float32 [B, H, W, 3]")
    batch, height, width, _ = shape
    return batch, (height, width)


def _refuse_large_tensors(interpreter: Any) -> None:
    """Refuses a file whose tensors LiteRT could not make room for; it may end the process."""
    for tensor in interpreter.get_tensor_details():
        shape = [int(side) for side in tensor["shape"]]
        if math.prod(shape) * np.dtype(tensor["dtype"]).itemsize > LARGEST_TENSOR:
            raise ValueError(f"'{tensor['name']}' has shape {shape}, too large for one tensor")


def _answer(found: dict[str, np.ndarray], fitted: Fitted) -> Prediction | Maps:
    if "labels" in found:
        difficulty = unfit(found["difficulty"].astype(np.float32) / LEVELS, fitted)
        return Maps(unfit_labels(found["labels"], fitted).astype(np.int32), difficulty)
    probabilities = unfit(found["probabilities"], fitted)
    labels = probabilities.argmax(-1).astype(np.int32)
    return Prediction(labels, unfit(found["difficulty"], fitted), probabilities)


def refuse_what_ends_the_process(path: Path) -> None:
    """Opens a file in a process of its own first: LiteRT follows a file's offsets unchecked.

    It takes a third of a second. A right checksum says nothing of who wrote the file.

    Raises:
        RunError: That process was ended by a signal, as by SIGSEGV, or did not end.
    """
    command = [sys.executable, "-P", "-c", _TRIAL, str(path)]
    try:
        trial = subprocess.run(command, capture_output=True, check=False, timeout=_TRIAL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"{path}: damaged: LiteRT has not opened it after {_TRIAL_SECONDS:g} s; export it again"
        ) from error
    if trial.returncode < 0:
        name = signal.Signals(-trial.returncode).name
        raise RunError(f"{path}: damaged: LiteRT ends with {name} as it opens it; export it again")


def import_interpreter() -> Any:
    """Returns LiteRT's `Interpreter`; raises ConfigError where LiteRT is not installed."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ConfigError(
            "LiteRT is not installed, which runs .tflite files: pip install 'ccfnet-tf[litert]'"
        ) from error
    return Interpreter


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if content[4:8] != b"TFL3":  # the format's own mark; LiteRT may crash on anything else
        raise RunError(f"{path}: no LiteRT file: its header is not TFL3")
    return content
