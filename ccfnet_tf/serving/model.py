"""An exported SavedModel, answering as TensorFlow Serving would: by signature, or with a status.

It is loaded into a session, which is how TensorFlow Serving loads.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from ccfnet_tf.errors import ConfigError, RunError
from ccfnet_tf.runtimes.graph_ops import refuse_harmful_graph
from ccfnet_tf.runtimes.sources import find_source
from ccfnet_tf.serving.admission import DEFAULT_MAX_PIXELS, PixelBudget, pixels_of

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
    """A request that is not answered; its text is what the client is told.

    Attributes:
        status: By gRPC's name.
    """

    def __init__(self, status: Status, said: str) -> None:
        super().__init__(said)
        self.status: Status = status


def as_refusal(error: Exception) -> RequestError:
    """Returns what a client is told of any error."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
        return RequestError("RESOURCE_EXHAUSTED", "memory ran out")
    return RequestError("INTERNAL", f"unexpected {type(error).__name__}: {_reason(error)}")


class Model:
    """A version of a model; `answer` may be called by many threads.

    Args:
        folder: The folder of versions, of which the highest is taken, or of one version.
        name: What clients call it.
        max_pixels: Most pixels of a request's images, and of all that are computed at a time.

    Attributes:
        name: The same.
        max_pixels: The same.
        version: The folder's number.
        signatures: TensorFlow's `SignatureDef` by name.

    Raises:
        ConfigError: The folder holds another format.
        RunError: It holds no artifact of `ccfnet-tf export`, a damaged one, or one with operators
            that are refused.
    """

    def __init__(self, folder: Path, name: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        found = find_source(str(folder))
        place = Path(found.place)
        if found.kind != "saved_model":
            raise ConfigError(f"{place}: {_not_served(found.kind, place)}")
        refuse_harmful_graph(place)
        self.name = name
        self.version = int(place.name) if _VERSION.fullmatch(place.name) else 1
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        meta = _load(self._session, place)
        self.signatures: dict[str, Any] = {
            key: value
            for key, value in meta.signature_def.items()
            if value.method_name == tf.saved_model.PREDICT_METHOD_NAME
        }
        self.max_pixels = max_pixels
        # More at a time would only take each other's memory.
        self._budget = PixelBudget(os.cpu_count() or 1, max_pixels)

    def refuse_other(self, name: str, version: int | None) -> None:
        """Refuses a request that means another model or version.

        Raises:
            RequestError: NOT_FOUND.
        """
        if name != self.name or version not in (None, self.version):
            wanted = "" if version is None else f", version {version}"
            raise RequestError(
                "NOT_FOUND", f"no model '{name}'{wanted}: {self.name}, version {self.version}"
            )

    def signature(self, name: str) -> Any:
        """Returns the `SignatureDef`; raises RequestError (INVALID_ARGUMENT)."""
        found = self.signatures.get(name or DEFAULT)
        if found is None:
            known = ", ".join(sorted(self.signatures))
            raise RequestError("INVALID_ARGUMENT", f"no signature '{name}': expected {known}")
        return found

    def answer(self, name: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Answers by one signature.

        Raises:
            RequestError: The inputs do not fit, or the graph refuses them.
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
        wanted = {key: info.name for key, info in signature.outputs.items()}
        pixels = sum(map(pixels_of, inputs.values()))
        if pixels > self.max_pixels:
            raise RequestError(
                "INVALID_ARGUMENT",
                f"images of {pixels} pixels together: at most {self.max_pixels} are taken "
                "(serve --max-pixels): send fewer at once, or make them smaller (predict --size)",
            )
        try:
            with self._budget.taken(pixels):
                return dict(self._session.run(wanted, feeds))
        except tf.errors.InvalidArgumentError as error:
            raise RequestError("INVALID_ARGUMENT", _reason(error)) from error
        except Exception as error:  # whatever it is, the server goes on
            raise as_refusal(error) from error

    def close(self) -> None:
        """Gives the memory back."""
        self._session.close()


def _refuse_other_kind(name: str, value: np.ndarray, info: Any) -> None:
    expected = tf.dtypes.as_dtype(info.dtype)
    found = tf.string if value.dtype == object else tf.dtypes.as_dtype(value.dtype)
    shape = tf.TensorShape(info.tensor_shape)
    if found != expected or not shape.is_compatible_with(value.shape):
        raise RequestError(
            "INVALID_ARGUMENT",
            f"'{name}' is {found.name} {list(value.shape)}: expected {expected.name} "
            f"{shape.as_list()}",
        )


def _load(session: Any, folder: Path) -> Any:
    """Returns the `MetaGraphDef`; raises RunError."""
    log = tf.get_logger()
    level = log.level
    log.setLevel("ERROR")  # it would say that sessions are of yesterday
    try:
        with session.graph.as_default():
            return tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
    except Exception as error:  # of a damaged graph, TensorFlow raises errors of any kind
        raise RunError(f"{folder}: TensorFlow {tf.__version__}: {_reason(error)}") from error
    finally:
        log.setLevel(level)


def _reason(error: Exception) -> str:
    """Returns the line of TensorFlow's message that says what is wrong."""
    said = error.message if isinstance(error, tf.errors.OpError) else str(error)
    lines = said.removeprefix("Graph execution error:").strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _not_served(kind: str, place: Path) -> str:
    """Returns what a folder is that cannot be served, and what to do."""
    if kind == "run":
        name = place.resolve().name
        export = f"ccfnet-tf export {shlex.quote(str(place))}"
        served = shlex.quote(f"export/models/{name}/ccfnet")
        return f"is a run, and what is served is exported: {export}, then ccfnet-tf serve {served}"
    return (
        f"is a file of format {kind}, and a server needs a SavedModel: export the run without "
        "--format"
    )
