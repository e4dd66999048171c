"""Repeats one training step in one setting; run as a separate process by `gradient_soak`.

    python -m benchmarks.gradient_soak_process REQUEST

REQUEST is a `Request` as JSON. The output consists of JSON lines: `{"step": n}` for progress, and
finally a `Counted` or an `error`. With ONEDNN_VERBOSE=1 in the environment they are mixed with the
log of oneDNN.

Every repetition is the complete step that `fit` runs, including the optimizer, with the same
weights, optimizer state, random numbers and images.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from ccfnet_tf.benchmark.speed import SCHEDULE, Batch, read_some, training_stream
from ccfnet_tf.config import ComputeType, from_yaml
from ccfnet_tf.errors import ConfigError, RunError, first_line
from ccfnet_tf.network import fast_layers
from ccfnet_tf.network.fast_layers import kernel_gradient
from ccfnet_tf.training.build_network import build_model
from ccfnet_tf.training.checkpoint import restore

Remedy = Literal["columns", "none", "channels", "slices", "float32"]

LOSS = "loss"
MAX_INDICES = 64
"""Number of indices per axis that are recorded for non-finite values."""
REPORT_EVERY = 10

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_PERTURB = -1, -3, -6
_ALL_ONES = 256
"""glibc fills new memory with the 8-bit complement of this number: 255, which is NaN as a float."""


@dataclass(frozen=True)
class Request:
    """The step to repeat.

    Attributes:
        config: The configuration as YAML.
        checkpoint: Initial state; None for random weights.
        precision: Compute type of the hidden layers.
        own: Use the gradients of `network.fast_layers` instead of Keras's.
        remedy: Implementation of the gradient of kernels above 1x1, a key of `REMEDIES`.
        fill: Fill all newly allocated memory with NaN (glibc).
        steps: Number of repetitions after the first step.
    """

    config: str
    checkpoint: str | None
    precision: ComputeType
    own: bool
    remedy: Remedy
    fill: bool
    steps: int


@dataclass
class Count:
    """Differences of the gradient of one variable from that of the first step.

    Attributes:
        differ: Number of repetitions with any different bit.
        not_finite: Number of repetitions with a NaN or infinite value.
        largest: Largest difference of finite values, over the largest value of the first step.
        places: Indices of non-finite values per axis, over all repetitions; at most `MAX_INDICES`.
    """

    differ: int = 0
    not_finite: int = 0
    largest: float = 0.0
    places: list[list[int]] = field(default_factory=list)


@dataclass
class Counted:
    """The counts over all repetitions.

    Attributes:
        steps: Number of repetitions compared with the first step.
        seconds: Median seconds of a repetition, without the comparison.
        differ: Number of repetitions in which any gradient or the loss differed.
        not_finite: Number of repetitions in which any of them was not finite.
        first_finite: Whether all gradients of the first step were finite.
        variables: Path of the variable, or `loss` -> counts; only those that differed.
    """

    steps: int = 0
    seconds: float = 0.0
    differ: int = 0
    not_finite: int = 0
    first_finite: bool = True
    variables: dict[str, Count] = field(default_factory=dict)


def main() -> None:
    """Runs the request of the command line and prints the counts."""
    request = Request(**json.loads(sys.argv[1]))
    try:
        counted = soak(request, lambda step: _emit({"step": step}))
    except Exception as error:  # reported in the table; the other settings continue
        _emit({"error": first_line(error)})
    else:
        _emit(asdict(counted))


def soak(request: Request, report: Callable[[int], object]) -> Counted:
    """Builds the network of a request and repeats its step.

    Raises:
        CCFNetError: The data or the checkpoint are invalid, or memory cannot be filled.
    """
    set_gradients(own=request.own, remedy=request.remedy)
    model, batch = prepared(request)
    step = RepeatedStep(model, batch)
    if request.fill:
        fill_memory()
    return repeat(step, request.steps, report)


def set_gradients(*, own: bool, remedy: Remedy) -> None:
    """Sets the gradients of all networks that this process builds afterwards."""
    fast_layers.own_gradients = lambda: own
    fast_layers.kernel_gradient = REMEDIES[remedy]


def prepared(request: Request) -> tuple[Any, Batch]:
    """Returns the compiled network and a batch: images [B, S, S, 3] and labels [B, S, S]."""
    config = from_yaml(request.config, source="the configuration")
    config = replace(config, train=replace(config.train, precision=request.precision))
    keras.utils.set_random_seed(config.seed)
    data = read_some(config)
    strategy = tf.distribute.get_strategy()  # one device
    model = build_model(config, strategy, data, SCHEDULE, Console(quiet=True), fresh=False)
    if request.checkpoint is not None:
        restore(Path(request.checkpoint), model)
    return model, next(iter(training_stream(config, data)))


class RepeatedStep:
    """A training step that starts from the same state every time.

    Attributes:
        names: Names of the tensors returned by `run`: the paths of the variables, then `loss`.
    """

    def __init__(self, model: Any, batch: Batch) -> None:
        self._model, self._batch = model, batch
        if not model.optimizer.built:  # otherwise the first step creates and changes its state
            model.optimizer.build(model.trainable_variables)
        self._state = [*model.variables, *model.optimizer.variables]
        self._start = [tf.identity(variable) for variable in self._state]
        self.names: list[str] = []
        self._step = tf.function(self._one)

    def run(self) -> list[tf.Tensor]:
        """Runs the step and returns its gradients and the sum of its losses."""
        return list(self._step(*self._batch))

    def _one(self, images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        for variable, start in zip(self._state, self._start, strict=True):
            variable.assign(start)
        results: list[Any] = []
        learn = self._model._learn

        def watched(*arguments: Any) -> Any:
            results.append(learn(*arguments))
            return results[-1]

        self._model._learn = watched
        try:
            self._model.train_step((images, labels))
        finally:
            del self._model._learn
        ((gradients, metrics),) = results
        pairs = zip(gradients, self._model.trainable_variables, strict=True)
        by_name = {v.path: tf.convert_to_tensor(g) for g, v in pairs if g is not None}
        self.names = [*by_name, LOSS]
        return [*by_name.values(), metrics.sums["loss"]]


def repeat(step: RepeatedStep, steps: int, report: Callable[[int], object]) -> Counted:
    """Repeats a step and counts bitwise differences from its first execution."""
    first = step.run()
    counted = Counted(first_finite=bool(np.all([np.isfinite(each).all() for each in first])))
    seconds = []
    for number in range(1, steps + 1):
        began = time.perf_counter()
        now = step.run()
        float(now[-1])
        seconds.append(time.perf_counter() - began)
        same, finite = (flags.numpy() for flags in _compare(now, first))
        counted.steps = number
        counted.differ += not same.all()
        counted.not_finite += not finite.all()
        for index in np.flatnonzero(~(same & finite)):
            count = counted.variables.setdefault(step.names[index], Count())
            _add(count, now[index].numpy(), first[index].numpy(), same=bool(same[index]))
        if number % REPORT_EVERY == 0:
            report(number)
    counted.seconds = median(seconds) if seconds else 0.0
    return counted


@tf.function
def _compare(now: list[tf.Tensor], first: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns, per tensor, whether it is bit-identical to `first`, and whether it is finite."""
    bits = [(tf.bitcast(a, tf.int32), tf.bitcast(b, tf.int32)) for a, b in zip(now, first)]  # noqa: B905
    same = tf.stack([tf.reduce_all(tf.equal(*pair)) for pair in bits])
    return same, tf.stack([tf.reduce_all(tf.math.is_finite(each)) for each in now])


def _add(count: Count, now: np.ndarray, first: np.ndarray, *, same: bool) -> None:
    count.differ += not same
    finite = np.isfinite(now)
    if not finite.all():
        count.not_finite += 1
        found = np.nonzero(~finite)
        before = count.places or [[] for _ in found]
        joined = [sorted({*old, *new.tolist()}) for old, new in zip(before, found, strict=True)]
        count.places = [indices[:MAX_INDICES] for indices in joined]
    both = finite & np.isfinite(first)
    if both.any():
        scale = float(np.abs(first[both]).max()) or 1.0
        count.largest = max(count.largest, float(np.abs(now - first)[both].max()) / scale)


def fill_memory() -> None:
    """Makes glibc fill all memory allocated afterwards with NaN.

    Reads of uninitialised memory then become visible. By default, large blocks come from the
    system, which zeroes them, or contain the values that the same op left there.

    Raises:
        ConfigError: The C library is not glibc.
    """
    options = getattr(ctypes.CDLL(None), "mallopt", None)
    if options is None:
        raise ConfigError("--fill: it requires glibc, which this system does not have")
    most = 2**31 - 1
    for name, value in ((_M_TRIM_THRESHOLD, most), (_M_PERTURB, _ALL_ONES)):
        if not options(name, value):
            raise RunError(f"--fill: mallopt({name}, {value}) failed")


def _plain(
    x: tf.Tensor, shape: Sequence[int], out: tf.Tensor, padding: str, dilation: int
) -> tf.Tensor:
    """A single op, as in Keras."""
    return tf.raw_ops.Conv2DBackpropFilter(
        input=x,
        filter_sizes=list(shape),
        out_backprop=out,
        strides=[1, 1, 1, 1],
        padding=padding,
        dilations=[1, dilation, dilation, 1],
    )


def _channels(
    x: tf.Tensor, shape: Sequence[int], out: tf.Tensor, padding: str, dilation: int
) -> tf.Tensor:
    """Pads channels with zeros to a multiple of 32."""
    height, width, channels, filters = shape
    missing = -channels % 32
    x = tf.pad(x, [[0, 0], [0, 0], [0, 0], [0, missing]])
    padded = (height, width, channels + missing, filters)
    return _plain(x, padded, out, padding, dilation)[:, :, :channels]


def _slices(
    x: tf.Tensor, shape: Sequence[int], out: tf.Tensor, padding: str, dilation: int
) -> tf.Tensor:
    """Processes 16 channels at a time, one block of oneDNN."""
    height, width, channels, filters = shape
    slices = [x[..., first : first + 16] for first in range(0, channels, 16)]
    sizes = [(height, width, piece.shape[-1], filters) for piece in slices]
    gradients = [
        _plain(piece, size, out, padding, dilation)
        for piece, size in zip(slices, sizes, strict=True)
    ]
    return tf.concat(gradients, 2)


def _float32(
    x: tf.Tensor, shape: Sequence[int], out: tf.Tensor, padding: str, dilation: int
) -> tf.Tensor:
    """Computes this gradient in float32."""
    wide, gradient = (tf.cast(value, tf.float32) for value in (x, out))
    return tf.cast(_plain(wide, shape, gradient, padding, dilation), x.dtype)


REMEDIES: dict[Remedy, Callable[..., tf.Tensor]] = {
    "columns": kernel_gradient,
    "none": _plain,
    "channels": _channels,
    "slices": _slices,
    "float32": _float32,
}
"""`columns`, which the network uses, pads features and gradient with columns of zeros."""


def _emit(tree: dict[str, Any]) -> None:
    print(json.dumps(tree), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
