"""Class ids above 255 keep their value from the mask file to the prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.cli import main as cli
from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.cache import Cache
from ccfnet_tf.datasets.open_data_set import list_set
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.exporters.litert.writer import LiteRTOptions, write_litert
from ccfnet_tf.exporters.onnx.writer import write_onnx
from ccfnet_tf.exporters.saved_model.writer import write_saved_model
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import Maps
from ccfnet_tf.inference.writers import write_prediction
from ccfnet_tf.io.read_images import read_index_values
from ccfnet_tf.labels import VOID, Taxonomy, distinct_colours
from ccfnet_tf.network import ccfnet, losses
from ccfnet_tf.pipeline.batch import training_batches
from ccfnet_tf.pipeline.convert_data_set import write_folder, write_shards
from ccfnet_tf.runtimes.litert import LiteRTNetwork
from ccfnet_tf.runtimes.manifest import write_manifest
from ccfnet_tf.runtimes.onnx import OnnxNetwork
from ccfnet_tf.runtimes.public_predictor import Predictor
from ccfnet_tf.runtimes.saved_model import SavedModelNetwork
from ccfnet_tf.serving.server import DevelopmentServer
from ccfnet_tf.training import build_network
from tests.serving.conftest import manifest

SIDE = 40
MANY = 300
PLAIN = {"crop": SIDE, "scale": (1.0, 1.0), "flip": False, "colour": 0.0}


def write_set(root: Path, classes: int, count: int = 2) -> list[np.ndarray]:
    """Writes images whose masks contain every class and void; returns the labels."""
    rng, labels = np.random.default_rng(0), []
    void = 255 if classes <= 255 else 65535
    for side in ("images", "masks"):
        (root / side).mkdir(parents=True)
    for i in range(count):
        label = rng.permutation(np.arange(SIDE * SIDE) % (classes + 1)).reshape(SIDE, SIDE) - 1
        image = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        values = np.where(label == VOID, void, label).astype(np.uint8 if void < 256 else np.uint16)
        Image.fromarray(values).save(root / "masks" / f"{i}.png")
        labels.append(label)
    (root / "classes.txt").write_text("".join(f"c{number}\n" for number in range(classes)))
    return labels


def taxonomy(classes: int) -> Taxonomy:
    return Taxonomy(tuple(f"c{n}" for n in range(classes)), distinct_colours(classes))


@pytest.mark.parametrize("classes", [255, 256, 257, MANY])
def test_from_the_mask_file_to_the_loss_and_the_output_file(tmp_path: Path, classes: int) -> None:
    labels = write_set(tmp_path / "set", classes)
    data = DataConfig(format="folder", root=str(tmp_path / "set"), **PLAIN)  # type: ignore[arg-type]
    listing = list_set(data, 0)
    cache = Cache(listing.train, [(SIDE, SIDE)] * 2, listing.load, classes=classes).in_memory()
    for _ in range(2):  # Read from files, then from the cache.
        for sample, label in zip(listing.train, labels, strict=True):
            np.testing.assert_array_equal(cache.load(sample)[1], label)
    (batch,) = training_batches(listing.train, cache.load, data, batch=2, seed=0).take(1)
    read = sorted(batch[1].numpy().tolist())
    assert read == sorted(label.tolist() for label in labels)

    target = losses.split_void(batch[1], classes)
    np.testing.assert_array_equal(target.valid, batch[1].numpy() != VOID)
    assert int(target.labels.numpy().max()) == classes - 1

    (label, _) = labels
    known = np.maximum(label, 0)
    result = Confusion.of(label, known, classes=classes)
    assert np.trace(result.counts) == result.pixels == (label != VOID).sum()
    maps = Maps(known.astype(np.int32), *[np.zeros(label.shape, np.float32)] * 3)
    image = np.zeros((*label.shape, 3), np.uint8)
    written = write_prediction(maps, image, tmp_path, "a", taxonomy(classes))
    np.testing.assert_array_equal(read_index_values(written[0]), known)


@pytest.mark.parametrize("classes", [255, 256, MANY])
def test_converted_data_sets(tmp_path: Path, classes: int) -> None:
    labels = write_set(tmp_path / "set", classes)
    listing = list_set(DataConfig(root=str(tmp_path / "set")), 0)
    write_shards(listing, tmp_path / "shards", count=1)
    write_folder(listing, tmp_path / "folder")
    for name in ("shards", "folder"):
        again = list_set(DataConfig(root=str(tmp_path / name)), 0)
        assert again.taxonomy == listing.taxonomy
        for sample, label in zip(again.train, labels, strict=True):
            np.testing.assert_array_equal(again.load(sample)[1], label)


@pytest.fixture(scope="module")
def model(toy: Callable[..., Any]) -> Any:
    """Predicts only classes above 255, and many of them."""
    keras.utils.set_random_seed(0)
    made = toy(MANY)
    kernel = made.get_layer("backbone").get_layer("body").kernel
    kernel.assign(kernel / 255.0)
    low = np.where(np.arange(MANY) < 256, -9.0, 0.0)
    for name in ("coarse_logits", "fine_logits"):
        made.get_layer(name).bias.assign(low)
    return made


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


@pytest.mark.slow
def test_exported_networks_predict_the_same_labels(
    model: Any, image: np.ndarray, tmp_path: Path
) -> None:
    names = taxonomy(MANY)
    expected = KerasNetwork(model, taxonomy=names).predict(image).labels
    assert expected.min() > 255
    assert len(np.unique(expected)) > 3
    write_saved_model(model, names, tmp_path / "model" / "1")
    made = manifest(tmp_path / "model" / "1")
    colours = [list(colour) for colour in names.palette]
    write_manifest(
        tmp_path / "model" / "1", replace(made, classes=list(names.names), palette=colours)
    )
    write_onnx(model, tmp_path / "a.onnx")
    networks: dict[str, Any] = {
        "SavedModel": SavedModelNetwork(tmp_path / "model" / "1", names),
        "ONNX": OnnxNetwork(tmp_path / "a.onnx", names, threads=1),
    }
    for outputs in ("probabilities", "labels"):
        path = tmp_path / f"{outputs}.tflite"
        options = LiteRTOptions((SIDE, SIDE), "none", outputs)  # type: ignore[arg-type]
        write_litert(model, names, path, options, [image])
        networks[f"LiteRT {outputs}"] = LiteRTNetwork(path, names, threads=1)
    larger = image.repeat(2, axis=1)
    for name, network in networks.items():
        assert network.predict(larger).labels.min() > 255, name
        assert (network.predict(image).labels == expected).mean() > 0.999, name
    with DevelopmentServer(
        tmp_path / "model", host="127.0.0.1", rest_port=0, grpc_port=0
    ) as server:
        for address in (server.rest, server.grpc):
            served = Predictor(address)
            assert served.taxonomy == names
            assert (served.predict(image).labels == expected).mean() > 0.999, address


@pytest.mark.slow
def test_the_commands(
    toy: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for module in (build_network, ccfnet):
        monkeypatch.setattr(module, "build_ccfnet", lambda classes, **_: toy(classes))
    write_set(tmp_path / "set", MANY, count=6)

    def main(*words: str | Path) -> None:
        code = cli.main([str(word) for word in words])
        assert code == 0, capfd.readouterr().err

    root, run = tmp_path / "set", tmp_path / "run"
    main("data", "check", root)
    main("data", "stats", root)
    main("data", "show", root, "--out", tmp_path / "sheet.png")
    keys = ["--data.crop", "33", "--data.val_share", "0.3", "--model.backbone", "mobilenet_v2"]
    keys += ["--model.backbone_weights", "none", "--train.batch", "2", "--train.epochs", "2"]
    keys += ["--train.precision", "float32", "--train.strategy", "none", "--data.cache", "memory"]
    main("fit", *keys, "--train.class_weights", "auto", "--data.root", root, "--out", run)
    main("evaluate", run, "--split", "val")
    figures = json.loads((run / "evaluation.json").read_text())
    assert len(figures["refine"]["iou"]) == MANY
    sources = [run]
    for format_ in ("saved_model", "litert", "onnx"):
        main("export", run, "--format", format_, "--out", tmp_path / format_)
        (result,) = (tmp_path / format_).rglob("export.json")
        sources.append(result.parent)
    answers = []
    for number, source in enumerate(sources):
        main("predict", source, root / "images" / "0.png", "--out", tmp_path / f"out{number}")
        answers.append(read_index_values(tmp_path / f"out{number}" / "0.label.png"))
    for answer in answers[1:]:
        assert (answer == answers[0]).mean() > 0.99
