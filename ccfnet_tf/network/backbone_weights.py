"""Names of the network's variables, and loading of backbone weights."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np

from ccfnet_tf.config import IMAGENET, NO_WEIGHTS
from ccfnet_tf.errors import ConfigError, ResourceError, first_line
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.npz_file import DAMAGE, not_finite, read_stored
from ccfnet_tf.network.efficientnet_lite import ARCHIVE_SUFFIX, VARIANTS, Variant

LARGEST = 1 << 30
"""Largest total size of the arrays of a weights file in bytes: ten times that of ResNet-50."""

_TRIAL = f"""
import resource, sys
import h5py
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, ({4 * LARGEST}, {4 * LARGEST}))
seen, size = set(), 0
def read(item):
    global size
    address = h5py.h5o.get_info(item.id).addr
    if address in seen:
        return
    seen.add(address)
    dict(item.attrs)
    if isinstance(item, h5py.Dataset):
        size += item.nbytes
        if size > {LARGEST} or item.external or item.is_virtual:
            sys.exit("its arrays are too large, or in other files")
        item[()]
        return
    for name in item:
        if not isinstance(item.get(name, getlink=True), h5py.HardLink):
            sys.exit("it has links")
        read(item[name])
with h5py.File(sys.argv[1]) as file:
    read(file)
"""
"""Script that reads a complete weights file, so that a crash or a memory limit in HDF5 ends only
the subprocess that runs it."""

_TRIAL_SECONDS = 60.0

_NPZ = ".npz"
_SUFFIXES = (".weights.h5", ".h5", ".hdf5", _NPZ)


def named_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the variables of `model` by names that are the same in every process.

    Includes batch norm statistics and dropout seeds, but neither metrics nor the optimizer. Names
    have the form `layer/variable`. Keras's own paths are not stable: they contain automatic
    numbers (`seed_generator_7`) that depend on what the process has built before.

    Raises:
        ValueError: Two layers with variables have the same name, or a variable has no layer.
    """
    variables: dict[str, keras.Variable] = {}
    for layer in _leaves(model):
        for variable in layer.variables:
            key = f"{layer.name}/{variable.name}"
            if key in variables:
                raise ValueError(f"two variables are named {key}")
            variables[key] = variable
    if len(variables) != len(model.variables):
        raise ValueError(f"{len(variables)} of {len(model.variables)} variables belong to a layer")
    return variables


def plain_backbone(
    application: Callable[..., keras.Model], name: str, source: str | Path | None
) -> keras.Model:
    """Builds an unmodified Keras backbone without its classifier, for any image size.

    Args:
        application: The builder function in `keras.applications`, or one with its arguments.
        name: Name of the backbone.
        source: `imagenet`, `none` or None for random weights, or a file of the same model: a
            `.weights.h5` or `.h5` file of Keras, or an uncompressed `.npz` file whose arrays are
            those of `named_variables`; for EfficientNet-Lite also the published `.tar.gz` file.

    Raises:
        ConfigError: The file is missing, unreadable, or contains the weights of another network.
        ResourceError: The weights could not be downloaded, or unpacked to a temporary folder.
    """
    if source == IMAGENET and isinstance(application, Variant):
        with _downloading(name):
            source = application.download()
    elif source == IMAGENET:
        with _downloading(name), warnings.catch_warnings():
            # MobileNetV2 warns that it uses the weights for 224 pixels, which is intended.
            warnings.filterwarnings("ignore", message=".*input_shape.* is undefined")
            return application(include_top=False, input_shape=(None, None, 3), weights=IMAGENET)
    model = application(include_top=False, input_shape=(None, None, 3), weights=None)
    if source not in (None, NO_WEIGHTS):
        load_backbone_weights(model, name, expanded(str(source)))
    return model


def load_backbone_weights(model: keras.Model, name: str, path: Path) -> None:
    """Loads the file at `path` into a plain backbone; see `plain_backbone`."""
    check_weights_file(name, path)
    if path.name.endswith(_NPZ):
        _load_npz_file(model, name, path)
        return
    try:
        if path.name.endswith(ARCHIVE_SUFFIX):
            VARIANTS[name].load(model, path)
        else:
            _load_keras_file(model, path)
    except ResourceError:
        raise
    except Exception as error:
        # Keras raises OSError, ValueError, KeyError, TypeError, ... depending on the damage.
        raise ConfigError(
            f"model.backbone_weights: {path} does not match {name}: the file is damaged, or "
            f"contains the weights of another network; use {_published(name)}, or another "
            "--model.backbone"
        ) from error
    loaded = {key: variable.numpy() for key, variable in named_variables(model).items()}
    if fault := not_finite(loaded):
        raise ConfigError(
            f"model.backbone_weights: {path}: the file is damaged: {fault}; use {_published(name)}"
        )


def _load_npz_file(model: keras.Model, name: str, path: Path) -> None:
    """Sets all variables of a model, or none if an array is missing, unknown or unsuitable.

    The arrays of a larger network may include all those of a smaller one: ResNet-101 has every
    layer of ResNet-50.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        arrays = read_stored(path)
    except DAMAGE as error:
        raise ConfigError(
            f"model.backbone_weights: {path}: cannot be read ({type(error).__name__}: "
            f"{first_line(error)}); use {_published(name)}"
        ) from error
    variables = named_variables(model)
    fault = _mismatch(variables, arrays)
    if fault:
        raise ConfigError(
            f"model.backbone_weights: {path} does not match {name}: {fault}; use "
            f"{_published(name)}, or another --model.backbone"
        )
    for key, variable in variables.items():
        variable.assign(arrays[key])


def _mismatch(variables: dict[str, keras.Variable], arrays: dict[str, np.ndarray]) -> str:
    """Describes the first difference between variables and the arrays for them; empty if none."""
    for key, variable in variables.items():
        if key not in arrays:
            return f"'{key}' is missing"
        found, shape = arrays[key], tuple(variable.shape)
        if found.shape != shape:
            return f"'{key}' has shape {list(found.shape)}, expected {list(shape)}"
        if found.dtype.name != variable.dtype:
            return f"'{key}' has type {found.dtype.name}, expected {variable.dtype}"
    unknown = [key for key in arrays if key not in variables]
    return f"it has no variable '{unknown[0]}'" if unknown else not_finite(arrays)


def _load_keras_file(model: keras.Model, path: Path) -> None:
    _read_in_subprocess(path)
    with warnings.catch_warnings():
        # Keras only warns about weights that it skips.
        warnings.filterwarnings("error", message=".*([Ss]kipping|could not be loaded|expect)")
        model.load_weights(path)


def _read_in_subprocess(path: Path) -> None:
    """Reads a file in a subprocess first, because a damaged file can crash it or exhaust memory.

    Raises:
        ValueError: The subprocess failed.
        TimeoutExpired: The subprocess did not finish in time.
    """
    command = [sys.executable, "-P", "-c", _TRIAL, str(path)]
    trial = subprocess.run(command, capture_output=True, check=False, timeout=_TRIAL_SECONDS)
    if trial.returncode:
        raise ValueError(f"reading it in a subprocess ended with exit code {trial.returncode}")


def check_weights_file(name: str, path: Path) -> None:
    """Checks the path and suffix of a weights file of the backbone `name`, without opening it.

    Raises:
        ConfigError: The file does not exist, or has another suffix.
    """
    if not path.is_file():
        raise ConfigError(
            f"model.backbone_weights: {path} does not exist; expected '{IMAGENET}', "
            f"'{NO_WEIGHTS}' or a weights file of {name}"
        )
    lite = name in VARIANTS
    if not path.name.endswith((*_SUFFIXES, ARCHIVE_SUFFIX) if lite else _SUFFIXES):
        raise ConfigError(
            f"model.backbone_weights: {path} is not a weights file; expected a file name that ends "
            "in .weights.h5, .h5 or .npz" + (f", or {_published(name)}" if lite else "")
        )


def _published(name: str) -> str:
    """Returns what the published weights file of a backbone is called in messages."""
    if name in VARIANTS:
        return f"TensorFlow's {VARIANTS[name].archive}"
    return f"a weights file of Keras's {name} without its classifier"


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies the weights of each layer of `target` from the layer of the same name in `source`."""
    for layer in target.layers:
        if layer.variables:
            layer.set_weights(source.get_layer(layer.name).get_weights())


@contextmanager
def _downloading(name: str) -> Iterator[None]:
    """Converts the errors of a download by Keras to a `ResourceError`."""
    try:
        yield
    except Exception as error:  # Keras raises bare Exception for a failed download
        raise ResourceError(
            f"the ImageNet weights of {name} could not be downloaded ({first_line(error)}); check "
            "the internet connection and the cache (~/.keras/models), or set "
            "--model.backbone_weights to none or a file"
        ) from error


def _leaves(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer
