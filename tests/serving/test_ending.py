"""After SIGTERM a server answers what it has read, on both faces."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from ccfnet_tf.serving import grpc_server, rest_server
from ccfnet_tf.serving.server import DevelopmentServer
from tests.serving.served import Exported, picture
from tests.serving.test_server import BEGUN, trickling

SLOW = """
import os, sys, time
from ccfnet_tf.cli import main as cli
from ccfnet_tf.serving import grpc_server
from ccfnet_tf.serving import rest_server
from ccfnet_tf.serving.model import Model

real = Model.predict


def slow(self, name, inputs):
    if name in ("", "serving_default"):  # REST asks for no signature by name
        os.write(1, b"answering" + bytes([10]))  # whole, though two threads answer
        time.sleep(3.0)
    return real(self, name, inputs)


Model.predict = slow
rest_server.GRACE = grpc_server.GRACE = 0.5
sys.exit(cli.main(sys.argv[1:]))
"""
"""A server whose answers take longer than the grace."""


def test_what_was_read_is_answered_after_sigterm(exported: Exported) -> None:
    command = [sys.executable, "-c", SLOW, "serve", str(exported.folder)]
    command += ["--rest-port", "0", "--grpc-port", "0"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        contextlib.ExitStack() as held,
        ThreadPoolExecutor(2) as pool,
    ):
        held.callback(process.kill)
        assert process.stdout is not None
        addresses = [process.stdout.readline().split()[-1] for _ in range(3)][1:]
        answers = [pool.submit(_direct, each, picture(33, 40)) for each in addresses]
        for _ in answers:
            assert process.stdout.readline() == "answering\n"
        with trickling(addresses[0], BEGUN):
            process.send_signal(signal.SIGTERM)
            assert [each.result(timeout=60) for each in answers] == [(33, 40), (33, 40)]
            assert process.wait(timeout=60) == 0


def _direct(address: str, image: np.ndarray) -> tuple[int, ...]:
    """Asks `serving_default`, with no second try."""
    if address.startswith("http"):
        body = json.dumps({"instances": [image.tolist()]}).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{address}:predict", body, timeout=60) as response:
            return np.array(json.load(response)["predictions"][0]["labels"]).shape
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "ccfnet"
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(image[np.newaxis]))
    with grpc.insecure_channel(address.split("/")[2]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        found = stub.Predict(request, timeout=60)
    return np.asarray(tf.make_ndarray(found.outputs["labels"]))[0].shape


def assert_answers(host: str, port: str) -> None:
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"GET /v1/models/ccfnet HTTP/1.1\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_slow_senders_keep_no_thread(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_server, "STALL", 1.0)
    with (
        DevelopmentServer(exported.folder, host="127.0.0.1", rest_port=0, grpc_port=0) as server,
        contextlib.ExitStack() as held,
    ):
        for _ in range(rest_server.THREADS):
            held.enter_context(trickling(server.rest, BEGUN))
        host, port = server.rest.split("/")[2].split(":")
        assert_answers(host, port)


def test_silent_clients_give_way_while_others_wait(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_server, "STALL", 1e6)
    monkeypatch.setattr(rest_server, "CROWDED", 0.1)
    with (
        DevelopmentServer(exported.folder, host="127.0.0.1", rest_port=0, grpc_port=0) as server,
        contextlib.ExitStack() as held,
    ):
        host, port = server.rest.split("/")[2].split(":")
        for begun in (b"", BEGUN):
            for _ in range(rest_server.THREADS):
                silent = held.enter_context(socket.create_connection((host, int(port))))
                silent.sendall(begun)
        assert_answers(host, port)


def test_calls_whose_message_does_not_come_keep_no_thread(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_server, "ARRIVAL", 1.0)
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait()
        yield from ()

    with (
        DevelopmentServer(exported.folder, host="127.0.0.1", rest_port=0, grpc_port=0) as server,
        contextlib.ExitStack() as held,
    ):
        held.callback(ended.set)
        calls = []
        for _ in range(2):  # of the streams of one connection not all may be taken
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.insecure_channel(server.grpc.split("/")[2], options)
            held.enter_context(channel)
            predict = channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
            calls += [predict.future(nothing()) for _ in range(rest_server.THREADS)]
        assert _direct(server.grpc, picture(33, 40)) == (33, 40)
        ends = [call.code() for call in calls if call.done()]  # others wait while there is room
        assert ends.count(grpc.StatusCode.CANCELLED) >= rest_server.THREADS, ends


def test_a_call_without_a_message_is_refused(server: DevelopmentServer) -> None:
    with grpc.insecure_channel(server.grpc.split("/")[2]) as channel:
        predict = channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as caught:
            predict(iter([]), timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def test_a_slow_call_is_let_be_while_there_is_room(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ARRIVAL", "AGE"):
        monkeypatch.setattr(grpc_server, name, 0.1)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "ccfnet"
    request.model_spec.signature_name = "classes"
    request.inputs["ask"].CopyFrom(tf.make_tensor_proto([0]))

    def late() -> Iterator[bytes]:
        time.sleep(2.0)
        yield request.SerializeToString()

    with (
        DevelopmentServer(exported.folder, host="127.0.0.1", rest_port=0, grpc_port=0) as server,
        grpc.insecure_channel(server.grpc.split("/")[2]) as channel,
    ):
        predict = channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
        assert b"sky" in predict(late(), timeout=60)
