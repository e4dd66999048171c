"""Seconds a step of training and inference, beside the largest speed seen on this machine.

All precisions are measured in one process, in rounds: every round measures each of them, and a
large matrix product beside it, so that a machine whose speed varies treats them alike. The best of
the rounds counts, for steps and for products: what disturbs only ever makes slower.
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
from ccfnet_tf.datasets.audit.scan import check
from ccfnet_tf.datasets.splits import read_parts, without_damage
from ccfnet_tf.errors import ResourceError
from ccfnet_tf.io.console import new_progress
from ccfnet_tf.pipeline.batch import original_error, training_batches
from ccfnet_tf.training.build import build_model
from ccfnet_tf.training.data import RunData, rarity, training_load

Phase = Literal["training", "inference"]
Batch = tuple[tf.Tensor, tf.Tensor]

PRECISIONS: tuple[ComputeType, ...] = ("float32", "bfloat16", "float16")
PHASES: tuple[Phase, ...] = ("training", "inference")

WAYS = {"training": 3, "inference": 1}
"""Training is counted as three ways through the network: one forward, and twice as much back."""

IMAGES_READ = 64
"""Images of the training split that are read; all of a large set would take its time."""

FED_STEPS = 2
SCHEDULE = 1000
PRODUCT_SIDE = {"CPU": 2048, "GPU": 8192}
PRODUCTS = 3
NATIVE = 1.25
"""A half precision whose products are not so many times as fast as float32's is emulated."""


@dataclass
class Speed:
    """What was measured of one phase in one precision.

    Attributes:
        phase: `training`: the step that `fit` runs, with losses, metrics and optimizer.
            `inference`: from images to all answers.
        precision: What the hidden layers compute in.
        seconds: Seconds a step, from images that lie in memory; the best of the rounds.
        memory: Most resident memory of the process in such steps, in MB.
        fed: Seconds a step while the run's data are read beside it, without the time it waited
            for them; the best of the rounds, infinite in inference.
        stepped: Seconds of all steps fed so, together.
        waited: Seconds that they waited for data, together.
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
        """Share of the time that went by waiting for data, 0..1; None in inference."""
        whole = self.stepped + self.waited
        return self.waited / whole if whole else None


@dataclass(frozen=True)
class Benchmark:
    """All that was measured of a network.

    Attributes:
        size: Height and width of the images.
        batch: Images in a step.
        rounds: How often each was measured.
        cost: Multiply-adds of an image.
        speeds: Training and inference in each precision.
        products: Precision -> GFLOP/s of a large matrix product, the best of the rounds.
        left_out: Precision -> why it was not measured.
    """

    size: int
    batch: int
    rounds: int
    cost: Cost
    speeds: list[Speed]
    products: dict[ComputeType, float]
    left_out: dict[ComputeType, str] = field(default_factory=dict)

    def gflops(self, speed: Speed) -> float:
        """Returns the GFLOP/s that a phase reached; a multiply-add is two operations."""
        return 2 * WAYS[speed.phase] * self.cost.total * self.batch / speed.seconds


class Network:
    """A run's network in one precision, with random weights: they do not change its speed."""

    def __init__(self, config: RunConfig, data: RunData, precision: ComputeType) -> None:
        config = replace(config, train=replace(config.train, precision=precision))
        here = tf.distribute.get_strategy()  # one device
        quiet = Console(quiet=True)
        self.precision = precision
        self.model = build_model(config, here, data, SCHEDULE, quiet, fresh=False)
        self.model.make_train_function()  # as `fit` does
        self._answer = tf.function(lambda images: self.model(images, training=False))

    def step(self, phase: Phase, batch: Batch) -> float:
        """Returns the seconds of a step on images [B, S, S, 3] and labels [B, S, S]."""
        batches = iter(tf.data.Dataset.from_tensors(batch))
        began = time.perf_counter()
        if phase == "training":
            one = self.model.train_function(batches)["loss"]
        else:
            one = self._answer(batch[0])["refine"][0, 0, 0, 0]
        float(one)  # a GPU returns before it has computed
        return time.perf_counter() - began


class Product:
    """A product of two large square matrices: the most that this machine multiplies.

    Attributes:
        best: The largest GFLOP/s seen.
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
        """Multiplies a few times."""
        seconds = min(self._seconds() for _ in range(PRODUCTS))
        self.best = max(self.best, 2 * self._side**3 / seconds / 1e9)

    def _seconds(self) -> float:
        began = time.perf_counter()
        float(self._multiply(self._matrix, self._matrix)[0, 0])
        return time.perf_counter() - began


def measure(config: RunConfig, *, rounds: int, console: Console) -> Benchmark:
    """Measures the network of a configuration in every precision that this machine multiplies.

    Args:
        config: `data.crop` is the images' size, `train.batch` their number in a step.
        rounds: How often each is measured.
        console: Where progress is shown.

    Raises:
        CCFNetError: The data cannot be read, or memory ran out.
    """
    data = read_some(config)
    size, batch = config.data.crop, config.train.batch
    with _our_errors(config), new_progress(console) as bar:
        task = bar.add_task("matrix products", total=None)
        products, left_out = _products()
        bar.update(task, total=(rounds + 1) * len(products) * len(PHASES))

        def advance(what: str, number: int) -> None:
            when = f"round {number} of {rounds}" if number else "first step"
            bar.update(task, advance=1, description=f"{when}: {what}")

        stream = training_stream(config, data)
        pictures = next(iter(stream))
        networks = [Network(config, data, precision) for precision in products]
        speeds = [Speed(phase, network.precision) for network in networks for phase in PHASES]
        for number in range(rounds + 1):
            for speed in speeds:
                network = next(n for n in networks if n.precision == speed.precision)
                if not number:
                    network.step(speed.phase, pictures)  # traces
                else:
                    products[speed.precision].measure()
                    _measure(network, speed, pictures, stream)
                advance(f"{speed.phase} in {speed.precision}", number)
    best = {precision: product.best for precision, product in products.items()}
    work = cost(networks[0].model, size, size)
    return Benchmark(size, batch, rounds, work, speeds, best, left_out)


def read_some(config: RunConfig) -> RunData:
    """Lists the data and looks at the first images of the training split.

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
    """Returns the products of the precisions worth measuring, and why others are not."""
    found = {precision: Product(precision) for precision in PRECISIONS}
    for _ in range(2):  # in turns: a machine's speed varies
        for product in found.values():
            product.measure()
    plain = found["float32"].best
    left_out: dict[ComputeType, str] = {}
    for precision in PRECISIONS[1:]:
        if found[precision].best < NATIVE * plain:
            rate = found.pop(precision).best
            left_out[precision] = (
                f"its matrix products ran at {rate:.0f} GFLOP/s here, float32's at {plain:.0f}"
            )
    return found, left_out


def training_stream(config: RunConfig, data: RunData) -> Any:
    """Returns the batches that `fit` would learn from."""
    return training_batches(
        data.parts.train,
        training_load(config.data, data, Console(quiet=True)),
        config.data,
        batch=config.train.batch,
        seed=config.seed,
        rarity=rarity(config.data, data.train.census),
    )


def _measure(network: Network, speed: Speed, pictures: Batch, stream: Any) -> None:
    """Adds a round."""
    memory.forget_peak()
    speed.seconds = min(speed.seconds, network.step(speed.phase, pictures))
    speed.memory = max(speed.memory, memory.peak())
    if speed.phase == "inference":
        return
    # A stream of its own: one that went on while other things were measured would have all its
    # batches ready. The first is not counted, since `fit` waits for it once.
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
def _our_errors(config: RunConfig) -> Iterator[None]:
    """Turns what a user can fix into one line."""
    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        raise ResourceError(
            f"memory ran out with {config.train.batch} images of {config.data.crop}x"
            f"{config.data.crop}: lower --batch, then --size"
        ) from error
    except tf.errors.OpError as error:
        ours = original_error(error)
        if ours is None:
            raise
        raise ours from error
