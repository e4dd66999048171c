"""`ccfnet-tf serve`: a development server with the REST and gRPC APIs of TensorFlow Serving.

It does not batch, reload or encrypt: use TensorFlow Serving in production.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.serving.admission import DEFAULT_MAX_PIXELS
from ccfnet_tf.serving.model import Model
from ccfnet_tf.serving.rest_server import RestServer

NAME = "ccfnet"
"""Name of the model for clients."""

_SIGNAL_CHECK_SECONDS = 0.2
"""Seconds between checks for signals in the main thread. Python runs handlers only there, and a
signal that the system delivers to a thread of TensorFlow or gRPC does not wake it."""


class DevelopmentServer:
    """Serves one model until it is closed; a context manager.

    Args:
        folder: The folder of versions, or of one version.
        host: Address to listen on.
        rest_port: Port of the REST API; 0 selects a free one.
        grpc_port: Port of the gRPC API; 0 selects a free one.
        name: Name of the model for clients.
        max_pixels: Most pixels of a request, and of all concurrent requests.

    Attributes:
        rest: Address of the model for `ServedNetwork`, with REST.
        grpc: Address of the model for `ServedNetwork`, with gRPC.

    Raises:
        ConfigError: A port is in use, or tensorflow-serving-api is not installed.
        RunError: The folder does not contain an artifact, or it is damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: str,
        rest_port: int,
        grpc_port: int,
        name: str = NAME,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        new_grpc_server = _import_grpc_server()
        try:
            self._rest = RestServer((host, rest_port))
        except OSError as error:
            raise _port_error("--rest-port", rest_port, host, error) from error
        try:
            self._model = Model(folder, name, max_pixels)
            self._grpc = _bind_grpc(new_grpc_server, self._model, host, grpc_port)
        except BaseException:
            self._rest.server_close()
            raise
        self._rest.model = self._model
        self.rest = f"http://{host}:{self._rest.server_address[1]}/v1/models/{name}"
        self.grpc = f"grpc://{host}:{self._grpc.port}/{name}"
        self._rest.server_activate()
        self._grpc.start()
        self._thread = threading.Thread(target=self._rest.serve_forever, name="rest")
        self._thread.start()

    def __enter__(self) -> DevelopmentServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def version(self) -> int:
        """Version of the model."""
        return self._model.version

    def close(self) -> None:
        """Stops both servers; received requests are answered, others have `GRACE` seconds."""
        grpc_ended = self._grpc.stop()
        self._rest.shutdown()
        self._thread.join()
        self._rest.server_close()
        self._grpc.drain(grpc_ended)
        self._model.close()


def serve(
    folder: Path,
    *,
    host: str,
    rest_port: int,
    grpc_port: int,
    console: Console,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> None:
    """Serves until SIGINT or SIGTERM; a second signal ends the process without waiting.

    Raises:
        ConfigError: A port is in use, or tensorflow-serving-api is not installed.
        RunError: The folder does not contain an artifact, or it is damaged.
    """
    stopping = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    previous = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with DevelopmentServer(
            folder, host=host, rest_port=rest_port, grpc_port=grpc_port, max_pixels=max_pixels
        ) as server:
            console.print("a development server; use TensorFlow Serving in production")
            for address in (server.rest, server.grpc):
                console.print(f"version {server.version}: {address}", soft_wrap=True)
            while not stopping.wait(_SIGNAL_CHECK_SECONDS):
                pass
        console.print("stopped")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _import_grpc_server() -> Any:
    try:
        from ccfnet_tf.serving.grpc_server import new_grpc_server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("tensorflow_serving", "grpc"):
            raise
        raise ConfigError(
            "serve needs tensorflow-serving-api: pip install 'ccfnet-tf[serving]'"
        ) from error
    return new_grpc_server


def _bind_grpc(new_grpc_server: Any, model: Model, host: str, port: int) -> Any:
    try:
        return new_grpc_server(model, host, port)
    except OSError as error:
        model.close()
        raise _port_error("--grpc-port", port, host, error) from error


def _port_error(option: str, port: int, host: str, error: OSError) -> ConfigError:
    reason = error.strerror or "already in use"
    return ConfigError(f"{option} {port}: cannot listen on {host} ({reason}): give another port")
