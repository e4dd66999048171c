"""Client of a network behind TensorFlow Serving's REST or gRPC API.

    http://HOST:8501/v1/models/ccfnet[/versions/N]     does not need TensorFlow
    grpc://HOST:8500/ccfnet[/N]                        needs tensorflow-serving-api

Images are sent as PNG, which is lossless, to the signature `encoded`; class names, colours and the
calibration come from the signature `classes`. Where probabilities are needed, the pixels are also
sent to the signature `probabilities`. Responses are not trusted but checked.
"""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import json
import math
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import cv2
import numpy as np
from PIL import Image

from ccfnet_tf.errors import ConfigError, DataError, ResourceError, first_line
from ccfnet_tf.inference.segmenter_protocol import (
    MAPS,
    ImageTooLargeError,
    Maps,
    Prediction,
    refuse_no_image,
    with_probabilities,
)
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runs.calibration_file import parse_calibration
from ccfnet_tf.runtimes.manifest import LEVELS, MAX_REQUEST_PIXELS, PROBABILITIES
from ccfnet_tf.runtimes.read_tensor_proto import to_array

MAX_RESPONSE = 1 << 28
"""Largest response in bytes; longer ones are not read."""

ADDRESS_FORMS = (
    "http://HOST:8501/v1/models/NAME[/versions/N] or grpc://HOST:8500/NAME[/N], in ASCII, N of at "
    "most 18 digits"
)

_HTTP = re.compile(r"https?://[^/?#]+(/[^?#]*)?/v1/models/[^/?#:]+(/versions/\d{1,18})?")
_GRPC = re.compile(r"grpc://(?P<host>[^/?#]+:\d+)/(?P<name>[^/?#]+)(/(?P<version>\d{1,18}))?")
_VISIBLE = re.compile(r"[!-~]+")
_HOST = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?")
_LOOPBACK = re.compile(r"\w+://(localhost|127\.\d+\.\d+\.\d+|\[::1\])[:/]")
_ROUNDING = 1e-2  # by which a probability may exceed 1
_SMALLEST_NUMBER = 4  # bytes of a probability: in a message of gRPC, and of "0.0," in JSON
_TOO_LONG = "message larger than max"  # of gRPC, on this side
_MAX_MESSAGE = 200  # characters of a server's message that are shown

# Maps status codes to `_RefusalError.kind`.
_REST_KINDS = {
    400: "image",
    404: "unknown model",
    413: "image",
    429: "memory",
    502: "gone",
    503: "gone",
    504: "slow",
}
_GRPC_KINDS = {
    "INVALID_ARGUMENT": "image",
    "FAILED_PRECONDITION": "image",
    "NOT_FOUND": "unknown model",
    "RESOURCE_EXHAUSTED": "memory",
    "UNAVAILABLE": "gone",
    "CANCELLED": "gone",  # by a server whose threads are all busy
    "DEADLINE_EXCEEDED": "slow",
}

Tensors = Mapping[str, Any]
Value = bytes | int | np.ndarray
"""An input of a request: an encoded image, a number, or pixels uint8 [H, W, 3]."""


@dataclass(frozen=True)
class Patience:
    """Timeout and retries of requests to a server.

    Attributes:
        seconds: Timeout of one request.
        attempts: Largest number of attempts if the server is unreachable or busy (UNAVAILABLE,
            503); a rejected request is never sent again.
        first_wait: Seconds before the second attempt; each later wait is twice as long. A random
            share of up to half is added, so that clients do not retry at the same time.
    """

    seconds: float = 120.0
    attempts: int = 6
    first_wait: float = 0.25


class ServedNetwork:
    """A network on a server; several threads may call `predict` concurrently.

    Args:
        address: `http://HOST:8501/v1/models/ccfnet[/versions/N]` or
            `grpc://HOST:8500/ccfnet[/N]`.
        patience: Timeout and retries.

    Attributes:
        taxonomy: The classes, as the server names them.
        at_once: 4 requests in parallel.
        calibration: Of its probabilities and maps, as the server tells it.

    Raises:
        ConfigError: The address is not valid, tensorflow-serving-api is not installed, or the
            server does not serve a network of this package.
        ResourceError: The server does not respond.
    """

    at_once = 4

    def __init__(self, address: str, *, patience: Patience | None = None) -> None:
        self._address = address
        self._patience = patience or Patience()
        self._transport = _new_transport(address)
        try:
            told = self._ask("classes", "ask", 0)
            self.taxonomy = _taxonomy(told)
            calibration = _calibration(told, len(self.taxonomy.names))
        except DataError as error:
            raise ConfigError(
                f"{address}: does not serve a network that ccfnet-tf exported: {error}"
            ) from error
        self._tells_calibration = calibration is not None
        self.calibration = calibration or UNCALIBRATED

    def predict(self, image: np.ndarray, /) -> Maps:
        """Labels every pixel of an image.

        Args:
            image: uint8 [H, W, 3], RGB, upright.

        Raises:
            ConfigError: The model was exported by an older version.
            DataError: The server rejects the image, or its response is not valid.
            ImageTooLargeError: The image has more than `MAX_REQUEST_PIXELS` pixels, or the
                server ran out of memory.
            ResourceError: The server is unavailable, too slow or failed.
        """
        _refuse_large(image)
        tensors = self._ask("encoded", "image_bytes", _png(image))
        if "difficulty_png_bytes" in tensors and "attention_png_bytes" not in tensors:
            raise ConfigError(
                f"{self._address}: serves a model of an older version, whose `difficulty` was "
                "today's `attention`: export the run again"
            )
        size = (image.shape[0], image.shape[1])
        labels = _plane(tensors, "labels_png_bytes", size)
        if (highest := int(labels.max())) >= (classes := len(self.taxonomy.names)):
            raise DataError(f"the server returned class {highest}: there are {classes} classes")
        return Maps(labels.astype(np.int32), *(_map(tensors, name, size) for name in MAPS))

    def predict_with_probabilities(self, image: np.ndarray, /) -> Prediction:
        """Labels every pixel, with probabilities; sends two requests.

        Argument and errors as in `predict`.

        Raises:
            ConfigError: The model has no signature `probabilities`, or does not tell its
                calibration.
        """
        _refuse_large(image)
        shape = (image.shape[0], image.shape[1], len(self.taxonomy.names))
        if not self._tells_calibration:
            raise ConfigError(
                f"{self._address}: serves a model of an older version, which does not tell its "
                "calibration, which --tta needs: export the run again"
            )
        if _SMALLEST_NUMBER * math.prod(shape) > MAX_RESPONSE:
            raise _too_long("would have")
        maps = self.predict(image)
        try:
            tensors = self._ask(PROBABILITIES, "images", image)
        except DataError as error:
            if not ("signature" in str(error) and PROBABILITIES in str(error)):
                raise
            raise ConfigError(
                f"{self._address}: serves a model without the signature '{PROBABILITIES}', which "
                "--tta needs: export the run again"
            ) from error
        return with_probabilities(maps, _probabilities(tensors, shape))

    def _ask(self, signature: str, name: str, value: Value) -> Tensors:
        """Sends a request, with retries; returns the first item of every output."""
        wait = self._patience.first_wait
        for attempt in range(1, self._patience.attempts + 1):
            try:
                return self._transport.ask(signature, name, value, self._patience.seconds)
            except _RefusalError as refusal:
                if not refusal.temporary or attempt == self._patience.attempts:
                    self._give_up(refusal, attempt)
                time.sleep(wait * (1 + random.random() / 2))
                wait *= 2
        raise AssertionError("at least one attempt")

    def _give_up(self, refusal: _RefusalError, attempts: int) -> NoReturn:
        message = " ".join(str(refusal).split())[:_MAX_MESSAGE]
        if refusal.kind == "image":
            raise DataError(f"the server rejected the request: {message}") from refusal
        if refusal.kind == "memory":
            raise ImageTooLargeError(f"the server ran out of memory: {message}") from refusal
        if refusal.kind == "unknown model":
            raise ConfigError(f"{self._address}: the server does not serve this model: {message}")
        if refusal.kind == "slow":
            raise ResourceError(
                f"{self._address}: no response within {self._patience.seconds:g} s: the server is "
                "overloaded, or the image too large for it"
            ) from refusal
        attempts_text = f" after {attempts} attempts" if attempts > 1 else ""
        raise ResourceError(
            f"{self._address}: no response{attempts_text}: {message}: check that the server runs, "
            "and its address"
        ) from refusal


class _RefusalError(Exception):
    """A request failed.

    Attributes:
        kind: `gone` (unreachable or busy), `image`, `memory`, `unknown model`, `slow` or `broken`.
        temporary: Whether a retry may succeed.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.temporary = kind == "gone"


class _Transport(Protocol):
    def ask(self, signature: str, name: str, value: Value, seconds: float) -> Tensors:
        """Sends one item; returns the first item of every output, by name."""


def _new_transport(address: str) -> _Transport:
    if _has_valid_host(address):
        if _HTTP.fullmatch(address):
            return _Rest(address)
        if match := _GRPC.fullmatch(address):
            return _Grpc(address, **match.groupdict())
    raise ConfigError(
        f"'{address}' is not an address of a served network: expected {ADDRESS_FORMS}"
    )


def _has_valid_host(address: str) -> bool:
    if not _VISIBLE.fullmatch(address):
        return False
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname or "", parts.port
        if ":" in host:
            ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return port != 0 and "@" not in parts.netloc and (":" in host or bool(_HOST.fullmatch(host)))


class _Rest:
    def __init__(self, address: str) -> None:
        self._url = f"{address}:predict"
        # A proxy cannot reach this machine's loopback addresses.
        handlers = [urllib.request.ProxyHandler({})] if _LOOPBACK.match(address) else []
        self._opener = urllib.request.build_opener(*handlers)

    def ask(self, signature: str, name: str, value: Value, seconds: float) -> Tensors:
        row: Any = value
        if isinstance(value, bytes):
            row = {"b64": base64.b64encode(value).decode()}
        elif isinstance(value, np.ndarray):
            row = value.tolist()
        body = json.dumps({"signature_name": signature, "instances": [row]}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        return _first_row(self._send(request, seconds), signature)

    def _send(self, request: urllib.request.Request, seconds: float) -> bytes:
        try:
            with self._opener.open(request, timeout=seconds) as response:
                return _read(response, time.monotonic() + seconds)
        except urllib.error.HTTPError as error:
            with error:
                self._refuse(error)
        except TimeoutError as error:
            raise _RefusalError("slow", str(error)) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _RefusalError("slow", str(reason)) from error
            if (
                type(reason) is http.client.BadStatusLine
            ):  # not its subclass for a closed connection
                message = "the server does not speak HTTP: is this its gRPC port?"
                raise _RefusalError("broken", message) from error
            raise _RefusalError("gone", str(reason) or type(reason).__name__) from error

    def _refuse(self, error: urllib.error.HTTPError) -> NoReturn:
        try:
            message = error.read(1 << 16).decode("utf-8", "replace")
            message = str(json.loads(message)["error"])
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            message = f"HTTP {error.code} {error.reason}"
        raise _RefusalError(_REST_KINDS.get(error.code, "broken"), message) from error


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Reads a response up to a deadline, even if the server sends a byte now and then."""
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MAX_RESPONSE:
            raise _too_long(fix=", or use the grpc:// address, which takes fewer bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    # read1 does not report a connection that ended early.
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _first_row(content: bytes, signature: str) -> Tensors:
    try:
        (row,) = json.loads(content)["predictions"]
        if isinstance(row, list):  # a single output has no name; here that of its signature
            return {signature: row}
        return {str(name): _from_json(value) for name, value in row.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError("the server's response is not a response of TensorFlow Serving") from error


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["b64"], validate=True)
    return value


class _Grpc:
    def __init__(self, address: str, host: str, name: str, version: str | None) -> None:
        start_tensorflow()  # the messages contain TensorFlow's
        try:
            import grpc
            from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
        except ImportError as error:
            raise ConfigError(
                f"{address}: gRPC needs tensorflow-serving-api: pip install 'ccfnet-tf[serving]', "
                "or give the http address"
            ) from error
        self._error = grpc.RpcError
        self._request = predict_pb2.PredictRequest
        self._name, self._version = name, version
        options = [
            ("grpc.max_receive_message_length", MAX_RESPONSE),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.enable_http_proxy", int(not _LOOPBACK.match(address))),
        ]
        channel = grpc.insecure_channel(host, options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def ask(self, signature: str, name: str, value: Value, seconds: float) -> Tensors:
        import tensorflow as tf

        request = self._request()
        request.model_spec.name = self._name
        request.model_spec.signature_name = signature
        if self._version is not None:
            request.model_spec.version.value = int(self._version)
        kinds = {bytes: np.object_, int: np.int32}
        batch: np.ndarray = np.array([value], kinds.get(type(value), np.uint8))
        request.inputs[name].CopyFrom(tf.make_tensor_proto(batch))
        try:
            response = self._stub.Predict(request, timeout=seconds)
        except self._error as error:
            if _TOO_LONG in str(error.details()):
                raise _too_long() from error
            what = _GRPC_KINDS.get(error.code().name, "broken")
            raise _RefusalError(what, f"{error.code().name}: {error.details()}") from error
        try:
            return {each: to_array(proto)[0] for each, proto in response.outputs.items()}
        except (ValueError, IndexError) as error:
            raise DataError(f"the server's response is not valid ({error})") from error


def _too_long(verb: str = "has", fix: str = "") -> DataError:
    return DataError(
        f"the server's response {verb} more than {MAX_RESPONSE} bytes: predict the image in tiles "
        f"(--tile 512){fix}"
    )


def _refuse_large(image: np.ndarray) -> None:
    refuse_no_image(image)
    height, width = image.shape[:2]
    if height * width > MAX_REQUEST_PIXELS:
        raise ImageTooLargeError(
            f"an image of {width}x{height} pixels: a server accepts at most "
            f"{MAX_REQUEST_PIXELS}: shrink it, or split it into tiles"
        )


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()


def _plane(tensors: Tensors, name: str, size: tuple[int, int]) -> np.ndarray:
    """Decodes a PNG to [H, W], uint8 or uint16; its size is checked before decoding."""
    if not isinstance(content := tensors.get(name), bytes):
        raise DataError(f"the server's response has no '{name}'")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as png:
            height, width = png.height, png.width
            if (height, width) != size:
                raise DataError(
                    f"the server's '{name}' has {height}x{width} pixels: the image has "
                    f"{size[0]}x{size[1]}"
                )
            plane = np.array(png)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"the server's '{name}' is not a PNG, or is damaged") from error
    if plane.ndim != 2 or plane.dtype not in (np.uint8, np.uint16):
        raise DataError(f"the server's '{name}' is not a greyscale PNG")
    return plane


def _map(tensors: Tensors, name: str, size: tuple[int, int]) -> np.ndarray:
    """Decodes one of the three maps to float32 [H, W], 0..1."""
    plane = _plane(tensors, f"{name}_png_bytes", size)
    if plane.dtype != np.uint8:
        raise DataError(f"the server returned {name} of 16 bits: expected 8")
    return plane.astype(np.float32) / np.float32(LEVELS)


def _probabilities(tensors: Tensors, shape: tuple[int, ...]) -> np.ndarray:
    """Returns probabilities float32 [H, W, C]; raises DataError."""
    try:
        values = np.asarray(tensors[PROBABILITIES], np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the server's response has no '{PROBABILITIES}'") from error
    if values.shape != shape:
        raise DataError(
            f"the server's '{PROBABILITIES}' have shape {list(values.shape)}: expected "
            f"{list(shape)}"
        )
    if not 0 <= values.min() <= values.max() <= 1 + _ROUNDING:  # true for NaN too
        raise DataError(f"the server returned {PROBABILITIES} outside 0..1")
    return values


def _taxonomy(tensors: Tensors) -> Taxonomy:
    try:
        names = tuple(_text(name) for name in _listed(tensors["names"]))
        palette = np.asarray(tensors["palette"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("its response contains no class names and colours") from error
    if not names or palette.shape != (len(names), 3) or palette.dtype.kind not in "iu":
        raise DataError(
            f"it returns {len(names)} class names and colours of shape {list(palette.shape)}"
        )
    if palette.min() < 0 or palette.max() > LEVELS:
        raise DataError("it returns colours outside 0..255")
    colours = tuple((int(red), int(green), int(blue)) for red, green, blue in palette)
    return Taxonomy(names, colours)


def _calibration(tensors: Tensors, classes: int) -> Calibration | None:
    """Returns what was fitted; None if the server does not tell it, as one of an older version."""
    if "calibration" not in tensors:
        return None
    try:
        return parse_calibration(json.loads(_text(tensors["calibration"])), classes)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"it returns no valid calibration ({first_line(error)})") from error


def _listed(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | np.ndarray):
        raise TypeError
    return list(value)


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


__all__ = ["ADDRESS_FORMS", "MAX_RESPONSE", "Patience", "ServedNetwork"]
