"""Measures seconds per step of training and inference, and the machine's matrix product speed.

All precisions are measured in one process, in rounds: every round measures each of them together
with a large matrix product, so that a varying machine speed affects all alike. The best round
counts, for steps and for products, because disturbances only make them slower.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from rich.console import Console

from ccfnet_tf.benchmark import memory
from ccfnet_tf.benchmark.flops import Cost, cost
from ccfnet_tf.config import ComputeType, RunConfig
from ccfnet_tf.datasets.audit.check_split import check
from ccfnet_tf.datasets.open_data_set import read_parts, without_damage
from ccfnet_tf.errors import ResourceError
from ccfnet_tf.io.console import new_progress
from ccfnet_tf.pipeline.batch import original_error, training_batches
from ccfnet_tf.training.build_network import build_model
from ccfnet_tf.training.check_data import RunData, rarity, training_load

Phase = Literal["training", "inference"]
Batch = tuple[tf.Tensor, tf.Tensor]

PRECISIONS: tuple[ComputeType, ...] = ("float32", "bfloat16", "float16")
PHASES: tuple[Phase, ...] = ("training", "inference")

FORWARD_PASSES = {"training": 3, "inference": 1}
"""Forward passes that a step costs: the backward pass of training costs two more."""

IMAGES_READ = 64
"""Number of images of the training split that are read; reading a large set takes long."""

FED_STEPS = 2
SCHEDULE = 1000
PRODUCT_SIDE = {"CPU": 2048, "GPU": 8192}
PRODUCTS = 3
MIN_NATIVE_SPEEDUP = 1.25
"""Smallest speedup of matrix products over float32 by which a half precision counts as native."""


@dataclass
class Speed:
    """Figures of one phase in one precision.

    Attributes:
        phase: `training`: the step that `fit` runs, with losses, metrics and optimizer.
            `inference`: from images to all outputs.
        precision: Data type that the hidden layers compute in.
        seconds: Seconds per step with images in memory; the best round.
        memory: Peak resident memory of the process in such steps, in MB.
        fed: Seconds per step while the input pipeline runs, without waiting for data; the best
            round, infinite in inference.
        stepped: Total seconds of the steps that the input pipeline fed.
        waited: Total seconds that they waited for data.
    """

    phase: Phase
    precision: ComputeType
    seconds: float = float("inf")
    memory: float = 0.0
    fed: float = float("inf")
    stepped: float = 0.0
    waited: float = 0.0

    @property
    def waiting(self) -> float | None:
        """Share of the time spent waiting for data, 0..1; None in inference."""
        total = self.stepped + self.waited
        return self.waited / total if total else None


@dataclass(frozen=True)
class Benchmark:
    """All figures of a network.

    Attributes:
        size: Height and width of the images.
        batch: Images per step.
        rounds: Number of measurements of each figure.
        cost: Multiply-adds per image.
        speeds: Training and inference in each precision.
        products: GFLOP/s of a large matrix product by precision; the best round.
        left_out: Reasons for precisions that were not measured.
    """

    size: int
    batch: int
    rounds: int
    cost: Cost
    speeds: list[Speed]
    products: dict[ComputeType, float]
    left_out: dict[ComputeType, str] = field(default_factory=dict)

    def gflops(self, speed: Speed) -> float:
        """Returns the GFLOP/s of a phase; a multiply-add counts as two operations."""
        return 2 * FORWARD_PASSES[speed.phase] * self.cost.total * self.batch / speed.seconds


class Network:
    """The network of a configuration in one precision, with random weights."""

    def __init__(self, config: RunConfig, data: RunData, precision: ComputeType) -> None:
        config = replace(config, train=replace(config.train, precision=precision))
        strategy = tf.distribute.get_strategy()  # one device
        quiet = Console(quiet=True)
        self.precision = precision
        self.model = build_model(config, strategy, data, SCHEDULE, quiet, fresh=False)
        self.model.make_train_function()  # as `fit` does
        self._predict = tf.function(lambda images: self.model(images, training=False))

    def step(self, phase: Phase, batch: Batch) -> float:
        """Returns the seconds of a step on images [B, S, S, 3] and labels [B, S, S]."""
        batches = iter(tf.data.Dataset.from_tensors(batch))
        began = time.perf_counter()
        if phase == "training":
            scalar = self.model.train_function(batches)["loss"]
        else:
            scalar = self._predict(batch[0])["refine"][0, 0, 0, 0]
        float(scalar)  # waits for the result: a GPU computes asynchronously
        return time.perf_counter() - began


class Product:
    """A product of two large square matrices, as the machine's practical peak speed.

    Attributes:
        best: Highest GFLOP/s so far.
    """

    def __init__(self, precision: ComputeType) -> None:
        gpus = tf.config.list_physical_devices("GPU")
        self._side = PRODUCT_SIDE["GPU" if gpus else "CPU"]
        values = np.random.default_rng(0).standard_normal((self._side, self._side))
        self._matrix = tf.cast(tf.constant(values), precision)
        self._multiply = tf.function(tf.matmul)
        self._seconds()  # traces
        self.best = 0.0
        self.measure()

    def measure(self) -> None:
        """Repeats the product and updates `best`."""
        seconds = min(self._seconds() for _ in range(PRODUCTS))
        self.best = max(self.best, 2 * self._side**3 / seconds / 1e9)

    def _seconds(self) -> float:
        began = time.perf_counter()
        float(self._multiply(self._matrix, self._matrix)[0, 0])
        return time.perf_counter() - began


def measure(config: RunConfig, *, rounds: int, console: Console) -> Benchmark:
    """Measures the network of a configuration in every precision that this machine supports.

    Args:
        config: `data.crop` is the size of the images, `train.batch` their number per step.
        rounds: Number of measurements of each figure.
        console: Console for progress.

    Raises:
        CCFNetError: The data cannot be read, or memory ran out.
    """
    data = read_some(config)
    size, batch = config.data.crop, config.train.batch
    with _user_errors(config), new_progress(console) as bar:
        task = bar.add_task("matrix products", total=None)
        products, left_out = _products()
        bar.update(task, total=(rounds + 1) * len(products) * len(PHASES))

        def advance(what: str, number: int) -> None:
            when = f"round {number} of {rounds}" if number else "first step"
            bar.update(task, advance=1, description=f"{when}: {what}")

        stream = training_stream(config, data)
        images = next(iter(stream))
        networks = [Network(config, data, precision) for precision in products]
        speeds = [Speed(phase, network.precision) for network in networks for phase in PHASES]
        for number in range(rounds + 1):
            for speed in speeds:
                network = next(n for n in networks if n.precision == speed.precision)
                if not number:
                    network.step(speed.phase, images)  # traces
                else:
                    products[speed.precision].measure()
                    _measure(network, speed, images, stream)
                advance(f"{speed.phase} in {speed.precision}", number)
    best = {precision: product.best for precision, product in products.items()}
    work = cost(networks[0].model, size, size)
    return Benchmark(size, batch, rounds, work, speeds, best, left_out)


def read_some(config: RunConfig) -> RunData:
    """Lists the data and checks the first images of the training split.

    Raises:
        CCFNetError: The data cannot be read.
    """
    parts = read_parts(config.data, config.seed)
    few = parts.train[: max(IMAGES_READ, config.train.batch)]
    leave_out = config.data.damaged_records == "skip"
    classes = len(parts.taxonomy.names)
    seen = check(few, parts.load, classes, leave_out=leave_out, workers=config.data.workers)
    load = without_damage(parts.load) if seen.damaged else parts.load
    return RunData(replace(parts, train=few, load=load), seen, seen)


def _products() -> tuple[dict[ComputeType, Product], dict[ComputeType, str]]:
    """Returns the products of native precisions, and reasons for leaving out others."""
    measured = {precision: Product(precision) for precision in PRECISIONS}
    for _ in range(2):  # alternating, because a machine's speed varies
        for product in measured.values():
            product.measure()
    baseline = measured["float32"].best
    left_out: dict[ComputeType, str] = {}
    for precision in PRECISIONS[1:]:
        if measured[precision].best < MIN_NATIVE_SPEEDUP * baseline:
            rate = measured.pop(precision).best
            left_out[precision] = (
                f"matrix products reach {rate:.0f} GFLOP/s here, {baseline:.0f} in float32"
            )
    return measured, left_out


def training_stream(config: RunConfig, data: RunData) -> Any:
    """Returns the batches that `fit` would train on."""
    return training_batches(
        data.parts.train,
        training_load(config.data, data, Console(quiet=True)),
        config.data,
        batch=config.train.batch,
        seed=config.seed,
        rarity=rarity(config.data, data.train.census),
    )


def _measure(network: Network, speed: Speed, images: Batch, stream: Any) -> None:
    """Measures one round of a phase."""
    memory.forget_peak()
    speed.seconds = min(speed.seconds, network.step(speed.phase, images))
    speed.memory = max(speed.memory, memory.peak())
    if speed.phase == "inference":
        return
    # A new iterator: one that was kept during other measurements would have its batches ready.
    # The first batch is not counted, because `fit` waits for it only once.
    batches = iter(stream)
    batch = next(batches)
    for _ in range(FED_STEPS):
        seconds = network.step(speed.phase, batch)
        began = time.perf_counter()
        batch = next(batches)
        speed.waited += time.perf_counter() - began
        speed.stepped += seconds
        speed.fed = min(speed.fed, seconds)


@contextmanager
def _user_errors(config: RunConfig) -> Iterator[None]:
    """Converts TensorFlow's errors to one-line errors that a user can fix."""
    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        raise ResourceError(
            f"memory ran out with {config.train.batch} images of {config.data.crop}x"
            f"{config.data.crop}: lower --batch, then --size"
        ) from error
    except tf.errors.OpError as error:
        cause = original_error(error)
        if cause is None:
            raise
        raise cause from error
