"""A camera that sends JPEG images by HTTP without end, started by tests as a program."""

from __future__ import annotations

import contextlib
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np


class Camera(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        content = cv2.imencode(".jpg", np.full((96, 160, 3), 99, np.uint8))[1].tobytes()
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has gone
            while True:
                self.wfile.write(head.encode() + content + b"\r\n")
                time.sleep(0.02)


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        print(server.server_address[1], flush=True)  # noqa: T201
        server.serve_forever()
