"""Many clients at once, and a server that is killed while it answers."""

from __future__ import annotations

import base64
import json
import re
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ccfnet_tf.errors import ResourceError
from ccfnet_tf.runtimes.served import Patience, ServedNetwork
from tests.serving.served import Exported, Process, picture, png, same

CLIENTS = 16
SIZES = [(400, 380), (256, 256), (33, 96), (300, 420), (1, 50)]


class Met(NamedTuple):
    """How the 200 requests ended."""

    right: int
    swapped: int
    named: int


def resident(process: int) -> int:
    """Returns a process's resident memory in kB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1])


def send_bad(address: str, place: int) -> bool:
    """Sends three items of which one is not an image; returns whether the refusal names it."""
    items = [png(picture(33, 33))] * 3
    items[place % 3] = b"no image, however long one looks at it"
    rows = [{"b64": base64.b64encode(item).decode()} for item in items]
    body = json.dumps({"signature_name": "encoded", "instances": rows}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}:predict", body, timeout=60):
            return False
    except urllib.error.HTTPError as error:
        with error:
            return error.code == 400 and f"item] [{place % 3}]" in json.load(error)["error"]


def flood(process: Process, exported: Exported, places: range) -> Met:
    """Every tenth request is bad; every other one goes by gRPC."""
    networks = [ServedNetwork(process.rest), ServedNetwork(process.grpc)]

    def one(place: int) -> str:
        if place % 10 == 9:
            return "named" if send_bad(process.rest, place) else "swapped"
        image = picture(*SIZES[place % len(SIZES)], seed=place)
        found = networks[place % 2].predict(image)
        return "right" if same(found, exported, image) else "swapped"

    with ThreadPoolExecutor(CLIENTS) as pool:
        ends = list(pool.map(one, places))
    return Met(*(ends.count(end) for end in Met._fields))


@pytest.mark.slow
def test_answers_of_a_flood_are_never_swapped(
    process: Process, exported: Exported, record_property: pytest.RecordProperty
) -> None:
    assert flood(process, exported, range(50)) == Met(45, 0, 5)
    first = resident(process.process.pid)
    assert flood(process, exported, range(50, 200)) == Met(135, 0, 15)
    last = resident(process.process.pid)
    record_property("memory", f"{first / 1024:.0f} MB after 50 requests, {last / 1024:.0f} at 200")
    # 20 MB: whoever kept the 150 requests would keep more.
    assert last < 1.03 * first


def test_a_server_killed_while_it_answers_is_one_line(process: Process) -> None:
    networks = [
        ServedNetwork(address, patience=Patience(60.0, 3, 0.05))
        for address in (process.rest, process.grpc)
    ]
    image = np.zeros((4000, 4000, 3), np.uint8)  # takes seconds
    threading.Timer(1.0, process.process.kill).start()
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(network.predict, image) for network in networks]
        errors = [end.exception() for end in ends]
    for error in errors:
        assert isinstance(error, ResourceError)
        assert re.search("no response after 3 attempts", str(error))
        assert len(str(error).splitlines()) == 1
