"""What a configuration reads: initial weights, lists, label map and the names of the images.

Their digests belong to a recipe, and are stored in its plan, so that a study is continued and its
finished runs are read after a file was removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ccfnet_tf.config import NAMED_WEIGHTS, RunConfig
from ccfnet_tf.datasets.class_and_split_lists import plain_name
from ccfnet_tf.datasets.open_data_set import read_parts
from ccfnet_tf.errors import ConfigError, unreadable
from ccfnet_tf.io.checksum import sha256_of
from ccfnet_tf.runs.run_folder import read_run


@dataclass(frozen=True)
class Input:
    """Something that a configuration reads.

    Attributes:
        key: The key that names it; `data` for the names of images and classes.
        path: Value of the key.
        digest: Of the content.
    """

    key: str
    path: str
    digest: str


def read_inputs(config: RunConfig, known: Sequence[Input] = ()) -> tuple[Input, ...]:
    """Returns digests of everything that a configuration reads.

    Args:
        config: The configuration, with absolute paths.
        known: Earlier inputs, used for files that have been removed since.

    Raises:
        ConfigError: A file is missing, and was not known.
        CCFNetError: The data or a file cannot be read.
    """
    earlier = {(each.key, each.path): each for each in known}
    found = []
    for key, value in _paths(config):
        if "://" in value or Path(value).exists():
            found.append(Input(key, value, _digest(key, value)))
        elif (key, value) in earlier:
            found.append(earlier[key, value])
        else:
            raise ConfigError(f"{key} is {value}: no such file: give its path with --{key}")
    return (*found, Input("data", str(config.data.root), _names(config)))


def _paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    weights = config.model.backbone_weights
    if weights not in NAMED_WEIGHTS:
        yield "model.backbone_weights", weights
    for key, value in (
        ("model.init_from", config.model.init_from),
        ("data.lists", config.data.lists),
        ("data.label_map", config.data.label_map),
    ):
        if value is not None:
            yield key, value


def _digest(key: str, value: str) -> str:
    if "://" in value:
        return value
    path = Path(value)
    if key == "model.init_from":
        path = read_run(path).checkpoint()
    try:
        if path.is_dir():
            files = sorted((*path.glob("*.txt"), *path.glob("fold_*/*.txt")))
            return _joined([f"{file.relative_to(path)} {sha256_of(file)}" for file in files])
        return sha256_of(path)
    except OSError as error:
        raise ConfigError(f"{key} is {value}: {unreadable(error)}") from error


def _names(config: RunConfig) -> str:
    """Returns a digest of the names of all images, in any split, and of the classes."""
    parts = read_parts(replace(config.data, fold=0), config.seed)
    images = {plain_name(each.name) for each in (*parts.train, *parts.val, *parts.test)}
    return _joined([*sorted(images), *parts.taxonomy.names])


def _joined(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
