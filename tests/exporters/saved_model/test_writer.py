"""A SavedModel of a small cascade, held against it as a server would use it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.exporters.saved_model import writer as module
from ccfnet_tf.exporters.saved_model.writer import write_saved_model
from ccfnet_tf.exporters.verify.compare_saved_model import check_saved_model
from ccfnet_tf.exporters.verify.reference import write_reference
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import MAPS
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.labels_and_maps import maps
from ccfnet_tf.runtimes.manifest import REFERENCE

NAMES = ("sky", "sea", "grüße")
TAXONOMY = Taxonomy(NAMES, ((0, 0, 255), (0, 255, 0), (255, 0, 0)))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", image[..., ::-1])[1])


@pytest.fixture(scope="module")
def model(toy: Callable[..., Any]) -> Any:
    keras.utils.set_random_seed(0)
    made = toy(len(NAMES))
    for variable in made.variables:  # nothing at its initial value
        if "float" in variable.dtype:
            noise = np.random.default_rng(1).normal(scale=0.02, size=variable.shape)
            variable.assign(np.abs(variable.numpy() + noise))
    return made


@pytest.fixture(scope="module")
def artifact(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved_model") / "1"
    write_saved_model(model, TAXONOMY, folder)
    pictures = [picture(33, 41), picture(50, 36, 1)]
    write_reference(folder / REFERENCE, KerasNetwork(model, taxonomy=TAXONOMY), pictures)
    return folder


def check(folder: Path) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "ccfnet_tf.exporters.verify.compare_process",
        str(folder),
        "saved_model",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_a_fresh_process_gets_keras_answers_in_every_way(artifact: Path) -> None:
    found = check(artifact)
    assert found["largest"] < 1e-6
    assert found["other_labels"] == 0.0


@pytest.mark.slow
def test_a_network_on_efficientnet_lite_is_equal_to_keras(
    lite_network: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "1"
    write_saved_model(lite_network, TAXONOMY, folder)
    pictures = [picture(33, 41), picture(50, 36, 1)]
    write_reference(folder / REFERENCE, KerasNetwork(lite_network, taxonomy=TAXONOMY), pictures)
    found = check(folder)
    assert found["largest"] < 1e-5
    assert found["other_labels"] == 0.0


def test_weights_are_stored_once(artifact: Path, model: Any) -> None:
    stored = tf.train.list_variables(str(artifact / "variables" / "variables"))
    kernels = sorted(tuple(shape) for _, shape in stored if len(shape) == 4)
    assert kernels == sorted(tuple(v.shape) for v in model.variables if len(v.shape) == 4)
    others = sum(int(np.prod(shape)) for _, shape in stored if len(shape) != 4)
    assert others <= sum(int(np.prod(v.shape)) for v in model.variables if len(v.shape) != 4)


def test_names_and_colours_travel_along(artifact: Path) -> None:
    assets = artifact / "assets"
    assert (assets / "classes.txt").read_text(encoding="utf-8").split("\n") == [*NAMES, ""]
    assert json.loads((assets / "palette.json").read_text())[2] == [255, 0, 0]
    assert sorted(path.name for path in artifact.iterdir() if path.is_file()) == sorted(
        ["saved_model.pb", "fingerprint.pb", REFERENCE]
    )


@pytest.mark.parametrize("size", [(1, 1), (5, 70), (31, 32), (33, 40)])
def test_any_size_is_answered_as_locally(artifact: Path, model: Any, size: tuple[int, int]) -> None:
    loaded = tf.saved_model.load(str(artifact))
    image = picture(*size)
    local = KerasNetwork(model, taxonomy=TAXONOMY).predict(image)
    served = loaded.signatures["serving_default"](images=tf.constant(image[np.newaxis]))
    assert {key: value.dtype for key, value in served.items()} == dict.fromkeys(
        ("labels", *MAPS), tf.uint8
    )
    np.testing.assert_array_equal(served["labels"][0], local.labels)
    for name in MAPS:
        np.testing.assert_array_equal(served[name][0], np.round(255 * getattr(local, name)))


def test_encoded_answers_mixed_sizes_in_their_order(artifact: Path) -> None:
    loaded = tf.saved_model.load(str(artifact))
    images = [picture(33, 41), picture(60, 35, 1), picture(40, 40, 2)]
    jpeg = bytes(cv2.imencode(".jpg", images[2][..., ::-1])[1])
    found = loaded.signatures["encoded"](
        image_bytes=tf.constant([png(images[0]), png(images[1]), jpeg])
    )
    decoded = tf.io.decode_jpeg(jpeg, 3, dct_method="INTEGER_ACCURATE").numpy()
    for place, image in enumerate([*images[:2], decoded]):
        alone = loaded.signatures["serving_default"](images=tf.constant(image[np.newaxis]))
        for name in ("labels", *MAPS):
            plane = tf.io.decode_png(found[f"{name}_png_bytes"][place])[..., 0]
            np.testing.assert_array_equal(plane, alone[name][0])


BAD = {
    "empty": b"",
    "text": b"no image at all, but long enough to hold a header",
    "cut": png(picture(40, 40))[:20],
    "gif": b"GIF89a" + bytes(40),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_item_is_named_by_its_place(artifact: Path, bad: str) -> None:
    loaded = tf.saved_model.load(str(artifact))
    good = png(picture(33, 33))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"item\] \[1\].*neither JPEG nor PNG"):
        loaded.signatures["encoded"](image_bytes=tf.constant([good, BAD[bad], good]))


def jpeg(image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(".jpg", image, list(options))[1].tobytes()


HEADERS = {
    "plain": jpeg(picture(33, 57)),
    "grey": jpeg(picture(70, 31)[..., 0]),
    "progressive": jpeg(picture(33, 57), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restarts": jpeg(picture(33, 57), cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    "wide": jpeg(np.zeros((3, 5000, 3), np.uint8)),
}
with_fill = HEADERS["plain"].replace(b"\xff\xc0", b"\xff\xff\xff\xc0", 1)
with_comment = b"\xff\xd8\xff\xfe\x00\x08\xff\xc0\x00\x11\x08\x09" + HEADERS["plain"][2:]
HEADERS |= {"filled": with_fill, "comment": with_comment}


@pytest.mark.parametrize("name", HEADERS)
def test_a_jpeg_s_size_is_read_from_its_header(name: str) -> None:
    content = HEADERS[name]
    expected = tf.io.decode_jpeg(content).shape[:2]
    size_of = tf.function(module._jpeg_size)
    np.testing.assert_array_equal(size_of(tf.constant(content)), expected)
    # The comment holds what looks like a frame; no cut may bring it to light, or never end.
    for end in [2, 3, *range(4, len(content), 7)]:
        found = size_of(tf.constant(content[:end])).numpy().tolist()
        assert found in ([0, 0], list(expected))


@pytest.mark.parametrize(
    "bad", [b"\xff\xd8\xff", b"\xff\xd8\xff" + bytes(40), HEADERS["plain"][:100]]
)
def test_a_jpeg_without_a_size_is_named_by_its_place(artifact: Path, bad: bytes) -> None:
    loaded = tf.saved_model.load(str(artifact))
    items = [HEADERS["plain"], HEADERS["grey"], bad]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"item\] \[2\].*height and width"):
        loaded.signatures["encoded"](image_bytes=tf.constant(items))


def test_a_bomb_is_refused_by_its_header(artifact: Path) -> None:
    loaded = tf.saved_model.load(str(artifact))
    bomb = png(np.zeros((4097, 4096, 3), np.uint8))
    # Cut after the header: whoever decoded it would fail otherwise.
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"item\] \[0\].*largest number of pixels"
    ):
        loaded.signatures["encoded"](image_bytes=tf.constant([bomb[:100]]))


def test_many_classes_take_16_bits(
    toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BYTE_LABELS", 2)
    write_saved_model(toy(3), TAXONOMY, tmp_path / "1")
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    served = loaded.signatures["serving_default"](images=tf.constant(picture(33, 33)[np.newaxis]))
    assert served["labels"].dtype == tf.uint16
    found = loaded.signatures["encoded"](image_bytes=tf.constant([png(picture(33, 33))]))
    plane = tf.io.decode_png(found["labels_png_bytes"][0], dtype=tf.uint16)[..., 0]
    np.testing.assert_array_equal(plane, served["labels"][0])


def test_a_module_that_holds_the_model_is_refused(
    model: Any, artifact: Path, tmp_path: Path
) -> None:
    """The obvious way: it loads in Python, answers rightly there, and no server can use it."""
    whole = tf.saved_model.load(str(artifact))
    broken = tf.Module()
    broken.model = model
    broken.inner = whole
    spec = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")

    def answers(images: tf.Tensor) -> dict[str, tf.Tensor]:
        out = model(tf.cast(images, tf.float32), training=False)
        found = maps(out)
        planes = {name: tf.cast(tf.round(255 * found[name]), tf.uint8) for name in MAPS}
        return {"labels": found["labels"], **planes}

    broken.serve = tf.function(answers, input_signature=[spec])
    broken.probabilities = tf.function(
        lambda images: {
            "probabilities": tf.exp(model(tf.cast(images, tf.float32), training=False)["refine"])
        },
        input_signature=[spec],
    )
    folder = tmp_path / "1"
    tf.saved_model.save(
        broken,
        str(folder),
        signatures={
            "serving_default": broken.serve,
            "probabilities": broken.probabilities,
            "encoded": whole.signatures["encoded"],
        },
    )
    shutil.copy(artifact / REFERENCE, folder)
    assert tf.saved_model.load(str(folder)).signatures["serving_default"]
    with pytest.raises(tf.errors.FailedPreconditionError, match="Could not find variable"):
        check_saved_model(folder)


def test_other_pixels_than_pillows_are_refused(
    toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The obvious way: TensorFlow decodes a JPEG a little otherwise, without a word about it."""
    keras.utils.set_random_seed(0)
    model = toy(len(NAMES))
    kernel = model.get_layer("backbone").get_layer("body").kernel
    kernel.assign(kernel / 255.0)  # logits in units, which feel a level more or less
    decode = tf.io.decode_jpeg
    monkeypatch.setattr(tf.io, "decode_jpeg", lambda content, *_, **__: decode(content, 3))
    write_saved_model(model, TAXONOMY, tmp_path)
    predictor = KerasNetwork(model, taxonomy=TAXONOMY)
    write_reference(tmp_path / REFERENCE, predictor, [picture(64, 80)])
    with pytest.raises(ValueError, match=r"encoded returns other .* for a JPEG than"):
        check_saved_model(tmp_path)
