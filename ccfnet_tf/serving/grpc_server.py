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

from ccfnet_tf.runtimes.tensor_proto import to_array
from ccfnet_tf.serving.metadata import FIELD, metadata
from ccfnet_tf.serving.model import DEFAULT, Model, RequestError, as_refusal
from ccfnet_tf.serving.rest_server import CONNECTIONS, GRACE, MAX_BODY, SECONDS, THREADS

ARRIVAL = 10.0
"""Seconds for a call's message to arrive whole while every thread is taken; else it has `SECONDS`.
gRPC does not show how much of it has come, so it cannot be a rate as for REST."""

AGE = 5.0
"""Seconds after which a connection takes no more calls, and ends with those that it has; clients
connect again by themselves."""

IDLE = 8.0
"""Seconds after which a connection without a call is closed whose client did not heed that."""

KEEPALIVE = 30.0
"""Seconds after which a silent connection is asked whether its client is there."""

HANDSHAKE = 5.0
"""Seconds for a connection to begin as HTTP/2 does."""

_LONG = 1e6  # seconds: what is answered is answered, however long it takes


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers gRPC requests by a model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._counting = threading.Lock()
        self._answering = 0
        self._idle_since = time.monotonic()

    def idle_for(self) -> float:
        """Returns for how many seconds nothing is being answered; 0 while something is."""
        with self._counting:
            return 0.0 if self._answering else time.monotonic() - self._idle_since

    @contextmanager
    def _answered(self) -> Iterator[None]:
        with self._counting:
            self._answering += 1
        try:
            yield
        finally:
            with self._counting:
                self._answering -= 1
                self._idle_since = time.monotonic()

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answers by the signature that is named, else by `serving_default`."""
        try:
            with self._answered():
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
        outputs = self._model.answer(name, inputs)
        wanted = set(request.output_filter) or set(outputs)
        if unknown := wanted - set(outputs):
            raise RequestError("INVALID_ARGUMENT", f"output_filter: no output {sorted(unknown)}")
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self._model.name
        response.model_spec.signature_name = name
        response.model_spec.version.value = self._model.version
        for key in wanted:
            response.outputs[key].CopyFrom(tf.make_tensor_proto(outputs[key]))
        return response


class _Arrivals(grpc.ServerInterceptor):
    """Ends calls whose message does not arrive: gRPC gives each of them a thread to wait in."""

    def __init__(self) -> None:
        self._counting = threading.Lock()
        self._threads = 0  # that are taken by calls

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Returns the method as one that reads its message itself, in time."""
        handler, began = continuation(details), time.monotonic()
        if handler is None or handler.unary_unary is None:
            return handler

        def answer(messages: Iterator[Any], context: Any) -> Any:
            with self._thread_taken():
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
    def _thread_taken(self) -> Iterator[None]:
        with self._counting:
            self._threads += 1
        try:
            yield
        finally:
            with self._counting:
                self._threads -= 1

    def _watch(self, arrived: threading.Event, began: float, context: Any) -> None:
        """Cancels a call that began then, and whose message takes too long."""
        while not arrived.wait(0.5):
            limit = ARRIVAL if self._threads >= THREADS else SECONDS
            if time.monotonic() > began + limit:
                context.cancel()
                return


class GrpcServer:
    """A server that answers what it has read before it ends.

    Args:
        server: gRPC's own.
        service: What answers.
        port: Where it listens.

    Attributes:
        port: The same.
    """

    def __init__(self, server: Any, service: PredictionService, port: int) -> None:
        self._server, self._service = server, service
        self._stopped = 0.0
        self.port = port

    def start(self) -> None:
        """Takes requests."""
        self._server.start()

    def stop(self) -> Any:
        """Takes no more requests; returns an event that is set when all have ended."""
        self._stopped = time.monotonic()
        return self._server.stop(_LONG)

    def drain(self, ended: Any) -> None:
        """Waits for what is answered; clients that still send or receive have the grace."""
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
        ("grpc.so_reuseport", 0),  # else a second server takes half of the requests
        ("grpc.max_concurrent_streams", THREADS),  # of a connection; its other calls wait
        ("grpc.max_allowed_incoming_connections", CONNECTIONS),
        ("grpc.max_connection_age_ms", round(1000 * AGE)),
        ("grpc.max_connection_idle_ms", round(1000 * IDLE)),
        ("grpc.server_handshake_timeout_ms", round(1000 * HANDSHAKE)),
        # A client that is gone without a word is noticed, and its calls end.
        ("grpc.keepalive_time_ms", round(1000 * KEEPALIVE)),
        ("grpc.keepalive_timeout_ms", round(1000 * HANDSHAKE)),
    ]
    pool = ThreadPoolExecutor(THREADS, "grpc")
    server = grpc.server(pool, interceptors=[_Arrivals()], options=options)
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
        raise RequestError("INVALID_ARGUMENT", f"'{name}': no tensor: {error}") from error
