"""Names of the network's variables, and where a backbone's weights come from."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import keras

from ccfnet_tf.errors import ConfigError, ResourceError, first_line

IMAGENET = "imagenet"
NO_WEIGHTS = "none"

LARGEST = 1 << 30
"""Bytes that the arrays of a weights file may take: ten times those of ResNet-50."""

_TRIAL = f"""
import resource, sys
import h5py
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, ({4 * LARGEST}, {4 * LARGEST}))
seen, size = set(), 0
def read(item):
    global size
    place = h5py.h5o.get_info(item.id).addr
    if place in seen:
        return
    seen.add(place)
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
"""Reads all of a file; where it is read by Keras, nothing new can happen in HDF5."""

_TRIAL_SECONDS = 60.0

_SUFFIXES = (".weights.h5", ".h5", ".hdf5")


def named_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns every variable of `model` under a name that does not change between processes.

    Batch norm statistics and the seeds of dropout are among them; metrics and optimizer are not.
    The name is `layer/variable`. Keras's own paths will not do: they hold automatic numbers
    (`seed_generator_7`) that depend on what the process has built before.

    Raises:
        ValueError: Two layers that hold variables share a name, or a variable has no layer.
    """
    found: dict[str, keras.Variable] = {}
    for layer in _leaves(model):
        for variable in layer.variables:
            key = f"{layer.name}/{variable.name}"
            if key in found:
                raise ValueError(f"two variables are named {key}")
            found[key] = variable
    if len(found) != len(model.variables):
        raise ValueError(f"{len(found)} of {len(model.variables)} variables belong to a layer")
    return found


def plain_backbone(
    application: Callable[..., keras.Model], name: str, source: str | Path | None
) -> keras.Model:
    """Builds a backbone as Keras ships it, without its classifier, for any image size.

    Args:
        application: The builder in `keras.applications`.
        name: What users call the backbone, for messages.
        source: `imagenet`, `none` or None, or a `.weights.h5` or `.h5` file of this very model.

    Raises:
        ConfigError: The file is missing, unreadable, or holds another network's weights.
        ResourceError: The download failed.
    """
    if source == IMAGENET:
        return _downloaded(application, name)
    model = application(include_top=False, input_shape=(None, None, 3), weights=None)
    if source not in (None, NO_WEIGHTS):
        load_backbone_weights(model, name, Path(str(source)).expanduser())
    return model


def load_backbone_weights(model: keras.Model, name: str, path: Path) -> None:
    """Loads the file at `path` into a plain backbone; see `plain_backbone`."""
    check_weights_file(name, path)
    try:
        _try_out(path)
        with warnings.catch_warnings():
            # Keras only warns of what it skips.
            warnings.filterwarnings("error", message=".*([Ss]kipping|could not be loaded|expect)")
            model.load_weights(path)
    except Exception as error:
        # Keras raises OSError, ValueError, KeyError, TypeError ... by kind of damage.
        raise ConfigError(
            f"model.backbone_weights: {path} does not fit {name}: it is damaged, or holds another "
            f"network's weights; give a file of Keras's {name} without its classifier, or another "
            "--model.backbone"
        ) from error


def _try_out(path: Path) -> None:
    """Reads a file in a process of its own first: damaged ones end it, or take all memory.

    Raises:
        ValueError: It cannot be read so.
        TimeoutExpired: Nor is it refused soon.
    """
    command = [sys.executable, "-P", "-c", _TRIAL, str(path)]
    trial = subprocess.run(command, capture_output=True, check=False, timeout=_TRIAL_SECONDS)
    if trial.returncode:
        raise ValueError(f"a trial ended with {trial.returncode}")


def check_weights_file(name: str, path: Path) -> None:
    """Refuses what cannot be a weights file of the backbone `name`, without opening it.

    Raises:
        ConfigError: There is no such file, or its suffix is another.
    """
    if not path.is_file():
        raise ConfigError(
            f"model.backbone_weights: no file {path}; expected '{IMAGENET}', '{NO_WEIGHTS}' or a "
            f"weights file of {name}"
        )
    if not path.name.endswith(_SUFFIXES):
        raise ConfigError(
            f"model.backbone_weights: {path} is no Keras weights file; expected a name that ends "
            f"in {' or '.join(_SUFFIXES[:2])}"
        )


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies the weights of each layer of `target` from the layer of that name in `source`."""
    for layer in target.layers:
        if layer.variables:
            layer.set_weights(source.get_layer(layer.name).get_weights())


def _downloaded(application: Callable[..., keras.Model], name: str) -> keras.Model:
    try:
        with warnings.catch_warnings():
            # MobileNetV2 says that it takes the weights of 224 pixels, which is what we want.
            warnings.filterwarnings("ignore", message=".*input_shape.* is undefined")
            return application(include_top=False, input_shape=(None, None, 3), weights=IMAGENET)
    except Exception as error:  # Keras raises bare Exception for a failed download
        raise ResourceError(
            f"the ImageNet weights of {name} could not be had ({first_line(error)}); check the "
            "network and the cache (~/.keras/models), or give --model.backbone_weights none or a "
            "file"
        ) from error


def _leaves(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer
