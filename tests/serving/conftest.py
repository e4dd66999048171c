"""A small network that was exported, and servers of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from ccfnet_tf.exporters.saved_model.writer import write_saved_model
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.runtimes.manifest import Manifest, checksums, write_manifest
from ccfnet_tf.serving.server import DevelopmentServer
from tests.serving.served import NAMES, TAXONOMY, Exported, Process


@pytest.fixture(scope="session")
def exported(toy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    keras.utils.set_random_seed(0)
    model = toy(len(NAMES))
    for variable in model.variables:  # nothing at its initial value
        if "float" in variable.dtype:
            noise = np.random.default_rng(1).normal(scale=0.02, size=variable.shape)
            variable.assign(np.abs(variable.numpy() + noise))
    folder = tmp_path_factory.mktemp("models") / "ccfnet"
    version = folder / "2"
    write_saved_model(model, TAXONOMY, version)
    write_manifest(version, manifest(version))
    (folder / "1").mkdir()  # never looked at
    return Exported(folder, KerasNetwork(model, taxonomy=TAXONOMY))


def manifest(folder: Path) -> Manifest:
    return Manifest(
        format="saved_model",
        run={},
        versions={},
        classes=list(NAMES),
        palette=[list(colour) for colour in TAXONOMY.palette],
        options={},
        inputs={},
        outputs={},
        files=checksums(folder),
        difference={},
        measured={},
    )


@pytest.fixture(scope="session")
def server(exported: Exported) -> Iterator[DevelopmentServer]:
    with DevelopmentServer(exported.folder, host="127.0.0.1", rest_port=0, grpc_port=0) as made:
        yield made


@pytest.fixture
def process(exported: Exported) -> Iterator[Process]:
    """The server as a user starts it."""
    command = [sys.executable, "-m", "ccfnet_tf", "serve", str(exported.folder)]
    command += ["--rest-port", "0", "--grpc-port", "0"]
    command += ["--max-pixels", str(4000 * 4000)]  # large enough to be killed while it answers
    # One heap for all threads: what is resident then says what is kept.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as started:
        assert started.stdout is not None
        said = [started.stdout.readline() for _ in range(3)]
        rest, grpc = (line.split()[-1] for line in said[1:])
        try:
            yield Process(started, rest, grpc)
        finally:
            started.kill()
