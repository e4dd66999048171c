"""The REST face.

POST /v1/models/NAME[/versions/N]:predict
GET  /v1/models/NAME[/versions/N]            status: AVAILABLE once it answers
GET  /v1/models/NAME[/versions/N]/metadata   signatures
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from ccfnet_tf.serving.model import Arrays, Model, RequestError, Status, as_refusal
from ccfnet_tf.serving.rows import arrays, read_request, write_answer

MAX_BODY = 1 << 27
"""Bytes of a request: the largest picture that `encoded` takes, as base64, with room to spare."""

THREADS = 16
"""Connections that are read or answered at a time; others wait."""

MAX_THROWN_AWAY = 1 << 29
"""Bytes of a body that is too large: read away, so that the client comes to see the refusal."""

SECONDS = 300.0
"""For a request to arrive, however often the client sends a byte."""

GRACE = 5.0
"""Seconds for what is being answered when the server is told to end."""

_LENGTH = re.compile(r"[0-9]{1,18}")
_PATH = re.compile(r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>\d{1,18}))?(?P<rest>.*)")
_CODES: dict[Status, HTTPStatus] = {
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
    "OUT_OF_RANGE": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "DEADLINE_EXCEEDED": HTTPStatus.REQUEST_TIMEOUT,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "RESOURCE_EXHAUSTED": HTTPStatus.TOO_MANY_REQUESTS,
    "INTERNAL": HTTPStatus.INTERNAL_SERVER_ERROR,
}


class RestServer(HTTPServer):
    """Bound to its port when made; takes connections from `server_activate` on.

    Args:
        address: Host and port; port 0 is any free one.

    Attributes:
        model: What answers; set before `server_activate`.
        reading: Held while JSON becomes arrays, or arrays JSON. That is Python's work, of which
            one thread does as much as many, and takes several times the body's memory.

    Raises:
        OSError: The port is in use, or the host is not of this machine.
    """

    request_queue_size = 128
    model: Model

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, _Handler, bind_and_activate=False)
        self._pool = ThreadPoolExecutor(THREADS, "rest")
        self._arriving: dict[socket.socket, float] = {}  # until when
        self._open: set[socket.socket] = set()
        self.reading = threading.Lock()
        try:
            self.server_bind()
        except OSError:
            self.server_close()
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers in a thread of a bounded pool."""
        self._open.add(request)
        self._pool.submit(self._answer, request, client_address)

    def service_actions(self) -> None:
        """Ends connections on which a request takes too long to arrive; called twice a second."""
        now = time.monotonic()
        for connection, until in list(self._arriving.items()):
            if now > until:
                self.arrived(connection)
                # The other direction stays, for an answer.
                _shut(connection, socket.SHUT_RD)

    def arrived(self, connection: socket.socket) -> None:
        """Notes that the whole of a request is there, or that no more of it is waited for."""
        self._arriving.pop(connection, None)

    def _answer(self, request: Any, client_address: Any) -> None:
        self._arriving[request] = time.monotonic() + SECONDS
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client has gone
        finally:
            self.arrived(request)
            self._open.discard(request)
            self.shutdown_request(request)

    def server_close(self) -> None:
        """Closes the port; what is answered within the grace is answered, then all is shut."""
        super().server_close()
        timer = threading.Timer(GRACE, self._shut_all)
        timer.start()
        self._pool.shutdown(cancel_futures=True)
        timer.cancel()
        for connection in list(self._open):  # those that never had a thread
            self.shutdown_request(connection)

    def _shut_all(self) -> None:
        for connection in list(self._open):
            _shut(connection, socket.SHUT_RDWR)


def _shut(connection: socket.socket, way: int) -> None:
    with contextlib.suppress(OSError):  # closed already
        connection.shutdown(way)


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
        left = MAX_THROWN_AWAY
        while left > 0 and (part := self.connection.recv(1 << 16)):
            left -= len(part)

    def _get(self) -> bytes:
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
        body = self.rfile.read(length)
        self.server.arrived(self.connection)
        if len(body) < length:
            raise RequestError(
                "DEADLINE_EXCEEDED", f"{len(body)} of {length} bytes came within {SECONDS:g} s"
            )
        return body

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
