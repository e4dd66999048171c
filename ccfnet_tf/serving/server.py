"""`ccfnet-tf serve`: a server for development, with the REST and gRPC APIs of TensorFlow Serving.

No batching, no reloading, no encryption: what serves others is TensorFlow Serving itself.
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
"""What clients call the model."""

_AWAKE = 0.2
"""Seconds after which the main thread looks for signals: the system may deliver one to a thread of
TensorFlow or gRPC, which does not wake the main thread, where alone Python runs handlers."""


class DevelopmentServer:
    """Serves one model until closed; `with` closes it.

    Args:
        folder: The folder of versions, or of one version.
        host: Address to listen on.
        rest_port: Port of the REST API; 0 is any free one.
        grpc_port: Port of the gRPC API; 0 is any free one.
        name: What clients call the model.
        max_pixels: Most pixels of a request, and of all that are computed at a time.

    Attributes:
        rest: Address of the model for `ServedNetwork`, by REST.
        grpc: The same, by gRPC.

    Raises:
        ConfigError: A port is in use, or tensorflow-serving-api is missing.
        RunError: The folder holds no artifact, or a damaged one.
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
        new_grpc_server = _grpc_face()
        try:
            self._rest = RestServer((host, rest_port))
        except OSError as error:
            raise _taken("--rest-port", rest_port, host, error) from error
        try:
            self._model = Model(folder, name, max_pixels)
            self._grpc = _bound(new_grpc_server, self._model, host, grpc_port)
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
        """Of the model."""
        return self._model.version

    def close(self) -> None:
        """Ends both faces; what was read is answered, and clients have the grace for all else."""
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
    """Serves until SIGINT or SIGTERM; a second one does not wait for what is being answered.

    Raises:
        ConfigError: A port is in use, or tensorflow-serving-api is missing.
        RunError: The folder holds no artifact, or a damaged one.
    """
    told = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if told.is_set():
            os._exit(128 + number)
        told.set()

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with DevelopmentServer(
            folder, host=host, rest_port=rest_port, grpc_port=grpc_port, max_pixels=max_pixels
        ) as server:
            console.print("a server for development; use TensorFlow Serving to serve others")
            for address in (server.rest, server.grpc):
                console.print(f"version {server.version}: {address}", soft_wrap=True)
            while not told.wait(_AWAKE):
                pass
        console.print("stopped")
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _grpc_face() -> Any:
    try:
        from ccfnet_tf.serving.grpc_server import new_grpc_server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("tensorflow_serving", "grpc"):
            raise
        raise ConfigError(
            "serve needs tensorflow-serving-api: pip install 'ccfnet-tf[serving]'"
        ) from error
    return new_grpc_server


def _bound(new_grpc_server: Any, model: Model, host: str, port: int) -> Any:
    try:
        return new_grpc_server(model, host, port)
    except OSError as error:
        model.close()
        raise _taken("--grpc-port", port, host, error) from error


def _taken(option: str, port: int, host: str, error: OSError) -> ConfigError:
    reason = error.strerror or "already in use"
    return ConfigError(f"{option} {port}: cannot listen on {host} ({reason}): give another port")
