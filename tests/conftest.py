"""Where the real data and weights lie, when they do."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LONGEST = (
    "test_best_checkpoint.py",
    "test_ccfnet.py",
    "test_configuration_arrives.py",
    "test_crossval.py",
    "test_demo.py",
    "test_end_to_end.py",
    "test_fast_layers.py",
    "test_few_pictures.py",
    "test_large_image.py",
    "test_multi_worker_run.py",
    "test_plain_keras.py",
    "test_resumed_runs.py",
    "test_server.py",
    "test_sigterm_flag.py",
    "test_study.py",
    "test_train_step.py",
)
"""Files that took longest in `pytest --durations 0`, with the slow tests and without."""

REPOSITORY = Path(__file__).resolve().parents[1]

# Quiet before TensorFlow is first imported by any test.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the same devices on every machine
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # as in the command line
# They make rich treat a pipe as a terminal, where output has colours and no lines of progress.
for forced in ("FORCE_COLOR", "TTY_COMPATIBLE"):
    os.environ.pop(forced, None)
# As many test processes as cores, or more: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background ignores SIGINT, and so would what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _find(variable: str, beside: str) -> Path:
    return Path(os.environ.get(variable, REPOSITORY.parent / "shared" / beside))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, so that no test process ends alone with one."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Shows what tests recorded (`record_property`), from whichever process they ran in."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {name}: {value}")


@pytest.fixture(scope="session")
def stanford_root() -> Path:
    """The real Stanford Background data set."""
    root = _find("CCFNET_STANFORD_ROOT", "data/stanford_background")
    if not (root / "horizons.txt").is_file():
        pytest.skip(f"Stanford Background is not at {root}: set CCFNET_STANFORD_ROOT")
    return root


@pytest.fixture(scope="session")
def sift_flow_root() -> Path:
    """The real SIFT Flow data set."""
    root = _find("CCFNET_SIFT_FLOW_ROOT", "data/sift_flow")
    if not (root / "TestSet1.txt").is_file():
        pytest.skip(f"SIFT Flow is not at {root}: set CCFNET_SIFT_FLOW_ROOT")
    return root


@pytest.fixture(scope="session")
def toy() -> Callable[..., Any]:
    """Builds a graph of five layers with CCFNet's outputs and names: a second to trace, not 15."""

    def build(
        classes: int, *, synchronized: bool = False, behind_body: Any = None, gate: Any = None
    ) -> Any:
        import keras

        from ccfnet_tf.network import heads
        from ccfnet_tf.network.model import CCFNet

        layers = keras.layers
        images = keras.Input((None, None, 3), name="images")
        inner = keras.Input((None, None, 3))
        x = layers.Conv2D(6, 3, padding="same", name="body")(inner)
        x = layers.BatchNormalization(synchronized=synchronized, name="body_norm")(x)
        backbone = keras.Model(inner, layers.ReLU(name="body_relu")(x), name="backbone")
        x = backbone(images)
        x = x if behind_body is None else behind_body(x)
        coarse = layers.Conv2D(classes, 1, name="coarse_logits")(x)
        attention = layers.Conv2D(2, 1, name="attention_logits")(x)
        fine = layers.Conv2D(classes, 3, padding="same", name="fine_logits")(x)
        logs = heads.LogSoftmax(name="coarse_log_probabilities")(coarse)
        outputs = {"coarse": coarse, "attention": attention}
        weights = attention
        if gate is not None:
            weights = outputs["gate"] = gate(attention)
        outputs["refine"] = heads.Blend(name="refine")([logs, weights, fine])
        return CCFNet(inputs=images, outputs=outputs, name="toy")

    return build


@pytest.fixture(scope="session")
def spoiler() -> Callable[..., Any]:
    """Makes a layer whose `scale` gets a bad gradient at chosen steps, on one replica."""
    import keras
    import tensorflow as tf

    class Spoiler(keras.layers.Layer):
        """[B, H, W, C] times a scale; `bad` is {step from 0: what is added to its gradient}."""

        def __init__(self, bad: dict[int, float], *, replica: int = 0) -> None:
            super().__init__(name="spoiler")
            self.bad, self.replica = bad, replica

        def build(self, shape: Any) -> None:
            self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")
            self.steps = self.add_weight(
                name="steps", shape=(), dtype="int32", initializer="zeros", trainable=False
            )

        def call(self, x: Any, training: bool = False) -> Any:
            scale = tf.convert_to_tensor(self.scale)
            if not training:
                return x * scale
            here = tf.distribute.get_replica_context().replica_id_in_sync_group
            bad = tf.zeros(())
            for step, value in self.bad.items():
                now = tf.logical_and(tf.equal(self.steps, step), tf.equal(here, self.replica))
                bad = tf.where(now, value, bad)
            self.steps.assign_add(1)
            return x * _with_gradient(scale, bad)

    @tf.custom_gradient
    def _with_gradient(scale: Any, bad: Any) -> Any:
        return tf.identity(scale), lambda up: (up + bad, None)

    return Spoiler
