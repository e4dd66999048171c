"""Runs an ONNX file in onnxruntime on the CPU."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ccfnet_tf.errors import ConfigError, RunError, first_line
from ccfnet_tf.inference.segmenter_protocol import (
    Prediction,
    at_least,
    refuse_no_image,
    refuse_other_prediction,
    too_large,
)
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration

EXTRA = "pip install 'ccfnet-tf[onnx]'"


def import_extra(name: str) -> Any:
    """Imports a module of the extra `onnx`.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(f"ONNX files need {package}, which is not installed: {EXTRA}") from error


def new_session(path: Path, threads: int | None = None) -> Any:
    """Opens an ONNX file in onnxruntime, on the CPU.

    Args:
        path: The file.
        threads: Number of threads; onnxruntime's default, one per core, if None.

    Raises:
        ConfigError: onnxruntime is not installed.
        RunError: onnxruntime cannot read the file.
    """
    runtime = import_extra("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # failures raise exceptions; keep the log off the console
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        # The fallback retries on the CPU and prints; the first attempt is on the CPU already.
        return runtime.InferenceSession(
            str(path),
            sess_options=options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,
        )
    except Exception as error:  # onnxruntime has no common base class of errors
        reason = first_line(error)
        raise RunError(f"{path}: onnxruntime {runtime.__version__}: {reason}") from error


class OnnxNetwork:
    """Segments images of any size.

    Args:
        path: The `.onnx` file.
        taxonomy: The file's classes.
        threads: Number of threads; one per core if None.
        calibration: Of the file's probabilities.

    Attributes:
        taxonomy: The classes.
        calibration: Of the file's probabilities.
        at_once: 1; onnxruntime uses all cores for one image.

    Raises:
        ConfigError: onnxruntime is not installed.
        RunError: onnxruntime cannot read the file, or its number of classes differs.
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
        self._path = path
        self._session = new_session(path, threads)
        shapes = {each.name: each.shape for each in self._session.get_outputs()}
        classes = (shapes.get("probabilities") or [None])[-1]
        if classes != len(taxonomy.names):
            raise RunError(
                f"{path}: predicts {classes} classes: expected {len(taxonomy.names)}: export "
                "the run again"
            )

    def predict(self, image: np.ndarray) -> Prediction:
        """Labels every pixel of an image.

        Args:
            image: uint8 [H, W, 3], RGB, upright, any size.

        Raises:
            DataError: The array is not an image.
            ImageTooLargeError: Memory runs out; a smaller image may still fit.
            RunError: The file's outputs are not a prediction.
        """
        refuse_no_image(image)
        height, width = image.shape[:2]
        inputs = {"images": at_least(image)[np.newaxis]}
        try:
            outputs = self._session.run(list(Prediction._fields), inputs)
            prediction = Prediction(*(output[0, :height, :width] for output in outputs))
            refuse_other_prediction(prediction, image, len(self.taxonomy.names))
        except MemoryError as error:
            raise too_large(image) from error
        except Exception as error:  # onnxruntime has no common base class of errors
            if "allocate" in str(error):
                raise too_large(image) from error
            reason = first_line(error)
            raise RunError(f"{self._path}: cannot segment an image ({reason})") from error
        return prediction
