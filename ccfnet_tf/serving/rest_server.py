"""The REST server.

POST /v1/models/NAME[/versions/N]:predict
GET  /v1/models/NAME[/versions/N]            status: AVAILABLE once the model is loaded
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
from ccfnet_tf.serving.rest_json import arrays, read_request, write_response

MAX_BODY = 1 << 27
"""Largest request body in bytes: more than the largest image of `encoded` needs in base64."""

THREADS = 16
"""Connections that are served concurrently; others wait."""

CONNECTIONS = 128
"""Most open connections of REST and of gRPC each; REST rejects others with status 503."""

MAX_DISCARDED = 1 << 29
"""Bytes of an oversized body that are read and discarded, so that the client sees the error."""

SECONDS = 300.0
"""Most seconds for receiving a request, regardless of the client's speed."""

STALL = 10.0
"""Seconds that a client may fall behind `RATE`; slow clients occupy a thread for so long."""

CROWDED = 2.0
"""Seconds that a client may send nothing while others wait for a thread."""

RATE = 1 << 16
"""Smallest mean rate at which a client must send, in bytes per second."""

GRACE = 5.0
"""Seconds that clients have after SIGTERM for sending and receiving."""

_MAX_REJECTED = 64  # rejected connections that are kept open for reading the error
_REJECTED_SECONDS = 1.0  # seconds that they are kept open
_PIECES = 16  # chunks that are read from each of them per call

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


_StageName = Literal["waits", "arrives", "responds", "sends"]


class _Stage(NamedTuple):
    """Stage of a connection: waiting for a thread, receiving, computing or sending."""

    name: _StageName
    since: float
    until: float = 0.0


class RestServer(HTTPServer):
    """The REST server; binds its port on construction and accepts from `server_activate` on.

    Args:
        address: Host and port; port 0 selects a free one.

    Attributes:
        model: The model; set it before `server_activate`.
        names: Names allowed in `Host` and `Origin` headers; see `serving.allowed_hosts`.
        reading: Lock for conversions between JSON and arrays. They are pure Python, so several
            threads are not faster, and each takes several times the memory of the body.

    Raises:
        OSError: The port is in use, or the host is not an address of this machine.
    """

    request_queue_size = 128
    model: Model

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, _Handler, bind_and_activate=False)
        self.names = allowed_hosts(address[0])
        self._pool = ThreadPoolExecutor(THREADS, "rest")
        self._open: dict[socket.socket, _Stage] = {}
        self._rejected: deque[tuple[float, socket.socket]] = deque()
        self.reading = threading.Lock()
        try:
            self.server_bind()
        except OSError:
            self.server_close()
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves a connection in a bounded thread pool; rejects it if too many are open."""
        if len(self._open) >= CONNECTIONS:
            self._reject(request)
            return
        self._open[request] = _Stage("waits", time.monotonic())
        self._pool.submit(self._respond, request, client_address)

    def service_actions(self) -> None:
        """Ends connections that take too long to send a request; called twice per second."""
        now, stages = time.monotonic(), list(self._open.items())
        crowded = any(stage.name == "waits" for _, stage in stages)
        for connection, stage in stages:
            silent = crowded and now > stage.since + CROWDED
            late = stage.name == "arrives" and (silent or now > stage.until)
            if late or (silent and stage.name == "waits" and not _has_sent(connection)):
                # The sending direction stays open for the response.
                _shut(connection, socket.SHUT_RD)
        self._close_rejected(now - _REJECTED_SECONDS)

    def _reject(self, connection: socket.socket) -> None:
        """Sends status 503 (too many connections) without a thread and without blocking."""
        body = json.dumps({"error": f"{CONNECTIONS} connections are open: try again"})
        head = (
            "HTTP/1.1 503 Service Unavailable",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Retry-After: 1",
            "Connection: close",
        )
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # the client disconnected
            connection.send("\r\n".join([*head, "", body]).encode())
            connection.shutdown(socket.SHUT_WR)
        self._rejected.append((time.monotonic(), connection))
        while len(self._rejected) > _MAX_REJECTED:
            self._rejected.popleft()[1].close()

    def _close_rejected(self, before: float) -> None:
        """Closes connections that were rejected before that time.

        Their input is read first: closing a connection with unread bytes resets it, and the client
        loses the response.
        """
        for _, connection in self._rejected:
            with contextlib.suppress(OSError):
                for _ in range(_PIECES):
                    if not connection.recv(1 << 16):
                        break
        while self._rejected and self._rejected[0][0] < before:
            self._rejected.popleft()[1].close()

    def enter(self, connection: socket.socket, name: _StageName, until: float = 0.0) -> None:
        """Sets the stage of a connection from now on, with a deadline for `arrives`."""
        if connection in self._open:
            self._open[connection] = _Stage(name, time.monotonic(), until)

    def _respond(self, request: Any, client_address: Any) -> None:
        self.enter(request, "arrives", time.monotonic() + min(STALL, SECONDS))
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client disconnected
        finally:
            self._open.pop(request, None)
            self.shutdown_request(request)

    def server_close(self) -> None:
        """Closes the port, answers requests that were read, and ends others after `GRACE`."""
        super().server_close()
        self._close_rejected(math.inf)
        self._pool.shutdown(wait=False)
        began = time.monotonic()
        while self._open:
            for connection, stage in list(self._open.items()):
                since = max(began, stage.since) if stage.name == "sends" else began
                if stage.name != "responds" and time.monotonic() > since + GRACE:
                    _shut(connection, socket.SHUT_RDWR)
            time.sleep(0.05)
        self._pool.shutdown()


def _has_sent(connection: socket.socket) -> bool:
    """Returns whether a connection has unread bytes or was closed by the client."""
    poll = select.poll()  # recv could block if a thread reads at the same time
    try:
        poll.register(connection, select.POLLIN)
    except ValueError:  # closed already
        return True
    return bool(poll.poll(0))


def _shut(connection: socket.socket, direction: int) -> None:
    with contextlib.suppress(OSError):  # closed already
        connection.shutdown(direction)


def _time_limit(read: int) -> float:
    """Returns the time limit in seconds of a client that has sent `read` bytes."""
    return min(STALL + read / RATE, SECONDS)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # for Expect: 100-continue, which curl sends with large bodies
    timeout = 30.0  # seconds that a client may be silent
    server: RestServer
    _unread = False

    def do_GET(self) -> None:
        """Handles status and metadata."""
        self._reply(self._get)

    def do_POST(self) -> None:
        """Handles `:predict`."""
        self._reply(self._post)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Disables the log."""

    def _reply(self, work: Any) -> None:
        code = HTTPStatus.OK
        try:
            content = work()
        except OSError:
            raise  # the client's connection
        except Exception as error:
            refusal = as_refusal(error)
            code = _CODES[refusal.status]
            # Lone surrogates cannot be encoded as UTF-8; JSON can escape them.
            content = json.dumps({"error": str(refusal)}, ensure_ascii=True).encode("ascii")
        # A persistent connection would occupy its thread.
        self.close_connection = True
        self.server.enter(self.connection, "sends")
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        if self._unread:
            self._discard_body()

    def _discard_body(self) -> None:
        """Reads and discards an unread body until the client closes the connection.

        Closing a connection with unread bytes resets it, and the client loses the response.
        """
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(STALL)
        began, read = time.monotonic(), 0
        while read < MAX_DISCARDED and (chunk := self.connection.recv(1 << 16)):
            read += len(chunk)
            if time.monotonic() > began + _time_limit(read):
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
        body = self._body()  # read even if rejected, or the client would not see the response
        self._refuse_other_sites()
        if self._model_named() != ":predict":
            raise self._malformed()
        name, inputs, rows = self._request(body)
        del body
        outputs = self.server.model.predict(name, inputs)
        with self.server.reading:
            return write_response(outputs, rows=rows)

    def _request(self, body: bytes) -> tuple[str, Arrays, bool]:
        """Returns signature name, inputs, and whether the request is in row format."""
        with self.server.reading:
            tree = read_request(body)
            name = tree.get("signature_name", "")
            inputs = arrays(tree, self.server.model.signature(name).inputs)
            return name, inputs, "instances" in tree

    def _body(self) -> bytes:
        header = self.headers.get("Content-Length", "")
        length = int(header) if _LENGTH.fullmatch(header) else -1
        self._unread = not 0 <= length <= MAX_BODY
        if self._unread:
            raise RequestError(
                "OUT_OF_RANGE" if length > MAX_BODY else "INVALID_ARGUMENT",
                f"Content-Length '{header[:20]}': expected 0..{MAX_BODY}",
            )
        body, began = bytearray(), time.monotonic()
        while len(body) < length and (chunk := self.rfile.read1(min(length - len(body), 1 << 20))):
            body += chunk
            until = began + _time_limit(len(body))
            self.server.enter(self.connection, "arrives", until)
        self.server.enter(self.connection, "responds")
        if len(body) < length:
            seconds = time.monotonic() - began
            raise RequestError(
                "DEADLINE_EXCEEDED",
                f"received {len(body)} of {length} bytes within {seconds:.1f} s: send "
                f"{RATE >> 10} kB per second or more",
            )
        return bytes(body)

    def _refuse_other_sites(self) -> None:
        """Rejects requests that a page of another site made a browser send.

        `Host` contains the site's name if it was rebound to this machine (DNS rebinding); `Origin`
        contains the site.
        """
        hosts, origins = (self.headers.get_all(key, []) for key in ("Host", "Origin"))
        for header in hosts:
            if not self.server.names.takes_host(header):
                raise RequestError("PERMISSION_DENIED", f"Host '{header[:60]}' is not allowed")
        for header in origins:
            if not self.server.names.takes_origin(header):
                raise RequestError("PERMISSION_DENIED", f"Origin '{header[:60]}' is not allowed")

    def _model_named(self) -> str:
        """Checks name and version in the path; returns the rest of the path."""
        match = _PATH.fullmatch(self.path)
        if match is None:
            raise self._malformed()
        version = match["version"]
        self.server.model.refuse_other(match["name"], None if version is None else int(version))
        return match["rest"]

    def _malformed(self) -> RequestError:
        return RequestError("INVALID_ARGUMENT", f"Malformed request: {self.command} {self.path}")
