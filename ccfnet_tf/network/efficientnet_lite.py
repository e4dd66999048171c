"""EfficientNet-Lite, TensorFlow's EfficientNet for mobile devices, with its published weights.

Compared with EfficientNet, there is no squeeze-and-excitation, the activations are ReLU6, and stem
and head are not scaled (github.com/tensorflow/tpu, models/official/efficientnet/lite). Keras has no
such application; the layers are named as those of its EfficientNet.
"""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import keras
import tensorflow as tf
from keras import KerasTensor

from ccfnet_tf.errors import ResourceError, first_line, is_disk_full

ARCHIVE_SUFFIX = ".tar.gz"

_SOURCE = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet/lite/"
_CHECKPOINT = ("model.ckpt.index", "model.ckpt.data-00000-of-00001")
_LARGEST = 1 << 30
"""Largest size of a file of a checkpoint in bytes; the published ones have tens of megabytes."""

# Published names of Keras's layers: the layers of a type are numbered within a block.
_EXPANDED = {
    "expand_conv": "conv2d",
    "expand_bn": "tpu_batch_normalization",
    "dwconv": "depthwise_conv2d",
    "bn": "tpu_batch_normalization_1",
    "project_conv": "conv2d_1",
    "project_bn": "tpu_batch_normalization_2",
}
_PLAIN = {
    "conv": "conv2d",
    "bn": "tpu_batch_normalization",
    "dwconv": "depthwise_conv2d",
    "project_conv": "conv2d",
    "project_bn": "tpu_batch_normalization_1",
}

# Stages 1 to 7: kernel size, stride and expansion of each.
_KERNELS = (3, 3, 5, 3, 5, 5, 3)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
_STEM_CHANNELS = 32

# Dilation of the first block of stages 1 to 7 and of their other blocks at output stride 8: the
# stride of the map that the block reads in the original network, divided by 8.
_DILATIONS = ((1, 1), (1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4))


@dataclass(frozen=True)
class Variant:
    """A size of EfficientNet-Lite.

    Attributes:
        name: Name in the published checkpoint.
        md5: Checksum of the published archive, as stated by Microchip's VectorBlox SDK 3.1
            (tutorials/tensorflow).
        repeats: Number of blocks of each stage.
        channels: Number of output channels of each stage.
    """

    name: str
    md5: str
    repeats: tuple[int, ...]
    channels: tuple[int, ...]

    @property
    def archive(self) -> str:
        """File name of the published archive."""
        return self.name + ARCHIVE_SUFFIX

    def __call__(self, *, include_top: bool, input_shape: Any, weights: None) -> keras.Model:
        """Builds the network up to the last block, like an application of Keras.

        Strided convolutions have symmetric padding. The published network pads even sizes at the
        bottom and right first; on odd sizes, the only ones that occur here, both are the same.

        Args:
            include_top: Must be False; neither the last convolution nor the classifier is built.
            input_shape: Shape of one image.
            weights: Must be None, for random weights; see `download` and `load`.

        Returns:
            A model that maps images (x - 127) / 128 [B, H, W, 3] to features [B, h, w, F].
        """
        if include_top or weights is not None:
            raise ValueError("EfficientNet-Lite is built without classifier and weights")
        images = keras.Input(input_shape)
        x = keras.layers.ZeroPadding2D(1, name="stem_conv_pad")(images)
        x = _conv(x, "stem_conv", _STEM_CHANNELS, 3, strides=2, padding="valid")
        x = _norm(x, "stem_bn", "stem_activation")
        for stage, repeats in enumerate(self.repeats):
            for block in range(repeats):
                name = f"block{stage + 1}{ascii_lowercase[block]}_"
                stride = _STRIDES[stage] if block == 0 else 1
                x = _block(x, name, self.channels[stage], stage, stride)
        return keras.Model(images, x, name=self.name)

    def download(self) -> Path:
        """Downloads the published archive, unless Keras has it in its cache; returns its path.

        Raises:
            Exception: The download failed (of this class, by Keras).
            OSError: The archive cannot be written.
            ValueError: It does not have the published checksum.
        """
        archive = keras.utils.get_file(
            self.archive,
            _SOURCE + self.archive,
            cache_subdir="models",
            file_hash=self.md5,
            hash_algorithm="md5",
        )
        return Path(archive)

    def load(self, model: keras.Model, path: Path) -> None:
        """Sets the weights of a network built by this variant from a published archive.

        The moving averages of the weights are used, as in TensorFlow's own evaluation.

        Args:
            model: The network.
            path: A `.tar.gz` file that contains a TensorFlow checkpoint `model.ckpt`.

        Raises:
            ValueError: The archive has no such checkpoint, a file of it is too large, or a
                variable is missing or has another shape.
            OSError, EOFError, tarfile.TarError, tf.errors.OpError: The archive is damaged.
            ResourceError: It cannot be unpacked to a temporary folder.
        """
        with _temporary_folder() as folder:
            _extract(path, folder)
            reader = tf.train.load_checkpoint(str(folder / "model.ckpt"))
            shapes = reader.get_variable_to_shape_map()
            values = []
            for key, variable in published_names(model, self.name).items():
                if shapes.get(key) != list(variable.shape):
                    raise ValueError(f"the checkpoint has no {key} of shape {variable.shape}")
                values.append((variable, reader.get_tensor(key)))
        for variable, value in values:
            variable.assign(value)


VARIANTS = {
    "efficientnet_lite0": Variant(
        name="efficientnet-lite0",
        md5="703c66bc3d3463bd15c00c5e2ec535eb",
        repeats=(1, 2, 2, 3, 3, 4, 1),
        channels=(16, 24, 40, 80, 112, 192, 320),
    ),
    "efficientnet_lite2": Variant(
        name="efficientnet-lite2",
        md5="da60c250593ee1c5eff9d3efb3c5eb92",
        repeats=(1, 3, 3, 4, 4, 5, 1),
        channels=(16, 24, 48, 88, 120, 208, 352),
    ),
}


def _block(x: KerasTensor, name: str, channels: int, stage: int, stride: int) -> KerasTensor:
    """Returns the output of one inverted residual block; see Sandler et al. 2018 (MobileNetV2)."""
    block_input, kernel = x, _KERNELS[stage]
    if _EXPANSIONS[stage] > 1:
        x = _conv(x, f"{name}expand_conv", x.shape[-1] * _EXPANSIONS[stage], 1)
        x = _norm(x, f"{name}expand_bn", f"{name}expand_activation")
    if stride > 1:
        x = keras.layers.ZeroPadding2D(kernel // 2, name=f"{name}dwconv_pad")(x)
    x = keras.layers.DepthwiseConv2D(
        kernel,
        strides=stride,
        padding="valid" if stride > 1 else "same",
        use_bias=False,
        depthwise_initializer=_initializer(),
        name=f"{name}dwconv",
    )(x)
    x = _norm(x, f"{name}bn", f"{name}activation")
    x = _norm(_conv(x, f"{name}project_conv", channels, 1), f"{name}project_bn")
    if stride == 1 and block_input.shape[-1] == channels:
        x = keras.layers.add([x, block_input], name=f"{name}add")
    return x


def _conv(x: KerasTensor, name: str, channels: int, kernel: int, **options: Any) -> KerasTensor:
    initializer = _initializer()
    options = {"padding": "same", "use_bias": False, "kernel_initializer": initializer, **options}
    return keras.layers.Conv2D(channels, kernel, name=name, **options)(x)


def _norm(x: KerasTensor, name: str, activation: str | None = None) -> KerasTensor:
    x = keras.layers.BatchNormalization(epsilon=1e-3, name=name)(x)
    return x if activation is None else keras.layers.Activation("relu6", name=activation)(x)


def _initializer() -> keras.initializers.Initializer:
    return keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")


def change(name: str) -> dict[str, Any]:
    """Returns the config entries of the layer `name` to change in the form of output stride 8."""
    match = re.fullmatch(r"block(\d)([a-z])_dwconv(_pad)?", name)
    if match is None:
        return {}
    stage, first = int(match[1]) - 1, match[2] == "a"
    dilation = _DILATIONS[stage][0 if first else 1]
    if match[3]:
        return {"padding": dilation * (_KERNELS[stage] // 2)}
    if first and stage in (3, 5):
        return {"strides": 1, "dilation_rate": dilation}
    return {"dilation_rate": dilation} if dilation > 1 else {}


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yields a temporary folder, which is removed on exit.

    Raises:
        ResourceError: It cannot be created, or the disk is full.
    """
    advice = "free disk space, or set TMPDIR to another folder"
    try:
        created = tempfile.TemporaryDirectory()
    except OSError as error:
        raise ResourceError(f"no temporary folder ({first_line(error)}): {advice}") from error
    with created as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise ResourceError(f"disk full while unpacking to {folder}: {advice}") from error


def _extract(path: Path, folder: Path) -> None:
    """Writes the two files of the checkpoint to `folder`; links and other members are ignored."""
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = Path(member.name).name
            # A link has size 0, and reading it would read its target, of any size.
            source = archive.extractfile(member) if member.isfile() else None
            if source is None or name not in _CHECKPOINT:
                continue
            if member.size > _LARGEST:
                raise ValueError(f"{name} has {member.size} bytes")
            with source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)
    for name in _CHECKPOINT:
        if not (folder / name).exists():
            raise ValueError(f"the archive has no {name}")


def published_names(model: keras.Model, root: str) -> dict[str, keras.Variable]:
    """Returns the variables of a plain network by their names in the published checkpoint.

    Example: `block2a_project_bn/gamma` is the moving average of
    `efficientnet-lite0/blocks_1/tpu_batch_normalization_2/gamma`.
    """
    blocks: list[str] = []
    variables = {}
    for layer in model.layers:
        part, _, kind = layer.name.partition("_")
        if part.startswith("block") and part not in blocks:
            blocks.append(part)
        scope = f"blocks_{blocks.index(part)}" if part in blocks else part
        for variable in layer.variables:
            published = (_PLAIN if part in ("stem", "block1a") else _EXPANDED)[kind]
            own = "depthwise_kernel" if kind == "dwconv" else variable.name
            variables[f"{root}/{scope}/{published}/{own}/ExponentialMovingAverage"] = variable
    return variables
