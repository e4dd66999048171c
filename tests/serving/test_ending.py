"""A server that is told to end answers what it has read, on both faces."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ccfnet_tf.artifacts.client import Patience, ServedNetwork
from ccfnet_tf.serving import grpc_face, rest
from ccfnet_tf.serving.model import Model
from ccfnet_tf.serving.server import DevelopmentServer
from tests.serving.served import Exported, Process, picture, same
from tests.serving.test_server import BEGUN, trickling

ONCE = Patience(60.0, 1, 0.0)


def test_what_is_being_answered_is_answered(process: Process, exported: Exported) -> None:
    image = picture(1500, 1400)  # takes seconds
    networks = [ServedNetwork(address, patience=ONCE) for address in (process.rest, process.grpc)]
    with trickling(process.rest, BEGUN), ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(network.predict, image) for network in networks]
        time.sleep(1.5)
        process.process.send_signal(signal.SIGTERM)
        assert all(same(each.result(), exported, image) for each in answers)
    assert process.process.wait(timeout=60) == 0


def test_answers_that_take_longer_than_the_grace(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, real = threading.Semaphore(0), Model.answer

    def slow(self: Model, name: str, inputs: Any) -> Any:
        if name == "serving_default":
            begun.release()
            time.sleep(2.0)
        return real(self, name, inputs)

    monkeypatch.setattr(rest, "GRACE", 0.3)
    monkeypatch.setattr(grpc_face, "GRACE", 0.3)
    monkeypatch.setattr(Model, "answer", slow)
    server = DevelopmentServer(exported.folder, host="127.0.0.1", rest_port=0, grpc_port=0)
    image = picture(33, 40)
    with ThreadPoolExecutor(4) as pool:
        networks = [ServedNetwork(each, patience=ONCE) for each in (server.rest, server.grpc)]
        for network in networks:  # which asks for names first
            assert network.taxonomy
        answers = [pool.submit(_direct, each, image) for each in (server.rest, server.grpc)]
        for _ in answers:
            assert begun.acquire(timeout=30)
        with trickling(server.rest, BEGUN):
            server.close()
        assert [each.result(timeout=30) for each in answers] == [(33, 40), (33, 40)]


def _direct(address: str, image: np.ndarray) -> tuple[int, ...]:
    """Asks `serving_default`, with no second try."""
    if address.startswith("http"):
        import json
        import urllib.request

        body = json.dumps({"instances": [image.tolist()]}).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{address}:predict", body, timeout=60) as response:
            return np.array(json.load(response)["predictions"][0]["labels"]).shape
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "ccfnet"
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(image[np.newaxis]))
    with grpc.insecure_channel(address.split("/")[2]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        found = stub.Predict(request, timeout=60)
    return np.asarray(tf.make_ndarray(found.outputs["labels"]))[0].shape


def test_slow_senders_keep_no_thread(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "STALL", 1.0)
    with (
        DevelopmentServer(exported.folder, host="127.0.0.1", rest_port=0, grpc_port=0) as server,
        contextlib.ExitStack() as held,
    ):
        for _ in range(rest.THREADS):
            held.enter_context(trickling(server.rest, BEGUN))
        host, port = server.rest.split("/")[2].split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"GET /v1/models/ccfnet HTTP/1.1\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
