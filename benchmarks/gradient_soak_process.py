"""Repeats the gradients of one training step in one setting; runs in a process of its own.

    python -m benchmarks.gradient_soak_process REQUEST

REQUEST is a `Request` as JSON. Lines printed are JSON: `{"step": n}` while it works, at last a
`Counted`, or an `error`; with ONEDNN_VERBOSE=1 in the environment oneDNN's lines stand between.

Every repetition is the whole step that `fit` runs, optimizer included, from the same weights,
optimizer state and random numbers, on the same images.
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
from ccfnet_tf.network import layers
from ccfnet_tf.network.layers import kernel_gradient
from ccfnet_tf.training.build import build_model
from ccfnet_tf.training.checkpoint import restore

Remedy = Literal["columns", "none", "channels", "slices", "float32"]

LOSS = "loss"
PLACES = 64
"""Indices of an axis that are written down where values are not finite."""
SAYS_EVERY = 10

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_PERTURB = -1, -3, -6
_ALL_ONES = 256
"""glibc fills new memory with this number's complement in 8 bits: 255, which reads as NaN."""


@dataclass(frozen=True)
class Request:
    """What is to be repeated.

    Attributes:
        config: The configuration as YAML.
        checkpoint: State to begin from; random weights where None.
        precision: What the hidden layers compute in.
        own: With the gradients of `network.layers`; else Keras's.
        remedy: How kernels above 1x1 get their gradient, a key of `REMEDIES`.
        fill: Fill all memory with NaN when it is allocated (glibc).
        steps: Repetitions behind the first.
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
    """How one variable's gradient differed from the first repetition's.

    Attributes:
        differ: Repetitions with any other bit.
        not_finite: Repetitions with a value that is NaN or infinite.
        largest: The largest difference of finite values, over the first's largest value.
        places: Indices of values that were not finite, by axis, of all repetitions together; the
            first `PLACES`.
    """

    differ: int = 0
    not_finite: int = 0
    largest: float = 0.0
    places: list[list[int]] = field(default_factory=list)


@dataclass
class Counted:
    """What was found.

    Attributes:
        steps: Repetitions that were compared with the first.
        seconds: Median of a repetition's seconds, without the comparison.
        differ: Repetitions in which any gradient, or the loss, differed.
        not_finite: Repetitions in which any was not finite.
        first_finite: Whether the first was finite.
        variables: Variable's path, or `loss` -> counts, of those that ever differed.
    """

    steps: int = 0
    seconds: float = 0.0
    differ: int = 0
    not_finite: int = 0
    first_finite: bool = True
    variables: dict[str, Count] = field(default_factory=dict)


def main() -> None:
    """Repeats what is asked for, and prints what was counted."""
    request = Request(**json.loads(sys.argv[1]))
    try:
        counted = soak(request, lambda step: _say({"step": step}))
    except Exception as error:  # whatever it is, the table names it and the other settings go on
        _say({"error": first_line(error)})
    else:
        _say(asdict(counted))


def soak(request: Request, said: Callable[[int], object]) -> Counted:
    """Builds the network of a request and repeats its step.

    Raises:
        CCFNetError: The data or the checkpoint cannot be used, or memory cannot be filled.
    """
    set_gradients(own=request.own, remedy=request.remedy)
    model, batch = prepared(request)
    step = RepeatedStep(model, batch)
    if request.fill:
        fill_memory()
    return repeat(step, request.steps, said)


def set_gradients(*, own: bool, remedy: Remedy) -> None:
    """Chooses the gradients of every network that this process builds from now on."""
    layers.own_gradients = lambda: own
    layers.kernel_gradient = REMEDIES[remedy]


def prepared(request: Request) -> tuple[Any, Batch]:
    """Returns the compiled network, and images [B, S, S, 3] and labels [B, S, S] to learn from."""
    config = from_yaml(request.config, source="the configuration")
    config = replace(config, train=replace(config.train, precision=request.precision))
    keras.utils.set_random_seed(config.seed)
    data = read_some(config)
    here = tf.distribute.get_strategy()  # one device
    model = build_model(config, here, data, SCHEDULE, Console(quiet=True), fresh=False)
    if request.checkpoint is not None:
        restore(Path(request.checkpoint), model)
    return model, next(iter(training_stream(config, data)))


class RepeatedStep:
    """A training step that begins from the same state every time.

    Attributes:
        names: Of what `run` returns: the variables' paths, then `loss`.
    """

    def __init__(self, model: Any, batch: Batch) -> None:
        self._model, self._batch = model, batch
        if not model.optimizer.built:  # else its state is made, and changed, by the first step
            model.optimizer.build(model.trainable_variables)
        self._state = [*model.variables, *model.optimizer.variables]
        self._start = [tf.identity(variable) for variable in self._state]
        self.names: list[str] = []
        self._step = tf.function(self._one)

    def run(self) -> list[tf.Tensor]:
        """Returns the gradients, and the sum of the losses, of the step."""
        return list(self._step(*self._batch))

    def _one(self, images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        for variable, start in zip(self._state, self._start, strict=True):
            variable.assign(start)
        seen: list[Any] = []
        learn = self._model._learn

        def watched(*arguments: Any) -> Any:
            seen.append(learn(*arguments))
            return seen[-1]

        self._model._learn = watched
        try:
            self._model.train_step((images, labels))
        finally:
            del self._model._learn
        ((gradients, of_batch),) = seen
        pairs = zip(gradients, self._model.trainable_variables, strict=True)
        found = {v.path: tf.convert_to_tensor(g) for g, v in pairs if g is not None}
        self.names = [*found, LOSS]
        return [*found.values(), of_batch.sums["loss"]]


def repeat(step: RepeatedStep, steps: int, said: Callable[[int], object]) -> Counted:
    """Repeats a step and counts what differs from its first repetition, bit by bit."""
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
        if number % SAYS_EVERY == 0:
            said(number)
    counted.seconds = median(seconds) if seconds else 0.0
    return counted


@tf.function
def _compare(now: list[tf.Tensor], first: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns whether each tensor has the bits of the first, and whether it is finite."""
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
        count.places = [indices[:PLACES] for indices in joined]
    both = finite & np.isfinite(first)
    if both.any():
        scale = float(np.abs(first[both]).max()) or 1.0
        count.largest = max(count.largest, float(np.abs(now - first)[both].max()) / scale)


def fill_memory() -> None:
    """Has glibc fill all memory with NaN that is allocated from now on.

    Whatever is read before it is written then shows. Without this, large pieces are mostly fresh
    from the system, that is zero, or hold what the same op left there.

    Raises:
        ConfigError: The C library is not glibc.
    """
    options = getattr(ctypes.CDLL(None), "mallopt", None)
    if options is None:
        raise ConfigError("--fill: it needs glibc, which this system does not have")
    most = 2**31 - 1
    for name, value in ((_M_TRIM_THRESHOLD, most), (_M_PERTURB, _ALL_ONES)):
        if not options(name, value):
            raise RunError(f"--fill: mallopt({name}, {value}) was refused")


def _plain(
    x: tf.Tensor, shape: Sequence[int], out: tf.Tensor, padding: str, dilation: int
) -> tf.Tensor:
    """One op for all of it, as Keras has it."""
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
    """Channels of zeros fill up to a multiple of 32."""
    height, width, channels, filters = shape
    missing = -channels % 32
    x = tf.pad(x, [[0, 0], [0, 0], [0, 0], [0, missing]])
    whole = (height, width, channels + missing, filters)
    return _plain(x, whole, out, padding, dilation)[:, :, :channels]


def _slices(
    x: tf.Tensor, shape: Sequence[int], out: tf.Tensor, padding: str, dilation: int
) -> tf.Tensor:
    """16 channels at a time, of which oneDNN makes one block."""
    height, width, channels, filters = shape
    parts = [x[..., first : first + 16] for first in range(0, channels, 16)]
    sizes = [(height, width, part.shape[-1], filters) for part in parts]
    found = [
        _plain(part, size, out, padding, dilation) for part, size in zip(parts, sizes, strict=True)
    ]
    return tf.concat(found, 2)


def _float32(
    x: tf.Tensor, shape: Sequence[int], out: tf.Tensor, padding: str, dilation: int
) -> tf.Tensor:
    """This one gradient in float32."""
    wide, gradient = (tf.cast(value, tf.float32) for value in (x, out))
    return tf.cast(_plain(wide, shape, gradient, padding, dilation), x.dtype)


REMEDIES: dict[Remedy, Callable[..., tf.Tensor]] = {
    "columns": kernel_gradient,
    "none": _plain,
    "channels": _channels,
    "slices": _slices,
    "float32": _float32,
}
"""`columns` is what the network has: zeros at the right of features and gradient."""


def _say(tree: dict[str, Any]) -> None:
    print(json.dumps(tree), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
