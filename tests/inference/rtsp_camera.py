"""A camera that speaks RTSP, started by tests as a program: an MPEG transport stream in RTP.

It is given a file, says its port, and sends the file again and again.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from pathlib import Path

PACKET = 7 * 188
SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"
)
ANSWERS = {
    "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY\r\n",
    "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n",
    "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
    "PLAY": "Session: 1\r\n",
}


def serve(client: socket.socket, content: bytes) -> None:
    lines = client.makefile("r", encoding="ascii", newline="\r\n")
    verb = ""
    while verb != "PLAY":
        request = list(iter(lambda: lines.readline().strip(), ""))
        verb = request[0].split()[0]
        number = next(line for line in request if line.startswith("CSeq"))
        refused = verb == "SETUP" and not any("TCP" in line for line in request)
        status = "461 Unsupported transport" if refused else "200 OK"
        body = SDP if verb == "DESCRIBE" else ""
        answer = "" if refused else ANSWERS[verb]
        client.sendall(f"RTSP/1.0 {status}\r\n{number}\r\n{answer}\r\n{body}".encode())
    sent = 0
    while True:
        for at in range(0, len(content), PACKET):
            packet = struct.pack(">BBHII", 0x80, 33, sent & 0xFFFF, sent * 90, 1)
            packet += content[at : at + PACKET]
            client.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)
            sent += 1
            time.sleep(0.002)


def main() -> None:
    content = Path(sys.argv[1]).read_bytes()
    server = socket.create_server(("127.0.0.1", 0))
    print(server.getsockname()[1], flush=True)  # noqa: T201
    while True:
        client, _ = server.accept()
        threading.Thread(target=serve, args=(client, content), daemon=True).start()


if __name__ == "__main__":
    main()
