"""A network behind TensorFlow Serving's REST or gRPC API.

    http://HOST:8501/v1/models/ccfnet[/versions/N]     no TensorFlow needed here
    grpc://HOST:8500/ccfnet[/N]                        needs tensorflow-serving-api

An image travels as a PNG, which keeps every pixel, to the signature `encoded`; class names and
colours come from the signature `classes`. What comes back is not trusted.
"""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import json
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

from ccfnet_tf.errors import ConfigError, DataError, ResourceError
from ccfnet_tf.inference.segmenter import Maps, PictureTooLargeError, refuse_no_picture
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runtimes.manifest import LEVELS, MAX_REQUEST_PIXELS
from ccfnet_tf.runtimes.tensor_proto import to_array

MAX_ANSWER = 1 << 28
"""Bytes of an answer; more is not read."""

FORMS = (
    "http://HOST:8501/v1/models/NAME[/versions/N] or grpc://HOST:8500/NAME[/N], in ASCII, N of at "
    "most 18 digits"
)

_HTTP = re.compile(r"https?://[^/?#]+(/[^?#]*)?/v1/models/[^/?#:]+(/versions/\d{1,18})?")
_GRPC = re.compile(r"grpc://(?P<host>[^/?#]+:\d+)/(?P<name>[^/?#]+)(/(?P<version>\d{1,18}))?")
_VISIBLE = re.compile(r"[!-~]+")
_HOST = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?")
_LOOPBACK = re.compile(r"\w+://(localhost|127\.\d+\.\d+\.\d+|\[::1\])[:/]")
_SAID = 200  # letters of a server's message that are shown

# What a status means, in the words of `_RefusalError`.
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
    "CANCELLED": "gone",  # by a server whose threads are all taken
    "DEADLINE_EXCEEDED": "slow",
}

Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        seconds: For one answer.
        attempts: How often a request is sent to a server that is not there, or says that it is
            busy (UNAVAILABLE, 503); a wrong request is never sent again.
        first_wait: Seconds before the second attempt; each later wait is twice the one before,
            and up to half of it more by chance, so that clients do not return all at once.
    """

    seconds: float = 120.0
    attempts: int = 6
    first_wait: float = 0.25


class ServedNetwork:
    """A network on a server; `predict` may be called by several threads.

    Args:
        address: `http://HOST:8501/v1/models/ccfnet[/versions/N]` or
            `grpc://HOST:8500/ccfnet[/N]`.
        patience: How long to wait, and how often to try.

    Attributes:
        taxonomy: The classes, as the server names them.
        at_once: 4 requests in parallel.

    Raises:
        ConfigError: The address has another form, tensorflow-serving-api is missing, or what
            answers there is no network of this package.
        ResourceError: No server answers.
    """

    at_once = 4

    def __init__(self, address: str, *, patience: Patience | None = None) -> None:
        self._address = address
        self._patience = patience or Patience()
        self._face = _face(address)
        try:
            self.taxonomy = _taxonomy(self._ask("classes", "ask", 0))
        except DataError as error:
            raise ConfigError(
                f"{address}: no network that ccfnet-tf exported answers there: {error}"
            ) from error

    def predict(self, image: np.ndarray, /) -> Maps:
        """Labels every pixel of an image.

        Args:
            image: uint8 [H, W, 3], RGB, upright.

        Raises:
            DataError: The server refuses the image, or its answer is not one.
            PictureTooLargeError: It has more than `MAX_REQUEST_PIXELS`, or the server's memory ran
                out.
            ResourceError: The server is gone, too slow or broken.
        """
        _refuse_large(image)
        answer = self._ask("encoded", "image_bytes", _png(image))
        size = (image.shape[0], image.shape[1])
        labels = _plane(answer, "labels_png_bytes", size)
        if (highest := int(labels.max())) >= (classes := len(self.taxonomy.names)):
            raise DataError(f"the server answered class {highest}: there are {classes} classes")
        difficulty = _plane(answer, "difficulty_png_bytes", size)
        if difficulty.dtype != np.uint8:
            raise DataError("the server answered a difficulty of 16 bits: expected 8")
        return Maps(labels.astype(np.int32), difficulty.astype(np.float32) / np.float32(LEVELS))

    def _ask(self, signature: str, name: str, value: bytes | int) -> Tensors:
        """Returns the first item of every output."""
        wait = self._patience.first_wait
        for attempt in range(1, self._patience.attempts + 1):
            try:
                return self._face.ask(signature, name, value, self._patience.seconds)
            except _RefusalError as refusal:
                if not refusal.passing or attempt == self._patience.attempts:
                    self._give_up(refusal, attempt)
                time.sleep(wait * (1 + random.random() / 2))
                wait *= 2
        raise AssertionError("at least one attempt")

    def _give_up(self, refusal: _RefusalError, attempts: int) -> NoReturn:
        said = " ".join(str(refusal).split())[:_SAID]
        if refusal.kind == "image":
            raise DataError(f"the server refused it: {said}") from refusal
        if refusal.kind == "memory":
            raise PictureTooLargeError(f"the server's memory ran out on it: {said}") from refusal
        if refusal.kind == "unknown model":
            raise ConfigError(f"{self._address}: the server knows no such model: {said}")
        if refusal.kind == "slow":
            raise ResourceError(
                f"{self._address}: no answer within {self._patience.seconds:g} s: the server is "
                "overloaded, or the image too large for it"
            ) from refusal
        tried = f" after {attempts} attempts" if attempts > 1 else ""
        raise ResourceError(f"{self._address}: no answer{tried}: {said}") from refusal


class _RefusalError(Exception):
    """Why a server did not answer.

    Attributes:
        kind: `gone` (not there, or busy), `picture`, `memory`, `unknown model`, `slow`, `broken`.
        passing: Whether the same request may be answered a little later.
    """

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(said)
        self.kind = kind
        self.passing = kind == "gone"


class _Face(Protocol):
    def ask(self, signature: str, name: str, value: bytes | int, seconds: float) -> Tensors:
        """Sends one item; returns the first item of every output, by name."""


def _face(address: str) -> _Face:
    if _names_a_host(address):
        if _HTTP.fullmatch(address):
            return _Rest(address)
        if found := _GRPC.fullmatch(address):
            return _Grpc(address, **found.groupdict())
    raise ConfigError(f"'{address}' is not an address of a served network: expected {FORMS}")


def _names_a_host(address: str) -> bool:
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
        # A proxy cannot reach this machine's own addresses.
        own = [urllib.request.ProxyHandler({})] if _LOOPBACK.match(address) else []
        self._opener = urllib.request.build_opener(*own)

    def ask(self, signature: str, name: str, value: bytes | int, seconds: float) -> Tensors:
        row: Any = value
        if isinstance(value, bytes):
            row = {"b64": base64.b64encode(value).decode()}
        body = json.dumps({"signature_name": signature, "instances": [row]}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        return _first_row(self._send(request, seconds))

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
            if type(reason) is http.client.BadStatusLine:  # not its kind for a closed connection
                said = "it does not speak HTTP: is this its gRPC port?"
                raise _RefusalError("broken", said) from error
            raise _RefusalError("gone", str(reason) or type(reason).__name__) from error

    def _refuse(self, error: urllib.error.HTTPError) -> NoReturn:
        try:
            said = error.read(1 << 16).decode("utf-8", "replace")
            said = str(json.loads(said)["error"])
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            said = f"HTTP {error.code} {error.reason}"
        raise _RefusalError(_REST_KINDS.get(error.code, "broken"), said) from error


def _read(response: http.client.HTTPResponse, until: float) -> bytes:
    """Reads an answer; a server that sends a byte now and then does not hold us for ever."""
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER:
            raise DataError(f"the server's answer has more than {MAX_ANSWER} bytes")
        if time.monotonic() > until:
            raise TimeoutError
    # read1 does not say that the connection ended early.
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _first_row(content: bytes) -> Tensors:
    try:
        (row,) = json.loads(content)["predictions"]
        return {str(name): _from_json(value) for name, value in row.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError("the server's answer is not an answer of TensorFlow Serving") from error


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["b64"], validate=True)
    return value


class _Grpc:
    def __init__(self, address: str, host: str, name: str, version: str | None) -> None:
        start_tensorflow()  # the messages are TensorFlow's
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
            ("grpc.max_receive_message_length", MAX_ANSWER),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.enable_http_proxy", int(not _LOOPBACK.match(address))),
        ]
        channel = grpc.insecure_channel(host, options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def ask(self, signature: str, name: str, value: bytes | int, seconds: float) -> Tensors:
        import tensorflow as tf

        request = self._request()
        request.model_spec.name = self._name
        request.model_spec.signature_name = signature
        if self._version is not None:
            request.model_spec.version.value = int(self._version)
        kind = tf.string if isinstance(value, bytes) else tf.int32
        request.inputs[name].CopyFrom(tf.make_tensor_proto([value], kind))
        try:
            response = self._stub.Predict(request, timeout=seconds)
        except self._error as error:
            what = _GRPC_KINDS.get(error.code().name, "broken")
            raise _RefusalError(what, f"{error.code().name}: {error.details()}") from error
        try:
            return {each: to_array(proto)[0] for each, proto in response.outputs.items()}
        except (ValueError, IndexError) as error:
            raise DataError(f"the server's answer is not understood ({error})") from error


def _refuse_large(image: np.ndarray) -> None:
    refuse_no_picture(image)
    height, width = image.shape[:2]
    if height * width > MAX_REQUEST_PIXELS:
        raise PictureTooLargeError(
            f"an image of {width}x{height} pixels: a server takes at most "
            f"{MAX_REQUEST_PIXELS}: make it smaller, or cut it into parts"
        )


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()


def _plane(answer: Tensors, name: str, size: tuple[int, int]) -> np.ndarray:
    """Returns [H, W] of a PNG, uint8 or uint16; its size is looked at before it is decoded."""
    if not isinstance(content := answer.get(name), bytes):
        raise DataError(f"the server's answer has no '{name}'")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            height, width = picture.height, picture.width
            if (height, width) != size:
                raise DataError(
                    f"the server's '{name}' has {height}x{width} pixels: the image has "
                    f"{size[0]}x{size[1]}"
                )
            plane = np.array(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"the server's '{name}' is no PNG, or damaged") from error
    if plane.ndim != 2 or plane.dtype not in (np.uint8, np.uint16):
        raise DataError(f"the server's '{name}' is a PNG of another kind than grey")
    return plane


def _taxonomy(answer: Tensors) -> Taxonomy:
    try:
        names = tuple(_text(name) for name in _listed(answer["names"]))
        palette = np.asarray(answer["palette"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("its answer holds no class names and colours") from error
    if not names or palette.shape != (len(names), 3) or palette.dtype.kind not in "iu":
        raise DataError(f"it names {len(names)} classes, and colours {list(palette.shape)}")
    if palette.min() < 0 or palette.max() > LEVELS:
        raise DataError("it gives colours outside 0..255")
    colours = tuple((int(red), int(green), int(blue)) for red, green, blue in palette)
    return Taxonomy(names, colours)


def _listed(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | np.ndarray):
        raise TypeError
    return list(value)


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


__all__ = ["FORMS", "MAX_ANSWER", "Patience", "ServedNetwork"]
