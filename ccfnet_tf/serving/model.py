"""`Model`: runs requests on an exported SavedModel with TensorFlow Serving's semantics.

The SavedModel is loaded into a session, as in TensorFlow Serving.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from ccfnet_tf.errors import RunError
from ccfnet_tf.runtimes.allowed_ops import refuse_harmful_graph
from ccfnet_tf.serving.admission import DEFAULT_MAX_PIXELS, PixelBudget, pixels_of
from ccfnet_tf.serving.find_served import find_served

Arrays = Mapping[str, np.ndarray]
Status = Literal[
    "INVALID_ARGUMENT",
    "OUT_OF_RANGE",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "INTERNAL",
]

_VERSION = re.compile(r"[0-9]{1,18}")

DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY


class RequestError(Exception):
    """A request that failed; its message is sent to the client.

    Attributes:
        status: Name of the gRPC status code.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status: Status = status


def as_refusal(error: Exception) -> RequestError:
    """Converts any exception to the error that is sent to the client."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
        return RequestError("RESOURCE_EXHAUSTED", "memory ran out")
    return RequestError("INTERNAL", f"unexpected {type(error).__name__}: {_reason(error)}")


class Model:
    """One version of a model; many threads may call `predict` concurrently.

    Args:
        folder: The folder of versions, of which the highest is used, or of one version.
        name: Name of the model for clients.
        max_pixels: Most pixels of the images of a request, and of all concurrent requests.

    Attributes:
        name: Name of the model.
        max_pixels: Most pixels.
        version: Number of the version's folder.
        signatures: TensorFlow's `SignatureDef` by name.

    Raises:
        ConfigError: The folder contains another format.
        RunError: The folder does not contain an artifact of `ccfnet-tf export`, or the artifact is
            damaged or contains operators that are not allowed.
    """

    def __init__(self, folder: Path, name: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        path = find_served(folder)
        refuse_harmful_graph(path)
        self.name = name
        self.version = int(path.name) if _VERSION.fullmatch(path.name) else 1
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        meta = _load(self._session, path)
        self.signatures: dict[str, Any] = {
            key: value
            for key, value in meta.signature_def.items()
            if value.method_name == tf.saved_model.PREDICT_METHOD_NAME
        }
        self.max_pixels = max_pixels
        # More concurrent requests than cores would only use more memory.
        self._budget = PixelBudget(os.cpu_count() or 1, max_pixels)

    def refuse_other(self, name: str, version: int | None) -> None:
        """Rejects a request for another model or version.

        Raises:
            RequestError: NOT_FOUND.
        """
        if name != self.name or version not in (None, self.version):
            suffix = "" if version is None else f", version {version}"
            raise RequestError(
                "NOT_FOUND", f"no model '{name}'{suffix}: {self.name}, version {self.version}"
            )

    def signature(self, name: str) -> Any:
        """Returns the `SignatureDef`; raises RequestError (INVALID_ARGUMENT)."""
        signature = self.signatures.get(name or DEFAULT)
        if signature is None:
            known = ", ".join(sorted(self.signatures))
            raise RequestError("INVALID_ARGUMENT", f"no signature '{name}': expected {known}")
        return signature

    def predict(self, name: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one signature and returns its outputs by name.

        Raises:
            RequestError: The inputs do not match the signature, or the graph rejects them.
        """
        signature = self.signature(name)
        if inputs.keys() != signature.inputs.keys():
            raise RequestError(
                "INVALID_ARGUMENT",
                f"inputs {sorted(inputs)}: expected {sorted(signature.inputs)}",
            )
        feeds = {}
        for key, info in signature.inputs.items():
            _refuse_other_kind(key, inputs[key], info)
            feeds[info.name] = inputs[key]
        fetches = {key: info.name for key, info in signature.outputs.items()}
        pixels = sum(map(pixels_of, inputs.values()))
        if pixels > self.max_pixels:
            raise RequestError(
                "INVALID_ARGUMENT",
                f"images of {pixels} pixels in total: at most {self.max_pixels} are accepted "
                "(serve --max-pixels): send fewer per request, or shrink them (predict --size)",
            )
        try:
            with self._budget.taken(pixels):
                return dict(self._session.run(fetches, feeds))
        except tf.errors.InvalidArgumentError as error:
            raise RequestError("INVALID_ARGUMENT", _reason(error)) from error
        except Exception as error:  # the server must continue after any error
            raise as_refusal(error) from error

    def close(self) -> None:
        """Frees the memory."""
        self._session.close()


def _refuse_other_kind(name: str, value: np.ndarray, info: Any) -> None:
    expected = tf.dtypes.as_dtype(info.dtype)
    given = tf.string if value.dtype == object else tf.dtypes.as_dtype(value.dtype)
    shape = tf.TensorShape(info.tensor_shape)
    if given != expected or not shape.is_compatible_with(value.shape):
        raise RequestError(
            "INVALID_ARGUMENT",
            f"'{name}' is {given.name} {list(value.shape)}: expected {expected.name} "
            f"{shape.as_list()}",
        )


def _load(session: Any, folder: Path) -> Any:
    """Returns the `MetaGraphDef`; raises RunError."""
    log = tf.get_logger()
    level = log.level
    log.setLevel("ERROR")  # hides warnings that sessions are deprecated
    try:
        with session.graph.as_default():
            return tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
    except Exception as error:  # a damaged graph raises errors of any type
        raise RunError(f"{folder}: TensorFlow {tf.__version__}: {_reason(error)}") from error
    finally:
        log.setLevel(level)


def _reason(error: Exception) -> str:
    """Returns the line of TensorFlow's message with the cause."""
    message = error.message if isinstance(error, tf.errors.OpError) else str(error)
    lines = message.removeprefix("Graph execution error:").strip().splitlines()
    return lines[0] if lines else type(error).__name__
