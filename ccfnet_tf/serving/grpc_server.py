"""The gRPC server: `PredictionService` with Predict and GetModelMetadata."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from ccfnet_tf.runtimes.read_tensor_proto import to_array
from ccfnet_tf.serving.metadata import FIELD, metadata
from ccfnet_tf.serving.model import DEFAULT, Model, RequestError, as_refusal
from ccfnet_tf.serving.rest_server import CONNECTIONS, GRACE, MAX_BODY, SECONDS, THREADS

ARRIVAL = 10.0
"""Most seconds for receiving a call's message while all threads are busy; otherwise `SECONDS`.
gRPC does not report how much was received, so this cannot be a rate as for REST."""

AGE = 5.0
"""Seconds after which a connection accepts no more calls and is closed after its current ones;
clients reconnect automatically."""

IDLE = 8.0
"""Seconds after which an idle connection is closed if its client did not close it after `AGE`."""

KEEPALIVE = 30.0
"""Seconds after which a keepalive ping is sent on a silent connection."""

HANDSHAKE = 5.0
"""Most seconds for the HTTP/2 handshake of a connection."""

_LONG = 1e6  # seconds: running calls are completed, regardless of their duration


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Serves gRPC requests with a model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._counting = threading.Lock()
        self._running = 0
        self._idle_since = time.monotonic()

    def idle_for(self) -> float:
        """Returns the seconds since the last running request ended; 0 while one is running."""
        with self._counting:
            return 0.0 if self._running else time.monotonic() - self._idle_since

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._counting:
            self._running += 1
        try:
            yield
        finally:
            with self._counting:
                self._running -= 1
                self._idle_since = time.monotonic()

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Runs the signature of the request, by default `serving_default`."""
        try:
            with self._counted():
                self._refuse_other(request.model_spec)
                return self._predict(request)
        except Exception as error:
            refusal = as_refusal(error)
            context.abort(grpc.StatusCode[refusal.status], str(refusal))

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Returns the signatures."""
        try:
            self._refuse_other(request.model_spec)
        except RequestError as error:
            context.abort(grpc.StatusCode[error.status], str(error))
        if list(request.metadata_field) != [FIELD]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"metadata_field: expected {FIELD}")
        return metadata(self._model)

    def _refuse_other(self, spec: Any) -> None:
        version = spec.version.value if spec.HasField("version") else None
        self._model.refuse_other(spec.name, version)

    def _predict(self, request: Any) -> Any:
        name = request.model_spec.signature_name or DEFAULT
        inputs = {key: _array(key, proto) for key, proto in request.inputs.items()}
        outputs = self._model.predict(name, inputs)
        selected = set(request.output_filter) or set(outputs)
        if unknown := selected - set(outputs):
            raise RequestError("INVALID_ARGUMENT", f"output_filter: no output {sorted(unknown)}")
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self._model.name
        response.model_spec.signature_name = name
        response.model_spec.version.value = self._model.version
        for key in selected:
            response.outputs[key].CopyFrom(tf.make_tensor_proto(outputs[key]))
        return response


class _ArrivalLimit(grpc.ServerInterceptor):
    """Cancels calls whose message does not arrive: each of them occupies a thread of gRPC."""

    def __init__(self) -> None:
        self._counting = threading.Lock()
        self._threads = 0  # occupied by calls

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Wraps a method so that it reads its message itself, with a time limit."""
        handler, began = continuation(details), time.monotonic()
        if handler is None or handler.unary_unary is None:
            return handler

        def answer(messages: Iterator[Any], context: Any) -> Any:
            with self._thread_counted():
                arrived = threading.Event()
                watch = (arrived, began, context)
                threading.Thread(target=self._watch, args=watch, daemon=True).start()
                try:
                    message = next(messages, None)
                finally:
                    arrived.set()
                if message is None:
                    context.abort(grpc.StatusCode.UNIMPLEMENTED, "expected a message")
                return handler.unary_unary(message, context)

        return grpc.stream_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )

    @contextmanager
    def _thread_counted(self) -> Iterator[None]:
        with self._counting:
            self._threads += 1
        try:
            yield
        finally:
            with self._counting:
                self._threads -= 1

    def _watch(self, arrived: threading.Event, began: float, context: Any) -> None:
        """Cancels a call if its message has not arrived within the time limit."""
        while not arrived.wait(0.5):
            limit = ARRIVAL if self._threads >= THREADS else SECONDS
            if time.monotonic() > began + limit:
                context.cancel()
                return


class GrpcServer:
    """A server that completes running requests before it stops.

    Args:
        server: The server object of gRPC.
        service: The service that runs requests.
        port: Port that the server listens on.

    Attributes:
        port: Port that the server listens on.
    """

    def __init__(self, server: Any, service: PredictionService, port: int) -> None:
        self._server, self._service = server, service
        self._stopped = 0.0
        self.port = port

    def start(self) -> None:
        """Starts to accept requests."""
        self._server.start()

    def stop(self) -> Any:
        """Stops accepting requests; returns an event that is set when all have ended."""
        self._stopped = time.monotonic()
        return self._server.stop(_LONG)

    def drain(self, ended: Any) -> None:
        """Waits for running requests; cancels those that are sent or received after `GRACE`."""
        while not ended.wait(0.05):
            if min(self._service.idle_for(), time.monotonic() - self._stopped) > GRACE:
                self._server.stop(None)


def new_grpc_server(model: Model, host: str, port: int) -> GrpcServer:
    """Returns a server that is not started yet.

    Raises:
        OSError: The port is in use.
    """
    options = [
        ("grpc.max_receive_message_length", MAX_BODY),
        ("grpc.max_send_message_length", -1),
        (
            "grpc.so_reuseport",
            0,
        ),  # otherwise a second server on the port would get half of the requests
        ("grpc.max_concurrent_streams", THREADS),  # per connection; further calls wait
        ("grpc.max_allowed_incoming_connections", CONNECTIONS),
        ("grpc.max_connection_age_ms", round(1000 * AGE)),
        ("grpc.max_connection_idle_ms", round(1000 * IDLE)),
        ("grpc.server_handshake_timeout_ms", round(1000 * HANDSHAKE)),
        # Calls of clients that disappeared without closing the connection end.
        ("grpc.keepalive_time_ms", round(1000 * KEEPALIVE)),
        ("grpc.keepalive_timeout_ms", round(1000 * HANDSHAKE)),
    ]
    pool = ThreadPoolExecutor(THREADS, "grpc")
    server = grpc.server(pool, interceptors=[_ArrivalLimit()], options=options)
    service = PredictionService(model)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    try:
        return GrpcServer(server, service, server.add_insecure_port(f"{host}:{port}"))
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _array(name: str, proto: Any) -> Any:
    try:
        return to_array(proto)
    except ValueError as error:
        raise RequestError(
            "INVALID_ARGUMENT", f"'{name}' is not a valid tensor: {error}"
        ) from error
