"""The client against servers that are slow, gone, busy or wrong, over real sockets."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from ccfnet_tf.errors import CCFNetError, ConfigError, DataError, ResourceError
from ccfnet_tf.inference.segmenter_protocol import MAPS, ImageTooLargeError
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runtimes import served as module
from ccfnet_tf.runtimes.served import Patience, ServedNetwork

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
LABELS = IMAGE[..., 0] % 3
MAPS_SENT = dict(zip(MAPS, (IMAGE[..., 2], IMAGE[..., 1], 255 - IMAGE[..., 2]), strict=True))
DIFFICULTY = MAPS_SENT["difficulty"]
HASTY = Patience(seconds=5.0, attempts=3, first_wait=0.02)


def png(plane: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", plane)[1])


FITTED = Calibration((0.5, 2.0, 1.0), (0.0, 1.0, -1.0), 2.0, 0.5, 0.1)
CLASSES: dict[str, Any] = {
    "names": ["sky", "sea", "grüße"],
    "palette": [[1, 2, 3], [4, 5, 6], [255, 0, 9]],
    "calibration": json.dumps(asdict(FITTED)),
}
GOOD: dict[str, Any] = {
    "labels_png_bytes": png(LABELS),
    **{f"{name}_png_bytes": png(plane) for name, plane in MAPS_SENT.items()},
}

Handler = BaseHTTPRequestHandler
Script = list[Callable[[Handler], None]]


def row(answer: dict[str, Any]) -> bytes:
    plain = {
        name: {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in answer.items()
    }
    return json.dumps({"predictions": [plain]}).encode()


def says(content: bytes, code: int = 200) -> Callable[[Handler], None]:
    def behave(handler: Handler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return behave


def cut(handler: Handler) -> None:
    content = row(GOOD)
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[:40])  # and then the connection ends


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def drip(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" ")
        time.sleep(0.05)


good, classes, busy = says(row(GOOD)), says(row(CLASSES)), says(b'{"error": "busy"}', 503)


@contextmanager
def playing(script: Script, port: int = 0) -> Iterator[str]:
    """A server that does one thing of a script for each request, and is asked no more often."""

    class Player(Handler):
        def do_POST(self) -> None:  # noqa: N802
            self.rfile.read(int(self.headers["Content-Length"]))
            script.pop(0)(self)

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args: Any) -> None:  # a client that left
            pass

    with Server(("127.0.0.1", port), Player) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1/models/ccfnet"
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as other:
        return int(other.getsockname()[1])


def test_an_answer_is_maps_of_the_picture() -> None:
    with playing([classes, good]) as address:
        network = ServedNetwork(address, patience=HASTY)
        found = network.predict(IMAGE)
    assert network.taxonomy.names == ("sky", "sea", "grüße")
    assert network.taxonomy.palette[2] == (255, 0, 9)
    assert network.calibration == FITTED
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.labels.dtype == np.int32
    for name, plane in MAPS_SENT.items():
        values = getattr(found, name)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values * 255, plane, rtol=1e-6)


def test_a_model_of_an_older_export_is_named() -> None:
    with playing([classes, says(row(without("attention_png_bytes")))]) as address:
        network = ServedNetwork(address, patience=HASTY)
        with pytest.raises(ConfigError, match=r"an older version.*: export the run again$"):
            network.predict(IMAGE)


def test_a_model_that_does_not_tell_its_calibration_is_refused_for_probabilities_only() -> None:
    older = {name: value for name, value in CLASSES.items() if name != "calibration"}
    with playing([says(row(older)), good]) as address:
        network = ServedNetwork(address, patience=HASTY)
        assert network.calibration == UNCALIBRATED
        with pytest.raises(ConfigError, match=r"does not tell its calibration.*: export the run"):
            network.predict_with_probabilities(IMAGE)
        np.testing.assert_array_equal(network.predict(IMAGE).labels, LABELS)


def test_labels_of_many_classes_have_16_bits() -> None:
    many = {"names": [f"class {i}" for i in range(300)], "palette": [[0, 0, 0]] * 300}
    wide = {**GOOD, "labels_png_bytes": png(LABELS.astype(np.uint16) + 290)}
    with playing([says(row(many)), says(row(wide))]) as address:
        found = ServedNetwork(address, patience=HASTY).predict(IMAGE)
    np.testing.assert_array_equal(found.labels, LABELS.astype(int) + 290)


@pytest.mark.parametrize("fault", [busy, cut, hang_up, says(b"bad gateway", 502)])
def test_what_passes_is_tried_again(fault: Callable[[Handler], None]) -> None:
    script = [classes, fault, fault, good]
    with playing(script) as address:
        ServedNetwork(address, patience=HASTY).predict(IMAGE)
    assert not script


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (says(b'{"error": "no\\nPNG"}', 400), DataError, "the server rejected the request: no PNG"),
        (says(b'{"error": "OOM"}', 429), ImageTooLargeError, "ran out of memory: OOM"),
        (says(b'{"error": "gone"}', 404), ConfigError, "does not serve this model: gone"),
        (says(b"<html>", 413), DataError, "the server rejected the request: HTTP 413"),
        (says(b"<html>", 500), ResourceError, "no response: HTTP 500"),
    ],
)
def test_what_stays_wrong_is_asked_once(
    fault: Callable[[Handler], None], kind: type[CCFNetError], said: str
) -> None:
    script = [classes, fault, good]
    with playing(script) as address:
        network = ServedNetwork(address, patience=HASTY)
        with pytest.raises(kind, match=said):
            network.predict(IMAGE)
        network.predict(IMAGE)  # the next image is answered
    assert not script


@pytest.mark.parametrize("slow", [drip, lambda handler: time.sleep(1.0)])
def test_a_slow_server_is_not_waited_for(slow: Callable[[Handler], None]) -> None:
    script = [classes, slow]
    with playing(script) as address:
        network = ServedNetwork(address, patience=Patience(0.3, 3, 0.02))
        with pytest.raises(ResourceError, match=r"no response within 0\.3 s"):
            network.predict(IMAGE)
    assert not script  # not asked again: it would only be slower


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


RGB = png(np.zeros((6, 9, 3), np.uint8))
WRONG: dict[str, tuple[bytes, str]] = {
    "garbage": (b"<html>", "not a response of TensorFlow Serving"),
    "deep": (b"[" * 100_000, "not a response of TensorFlow Serving"),
    "nothing": (b'{"predictions": []}', "not a response of TensorFlow Serving"),
    "two": (b'{"predictions": [{}, {}]}', "not a response of TensorFlow Serving"),
    "base64": (b'{"predictions": [{"labels_png_bytes": {"b64": "?"}}]}', "not a response of"),
    "key": (row(without("labels_png_bytes")), "no 'labels_png_bytes'"),
    "other key": (row(without("difficulty_png_bytes")), "no 'difficulty_png_bytes'"),
    "text": (row({**GOOD, "labels_png_bytes": "text"}), "no 'labels_png_bytes'"),
    "size": (row({**GOOD, "labels_png_bytes": png(LABELS.T)}), "9x6 pixels: the image has 6x9"),
    "no png": (row({**GOOD, "labels_png_bytes": b"GIF89a"}), "is not a PNG, or is damaged"),
    "cut": (row({**GOOD, "labels_png_bytes": png(LABELS)[:-30]}), "is not a PNG, or is damaged"),
    "colour": (row({**GOOD, "labels_png_bytes": RGB}), "is not a greyscale PNG"),
    "class": (row({**GOOD, "labels_png_bytes": png(LABELS + 1)}), "class 3: there are 3"),
    "wide": (row({**GOOD, "difficulty_png_bytes": png(DIFFICULTY.astype(np.uint16))}), "16 bits"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_an_error_of_its_picture(wrong: str) -> None:
    content, said = WRONG[wrong]
    with playing([classes, says(content), good]) as address:
        network = ServedNetwork(address, patience=HASTY)
        with pytest.raises(DataError, match=said):
            network.predict(IMAGE)
        network.predict(IMAGE)


CHANCES = np.full((*IMAGE.shape[:2], 3), (0.25, 0.25, 0.5))
WRONG_CHANCES: dict[str, tuple[Any, str]] = {
    "none": ({"a": 1}, "no 'probabilities'"),
    "text": ([["0.5?"]], "no 'probabilities'"),
    "ragged": ([[[0.5], [0.5, 0.5]]], "no 'probabilities'"),
    "shape": (CHANCES[..., :2].tolist(), r"shape \[6, 9, 2\]: expected \[6, 9, 3\]"),
    "high": ((CHANCES * 3).tolist(), r"outside 0\.\.1"),
    "NaN": ((CHANCES * np.nan).tolist(), r"outside 0\.\.1"),
}


def test_probabilities_come_with_the_maps() -> None:
    script = [classes, good, busy, says(json.dumps({"predictions": [CHANCES.tolist()]}).encode())]
    with playing(script) as address:
        found = ServedNetwork(address, patience=HASTY).predict_with_probabilities(IMAGE)
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.probabilities, CHANCES)
    np.testing.assert_array_equal(found.risk, np.where(LABELS == 2, 0.5, 0.75))
    for name in ("attention", "difficulty"):
        np.testing.assert_allclose(getattr(found, name) * 255, MAPS_SENT[name], rtol=1e-6)


@pytest.mark.parametrize("wrong", WRONG_CHANCES)
def test_wrong_probabilities_are_an_error_of_their_picture(wrong: str) -> None:
    answer, said = WRONG_CHANCES[wrong]
    script = [classes, good, says(json.dumps({"predictions": [answer]}).encode())]
    with playing(script) as address:
        network = ServedNetwork(address, patience=HASTY)
        with pytest.raises(DataError, match=said):
            network.predict_with_probabilities(IMAGE)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ('Serving signature name: \\"probabilities\\" not found in signature def', ConfigError),
        ("another reason", DataError),
    ],
)
def test_a_model_without_probabilities_is_told_from_other_refusals(
    said: str, kind: type[CCFNetError]
) -> None:
    script = [classes, good, says(f'{{"error": "{said}"}}'.encode(), 400)]
    with playing(script) as address:
        network = ServedNetwork(address, patience=HASTY)
        with pytest.raises(kind):
            network.predict_with_probabilities(IMAGE)
    assert not script


def test_an_answer_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with playing([classes, good]) as address:
        network = ServedNetwork(address, patience=HASTY)
        monkeypatch.setattr(module, "MAX_RESPONSE", 100)
        with pytest.raises(DataError, match="more than 100 bytes"):
            network.predict(IMAGE)


@pytest.mark.parametrize("face", ["rest", "grpc"])
def test_probabilities_that_cannot_fit_are_not_requested(
    face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script: list[Any] = [classes] if face == "rest" else [response(CLASSES)]
    with (playing if face == "rest" else playing_grpc)(script) as address:
        network = ServedNetwork(address, patience=HASTY)
        monkeypatch.setattr(module, "MAX_RESPONSE", 4 * IMAGE.size - 1)
        with pytest.raises(DataError, match=r"more than 647 bytes: .*--tile 512"):
            network.predict_with_probabilities(IMAGE)
    assert not script


def test_a_message_of_grpc_that_is_too_long_names_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RESPONSE", 700)
    long = response({**GOOD, "labels_png_bytes": bytes(1000)})
    with playing_grpc([response(CLASSES), long]) as address:
        network = ServedNetwork(address, patience=HASTY)
        with pytest.raises(DataError, match=r"more than 700 bytes: .*--tile 512"):
            network.predict(IMAGE)


@pytest.mark.parametrize(
    "answer",
    [
        {"names": ["a"]},
        {"names": [], "palette": []},
        {"names": "a", "palette": [[0, 0, 0]]},
        {"names": ["a"], "palette": [[0, 0, 256]]},
        {"names": ["a"], "palette": [[0, 0]]},
        {"names": ["a"], "palette": "red"},
        {"names": ["a"], "palette": [[0.5, 0, 0]]},
        {**CLASSES, "calibration": "no JSON"},
        {**CLASSES, "calibration": "[]"},
        {**CLASSES, "calibration": "[" * 100_000},
        {**CLASSES, "calibration": 3},
        {**CLASSES, "calibration": json.dumps(asdict(Calibration((10**400,))))},
        {**CLASSES, "calibration": json.dumps(asdict(Calibration((1e-320,))))},
        {**CLASSES, "calibration": json.dumps(asdict(Calibration((-1.0,))))},
        {**CLASSES, "calibration": json.dumps(asdict(Calibration((1.0, 2.0))))},
    ],
)
def test_another_server_is_no_network(answer: dict[str, Any]) -> None:
    with (
        playing([says(row(answer))]) as address,
        pytest.raises(ConfigError, match="does not serve a network that ccfnet-tf exported"),
    ):
        ServedNetwork(address, patience=HASTY)


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}/v1/models/x", "grpc://127.0.0.1:{}/x"])
def test_nobody_there_is_one_line_after_some_attempts(address: str) -> None:
    with pytest.raises(ResourceError, match=r"no response after 3 attempts: .*refused") as caught:
        ServedNetwork(address.format(free_port()), patience=HASTY)
    assert len(str(caught.value).splitlines()) == 1


def test_another_protocol_at_the_port_is_said_at_once() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(ResourceError, match="the server does not speak HTTP: is this its"):
            ServedNetwork(f"http://127.0.0.1:{port}/v1/models/x", patience=HASTY)
    finally:
        server.stop(None)


def test_a_server_that_starts_later_is_found() -> None:
    port, script = free_port(), [classes, good]

    def answer() -> np.ndarray:
        address = f"http://127.0.0.1:{port}/v1/models/ccfnet"
        return ServedNetwork(address, patience=Patience(5.0, 8, 0.05)).predict(IMAGE).labels

    with futures.ThreadPoolExecutor(1) as pool:
        found = pool.submit(answer)
        time.sleep(0.3)
        with playing(script, port):
            np.testing.assert_array_equal(found.result(), LABELS)


def test_http_needs_no_tensorflow() -> None:
    code = (
        "import sys; from ccfnet_tf.runtimes.served import ServedNetwork\n"
        "print(ServedNetwork(sys.argv[1]).taxonomy.names)\n"
        "print('tensorflow' in sys.modules)"
    )
    with playing([classes]) as address:
        done = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True, check=True
        )
    assert done.stdout.splitlines() == ["('sky', 'sea', 'grüße')", "False"]


@pytest.mark.parametrize(
    "address",
    [
        "http://host:8501",
        "http://host:8501/v1/models/",
        "http://host:8501/v1/models/ccfnet:predict",
        "http://host:8501/v1/models/ccfnet/versions/last",
        "grpc://host/ccfnet",
        "grpc://host:8500",
        "grpc://host:8500/ccfnet/last",
        "ftp://host/ccfnet",
        "http://[::1/v1/models/x",
        "http://[::zz]/v1/models/x",
        "http://a..b/v1/models/x",
        "http://host/v1/models/grüße",
        "http://grüße/v1/models/x",
        "http://host:abc/v1/models/x",
        "http://host:99999/v1/models/x",
        "http://host:0/v1/models/x",
        "http:// /v1/models/x",
        "http://:8501/v1/models/x",
        "http://name@host/v1/models/x",
        "http://host/a b/v1/models/x",
        "http://host/v1/models/x\n",
        "http://host/v1/models/x/versions/٣",
        "http://host/v1/models/x/versions/99999999999999999999",
        "grpc://host:1/ccfnet/99999999999999999999",
        "grpc://host:99999/ccfnet",
        "grpc://[::1:8500/ccfnet",
        "grpc://a..b:8500/ccfnet",
    ],
)
def test_an_address_of_another_form_is_refused(address: str) -> None:
    patience = Patience(seconds=1.0, attempts=1)
    with pytest.raises(ConfigError, match="not an address of a served network: expected http://"):
        ServedNetwork(address, patience=patience)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:1", "no_such.invalid.:1"]
)
def test_a_good_address_is_asked(host: str) -> None:
    patience = Patience(seconds=5.0, attempts=1)
    for address in (f"http://{host}/behind/v1/models/x/versions/1", f"grpc://{host}/x/1"):
        with pytest.raises(ResourceError, match="no response"):
            ServedNetwork(address, patience=patience)


def test_grpc_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(ConfigError, match=r"pip install 'ccfnet-tf\[serving\]'"):
        ServedNetwork("grpc://127.0.0.1:1/ccfnet")


def test_a_picture_above_the_limit_is_not_sent() -> None:
    script = [classes, good]
    with playing(script) as address:
        network = ServedNetwork(address, patience=HASTY)
        large = np.broadcast_to(np.zeros(3, np.uint8), (6200, 6200, 3))
        with pytest.raises(ImageTooLargeError, match="6200x6200 pixels: a server accepts"):
            network.predict(large)
        network.predict(IMAGE)
    assert not script


def test_what_is_no_picture_is_not_sent() -> None:
    with playing([classes]) as address:
        network = ServedNetwork(address, patience=HASTY)
        with pytest.raises(DataError, match="is not an image"):
            network.predict(IMAGE[..., 0])


def response(answer: dict[str, Any]) -> Any:
    made = predict_pb2.PredictResponse()
    for name, value in answer.items():
        kind = tf.uint8 if name == "palette" else None
        made.outputs[name].CopyFrom(tf.make_tensor_proto([value], kind))
    return made


@contextmanager
def playing_grpc(script: list[Any]) -> Iterator[str]:
    """The same by gRPC: answers, or names of statuses."""

    class Player(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
            step = script.pop(0)
            if isinstance(step, float):
                time.sleep(step)
            elif isinstance(step, str):
                context.abort(grpc.StatusCode[step], "that is why")
            return step

    server = grpc.server(futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Player(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}/ccfnet"
    finally:
        server.stop(0).wait()


def test_grpc_tries_again_while_the_server_is_busy() -> None:
    script = ["UNAVAILABLE", response(CLASSES), "UNAVAILABLE", "UNAVAILABLE", response(GOOD)]
    with playing_grpc(script) as address:
        network = ServedNetwork(address, patience=HASTY)
        assert network.taxonomy.names == ("sky", "sea", "grüße")
        np.testing.assert_array_equal(network.predict(IMAGE).labels, LABELS)
    assert not script


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("INVALID_ARGUMENT", DataError, "rejected the request: INVALID_ARGUMENT: that is why"),
        ("RESOURCE_EXHAUSTED", ImageTooLargeError, "ran out of memory"),
        ("NOT_FOUND", ConfigError, "does not serve this model"),
        ("INTERNAL", ResourceError, "no response: INTERNAL"),
        (1.0, ResourceError, r"no response within 0\.5 s"),
        (response(without("labels_png_bytes")), DataError, "no 'labels_png_bytes'"),
        (response({**GOOD, "labels_png_bytes": b"?"}), DataError, "is not a PNG"),
    ],
)
def test_grpc_asks_once_where_it_would_stay_wrong(
    fault: Any, kind: type[CCFNetError], said: str
) -> None:
    script = [response(CLASSES), fault]
    with playing_grpc(script) as address:
        network = ServedNetwork(address, patience=Patience(0.5, 3, 0.02))
        with pytest.raises(kind, match=said):
            network.predict(IMAGE)
    assert not script


def test_grpc_refuses_a_tensor_that_is_none() -> None:
    scalar = predict_pb2.PredictResponse()
    scalar.outputs["labels_png_bytes"].CopyFrom(tf.make_tensor_proto(b"1"))
    with playing_grpc([response(CLASSES), scalar]) as address:
        network = ServedNetwork(address, patience=HASTY)
        with pytest.raises(DataError, match="response is not valid"):
            network.predict(IMAGE)


@pytest.mark.parametrize("promised", [3, 10**18, -1])
def test_grpc_refuses_a_shape_that_promises_more_than_there_is(promised: int) -> None:
    bomb = response(GOOD)
    bomb.outputs["labels_png_bytes"].tensor_shape.dim[0].size = promised
    with playing_grpc([response(CLASSES), bomb]) as address:
        network = ServedNetwork(address, patience=HASTY)
        with pytest.raises(DataError, match="response is not valid") as caught:
            network.predict(IMAGE)
    assert len(str(caught.value).splitlines()) == 1
