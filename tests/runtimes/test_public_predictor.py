"""`Predictor`, as a program meets it."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ccfnet_tf import Predictor
from ccfnet_tf.config import DataConfig, RunConfig, to_yaml
from ccfnet_tf.errors import ConfigError, DataError, ResourceError, RunError
from ccfnet_tf.inference import keras_network
from ccfnet_tf.inference.segmenter_protocol import Prediction
from ccfnet_tf.inference.writers import KINDS, overlay_image
from ccfnet_tf.runtimes import served as client
from tests.inference.by_brightness import TAXONOMY, ByBrightness

RAMP = np.repeat(np.linspace(0, 255, 60).astype(np.uint8)[None, :, None], 40, 0).repeat(3, 2)


@pytest.fixture(scope="module")
def predictor(toy: Callable[..., Any]) -> Predictor:
    return Predictor(toy(3), taxonomy=TAXONOMY)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A server that answers by brightness; the addresses it was asked at."""
    asked: list[str] = []

    class Served(ByBrightness):
        def __init__(self, address: str) -> None:
            super().__init__(maps=True)
            asked.append(address)

    monkeypatch.setattr(client, "ServedNetwork", Served)
    return asked


def test_a_result_unpacks_and_has_names(predictor: Predictor) -> None:
    result = predictor.predict(RAMP)
    labels, difficulty, probabilities = result
    assert isinstance(result, Prediction | tuple)
    assert result[0] is labels is result.labels
    assert result.difficulty is difficulty
    assert probabilities is not None
    np.testing.assert_array_equal(probabilities.argmax(-1), labels)
    assert (labels.shape, difficulty.shape) == ((40, 60), (40, 60))
    np.testing.assert_array_equal(result.image, RAMP)


def test_a_path_an_array_and_a_picture_of_pillow_are_the_same(
    predictor: Predictor, tmp_path: Path
) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    whole = predictor.predict(RAMP)
    given: list[Any] = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(RAMP)]
    given += [Image.open(tmp_path / "a.png"), Image.fromarray(RAMP).convert("RGBA")]
    given += [Image.fromarray(RAMP[..., 0])]  # grey
    for each in given:
        np.testing.assert_array_equal(predictor.predict(each).probabilities, whole.probabilities)
        assert isinstance(predictor.predict_all_heads(each).fine, np.ndarray)


@pytest.mark.parametrize("given", [["a.png"], b"a", None, {"a": 1}, tf.zeros])
def test_what_is_neither_array_nor_path_nor_pillow_is_refused(
    given: Any, predictor: Predictor
) -> None:
    if given is tf.zeros:  # made here: TensorFlow is not to be used at collection
        given = tf.zeros((8, 8, 3), tf.uint8)
    for answer in (predictor.predict, predictor.predict_all_heads):
        with pytest.raises(DataError, match=f"{type(given).__name__} is not an image: expected a"):
            answer(given)


def test_a_picture_of_pillow_is_turned_as_its_file(predictor: Predictor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        assert predictor.predict(image).labels.shape == (60, 40)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4)), Image.new("RGB", (0, 4)), Image.new("F", (4, 4)), "no/such.png"]
)
def test_what_is_no_picture_is_a_data_error(predictor: Predictor, image: Any) -> None:
    with pytest.raises(DataError):
        predictor.predict(image)


def test_a_result_draws_and_saves_itself(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "photo.v2.png")
    result = predictor.predict(tmp_path / "photo.v2.png")
    expected = overlay_image(result.labels, RAMP, TAXONOMY)
    np.testing.assert_array_equal(result.overlay(), expected)
    np.testing.assert_array_equal(result.overlay(legend=True)[:40, :60], expected)
    assert len(result.overlay(legend=True)) > 40

    paths = result.save(tmp_path / "out")
    assert [path.name for path in paths] == [f"photo.v2.{kind}.png" for kind in KINDS]
    label = cv2.imread(str(paths[0]), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(label, result.labels)
    (path,) = result.save(tmp_path / "out", "x/b", kinds=["difficulty_npy"])
    np.testing.assert_array_equal(np.load(path), result.difficulty)
    saved = result.save(tmp_path / "out", kinds=["attention_npy", "risk_npy"])
    for path, values in zip(saved, (result.attention, result.risk), strict=True):
        np.testing.assert_array_equal(np.load(path), values)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/tmp/x", "..", "."])
def test_a_result_is_not_saved_outside_of_its_folder(
    name: str, predictor: Predictor, tmp_path: Path
) -> None:
    result = predictor.predict(RAMP)
    with pytest.raises(ConfigError, match=r"name is .*: it must stay below .*out: leave out"):
        result.save(tmp_path / "out", name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder_for_results(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ResourceError, match=r"photo.jpg: is a file, expected a folder"):
        predictor.predict(RAMP).save(tmp_path / "photo.jpg", "x")


def through_pickle(result: Any) -> Any:
    return pickle.loads(pickle.dumps(result))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, through_pickle])
def test_a_copy_is_whole(predictor: Predictor, copied: Callable[[Any], Any]) -> None:
    result = predictor.predict(RAMP)
    other = copied(result)
    assert other.taxonomy == TAXONOMY
    np.testing.assert_array_equal(other.overlay(), result.overlay())
    for name in ("attention", "difficulty", "risk", "probabilities"):
        np.testing.assert_array_equal(getattr(other, name), getattr(result, name))


@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_folder_is_opened_by_its_path(
    kind: type[Any], toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(RunConfig(data=DataConfig(format="scenes"))))
    classes = {"names": TAXONOMY.names, "palette": TAXONOMY.palette}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.npz").touch()
    monkeypatch.setattr(keras_network, "load_run", lambda *_, **__: toy(3))
    predictor = Predictor(kind(tmp_path))
    assert predictor.taxonomy.names == TAXONOMY.names
    assert predictor.predict(RAMP).labels.shape == (40, 60)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8501/v1/models/ccfnet", "grpc://localhost:8500/ccfnet/3"]
)
def test_an_address_is_left_as_it_is(served: list[str], address: str) -> None:
    predictor = Predictor(address)
    assert served == [address]
    result = predictor.predict(RAMP)
    labels, difficulty, probabilities = result
    assert probabilities is None
    exact = ByBrightness().predict(RAMP)
    np.testing.assert_array_equal(result.attention, exact.attention)
    np.testing.assert_array_equal(result.risk, exact.risk)
    np.testing.assert_array_equal(labels, exact.labels)
    np.testing.assert_array_equal(difficulty, exact.difficulty)
    with pytest.raises(ConfigError, match="only outputs the refine head"):
        predictor.predict_all_heads(RAMP)


@pytest.mark.parametrize("key", ["taxonomy", "checkpoint", "precision"])
def test_what_a_server_cannot_be_told_is_refused(served: list[str], key: str) -> None:
    values = {"taxonomy": TAXONOMY, "checkpoint": "last", "precision": "bfloat16"}
    with pytest.raises(ConfigError, match="remove these arguments"):
        Predictor("http://127.0.0.1:8501/v1/models/ccfnet", **{key: values[key]})  # type: ignore[arg-type]
    assert served == []


def test_what_is_no_source_says_what_is_taken(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunError, match="give a run folder, a folder that `ccfnet-tf export`"):
            Predictor(source)


@pytest.mark.parametrize("source", [None, 3, b"run"])
def test_an_object_of_another_type_is_no_source(source: Any) -> None:
    with pytest.raises(ConfigError, match=f"type {type(source).__name__} is not a network"):
        Predictor(source)
