from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.errors import DataError
from ccfnet_tf.runtimes.served import ServedNetwork
from ccfnet_tf.serving.admission import PixelBudget, pixels_of
from ccfnet_tf.serving.server import DevelopmentServer
from tests.serving.served import Exported, picture


def encoded(width: int, height: int, kind: str, **how: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, kind, **how)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        (encoded(40, 33, "PNG"), 40 * 33),
        (encoded(40, 33, "JPEG"), 40 * 33),
        (encoded(40, 33, "JPEG", progressive=True), 40 * 33),
        (encoded(40, 33, "JPEG", exif=Image.Exif().tobytes() + bytes(500)), 40 * 33),
        (encoded(4096, 4096, "PNG"), 4096 * 4096),
        (encoded(40, 33, "JPEG")[:100], 0),
        (encoded(40, 33, "PNG")[:15], 0),
        (b"\xff\xd8" + b"\xff" * 1000, 0),
        (b"no image", 0),
        (b"", 0),
    ],
)
def test_pixels_are_known_from_the_header(content: bytes, pixels: int) -> None:
    assert pixels_of(np.array([content, b""], object)) == pixels


def test_pixels_of_arrays() -> None:
    assert pixels_of(np.zeros((2, 5, 7, 3), np.uint8)) == 70
    assert pixels_of(np.zeros(4, np.int32)) == 0


def test_no_more_pixels_than_there_is_room_for() -> None:
    budget, now, most = PixelBudget(8, 100), [0], [0]
    lock = threading.Lock()

    def work(pixels: int) -> None:
        with budget.taken(pixels):
            with lock:
                now[0] += pixels
                most[0] = max(most[0], now[0])
            time.sleep(0.005)
            with lock:
                now[0] -= pixels

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, [60, 50, 100, 1, 40, 30] * 5))
    assert now == [0]
    assert 60 < most[0] <= 100


def test_a_request_of_more_pixels_is_refused(exported: Exported) -> None:
    with DevelopmentServer(
        exported.folder, host="127.0.0.1", rest_port=0, grpc_port=0, max_pixels=64 * 64
    ) as server:
        for address in (server.rest, server.grpc):
            network = ServedNetwork(address)
            assert network.predict(picture(64, 64)).labels.shape == (64, 64)
            with pytest.raises(DataError, match=r"at most 4096 are accepted .*\(predict --size\)"):
                network.predict(picture(64, 65))
        rows = [{"b64": base64.b64encode(encoded(64, 40, "PNG")).decode()}] * 2
        body = json.dumps({"signature_name": "encoded", "instances": rows}).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with pytest.raises(urllib.error.HTTPError) as caught:
            opener.open(f"{server.rest}:predict", body, timeout=60)
        with caught.value as refused:
            assert refused.code == 400
            assert "5120 pixels in total" in json.load(refused)["error"]
