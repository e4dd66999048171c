"""The REST face.

POST /v1/models/NAME[/versions/N]:predict
GET  /v1/models/NAME[/versions/N]            status: AVAILABLE once it answers
GET  /v1/models/NAME[/versions/N]/metadata   signatures
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from ccfnet_tf.serving.model import Model, RequestError, Status
from ccfnet_tf.serving.rows import arrays, read_request, write_answer

MAX_BODY = 1 << 27
"""Bytes of a request: the largest picture that `encoded` takes, as base64, with room to spare."""

THREADS = 16
"""Connections that are read or answered at a time; others wait."""

_PATH = re.compile(r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<version>\d{1,18}))?(?P<rest>.*)")
_CODES: dict[Status, HTTPStatus] = {
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
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

    Raises:
        OSError: The port is in use, or the host is not of this machine.
    """

    request_queue_size = 128
    model: Model

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, _Handler, bind_and_activate=False)
        self._pool = ThreadPoolExecutor(THREADS, "rest")
        try:
            self.server_bind()
        except OSError:
            self.server_close()
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers in a thread of a bounded pool."""
        self._pool.submit(self._answer, request, client_address)

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client has gone
        finally:
            self.shutdown_request(request)

    def server_close(self) -> None:
        """Closes the port; what is being answered is answered."""
        super().server_close()
        self._pool.shutdown(cancel_futures=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # which has Expect: 100-continue, sent by curl with large bodies
    timeout = 30.0  # seconds that a client may be silent
    server: RestServer

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
        except RequestError as error:
            code = _CODES[error.status]
            content = json.dumps({"error": str(error)}, ensure_ascii=False).encode("utf-8")
        # A connection that is kept would keep its thread.
        self.close_connection = True
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

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
        tree = read_request(body)
        name = tree.get("signature_name", "")
        inputs = arrays(tree, self.server.model.signature(name).inputs)
        return write_answer(self.server.model.answer(name, inputs), rows="instances" in tree)

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            raise RequestError(
                "INVALID_ARGUMENT", f"Content-Length '{length}': expected 0..{MAX_BODY}"
            )
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("the client left in the middle")
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
