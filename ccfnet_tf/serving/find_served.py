"""Finds the SavedModel that `ccfnet-tf serve` is asked to serve, without TensorFlow."""

from __future__ import annotations

import shlex
from pathlib import Path

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.runtimes.open_segmenter import find_source

_ACCEPTED = "the folder OUT/ccfnet of `ccfnet-tf export`, or that of one of its versions"


def find_served(folder: Path) -> Path:
    """Returns the folder of a version.

    Args:
        folder: The folder of versions, of which the highest is used, or of one version.

    Raises:
        ConfigError: The folder contains another format.
        RunError: The folder does not contain an artifact of `ccfnet-tf export`, or it is damaged.
    """
    source = find_source(str(folder), _ACCEPTED)
    if source.kind != "saved_model":
        raise ConfigError(f"{source.place}: {_not_served(source.kind, Path(source.place))}")
    return Path(source.place)


def _not_served(kind: str, path: Path) -> str:
    """Returns why a folder cannot be served, and the fix."""
    if kind == "run":
        name = path.resolve().name
        export = f"ccfnet-tf export {shlex.quote(str(path))}"
        served = shlex.quote(f"export/models/{name}/ccfnet")
        return f"is a run, not an exported model: run {export}, then ccfnet-tf serve {served}"
    if kind == "server":
        return f"is the address of a server: give {_ACCEPTED}"
    return (
        f"is a file of format {kind}, but a server needs a SavedModel: export the run without "
        "--format"
    )
