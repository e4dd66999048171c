"""Runs a LiteRT (TFLite) file on the CPU through the protocol `Segmenter`."""

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
from ccfnet_tf.inference.segmenter_protocol import (
    MAPS,
    Maps,
    Prediction,
    refuse_other_prediction,
    risk_of,
)
from ccfnet_tf.io.quiet_tensorflow import without_native_messages
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runtimes.letterbox import Fitted, Size, fit, unfit, unfit_labels
from ccfnet_tf.runtimes.manifest import LEVELS

SIGNATURE = "serving_default"
LARGEST_TENSOR = 1 << 31
"""Largest allowed size of a tensor in bytes."""

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
"""Opens a file and ignores errors: opening it again in this process reports them."""

_TRIAL_SECONDS = 60.0


class LiteRTNetwork:
    """Segments images of any size with a file of a fixed size; see `runtimes.letterbox`.

    Args:
        path: The `.tflite` file, as `ccfnet-tf export` writes it.
        taxonomy: The file's classes.
        threads: Number of CPU threads; one per core if None.
        calibration: Of the file's probabilities.

    Attributes:
        taxonomy: The classes.
        calibration: Of the file's probabilities.
        at_once: 1; LiteRT uses all cores for one image.
        size: Height and width of the file's input.
        batch: Number of images per call.

    Raises:
        ConfigError: LiteRT is not installed.
        RunError: The file cannot be loaded.
    """

    at_once = 1

    def __init__(
        self,
        path: Path,
        taxonomy: Taxonomy,
        threads: int | None = None,
        calibration: Calibration = UNCALIBRATED,
    ) -> None:
        self.taxonomy = taxonomy
        self.calibration = calibration
        interpreter, content = import_interpreter(), _content(path)
        try:
            # Stored because the runner does not keep the interpreter alive.
            self._interpreter = interpreter(
                model_content=content, num_threads=threads or os.cpu_count() or 1
            )
            _refuse_large_tensors(self._interpreter)  # before they are allocated
            with without_native_messages():  # a note that the CPU's delegate is used
                self._interpreter.allocate_tensors()
            self._runner: Any = self._interpreter.get_signature_runner(SIGNATURE)
            self.batch, self.size = _input_shape(self._runner.get_input_details())
        except (ValueError, KeyError, RuntimeError) as error:
            raise RunError(
                f"{path}: not a file that ccfnet-tf export wrote ({first_line(error)})"
            ) from error
        self._path = path

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        """Segments an image uint8 [H, W, 3]; returns `Maps` if the file outputs labels."""
        return self.predict_together([image] * self.batch)[0]

    def predict_together(self, images: Sequence[np.ndarray]) -> list[Prediction | Maps]:
        """Segments one batch: exactly `batch` images uint8 [H, W, 3]."""
        fitted = [fit(image, self.size) for image in images]
        batch = np.stack([each.image for each in fitted]).astype(np.float32)
        try:
            outputs = self._runner(images=batch)
            predictions = []
            for index, each in enumerate(fitted):
                own = {name: values[index] for name, values in outputs.items()}
                predictions.append(_prediction(own, each, self.calibration))
            for prediction, image in zip(predictions, images, strict=True):
                refuse_other_prediction(prediction, image, len(self.taxonomy.names))
        except (ValueError, LookupError, RuntimeError, TypeError, cv2.error) as error:
            raise RunError(
                f"{self._path}: cannot segment an image ({first_line(error)})"
            ) from error
        return predictions


def _input_shape(details: Mapping[str, Any]) -> tuple[int, Size]:
    """Returns the batch size and the image size of a file; raises ValueError."""
    images = details["images"]
    shape = [int(side) for side in images["shape"]]
    if len(shape) != 4 or images["dtype"] != np.float32 or min(shape) < 1 or shape[3] != 3:
        raise ValueError(
            f"input is {images['dtype'].__name__} {shape}: expected float32 [B, H, W, 3]"
        )
    batch, height, width, _ = shape
    return batch, (height, width)


def _refuse_large_tensors(interpreter: Any) -> None:
    """Raises ValueError for tensors too large to allocate; LiteRT might crash on them."""
    for tensor in interpreter.get_tensor_details():
        shape = [int(side) for side in tensor["shape"]]
        if math.prod(shape) * np.dtype(tensor["dtype"]).itemsize > LARGEST_TENSOR:
            raise ValueError(f"'{tensor['name']}' has shape {shape}, too large for one tensor")


def _prediction(
    predictions: dict[str, np.ndarray], fitted: Fitted, calibration: Calibration
) -> Prediction | Maps:
    labels = unfit_labels(predictions["labels"], fitted).astype(np.int32)
    if "probabilities" not in predictions:
        planes = [predictions[name].astype(np.float32) / LEVELS for name in MAPS]
        return Maps(labels, *(unfit(plane, fitted) for plane in planes))
    attention, difficulty, risk = (unfit(predictions[name], fitted) for name in MAPS)
    if fitted.used == fitted.original:
        probabilities = unfit(predictions["probabilities"], fitted)
        return Prediction(labels, attention, difficulty, risk, probabilities)
    # Enlarged probabilities have smoother outlines than labels.
    uncalibrated = unfit(calibration.uncalibrated(predictions["probabilities"]), fitted)
    labels = uncalibrated.argmax(-1).astype(np.int32)
    probabilities = calibration.calibrated(uncalibrated)
    risk = risk_of(labels, probabilities)
    return Prediction(labels, attention, difficulty, risk, probabilities)


def refuse_crashing_file(path: Path) -> None:
    """Opens a file in a separate process first, because LiteRT does not check a file's offsets.

    This takes a third of a second. A correct checksum does not prove who wrote the file.

    Raises:
        RunError: The process was ended by a signal such as SIGSEGV, or did not end in time.
    """
    command = [sys.executable, "-P", "-c", _TRIAL, str(path)]
    try:
        trial = subprocess.run(command, capture_output=True, check=False, timeout=_TRIAL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"{path}: damaged: LiteRT did not open it within {_TRIAL_SECONDS:g} s; export it again"
        ) from error
    if trial.returncode < 0:
        name = signal.Signals(-trial.returncode).name
        raise RunError(
            f"{path}: damaged: LiteRT crashes with {name} on opening it; export it again"
        )


def import_interpreter() -> Any:
    """Returns LiteRT's `Interpreter`; raises ConfigError if LiteRT is not installed."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ConfigError(
            ".tflite files need LiteRT, which is not installed: pip install 'ccfnet-tf[litert]'"
        ) from error
    return Interpreter


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if content[4:8] != b"TFL3":  # the format's magic number; LiteRT may crash on other files
        raise RunError(f"{path}: not a LiteRT file: its identifier is not TFL3")
    return content
