"""The network is the published one, and its published archive is read and checked."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.utils import file_utils

from ccfnet_tf import network
from ccfnet_tf.errors import ConfigError, ResourceError
from ccfnet_tf.network import efficientnet_lite
from ccfnet_tf.network.backbone_weights import (
    check_weights_file,
    load_backbone_weights,
    named_variables,
    plain_backbone,
)
from ccfnet_tf.network.backbones import LayerOptions, build_backbone
from ccfnet_tf.network.efficientnet_lite import VARIANTS

Arrays = dict[str, np.ndarray]

# Kernel, repeats and channels in lite0 and lite2, stride and expansion of each stage, as published.
STAGES = [
    (3, (1, 1), (16, 16), 1, 1),
    (3, (2, 3), (24, 24), 2, 6),
    (5, (2, 3), (40, 48), 2, 6),
    (3, (3, 4), (80, 88), 2, 6),
    (5, (3, 4), (112, 120), 1, 6),
    (5, (4, 5), (192, 208), 2, 6),
    (3, (1, 1), (320, 352), 1, 6),
]
INDEX = {"efficientnet_lite0": 0, "efficientnet_lite2": 1}
NAMES = ["efficientnet_lite0", pytest.param("efficientnet_lite2", marks=pytest.mark.slow)]


def blocks(name: str) -> Iterator[tuple[str, int, int, int, int, int]]:
    """Yields the name, kernel, stride, expansion, and input and output channels of each block."""
    before = 32
    for stage, (kernel, repeats, channels, stride, expansion) in enumerate(STAGES, 1):
        for repeat in range(repeats[INDEX[name]]):
            after = channels[INDEX[name]]
            place = f"block{stage}{'abcde'[repeat]}"
            yield place, kernel, stride if repeat == 0 else 1, expansion, before, after
            before = after


def published_variables(name: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yields our name, the published name and the shape of every variable up to the last block."""

    def norm(ours: str, theirs: str, size: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        for key in ("gamma", "beta", "moving_mean", "moving_variance"):
            yield f"{ours}/{key}", f"{root}/{theirs}/{key}", (size,)

    root = name.replace("_", "-")
    bn = "tpu_batch_normalization"
    yield "stem_conv/kernel", f"{root}/stem/conv2d/kernel", (3, 3, 3, 32)
    yield from norm("stem_bn", f"stem/{bn}", 32)
    for number, (ours, kernel, _, expansion, before, after) in enumerate(blocks(name)):
        theirs, wide = f"blocks_{number}", before * expansion
        depthwise, project, norms = f"{theirs}/{bn}", "conv2d", [f"{theirs}/{bn}_1"]
        if expansion > 1:
            yield (
                f"{ours}_expand_conv/kernel",
                f"{root}/{theirs}/conv2d/kernel",
                (1, 1, before, wide),
            )
            yield from norm(f"{ours}_expand_bn", f"{theirs}/{bn}", wide)
            depthwise, project, norms = f"{theirs}/{bn}_1", "conv2d_1", [f"{theirs}/{bn}_2"]
        path = f"{root}/{theirs}/depthwise_conv2d/depthwise_kernel"
        yield f"{ours}_dwconv/kernel", path, (kernel, kernel, wide, 1)
        yield from norm(f"{ours}_bn", depthwise, wide)
        yield (
            f"{ours}_project_conv/kernel",
            f"{root}/{theirs}/{project}/kernel",
            (1, 1, wide, after),
        )
        yield from norm(f"{ours}_project_bn", norms[0], after)


def write_archive(path: Path, name: str, averages: Arrays) -> Path:
    """Writes an archive like the published one: a checkpoint of a training and other files."""
    folder = path.parent / f"{path.name}.files"
    folder.mkdir()
    arrays: Arrays = {"global_step": np.array(7, np.int64)}
    for key, value in averages.items():
        arrays |= {key: value + 1, f"{key}/ExponentialMovingAverage": value}
    tf.raw_ops.SaveV2(
        prefix=str(folder / "model.ckpt"),
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=[tf.constant(value) for value in arrays.values()],
    )
    (folder / "model.ckpt.meta").write_bytes(b"the graph")
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    (folder / f"{name}-fp32.tflite").write_bytes(b"TFL3")
    with tarfile.open(path, "w:gz", compresslevel=0) as archive:
        archive.add(folder, name.replace("_", "-"))
    shutil.rmtree(folder)
    return path


def made_numbers(name: str) -> Arrays:
    rng = np.random.default_rng(0)
    return {theirs: rng.random(shape, np.float32) for _, theirs, shape in published_variables(name)}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of EfficientNet-Lite0 with random numbers."""
    path = tmp_path_factory.mktemp("lite") / "efficientnet-lite0.tar.gz"
    return write_archive(path, "efficientnet_lite0", made_numbers("efficientnet_lite0"))


@pytest.fixture(scope="module")
def plain() -> keras.Model:
    """The network without dilation; tests may overwrite its weights."""
    return plain_backbone(VARIANTS["efficientnet_lite0"], "efficientnet_lite0", None)


def assert_published(model: keras.Model, name: str, averages: Arrays) -> None:
    variables = named_variables(model)
    names = {ours: theirs for ours, theirs, _ in published_variables(name)}
    assert set(names) == set(variables)
    for ours, theirs in names.items():
        np.testing.assert_array_equal(variables[ours].numpy(), averages[theirs])


def test_an_archive_given_by_path_is_loaded(archive: Path) -> None:
    name = "efficientnet_lite0"
    assert_published(build_backbone(name, archive, LayerOptions()), name, made_numbers(name))


def test_an_npz_file_given_by_path_is_loaded(tmp_path: Path) -> None:
    name, path = "efficientnet_lite0", tmp_path / "weights.npz"
    averages = made_numbers(name)
    arrays = {ours: averages[theirs] for ours, theirs, _ in published_variables(name)}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    assert_published(build_backbone(name, path, LayerOptions()), name, averages)


@pytest.mark.slow
def test_the_archive_of_the_other_size_is_loaded_or_refused(
    plain: keras.Model, tmp_path: Path
) -> None:
    name = "efficientnet_lite2"
    path = write_archive(tmp_path / "any name.tar.gz", name, made_numbers(name))
    assert_published(build_backbone(name, path, LayerOptions()), name, made_numbers(name))
    with pytest.raises(ConfigError, match="does not match efficientnet_lite0"):
        load_backbone_weights(plain, "efficientnet_lite0", path)


def offline(monkeypatch: pytest.MonkeyPatch, home: Path, archive: Path) -> list[str]:
    """Replaces every download by a copy of `archive`, and returns the list of their addresses."""
    addresses = []

    def copy(address: str, target: str, *_: object) -> None:
        addresses.append(address)
        shutil.copy(archive, target)

    monkeypatch.setattr(file_utils, "urlretrieve", copy)
    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(home))
    return addresses


def test_imagenet_downloads_the_published_archive_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    name = "efficientnet_lite0"
    addresses = offline(monkeypatch, tmp_path, archive)
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    for _ in range(2):
        model = plain_backbone(replace(VARIANTS[name], md5=md5), name, "imagenet")
        assert_published(model, name, made_numbers(name))
    published = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet/lite"
    assert addresses == [f"{published}/efficientnet-lite0.tar.gz"]
    assert (tmp_path / "models" / "efficientnet-lite0.tar.gz").is_file()


def test_another_checksum_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    addresses = offline(monkeypatch, tmp_path, archive)
    for attempt in (1, 2):  # the bad file is not used from the cache either
        with pytest.raises(ResourceError, match=r"efficientnet_lite0 .*md5 file hash") as caught:
            plain_backbone(VARIANTS["efficientnet_lite0"], "efficientnet_lite0", "imagenet")
        assert "\n" not in str(caught.value)
        assert len(addresses) == attempt


def test_a_downloaded_archive_that_cannot_be_used_is_not_called_a_failed_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: Path
) -> None:
    name, other = "efficientnet_lite0", tmp_path / "other.tar.gz"
    other.write_bytes(damaged(archive, "no checkpoint"))
    offline(monkeypatch, tmp_path, other)
    md5 = hashlib.md5(other.read_bytes(), usedforsecurity=False).hexdigest()
    with pytest.raises(ConfigError, match=r"models/efficientnet-lite0\.tar\.gz does not match"):
        plain_backbone(replace(VARIANTS[name], md5=md5), name, "imagenet")


def test_a_full_disk_is_not_called_damage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plain: keras.Model, archive: Path
) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with monkeypatch.context() as full:
        full.setattr(shutil, "copyfileobj", fill)
        with pytest.raises(ResourceError, match=rf"^disk full while unpacking to {tmp_path}/.*TMP"):
            load_backbone_weights(plain, "efficientnet_lite0", archive)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(
        ResourceError, match=r"^no temporary folder .*: free disk space, or set TMP"
    ):
        load_backbone_weights(plain, "efficientnet_lite0", archive)


def damaged(archive: Path, kind: str) -> bytes:
    content = archive.read_bytes()
    if kind == "cut":
        return content[: len(content) // 2]
    if kind == "text":
        return b"hello"
    if kind == "nothing":
        return b""
    with tarfile.open(archive) as source:
        files = {m.name: source.extractfile(m) for m in source.getmembers() if m.isfile()}
        found = {name: file.read() for name, file in files.items() if file is not None}
    data = next(name for name in found if ".data-" in name)
    if kind == "no checkpoint":
        del found[data]
    else:  # a flipped bit, which the checkpoint's own checksum finds
        kernel = made_numbers("efficientnet_lite0")["efficientnet-lite0/stem/conv2d/kernel"]
        place = found[data].index(kernel.tobytes())
        changed_byte = bytes([found[data][place] ^ 1])
        found[data] = found[data][:place] + changed_byte + found[data][place + 1 :]
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz", compresslevel=0) as changed:
        for name, value in found.items():
            member = tarfile.TarInfo(name)
            member.size = len(value)
            changed.addfile(member, io.BytesIO(value))
    return target.getvalue()


@pytest.mark.parametrize("kind", ["cut", "text", "nothing", "no checkpoint", "flipped bit"])
def test_a_damaged_archive_is_refused_in_one_line(
    kind: str, archive: Path, plain: keras.Model, tmp_path: Path
) -> None:
    path = tmp_path / "bad.tar.gz"
    path.write_bytes(damaged(archive, kind))
    before = plain.get_weights()
    with pytest.raises(ConfigError) as caught:
        load_backbone_weights(plain, "efficientnet_lite0", path)
    assert str(caught.value) == (
        f"model.backbone_weights: {path} does not match efficientnet_lite0: the file is damaged, "
        "or contains the weights of another network; use TensorFlow's efficientnet-lite0.tar.gz, "
        "or another --model.backbone"
    )
    for one, other in zip(plain.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_archive_that_unpacks_to_gigabytes_is_refused(
    archive: Path, plain: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficientnet_lite, "_LARGEST", 1000)
    with pytest.raises(ConfigError, match="does not match"):
        load_backbone_weights(plain, "efficientnet_lite0", archive)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_an_archive_are_not_followed(
    kind: bytes, archive: Path, plain: keras.Model, tmp_path: Path
) -> None:
    path = tmp_path / "links.tar.gz"
    with tarfile.open(archive) as source, tarfile.open(path, "w:gz", compresslevel=0) as target:
        for member in source.getmembers():
            content = source.extractfile(member) if member.isfile() else None
            index = member.name.endswith(".index")
            target.addfile(member.replace(name="of any size") if index else member, content)
        link = tarfile.TarInfo("model.ckpt.index")
        link.type, link.linkname = kind, "of any size"
        target.addfile(link)
    with pytest.raises(ConfigError, match="does not match") as caught:
        load_backbone_weights(plain, "efficientnet_lite0", path)
    assert str(caught.value.__cause__) == "the archive has no model.ckpt.index"


@pytest.mark.slow
def test_a_checkpoint_with_another_shape_is_refused(plain: keras.Model, tmp_path: Path) -> None:
    averages = made_numbers("efficientnet_lite0")
    key = "efficientnet-lite0/blocks_3/depthwise_conv2d/depthwise_kernel"
    averages[key] = averages[key][:3, :3]
    path = write_archive(tmp_path / "lite.tar.gz", "efficientnet_lite0", averages)
    with pytest.raises(ConfigError, match="does not match"):
        load_backbone_weights(plain, "efficientnet_lite0", path)


@pytest.mark.slow
def test_a_checkpoint_with_a_value_that_is_not_finite_is_refused(
    plain: keras.Model, tmp_path: Path
) -> None:
    averages = made_numbers("efficientnet_lite0")
    averages["efficientnet-lite0/blocks_3/depthwise_conv2d/depthwise_kernel"][0, 0, 0, 0] = np.inf
    path = write_archive(tmp_path / "lite.tar.gz", "efficientnet_lite0", averages)
    with pytest.raises(ConfigError, match=r"lite\.tar\.gz: .*/.*kernel' has inf in 1 of"):
        load_backbone_weights(plain, "efficientnet_lite0", path)


def test_file_names_are_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "weights.tar.gz"
    path.touch()
    with pytest.raises(ConfigError, match=r"not a weights file; .* \.h5 or \.npz$"):
        check_weights_file("mobilenet_v2", path)
    check_weights_file("efficientnet_lite0", path)
    (tmp_path / "weights.npz").touch()
    check_weights_file("efficientnet_lite0", tmp_path / "weights.npz")
    other = tmp_path / "weights.pb"
    other.touch()
    with pytest.raises(ConfigError, match=r"\.npz, or TensorFlow's efficientnet-lite2\.tar\.gz"):
        check_weights_file("efficientnet_lite2", other)


@pytest.mark.slow
def test_a_weights_file_of_keras_loads(archive: Path, plain: keras.Model, tmp_path: Path) -> None:
    load_backbone_weights(plain, "efficientnet_lite0", archive)
    plain.save_weights(tmp_path / "lite.weights.h5")
    plain.set_weights([np.zeros_like(value) for value in plain.get_weights()])
    load_backbone_weights(plain, "efficientnet_lite0", tmp_path / "lite.weights.h5")
    assert_published(plain, "efficientnet_lite0", made_numbers("efficientnet_lite0"))


@pytest.fixture
def imagenet() -> Callable[[str], Path]:
    """Returns the file of the published weights, which is not part of the repository."""

    def find(name: str) -> Path:
        beside = Path(network.__file__).parents[2].parent / "shared" / "weights"
        folder = Path(os.environ.get("CCFNET_WEIGHTS_DIR", beside))
        path = folder / f"{name}_imagenet_no_top.npz"
        if not path.is_file():
            pytest.skip(f"no {path}; set CCFNET_WEIGHTS_DIR to its folder")
        return path

    return find


def by_hand(name: str, weights: Arrays, x: tf.Tensor) -> tf.Tensor:
    """Returns the features of the network, computed from the table and TensorFlow's operations."""

    def norm(x: tf.Tensor, layer: str) -> tf.Tensor:
        keys = ("moving_mean", "moving_variance", "beta", "gamma")
        return tf.nn.batch_normalization(x, *(weights[f"{layer}/{key}"] for key in keys), 1e-3)

    def conv(x: tf.Tensor, layer: str, stride: int = 1) -> tf.Tensor:
        return tf.nn.conv2d(x, weights[f"{layer}/kernel"], stride, "SAME")

    x = tf.nn.relu6(norm(conv(x, "stem_conv", 2), "stem_bn"))
    for block, _, stride, expansion, before, after in blocks(name):
        y = x
        if expansion > 1:
            y = tf.nn.relu6(norm(conv(y, f"{block}_expand_conv"), f"{block}_expand_bn"))
        strides = [1, stride, stride, 1]
        y = tf.nn.depthwise_conv2d(y, weights[f"{block}_dwconv/kernel"], strides, "SAME")
        y = norm(
            conv(tf.nn.relu6(norm(y, f"{block}_bn")), f"{block}_project_conv"),
            f"{block}_project_bn",
        )
        x = x + y if stride == 1 and before == after else y
    return x


@pytest.mark.parametrize("name", NAMES)
def test_the_published_weights_give_the_published_network(
    name: str, imagenet: Callable[[str], Path]
) -> None:
    path = imagenet(name)
    model = plain_backbone(VARIANTS[name], name, path)
    with np.load(path) as arrays:
        weights = dict(arrays)
    y, x = np.mgrid[:97, :129].astype(np.float32)
    image = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 20)], -1)[None]
    expected = by_hand(name, weights, tf.constant(image))
    assert np.std(expected) > 0.5  # the signal neither vanishes nor saturates
    np.testing.assert_allclose(model(image, training=False), expected, atol=1e-3)
