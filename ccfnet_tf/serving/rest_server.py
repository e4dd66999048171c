"""The REST server.

POST /v1/models/NAME[/versions/N]:predict
GET  /v1/models/NAME[/versions/N]            status: AVAILABLE once it answers
GET  /v1/models/NAME[/versions/N]/metadata   signatures
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import select
import socket
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Literal, NamedTuple

from ccfnet_tf.serving.allowed_hosts import allowed_hosts
from ccfnet_tf.serving.model import Arrays, Model, RequestError, Status, as_refusal
from ccfnet_tf.serving.rest_json import arrays, read_request, write_answer

MAX_BODY = 1 << 27
"""Bytes of a request: the largest image that `encoded` takes, as base64, with room to spare."""

THREADS = 16
"""Connections that are read or answered at a time; others wait."""

CONNECTIONS = 128
"""Connections that are open at a time, on each of REST and gRPC; others are turned away (503)."""

MAX_THROWN_AWAY = 1 << 29
"""Bytes of a body that is too large: read away, so that the client comes to see the refusal."""

SECONDS = 300.0
"""For a request to arrive, however fast the client sends."""

STALL = 10.0
"""Seconds that a client may be behind `RATE`: so long do slow senders keep a thread."""

CROWDED = 2.0
"""Seconds that a client may be silent while others wait for a thread."""

RATE = 1 << 16
"""Bytes a second that a client must send in the mean."""

GRACE = 5.0
"""Seconds that clients have to send and to receive after SIGTERM."""

_LEAVING = 64  # connections that were turned away and may still read that
_LEAVE = 1.0  # seconds for it
_PIECES = 16  # of what each of them still sends, read at a time

_LENGTH = re.compile(r"[0-9]{1,18}")
_PATH = re.compile(r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>\d{1,18}))?(?P<rest>.*)")
_CODES: dict[Status, HTTPStatus] = {
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
    "OUT_OF_RANGE": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "DEADLINE_EXCEEDED": HTTPStatus.REQUEST_TIMEOUT,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "PERMISSION_DENIED": HTTPStatus.FORBIDDEN,
    "RESOURCE_EXHAUSTED": HTTPStatus.TOO_MANY_REQUESTS,
    "INTERNAL": HTTPStatus.INTERNAL_SERVER_ERROR,
}


_StageName = Literal["waits", "arrives", "answers", "sends"]


class _Stage(NamedTuple):
    """What a connection is at: it waits for a thread, its request arrives, and so on."""

    name: _StageName
    since: float
    until: float = 0.0


class RestServer(HTTPServer):
    """Bound to its port when made; takes connections from `server_activate` on.

    Args:
        address: Host and port; port 0 is any free one.

    Attributes:
        model: What answers; set before `server_activate`.
        names: Hosts that requests may name in `Host` and `Origin`; see `serving.allowed_hosts`.
        reading: Held while JSON becomes arrays, or arrays JSON. That is Python's work, of which
            one thread does as much as many, and takes several times the body's memory.

    Raises:
        OSError: The port is in use, or the host is not of this machine.
    """

    request_queue_size = 128
    model: Model

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, _Handler, bind_and_activate=False)
        self.names = allowed_hosts(address[0])
        self._pool = ThreadPoolExecutor(THREADS, "rest")
        self._open: dict[socket.socket, _Stage] = {}
        self._leaving: deque[tuple[float, socket.socket]] = deque()
        self.reading = threading.Lock()
        try:
            self.server_bind()
        except OSError:
            self.server_close()
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers in a thread of a bounded pool; turns away what is too much."""
        if len(self._open) >= CONNECTIONS:
            self._turn_away(request)
            return
        self._open[request] = _Stage("waits", time.monotonic())
        self._pool.submit(self._answer, request, client_address)

    def service_actions(self) -> None:
        """Ends connections on which a request takes too long to arrive; called twice a second."""
        now, stages = time.monotonic(), list(self._open.items())
        crowded = any(stage.name == "waits" for _, stage in stages)
        for connection, stage in stages:
            silent = crowded and now > stage.since + CROWDED
            late = stage.name == "arrives" and (silent or now > stage.until)
            if late or (silent and stage.name == "waits" and not _has_sent(connection)):
                # The other direction stays, for an answer.
                _shut(connection, socket.SHUT_RD)
        self._end_leaving(now - _LEAVE)

    def _turn_away(self, connection: socket.socket) -> None:
        """Says that there are too many connections, without a thread and without waiting."""
        body = json.dumps({"error": f"{CONNECTIONS} connections are open: try again"})
        head = (
            "HTTP/1.1 503 Service Unavailable",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Retry-After: 1",
            "Connection: close",
        )
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # the client has gone
            connection.send("\r\n".join([*head, "", body]).encode())
            connection.shutdown(socket.SHUT_WR)
        self._leaving.append((time.monotonic(), connection))
        while len(self._leaving) > _LEAVING:
            self._leaving.popleft()[1].close()

    def _end_leaving(self, before: float) -> None:
        """Closes what was turned away before that time.

        A connection closed with bytes unread is reset, and the answer lost on its way.
        """
        for _, connection in self._leaving:
            with contextlib.suppress(OSError):
                for _ in range(_PIECES):
                    if not connection.recv(1 << 16):
                        break
        while self._leaving and self._leaving[0][0] < before:
            self._leaving.popleft()[1].close()

    def enter(self, connection: socket.socket, name: _StageName, until: float = 0.0) -> None:
        """Notes what a connection is at, since now and, for `arrives`, until when."""
        if connection in self._open:
            self._open[connection] = _Stage(name, time.monotonic(), until)

    def _answer(self, request: Any, client_address: Any) -> None:
        self.enter(request, "arrives", time.monotonic() + min(STALL, SECONDS))
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client has gone
        finally:
            self._open.pop(request, None)
            self.shutdown_request(request)

    def server_close(self) -> None:
        """Closes the port; answers what was read, and gives clients the grace for all else."""
        super().server_close()
        self._end_leaving(math.inf)
        self._pool.shutdown(wait=False)
        began = time.monotonic()
        while self._open:
            for connection, stage in list(self._open.items()):
                since = max(began, stage.since) if stage.name == "sends" else began
                if stage.name != "answers" and time.monotonic() > since + GRACE:
                    _shut(connection, socket.SHUT_RDWR)
            time.sleep(0.05)
        self._pool.shutdown()


def _has_sent(connection: socket.socket) -> bool:
    """Returns whether bytes of a client lie there, or its end."""
    asked = select.poll()  # recv would wait by then, if a thread has taken it
    try:
        asked.register(connection, select.POLLIN)
    except ValueError:  # closed already
        return True
    return bool(asked.poll(0))


def _shut(connection: socket.socket, way: int) -> None:
    with contextlib.suppress(OSError):  # closed already
        connection.shutdown(way)


def _patience(read: int) -> float:
    """Returns for how many seconds a client may send of whom so many bytes have come."""
    return min(STALL + read / RATE, SECONDS)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # which has Expect: 100-continue, sent by curl with large bodies
    timeout = 30.0  # seconds that a client may be silent
    server: RestServer
    _unread = False

    def do_GET(self) -> None:
        """Status and metadata."""
        self._reply(self._get)

    def do_POST(self) -> None:
        """`:predict`."""
        self._reply(self._post)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Says nothing."""

    def _reply(self, work: Any) -> None:
        code = HTTPStatus.OK
        try:
            content = work()
        except OSError:
            raise  # the client's connection
        except Exception as error:
            refusal = as_refusal(error)
            code = _CODES[refusal.status]
            # Not all text can be UTF-8: JSON has escapes for halves of characters.
            content = json.dumps({"error": str(refusal)}, ensure_ascii=True).encode("ascii")
        # A connection that is kept would keep its thread.
        self.close_connection = True
        self.server.enter(self.connection, "sends")
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        if self._unread:
            self._throw_away()

    def _throw_away(self) -> None:
        """Reads what was refused unread, until the client has seen that and leaves.

        A connection closed with bytes unread is reset, and the answer lost on its way.
        """
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(STALL)
        began, read = time.monotonic(), 0
        while read < MAX_THROWN_AWAY and (part := self.connection.recv(1 << 16)):
            read += len(part)
            if time.monotonic() > began + _patience(read):
                return

    def _get(self) -> bytes:
        self._refuse_other_sites()
        rest = self._model_named()
        if rest == "/metadata":
            from ccfnet_tf.serving.metadata import metadata_json

            return metadata_json(self.server.model)
        if rest:
            raise self._malformed()
        state = {
            "version": str(self.server.model.version),
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        return json.dumps({"model_version_status": [state]}).encode()

    def _post(self) -> bytes:
        body = self._body()  # read even when refused, or the client sees no answer
        self._refuse_other_sites()
        if self._model_named() != ":predict":
            raise self._malformed()
        name, inputs, rows = self._request(body)
        del body
        outputs = self.server.model.answer(name, inputs)
        with self.server.reading:
            return write_answer(outputs, rows=rows)

    def _request(self, body: bytes) -> tuple[str, Arrays, bool]:
        """Returns signature, inputs, and whether they came in row form."""
        with self.server.reading:
            tree = read_request(body)
            name = tree.get("signature_name", "")
            inputs = arrays(tree, self.server.model.signature(name).inputs)
            return name, inputs, "instances" in tree

    def _body(self) -> bytes:
        given = self.headers.get("Content-Length", "")
        length = int(given) if _LENGTH.fullmatch(given) else -1
        self._unread = not 0 <= length <= MAX_BODY
        if self._unread:
            raise RequestError(
                "OUT_OF_RANGE" if length > MAX_BODY else "INVALID_ARGUMENT",
                f"Content-Length '{given[:20]}': expected 0..{MAX_BODY}",
            )
        body, began = bytearray(), time.monotonic()
        while len(body) < length and (part := self.rfile.read1(min(length - len(body), 1 << 20))):
            body += part
            until = began + _patience(len(body))
            self.server.enter(self.connection, "arrives", until)
        self.server.enter(self.connection, "answers")
        if len(body) < length:
            seconds = time.monotonic() - began
            raise RequestError(
                "DEADLINE_EXCEEDED",
                f"{len(body)} of {length} bytes came within {seconds:.1f} s: send {RATE >> 10} kB "
                "a second or more",
            )
        return bytes(body)

    def _refuse_other_sites(self) -> None:
        """Refuses what a page of another site had a browser send.

        A name of that site's that leads here (DNS rebinding) stands in `Host`, the site itself in
        `Origin`.
        """
        hosts, origins = (self.headers.get_all(key, []) for key in ("Host", "Origin"))
        for header in hosts:
            if not self.server.names.takes_host(header):
                raise RequestError("PERMISSION_DENIED", f"Host '{header[:60]}' is not served")
        for header in origins:
            if not self.server.names.takes_origin(header):
                raise RequestError("PERMISSION_DENIED", f"Origin '{header[:60]}' is not served")

    def _model_named(self) -> str:
        """Returns what follows name and version in the path."""
        found = _PATH.fullmatch(self.path)
        if found is None:
            raise self._malformed()
        version = found["version"]
        self.server.model.refuse_other(found["name"], None if version is None else int(version))
        return found["rest"]

    def _malformed(self) -> RequestError:
        return RequestError("INVALID_ARGUMENT", f"Malformed request: {self.command} {self.path}")
