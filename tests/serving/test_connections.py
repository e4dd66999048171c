"""Clients that connect and do nothing: what they may take up, and that others are answered."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.runtimes.served import Patience, ServedNetwork
from ccfnet_tf.serving import grpc_server, rest_server
from ccfnet_tf.serving.server import DevelopmentServer
from tests.serving.served import Exported, Process, picture, same
from tests.serving.test_server import BEGUN, trickling

HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How a connection of gRPC begins: it has no call yet."""

PERSISTENT = Patience(60.0, 12, 0.25)


def place(address: str) -> tuple[str, int]:
    host, port = address.split("/")[2].split(":")
    return host, int(port)


@contextlib.contextmanager
def connected(address: str, count: int, begun: bytes) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as held:
        made = []
        for _ in range(count):
            each = held.enter_context(socket.create_connection(place(address), timeout=60))
            with contextlib.suppress(OSError):  # turned away already
                each.sendall(begun)
            made.append(each)
        yield made


@pytest.fixture
def few(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevelopmentServer]:
    """A server of few connections, which are never cut off."""
    for module in (rest_server, grpc_server):
        monkeypatch.setattr(module, "CONNECTIONS", 20)
    for name in ("STALL", "CROWDED"):
        monkeypatch.setattr(rest_server, name, 1e6)
    with DevelopmentServer(exported.folder, host="127.0.0.1", rest_port=0, grpc_port=0) as server:
        yield server


@pytest.mark.parametrize("begun", [b"", BEGUN])
def test_one_too_many_is_told_so(few: DevelopmentServer, begun: bytes) -> None:
    body = b"x" * 100_000  # unread, which must not lose the answer
    request = b"POST /v1/models/ccfnet:predict HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + body
    with connected(few.rest, 20, begun) as others:
        for _ in range(100):  # more than are kept for a while
            with socket.create_connection(place(few.rest), timeout=60) as connection:
                connection.sendall(request)
                head, _, said = connection.makefile("rb").read().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 "), head
            assert json.loads(said)["error"] == "20 connections are open: try again"
        for each in others:
            each.close()
        assert ServedNetwork(few.rest, patience=PERSISTENT).taxonomy.names


def test_one_too_many_by_grpc_is_closed(few: DevelopmentServer) -> None:
    with connected(few.grpc, 20, HTTP_2) as others:
        assert all(each.recv(9) for each in others)  # the server's settings
        with connected(few.grpc, 1, HTTP_2) as (one,):
            assert one.recv(9) == b""


def resources(process: int) -> tuple[int, int]:
    """Returns how many threads and open files a process has."""
    threads = re.search(r"Threads:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    assert threads is not None
    return int(threads[1]), len(list(Path(f"/proc/{process}/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("begun", [b"", BEGUN, HTTP_2])
def test_many_that_do_nothing_leave_room(
    process: Process, exported: Exported, begun: bytes
) -> None:
    networks = [ServedNetwork(each, patience=PERSISTENT) for each in (process.rest, process.grpc)]
    image = picture(33, 40)
    assert all(same(each.predict(image), exported, image) for each in networks)
    threads, files = resources(process.process.pid)
    with connected(process.rest, 300, begun), connected(process.grpc, 300, begun):
        now_threads, now_files = resources(process.process.pid)
        assert now_threads <= threads + 2 * rest_server.THREADS + 8
        assert now_files <= files + 2 * rest_server.CONNECTIONS + rest_server._MAX_REJECTED + 8
        assert all(same(each.predict(image), exported, image) for each in networks)


def test_what_is_refused_and_goes_on_trickling_keeps_no_thread(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_server, "STALL", 1.0)
    head = b"POST /v1/models/ccfnet:predict HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n"
    with (
        DevelopmentServer(exported.folder, host="127.0.0.1", rest_port=0, grpc_port=0) as server,
        contextlib.ExitStack() as held,
    ):
        for _ in range(rest_server.THREADS):
            held.enter_context(trickling(server.rest, head))
        labels = ServedNetwork(server.rest, patience=PERSISTENT).predict(picture(33, 40)).labels
        assert np.array_equal(labels.shape, (33, 40))
