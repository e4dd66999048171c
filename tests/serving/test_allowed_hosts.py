from __future__ import annotations

import http.client

import pytest

from ccfnet_tf.serving.allowed_hosts import allowed_hosts
from ccfnet_tf.serving.server import DevelopmentServer


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("localhost", True),
        ("LOCALHOST:8501", True),
        ("127.0.0.1:8501", True),
        ("[::1]:8501", True),
        ("192.168.1.7:8501", True),  # a number cannot be rebound
        ("evil.example", False),
        ("localhost.evil.example:8501", False),
        ("evil.example@localhost", True),  # no browser sends that; the host in it is localhost
        ("localhost@evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("[", False),
        ("", False),
    ],
)
def test_hosts(header: str, taken: bool) -> None:
    assert allowed_hosts("127.0.0.1").takes_host(header) is taken
    assert allowed_hosts("0.0.0.0").takes_host(header) is taken


def test_the_name_it_was_started_with_is_taken() -> None:
    names = allowed_hosts("Served.example")
    assert names.takes_host("served.example:8501")
    assert names.takes_origin("http://served.example:3000")
    assert not names.takes_host("other.example")


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("http://localhost:3000", True),
        ("http://127.0.0.1", True),
        ("https://evil.example", False),
        ("http://192.168.1.66", False),
        ("null", False),
        ("", False),
    ],
)
def test_origins(header: str, taken: bool) -> None:
    assert allowed_hosts("127.0.0.1").takes_origin(header) is taken


@pytest.mark.parametrize("path", ["", "/metadata", ":predict"])
@pytest.mark.parametrize(
    ("header", "value"), [("Host", "evil.example:8501"), ("Origin", "https://evil.example")]
)
def test_requests_of_other_sites_are_refused(
    path: str, header: str, value: str, server: DevelopmentServer
) -> None:
    body = b'{"signature_name": "classes", "instances": [0]}' if path == ":predict" else None
    for given, code in (
        (value, 403),
        ("localhost" if header == "Host" else "http://localhost", 200),
    ):
        connection = http.client.HTTPConnection(server.rest.split("/")[2], timeout=60)
        connection.request(
            "POST" if body else "GET", f"/v1/models/ccfnet{path}", body, {header: given}
        )
        response = connection.getresponse()
        said = response.read()
        assert response.status == code, said
        assert (b"is not allowed" in said) == (code == 403)
        connection.close()
