from __future__ import annotations

import urllib.error
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils

from ccfnet_tf.errors import ConfigError, ResourceError
from ccfnet_tf.network import backbone_weights
from ccfnet_tf.network.backbone_weights import load_backbone_weights, named_variables
from ccfnet_tf.network.backbones import LayerOptions, build_backbone
from ccfnet_tf.network.ccfnet import CCFNet, build_ccfnet

Build = Callable[..., CCFNet]


@pytest.fixture(scope="module")
def twins() -> tuple[CCFNet, CCFNet]:
    """Two networks with the same arguments and seed; other layers were built between them."""
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        models.append(
            build_ccfnet(3, backbone="mobilenet_v2", backbone_weights="none", head_channels=4)
        )
        keras.layers.Dropout(0.5)  # takes an automatic number
    return models[0], models[1]


@pytest.fixture(scope="module")
def plain() -> keras.Model:
    """The original MobileNetV2 of Keras; tests may overwrite its weights."""
    shape = (None, None, 3)
    return keras.applications.MobileNetV2(include_top=False, input_shape=shape, weights=None)


def save_legacy(model: keras.Model, path: Path) -> None:
    """Writes the format of Keras 2, in which the ImageNet weights are published."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


def test_names_are_unique_and_cover_everything(small_network: Build) -> None:
    model = small_network(attention_input="features_and_coarse", fine_input="pyramid_and_detail")
    names = named_variables(model)
    assert {id(v) for v in names.values()} == {id(v) for v in model.variables}
    for key in (
        "Conv1/kernel",
        "bn_Conv1/moving_variance",
        "coarse_classifier/bias",
        "attention_logits/scale",
        "fine_dropout/seed_generator_state",
    ):
        assert key in names


def test_names_do_not_depend_on_what_was_built_before(twins: tuple[CCFNet, CCFNet]) -> None:
    first, second = twins
    assert list(named_variables(first)) == list(named_variables(second))
    assert [v.path for v in first.variables] != [v.path for v in second.variables]


def test_the_seed_determines_the_initial_weights(twins: tuple[CCFNet, CCFNet]) -> None:
    weights = [model.get_weights() for model in twins]
    assert sum(float(np.abs(value).sum()) for value in weights[0]) > 0
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_two_layers_of_the_same_name_raise_an_error() -> None:
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="twice")])
    outer = keras.Sequential([keras.Input((2,)), inner, keras.layers.Dense(2, name="twice")])
    with pytest.raises(ValueError, match="two variables are named twice/kernel"):
        named_variables(outer)


def test_save_and_load_give_identical_predictions(borrowed: Build, tmp_path: Path) -> None:
    model = borrowed()
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 33, 3), np.uint8)
    before = model(images)
    model.save_weights(tmp_path / "net.weights.h5")
    for variable in model.trainable_variables:
        variable.assign(variable * 0.9)
    for variable in model.non_trainable_variables:
        if "moving" in variable.name:
            variable.assign(variable * 1.5)
    assert not np.allclose(model(images)["refine"], before["refine"], atol=1e-3)
    model.load_weights(tmp_path / "net.weights.h5")
    for name, value in model(images).items():
        np.testing.assert_array_equal(value, before[name])


def test_imagenet_file_of_mobilenet_v2(mobilenet_file: Path, plain: keras.Model) -> None:
    backbone = build_backbone("mobilenet_v2", mobilenet_file, LayerOptions())
    plain.load_weights(mobilenet_file)
    for name in ("Conv1", "block_6_depthwise", "block_13_expand_BN", "block_16_project"):
        mine, theirs = (model.get_layer(name).get_weights() for model in (backbone, plain))
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["new.weights.h5", "old.h5"])
def test_both_weights_formats_load(tmp_path: Path, plain: keras.Model, name: str) -> None:
    save = keras.Model.save_weights if name.startswith("new") else save_legacy
    save(plain, tmp_path / name)
    before = plain.get_layer("block_3_expand").get_weights()[0]
    plain.get_layer("block_3_expand").set_weights([before + 1])
    load_backbone_weights(plain, "mobilenet_v2", tmp_path / name)
    np.testing.assert_array_equal(plain.get_layer("block_3_expand").get_weights()[0], before)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.weights.h5", None, "missing.weights.h5 does not exist"),
        (
            "weights.npy",
            b"PK",
            r"weights.npy is not a weights file; .* \.weights\.h5, \.h5 or \.npz$",
        ),
        (
            "text.npz",
            b"hello",
            r"text.npz: cannot be read \(BadZipFile: .*\); use a weights file of",
        ),
        ("empty.npz", b"", "empty.npz: cannot be read"),
        ("text.weights.h5", b"hello", "text.weights.h5 does not match mobilenet_v2"),
        ("text.h5", b"hello", "text.h5 does not match mobilenet_v2"),
        ("empty.h5", b"", "empty.h5 does not match"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    tmp_path: Path, plain: keras.Model, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_backbone_weights(plain, "mobilenet_v2", path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["new.weights.h5", "old.h5", "arrays.npz"])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, plain: keras.Model, name: str) -> None:
    layer = plain.get_layer("block_3_expand")
    before = layer.get_weights()
    try:
        layer.set_weights([np.full_like(before[0], np.nan)])
        if name.endswith(".npz"):
            arrays = {key: each.numpy() for key, each in named_variables(plain).items()}
            np.savez(tmp_path / name, **arrays)
        else:
            save = keras.Model.save_weights if name.startswith("new") else save_legacy
            save(plain, tmp_path / name)
        with pytest.raises(ConfigError, match="'block_3_expand/kernel' has nan in") as caught:
            load_backbone_weights(plain, "mobilenet_v2", tmp_path / name)
        assert str(caught.value).count("\n") == 0
    finally:
        layer.set_weights(before)


@pytest.mark.parametrize("name", ["new.weights.h5", "old.h5"])
def test_another_networks_file_is_refused(tmp_path: Path, plain: keras.Model, name: str) -> None:
    save = keras.Model.save_weights if name.startswith("new") else save_legacy
    other = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="Conv1")])
    save(other, tmp_path / name)
    with pytest.raises(ConfigError) as caught:
        load_backbone_weights(plain, "mobilenet_v2", tmp_path / name)
    assert str(caught.value) == (  # none of Keras's own words
        f"model.backbone_weights: {tmp_path / name} does not match mobilenet_v2: the file is "
        "damaged, or contains the weights of another network; use a weights file of Keras's "
        "mobilenet_v2 without its classifier, or another --model.backbone"
    )


@pytest.fixture(scope="module")
def stored(plain: keras.Model) -> dict[str, np.ndarray]:
    """Other weights of MobileNetV2, by their names in `.npz` files."""
    rng = np.random.default_rng(0)
    shapes = {key: tuple(variable.shape) for key, variable in named_variables(plain).items()}
    return {key: rng.random(shape, np.float32) for key, shape in shapes.items()}


def test_an_npz_file_is_loaded(
    plain: keras.Model, stored: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "weights.npz", **stored)  # type: ignore[arg-type]
    load_backbone_weights(plain, "mobilenet_v2", tmp_path / "weights.npz")
    for key, variable in named_variables(plain).items():
        np.testing.assert_array_equal(variable.numpy(), stored[key])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"Conv1/kernel": None}, "'Conv1/kernel' is missing"),
        (
            {"Conv1/kernel": np.zeros((3, 3, 3, 8), np.float32)},
            "'Conv1/kernel' has shape [3, 3, 3, 8], expected [3, 3, 3, 32]",
        ),
        (
            {"bn_Conv1/gamma": np.zeros(32)},
            "'bn_Conv1/gamma' has type float64, expected float32",
        ),
        ({"Conv_9/kernel": np.zeros(2, np.float32)}, "it has no variable 'Conv_9/kernel'"),
        (
            {"bn_Conv1/gamma": np.full(32, np.nan, np.float32)},
            "'bn_Conv1/gamma' has nan in 32 of its 32 values",
        ),
    ],
)
def test_an_npz_file_with_other_arrays_is_refused(
    change: dict[str, np.ndarray | None],
    fault: str,
    plain: keras.Model,
    stored: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    path, before = tmp_path / "weights.npz", plain.get_weights()
    arrays = {key: value for key, value in (stored | change).items() if value is not None}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        load_backbone_weights(plain, "mobilenet_v2", path)
    assert str(caught.value) == (
        f"model.backbone_weights: {path} does not match mobilenet_v2: {fault}; use a weights file "
        "of Keras's mobilenet_v2 without its classifier, or another --model.backbone"
    )
    for one, other in zip(plain.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["compressed", "cut", "flipped bit", "large"])
def test_a_damaged_or_large_npz_file_is_refused(
    kind: str,
    plain: keras.Model,
    stored: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "weights.npz"
    save = np.savez_compressed if kind == "compressed" else np.savez
    save(path, **stored)  # type: ignore[arg-type]
    content = bytearray(path.read_bytes())
    if kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "large":
        monkeypatch.setattr(backbone_weights, "LARGEST", 1000)
    faults = {
        "compressed": "it is compressed; expected an uncompressed file",
        "cut": "not a zip file",
        "flipped bit": "Bad CRC-32",
        "large": "more than 1000 bytes",
    }
    with pytest.raises(ConfigError, match=faults[kind]) as caught:
        load_backbone_weights(plain, "mobilenet_v2", path)
    assert str(caught.value).startswith(f"model.backbone_weights: {path}: cannot be read (")
    assert "\n" not in str(caught.value)


def test_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(file_utils, "urlretrieve", refuse)
    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))
    with pytest.raises(ResourceError, match=r"https://.*no_top\.h5.*no route.*none or a") as caught:
        build_backbone("mobilenet_v2", "imagenet", LayerOptions())
    assert "\n" not in str(caught.value)
