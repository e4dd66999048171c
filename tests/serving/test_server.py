"""The development server over real sockets: answers as locally, and errors that say why."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from ccfnet_tf.cli.main import main
from ccfnet_tf.errors import EXIT_DONE, ConfigError, DataError, RunError
from ccfnet_tf.exporters.saved_model import writer as saved_model
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import MAPS, ImageTooLargeError, Prediction
from ccfnet_tf.inference.test_time import Augmentation, AugmentedCascade, AugmentedNetwork
from ccfnet_tf.inference.wrap_segmenter import Wrapping, wrap
from ccfnet_tf.network.calibration_parameters import Calibration
from ccfnet_tf.runtimes import served
from ccfnet_tf.runtimes.manifest import write_manifest
from ccfnet_tf.runtimes.open_segmenter import find_source
from ccfnet_tf.runtimes.served import ServedNetwork
from ccfnet_tf.serving import grpc_server, rest_json, rest_server
from ccfnet_tf.serving.model import Model
from ccfnet_tf.serving.rest_server import MAX_BODY
from ccfnet_tf.serving.server import DevelopmentServer
from tests.serving.conftest import manifest
from tests.serving.served import NAMES, TAXONOMY, Exported, Process, picture, png, same

Answer = tuple[int, dict[str, Any]]


def call(address: str, body: bytes | None = None) -> Answer:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, body, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def predict(server: DevelopmentServer, **tree: Any) -> Answer:
    return call(f"{server.rest}:predict", json.dumps(tree).encode())


def b64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode()}


@pytest.mark.parametrize("face", ["rest", "grpc"])
@pytest.mark.parametrize("version", [False, True])
def test_a_picture_is_answered_as_locally(
    server: DevelopmentServer, exported: Exported, face: str, version: bool
) -> None:
    address = getattr(server, face)
    if version:
        address += "/versions/2" if face == "rest" else "/2"
    network = ServedNetwork(address)
    assert network.taxonomy == TAXONOMY
    for size in ((1, 1), (31, 40), (64, 33)):
        image = picture(*size)
        assert same(network.predict(image), exported, image)


@pytest.mark.parametrize("face", ["rest", "grpc"])
def test_views_are_averaged_as_locally(
    server: DevelopmentServer, exported: Exported, face: str
) -> None:
    views, image = Augmentation((0.75, 1.0, 1.5), flip=True), picture(40, 33)
    found = wrap(ServedNetwork(getattr(server, face)), Wrapping(views)).predict(image)
    local = AugmentedNetwork(exported.local, views).predict(image)
    assert isinstance(found, Prediction)
    assert isinstance(local, Prediction)
    np.testing.assert_array_equal(found.labels, local.labels)
    for name, step in (("probabilities", 0), ("risk", 0), ("attention", 1), ("difficulty", 1)):
        values, exact = getattr(found, name), getattr(local, name)
        np.testing.assert_allclose(values, exact, atol=step * 0.5 / 255 + 1e-4, err_msg=name)


CALIBRATIONS = {
    "temperature": Calibration((0.3,), attention_scale=2.0, attention_bias=0.5),
    "vector": Calibration((0.5, 2.0, 1.0), (3.0, 0.0, -1.0)),
}


@pytest.mark.parametrize("face", ["rest", "grpc"])
@pytest.mark.parametrize("name", CALIBRATIONS)
def test_a_server_tells_its_calibration_so_that_averages_have_the_labels_of_the_run(
    toy: Callable[..., Any], tmp_path: Path, face: str, name: str
) -> None:
    keras.utils.set_random_seed(0)
    model, calibration = toy(len(NAMES)), CALIBRATIONS[name]
    kernel = model.get_layer("backbone").get_layer("body").kernel
    kernel.assign(kernel / 25.0)  # logits in units
    version = tmp_path / "ccfnet" / "1"
    saved_model.write_saved_model(model, TAXONOMY, version, calibration)
    write_manifest(version, manifest(version))
    views, image = Augmentation((0.75, 1.0, 1.5), flip=True), picture(80, 66)
    run = KerasNetwork(model, taxonomy=TAXONOMY, calibration=calibration)
    with DevelopmentServer(version.parent, host="127.0.0.1", rest_port=0, grpc_port=0) as made:
        network = ServedNetwork(getattr(made, face))
        assert network.calibration == calibration
        plain = network.predict(image)
        one_view = AugmentedNetwork(network, Augmentation()).predict(image)
        found = AugmentedNetwork(network, views).predict(image)
    np.testing.assert_array_equal(one_view.labels, plain.labels)
    expected = AugmentedCascade(run, views).predict(image)
    assert len(np.unique(expected.labels)) == len(NAMES)
    ordered = np.sort(calibration.uncalibrated(expected.probabilities), axis=-1)
    certain = ordered[..., -1] - ordered[..., -2] > 1e-4
    assert isinstance(found, Prediction)
    np.testing.assert_array_equal(found.labels[certain], expected.labels[certain])
    np.testing.assert_allclose(found.risk, expected.risk, atol=1e-3)


@pytest.mark.parametrize("face", ["rest", "grpc"])
def test_predict_averages_views_through_a_server(
    server: DevelopmentServer, exported: Exported, face: str, tmp_path: Path
) -> None:
    given = tmp_path / "a.png"
    given.write_bytes(png(picture(40, 50)))
    labels = []
    for network in (getattr(server, face), str(exported.folder)):
        out = tmp_path / str(len(labels))
        words = ["predict", network, str(given), "--out", str(out), "--tta", "scales=1,1.5", "flip"]
        assert main(words) == EXIT_DONE
        labels.append((out / "a.label.png").read_bytes())
    assert labels[0] == labels[1]


@pytest.mark.parametrize("face", ["rest", "grpc"])
def test_a_served_model_without_probabilities_is_named(
    exported: Exported, face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Model.__init__

    def load_others(model: Model, *given: Any) -> None:
        load(model, *given)
        del model.signatures["probabilities"]

    monkeypatch.setattr(Model, "__init__", load_others)
    with DevelopmentServer(exported.folder, host="127.0.0.1", rest_port=0, grpc_port=0) as made:
        network = ServedNetwork(getattr(made, face))
        with pytest.raises(ConfigError, match="without the signature 'probabilities', which --tta"):
            network.predict_with_probabilities(picture(33, 40))
        assert same(network.predict(picture(33, 40)), exported, picture(33, 40))


def test_it_is_ready_when_it_says_so(server: DevelopmentServer) -> None:
    expected = {
        "version": "2",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for address in (server.rest, f"{server.rest}/versions/2"):
        assert call(address) == (200, {"model_version_status": [expected]})


def test_metadata_are_the_same_on_both_faces(server: DevelopmentServer) -> None:
    code, tree = call(f"{server.rest}/metadata")
    assert code == 200
    signatures = tree["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "encoded", "probabilities", "classes"}
    with grpc.insecure_channel(server.grpc.split("/")[2]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = "ccfnet"
        response = stub.GetModelMetadata(request, timeout=30)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    assert set(found.signature_def) == set(signatures)


def test_rows_and_columns_say_the_same(server: DevelopmentServer, exported: Exported) -> None:
    image = picture(33, 35)
    images = image[np.newaxis].tolist()
    local = exported.local.predict(image)
    forms = [{"instances": images}, {"instances": [{"images": images[0]}]}]
    forms += [{"inputs": images}, {"inputs": {"images": images}}]
    for form in forms:
        code, tree = predict(server, **form)
        assert code == 200
        item = tree["predictions"][0] if "predictions" in tree else None
        labels = tree["outputs"]["labels"][0] if item is None else item["labels"]
        np.testing.assert_array_equal(labels, local.labels)
    code, tree = predict(server, signature_name="probabilities", inputs=images)
    assert code == 200  # one output: no name around it
    np.testing.assert_allclose(tree["outputs"][0], local.probabilities, atol=1e-6)


def test_encoded_answers_mixed_sizes(server: DevelopmentServer) -> None:
    sent = [b64(png(picture(33, 40))), b64(png(picture(50, 34)))]
    code, rows = predict(server, signature_name="encoded", instances=sent)
    assert code == 200
    assert [set(row) for row in rows["predictions"]] == 2 * [
        {f"{name}_png_bytes" for name in ("labels", *MAPS)}
    ]
    _, columns = predict(server, signature_name="encoded", inputs={"image_bytes": sent})
    for name, values in columns["outputs"].items():
        assert values == [row[name] for row in rows["predictions"]]
    _, tree = predict(server, signature_name="classes", instances=[7])
    assert tree["predictions"][0]["names"] == list(NAMES)
    assert json.loads(tree["predictions"][0]["calibration"])["scale"] == [1.0]


PIXEL = [[[[0, 0, 0]]]]
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, "either 'instances' or 'inputs'"),
    "both": ({"instances": PIXEL, "inputs": PIXEL}, "either"),
    "no rows": ({"instances": []}, "not a list, or is empty"),
    "signature": ({"signature_name": "encodet", "instances": PIXEL}, "no signature 'encodet'"),
    "no name": ({"signature_name": 5, "instances": PIXEL}, "not a string"),
    "unknown input": ({"inputs": {"image": PIXEL}}, r"\['image'\]: expected \['images'\]"),
    "uneven rows": ({"instances": [{"images": 1}, {"image": 1}]}, "different inputs"),
    "ragged": ({"instances": [[[[0, 0, 0], [0]]]]}, "not an array of uint8"),
    "too high": ({"instances": [[[[0, 0, 256]]]]}, r"outside 0\.\.255"),
    "fraction": ({"instances": [[[[0, 0, 0.5]]]]}, "not integers"),
    "four channels": ({"instances": [[[[0, 0, 0, 0]]]]}, r"expected uint8 \[None, None, None, 3\]"),
    "no base64": (
        {"signature_name": "encoded", "instances": [{"b64": "§"}]},
        "not an array of string",
    ),
    "number": ({"signature_name": "encoded", "instances": [5]}, "neither a string nor"),
    "no image": (
        {"signature_name": "encoded", "instances": [b64(png(picture(9, 9))), b64(b"?" * 40)]},
        r"item\] \[1\].*neither JPEG nor PNG",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_request_is_told_why(server: DevelopmentServer, bad: str) -> None:
    tree, said = BAD[bad]
    code, answer = predict(server, **tree)
    assert code == 400
    assert list(answer) == ["error"]
    assert pytest.raises(AssertionError, match=said).matches(AssertionError(answer["error"]))


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/models/other", None, 404),
        ("/v1/models/ccfnet/versions/3", None, 404),
        ("/v1/models/ccfnet/versions/3:predict", b"{}", 404),
        ("/v1/models/ccfnet:predikt", b"{}", 400),
        ("/v1/models/ccfnet:predict", None, 400),
        ("/v1/models/ccfnet/nothing", None, 400),
        ("/", None, 400),
        ("/v1/models/ccfnet:predict", b"no json", 400),
        ("/v1/models/ccfnet:predict", b"[]", 400),
        ("/v1/models/ccfnet:predict", b"[" * 100_000, 400),
    ],
)
def test_a_wrong_address_or_body(
    server: DevelopmentServer, path: str, body: bytes | None, code: int
) -> None:
    base = server.rest.removesuffix("/v1/models/ccfnet")
    found, answer = call(base + path, body)
    assert (found, list(answer)) == (code, ["error"])


def answered(server: DevelopmentServer, request: bytes) -> tuple[int, str]:
    """Sends bytes as they are; returns the status and what `error` says."""
    host, port = server.rest.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.load(response)["error"]


POST = b"POST /v1/models/ccfnet:predict HTTP/1.1\r\n"


@contextmanager
def trickling(rest_address: str, start: bytes) -> Iterator[socket.socket]:
    """A client that sends a byte now and then, until the server wants no more."""
    host, port = rest_address.split("/")[2].split(":")
    done = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            while not done.wait(0.1):
                connection.sendall(b"1")

    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(start)
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield connection
        finally:
            done.set()
            thread.join()


BEGUN = POST + b"Content-Length: 1000000\r\n\r\n"


def test_a_body_that_takes_too_long_is_refused(
    server: DevelopmentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_server, "SECONDS", 0.5)
    with trickling(server.rest, BEGUN) as connection:
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 408
        assert "of 1000000 bytes within" in json.load(response)["error"]


def test_headers_that_take_too_long_end_the_connection(
    server: DevelopmentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_server, "SECONDS", 0.5)
    with (
        trickling(server.rest, POST + b"X-Header: 1") as connection,
        contextlib.suppress(ConnectionResetError),
    ):
        while connection.recv(4096):  # else it times out
            pass


@pytest.mark.parametrize("length", ["²", "-1", "+1", "1_0", " ", "one", "9" * 5000])
def test_a_length_that_is_none_is_refused(server: DevelopmentServer, length: str) -> None:
    header = f"Content-Length: {length}\r\n\r\n".encode("latin-1")
    code, said = answered(server, POST + header)
    assert (code, said.split(" ")[0]) == (400, "Content-Length")


def test_a_name_that_is_no_text_is_answered(server: DevelopmentServer) -> None:
    code, tree = predict(server, signature_name="\ud800", instances=PIXEL)
    assert (code, "no signature '\ud800'" in tree["error"]) == (400, True)


def test_a_fault_of_ours_is_answered(
    server: DevelopmentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: Any) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(rest_server, "read_request", fault)
    assert predict(server) == (500, {"error": "unexpected ZeroDivisionError: by"})
    monkeypatch.undo()
    monkeypatch.setattr(grpc_server, "to_array", fault)
    with pytest.raises(grpc.RpcError, match="unexpected ZeroDivisionError: by") as caught:
        ask_grpc(server, lambda request: None)
    assert caught.value.code().name == "INTERNAL"


def test_json_is_read_one_request_at_a_time(
    server: DevelopmentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, most = [0], [0]
    real = rest_json.arrays

    def watched(*given: Any) -> Any:
        reading[0] += 1
        most[0] = max(most[0], reading[0])
        time.sleep(0.02)
        try:
            return real(*given)
        finally:
            reading[0] -= 1

    monkeypatch.setattr(rest_server, "arrays", watched)
    with ThreadPoolExecutor(8) as pool:
        ends = [
            pool.submit(predict, server, signature_name="classes", instances=[0]) for _ in range(8)
        ]
    assert {end.result()[0] for end in ends} == {200}
    assert most == [1]


def test_a_body_that_is_too_large_is_answered_when_it_is_sent(server: DevelopmentServer) -> None:
    large = MAX_BODY + (1 << 23)
    header = f"Content-Length: {large}\r\n\r\n".encode()
    code, said = answered(server, POST + header + bytes(large))
    assert (code, "Content-Length" in said) == (413, True)


def test_a_body_without_end_is_refused(server: DevelopmentServer) -> None:
    connection = http.client.HTTPConnection(server.rest.split("/")[2], timeout=30)
    connection.putrequest("POST", "/v1/models/ccfnet:predict")
    connection.putheader("Content-Length", str(MAX_BODY + 1))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert "Content-Length" in json.load(response)["error"]
    connection.close()


def ask_grpc(server: DevelopmentServer, change: Callable[[Any], None]) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "ccfnet"
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(picture(33, 33)[np.newaxis]))
    change(request)
    with grpc.insecure_channel(server.grpc.split("/")[2]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return stub.Predict(request, timeout=30)


def test_grpc_filters_outputs(server: DevelopmentServer) -> None:
    response = ask_grpc(server, lambda request: request.output_filter.append("risk"))
    assert list(response.outputs) == ["risk"]
    assert response.model_spec.version.value == 2


def promised(*shape: int, values: tuple[int, ...] = (7,)) -> Any:
    """Returns a tensor whose shape may promise more than it holds."""
    proto = tf.make_tensor_proto(np.zeros((0,), np.uint8), tf.uint8, shape=[0])
    proto.tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
    proto.int_val.extend(values)
    return proto


WRONG: dict[str, tuple[Callable[[Any], None], str]] = {
    "model": (lambda r: setattr(r.model_spec, "name", "other"), "NOT_FOUND"),
    "version": (lambda r: setattr(r.model_spec.version, "value", 9), "NOT_FOUND"),
    "signature": (lambda r: setattr(r.model_spec, "signature_name", "x"), "INVALID_ARGUMENT"),
    "inputs": (lambda r: r.inputs.clear(), "INVALID_ARGUMENT"),
    "output": (lambda r: r.output_filter.append("x"), "INVALID_ARGUMENT"),
    "kind": (
        lambda r: r.inputs["images"].CopyFrom(tf.make_tensor_proto([1.0])),
        "INVALID_ARGUMENT",
    ),
    "cut": (lambda r: setattr(r.inputs["images"], "tensor_content", b"1"), "INVALID_ARGUMENT"),
    "filled up": (
        lambda r: r.inputs["images"].CopyFrom(promised(1, 40, 40, 3)),
        "INVALID_ARGUMENT",
    ),
    "bomb": (
        lambda r: r.inputs["images"].CopyFrom(promised(1, 10**9, 10**9, 3)),
        "INVALID_ARGUMENT",
    ),
    "value": (
        lambda r: r.inputs["images"].CopyFrom(promised(1, 1, 1, 3, values=(300, 0, 0))),
        "INVALID_ARGUMENT",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_grpc_says_what_is_wrong(server: DevelopmentServer, wrong: str) -> None:
    change, code = WRONG[wrong]
    with pytest.raises(grpc.RpcError) as caught:
        ask_grpc(server, change)
    assert caught.value.code().name == code
    assert len((caught.value.details() or "").splitlines()) == 1


@pytest.mark.parametrize("face", ["rest", "grpc"])
def test_the_client_tells_a_refused_picture_from_a_wrong_address(
    server: DevelopmentServer, face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = getattr(server, face)
    network = ServedNetwork(address)
    large = np.zeros((4097, 4096, 3), np.uint8)
    with pytest.raises(ImageTooLargeError, match=r"4096x4097 pixels: a server accepts at most"):
        network.predict(large)
    monkeypatch.setattr(served, "MAX_REQUEST_PIXELS", large.size)
    with pytest.raises(DataError, match=r"server rejected the request: .*at most \d+ are accepted"):
        network.predict(large)
    with pytest.raises(ConfigError, match="does not serve this model"):
        ServedNetwork(address.replace("ccfnet", "other"))


def test_the_client_knows_the_limit_of_the_signature() -> None:
    assert served.MAX_REQUEST_PIXELS == saved_model.MAX_REQUEST_PIXELS


def test_it_serves_the_version_that_predict_would_open(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "ccfnet"
    shutil.copytree(exported.folder, folder)
    model = Model(folder, "ccfnet")
    assert (find_source(str(folder)).place, model.version) == (str(folder / "2"), 2)
    model.close()
    (folder / "10").mkdir()
    shutil.copy(folder / "2" / "saved_model.pb", folder / "10")  # a copy that was cut off
    for opened in (lambda: find_source(str(folder)), lambda: Model(folder, "ccfnet")):
        with pytest.raises(RunError, match="ccfnet/10"):
            opened()


@pytest.mark.parametrize("option", ["--rest-port", "--grpc-port"])
def test_a_port_in_use_is_one_line(
    exported: Exported, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = {"--rest-port": "0", "--grpc-port": "0", option: str(port)}
        given = [part for pair in ports.items() for part in pair]
        assert main(["serve", str(exported.folder), *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ccfnet-tf: {option} {port}: cannot listen on 127.0.0.1")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere"], "/nowhere: no such folder"),
        (["EMPTY"], "not an exported network"),
        (["EMPTY", "--rest-port", "70000"], "'70000' is not a port"),
        ([], "folder"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tmp_path) if each == "EMPTY" else each for each in arguments]
    assert main(["serve", *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("signals", "code"), [(1, 0), pytest.param(2, 130, marks=pytest.mark.slow)]
)
def test_a_client_that_trickles_does_not_keep_it(process: Process, signals: int, code: int) -> None:
    with trickling(process.rest, BEGUN):
        for _ in range(signals):
            time.sleep(0.5)  # two at once would be one
            process.process.send_signal(signal.SIGINT)
        process.process.communicate(timeout=60)
    assert process.process.returncode == code


def test_a_signal_ends_it(process: Process) -> None:
    assert call(process.rest)[0] == 200
    process.process.send_signal(signal.SIGTERM)
    said, errors = process.process.communicate(timeout=60)
    assert process.process.returncode == 0
    assert (said, errors) == ("stopped\n", "")
