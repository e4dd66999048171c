"""The files under export/serving are valid and consistent with each other and the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from ccfnet_tf.serving.server import NAME

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "export" / "serving"
STATUS = f"/v1/models/{NAME}"
GRPC, REST = 8500, 8501  # Of the image.
FLAGS = {
    "model_config_file",
    "monitoring_config_file",
    "rest_api_timeout_in_ms",
    "enable_batching",
    "batching_parameters_file",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
}
"""Flags of tensorflow_model_server 2.20 that are used here."""


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "compose.yaml").read_text()))


def kubernetes() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


def pod() -> dict[str, Any]:
    return dict(kubernetes()["Deployment"]["spec"]["template"]["spec"])


def servers() -> dict[str, list[str]]:
    """Returns the arguments of every server."""
    services = compose()["services"]
    result = {name: services[name]["command"] for name in ("ccfnet", "ccfnet-batched")}
    return {**result, "kubernetes": pod()["containers"][0]["args"]}


def field(name: str, text: str) -> str:
    result = re.search(rf'{name}(?: {{ value)?: "?([^"\s}}]+)', text)
    assert result is not None, name
    return result[1]


def test_the_model_has_one_name_and_one_path() -> None:
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((FOLDER / "models.config").read_text(), config)
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path) == (NAME, f"/models/{NAME}")
    for name in ("ccfnet", "ccfnet-batched"):
        volumes = compose()["services"][name]["volumes"]
        assert any(volume.endswith(f":{model.base_path}:ro") for volume in volumes)
    mounts = {each["name"]: each["mountPath"] for each in pod()["containers"][0]["volumeMounts"]}
    assert mounts == {"models": model.base_path, "config": "/config"}


@pytest.mark.parametrize("name", ["ccfnet", "ccfnet-batched", "kubernetes"])
def test_flags_are_known_and_their_files_exist(name: str) -> None:
    for argument in servers()[name]:
        flag, _, value = argument.removeprefix("--").partition("=")
        assert flag in FLAGS
        if value.startswith("/config/"):
            assert (FOLDER / value.removeprefix("/config/")).is_file()


def test_only_one_server_batches_and_without_padding() -> None:
    batching = [name for name, flags in servers().items() if "--enable_batching" in flags]
    assert batching == ["ccfnet-batched"]
    assert compose()["services"]["ccfnet-batched"]["profiles"] == ["batched"]
    text = (FOLDER / "batching.config").read_text()
    sizes = [int(size) for size in re.findall(r"allowed_batch_sizes: (\d+)", text)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == int(field("max_batch_size", text))  # Required by TensorFlow Serving.
    assert field("pad_variable_length_inputs", text) == "false"


def test_both_ways_run_the_same_server() -> None:
    services = compose()["services"]
    images = {services["ccfnet"]["image"], services["ccfnet-batched"]["image"]}
    assert images | {pod()["containers"][0]["image"]} == {"tensorflow/serving:2.20.0"}
    assert re.fullmatch(r"prom/prometheus:v\d+\.\d+\.\d+", services["prometheus"]["image"])


def test_ports_agree() -> None:
    services = compose()["services"]
    assert services["ccfnet"]["ports"] == [f"{GRPC}:{GRPC}", f"{REST}:{REST}"]
    assert services["ccfnet-batched"]["ports"] == [f"8510:{GRPC}", f"8511:{REST}"]
    ports = {port["name"]: port["containerPort"] for port in pod()["containers"][0]["ports"]}
    assert ports == {"grpc": GRPC, "rest": REST}
    for port in kubernetes()["Service"]["spec"]["ports"]:
        assert port["port"] == ports[port["targetPort"]] == ports[port["name"]]


def test_prometheus_scrapes_the_address_of_the_server() -> None:
    path = field("path", (FOLDER / "monitoring.config").read_text())
    (job,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    assert job["metrics_path"] == path
    assert job["static_configs"] == [{"targets": [f"ccfnet:{REST}"]}]
    annotations = kubernetes()["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == path
    assert annotations["prometheus.io/port"] == str(REST)


def test_readiness_is_the_status_of_the_model() -> None:
    container = pod()["containers"][0]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": STATUS, "port": "rest"}
    check = compose()["services"]["ccfnet"]["healthcheck"]["test"][-1]
    assert f"/dev/tcp/127.0.0.1/{REST} " in check
    assert f"GET {STATUS} " in check


def test_kubernetes_files_are_consistent() -> None:
    parts = kubernetes()
    labels = parts["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert parts["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert parts["Service"]["spec"]["selector"] == labels
    target = parts["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == parts["Deployment"]["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    assert claim == parts["PersistentVolumeClaim"]["metadata"]["name"]
    created = "kubectl create configmap " + volumes["config"]["configMap"]["name"]
    assert created in (FOLDER / "README.md").read_text()
    # Utilization is relative to the requested resources.
    assert pod()["containers"][0]["resources"]["requests"]["cpu"]


def test_the_readme_names_every_file() -> None:
    text = (FOLDER / "README.md").read_text()
    for path in FOLDER.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in text
