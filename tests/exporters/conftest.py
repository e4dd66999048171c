"""A run of one small network, and what an export makes of it, proven or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, to_yaml
from ccfnet_tf.datasets.open_data_set import read_parts
from ccfnet_tf.exporters.export_run import new_manifest
from ccfnet_tf.exporters.registry import new_exporter
from ccfnet_tf.exporters.verify.reference import reference_images, run_parts, write_reference
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.network import ccfnet
from ccfnet_tf.runs.run_folder import load_run, read_run
from ccfnet_tf.runs.write_run_files import write_classes
from ccfnet_tf.runtimes.manifest import REFERENCE, Difference, Format, write_manifest
from ccfnet_tf.training.checkpoint import Progress, save_best

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"
OPTIONS: dict[Format, dict[str, str]] = {
    "saved_model": {},
    "tflite": {"size": "33x47", "quantize": "none"},
    "onnx": {},
}


def write_run(folder: Path, model: Any) -> Path:
    """Writes the run folder of a network, as if it was trained on the sample data."""
    config = RunConfig(
        data=DataConfig(format="folder", root=str(SAMPLE)),
        model=ModelConfig(backbone="mobilenet_v2", backbone_weights="none", head_channels=4),
    )
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    write_classes(folder, read_parts(config.data, 0).taxonomy)
    (folder / "checkpoints").mkdir()
    save_best(folder / "checkpoints" / "best.npz", model, Progress(epoch=1))
    return folder


@contextmanager
def in_place_of_the_network(toy: Callable[..., Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ccfnet, "build_ccfnet", lambda classes, **_: toy(classes))
        yield


@pytest.fixture(scope="module")
def toy_network(toy: Callable[..., Any]) -> Iterator[None]:
    """Exports a graph of five layers in place of the whole network."""
    with in_place_of_the_network(toy):
        yield


@pytest.fixture(scope="session")
def run(toy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of that graph; its weights are random, and its logits in units."""
    keras.utils.set_random_seed(0)
    model = toy(8)
    kernel = model.get_layer("backbone").get_layer("body").kernel
    kernel.assign(kernel / 255.0)
    return write_run(tmp_path_factory.mktemp("runs") / "small", model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a whole network, whose weights are random."""
    keras.utils.set_random_seed(0)
    model = ccfnet.build_ccfnet(8, backbone="mobilenet_v2", backbone_weights=None, head_channels=4)
    return write_run(tmp_path_factory.mktemp("runs") / "whole", model)


@pytest.fixture(scope="session")
def lite_network() -> Any:
    """A whole network of 3 classes on EfficientNet-Lite0, whose weights are random."""
    keras.utils.set_random_seed(0)
    model = ccfnet.build_ccfnet(
        3,
        backbone="efficientnet_lite0",
        backbone_weights=None,
        head_channels=8,
        attention_input="features_and_coarse",
        fine_input="pyramid_and_detail",
        batch_norm_momentum=0.0,
    )
    # With the initial batch norm statistics the signal would vanish, and no test could see a
    # difference; with momentum 0 one batch sets them.
    model(np.random.default_rng(0).integers(0, 256, (4, 65, 65, 3), np.uint8), training=True)
    return model


@pytest.fixture(scope="session")
def unchecked(
    run: Path, toy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """An artifact of each format as an export writes it, but for the check, which takes time."""
    out = tmp_path_factory.mktemp("models")
    info = read_run(run)
    with in_place_of_the_network(toy):
        model = load_run(run)
    parts, predictor = run_parts(info), KerasNetwork(model, taxonomy=info.taxonomy)
    places = {}
    for name, options in OPTIONS.items():
        exporter = new_exporter(name, options)
        place = places[name] = exporter.artifact_folder(out)
        place.mkdir(parents=True)
        pictures = [exporter.resized(picture) for picture in reference_images(parts, 1)]
        write_reference(place / REFERENCE, predictor, pictures)
        exporter.write(model, parts, place)
        found = Difference(0.0, 0.0, 0.0, 0.0)
        manifest = new_manifest(info, info.checkpoint(), exporter, place, found)
        write_manifest(place, manifest)
    return places
