"""Compares the cost of variants of a training step, alternately in one process.

    python -m benchmarks.step_cost [RUN] [--rounds 5] [--config PRESET --KEY VALUE ...]

Measures the check of every gradient, mean IoU and attention accuracy, and each implementation of
the kernel gradient: in seconds, and in processor time, which other processes affect less.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gradient_soak import PRECISIONS, configured, split_run
from ccfnet_tf.benchmark.machine import Others, machine, others_line, refuse_lost_json, write_json
from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, CCFNetError, ConfigError
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

UNCHANGED = "unchanged"
Change = tuple[Any, str, Any]
"""A module or class, the name of one of its functions, and the replacement."""


def variants(precision: str) -> dict[str, list[Change]]:
    """Returns the replacements of each variant, active during tracing; empty for `UNCHANGED`."""
    import tensorflow as tf

    from benchmarks.gradient_soak_process import REMEDIES
    from ccfnet_tf.network import fast_layers, model

    def apply(self: Any, finite: Any, gradients: Any, variables: Any) -> None:
        del finite
        self.optimizer.apply(gradients, variables)

    result: dict[str, list[Change]] = {
        UNCHANGED: [],
        "gradients not checked": [
            (model, "_first_not_finite", lambda _: tf.constant(-1)),
            (model.CCFNet, "_moving_statistics", lambda _: []),  # restored by a skipped step
            (model.CCFNet, "_apply", apply),
        ],
        "Keras's gradients": [(fast_layers, "own_gradients", lambda: False)],
    }
    if precision != "float32":  # float32 uses Keras's gradient for kernels above 1x1
        for name, gradient in REMEDIES.items():
            if gradient is not fast_layers.kernel_gradient:
                result[f"kernel gradient: {name}"] = [(fast_layers, "kernel_gradient", gradient)]
    return result


def main(args: Sequence[str]) -> int:
    """Measures every variant, prints the table and returns the exit code."""
    options, keys = _parse(args)
    refuse_lost_json(options.json)
    config, _ = configured(options, keys)
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    start_tensorflow()
    from ccfnet_tf.benchmark.speed import Network, read_some, training_stream

    data, console = read_some(config), new_console()
    batch = next(iter(training_stream(config, data)))
    wanted = {
        name: changes
        for name, changes in variants(options.precision).items()
        if name == UNCHANGED or not options.only or name in options.only
    }
    networks: dict[str, Network] = {}
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    work: dict[str, list[float]] = {name: [] for name in wanted}
    with new_progress(console) as bar:
        task = bar.add_task("", total=len(wanted) * (options.rounds + 1))
        for name, changes in wanted.items():
            bar.update(task, description=f"first step: {name}")
            with changed(changes):
                networks[name] = Network(config, data, options.precision)
                networks[name].step("training", batch)  # traces
            bar.advance(task)
        others = Others()
        for number in range(options.rounds):
            for name, network in networks.items():
                bar.update(task, description=f"round {number + 1} of {options.rounds}: {name}")
                began = time.process_time()
                seconds[name].append(network.step("training", batch))
                work[name].append(time.process_time() - began)
                bar.advance(task)
    what = (
        f"{config.model.backbone}, {options.precision}, {config.data.crop}x{config.data.crop}, "
        f"{config.train.batch} images; {options.rounds} rounds; {machine()['processor']}"
    )
    share = others.share()
    network = networks[UNCHANGED].model
    alone = {
        "check of gradients": check_cost(network, options.rounds),
        "mean IoU and attention accuracy": metrics_cost(network, batch, options.rounds),
    }
    costs = [
        f"{name} alone: {1000 * used:.1f} ms of processor time at best, "
        f"{used / min(work[UNCHANGED]):.2%} of the step"
        for name, used in alone.items()
    ]
    for line in [what, others_line(share), "", *markdown(seconds, work), "", *costs]:
        console.print(line)
    if options.json:
        tree = {
            "what": what,
            "others_share": share,
            "seconds": seconds,
            "work": work,
            "machine": machine(),
        }
        write_json(options.json, tree)
    return EXIT_DONE


def check_cost(network: Any, rounds: int) -> float:
    """Returns the processor time, in seconds, of checking the gradients of all variables."""
    import tensorflow as tf

    from ccfnet_tf.network import model

    values = [tf.ones_like(variable) for variable in network.trainable_variables]
    return _least(tf.function(model._first_not_finite), [values], rounds)


def metrics_cost(network: Any, batch: Any, rounds: int) -> float:
    """Returns the processor time, in seconds, of mean IoU and attention accuracy in a step."""
    import tensorflow as tf

    from ccfnet_tf.network import losses, model

    target = losses.split_void(batch[1], network.classes)
    attention = tf.random.stateless_normal([*target.labels.shape, 2], seed=(0, 0))

    def metrics(attention: Any, labels: Any, valid: Any) -> Any:
        confusion = model._confusion(labels, losses.Target(labels, valid), network.classes)
        judged = tf.math.count_nonzero(model._judges_right(attention, valid) & valid)
        return tf.reduce_sum(confusion) + judged

    return _least(tf.function(metrics), [attention, *target], rounds)


def _least(function: Any, arguments: Sequence[Any], rounds: int) -> float:
    """Returns the lowest processor time, in seconds, of a call after the first."""
    seconds = []
    for _ in range(rounds + 1):  # the first traces
        began = time.process_time()
        int(function(*arguments))
        seconds.append(time.process_time() - began)
    return min(seconds[1:])


@contextmanager
def changed(changes: Sequence[Change]) -> Iterator[None]:
    """Context in which functions are replaced."""
    before = [getattr(owner, name) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(changes, before, strict=True):
            setattr(owner, name, value)


def markdown(seconds: dict[str, list[float]], work: dict[str, list[float]]) -> list[str]:
    """Returns the table. Ratios are computed per round, since the speed of a machine varies."""
    lines = ["| step | ms, best | ratio | ratio of processor time | its range |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, found in seconds.items():
        time_, used = (_ratios(each[name], each[UNCHANGED]) for each in (seconds, work))
        cells = [name, f"{1000 * min(found):.0f}", f"{median(time_):.3f}", f"{median(used):.3f}"]
        lines.append(f"| {' | '.join(cells)} | {min(used):.3f} to {max(used):.3f} |")
    return lines


def _ratios(found: Sequence[float], base: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(found, base, strict=True)]


def _parse(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="python -m benchmarks.step_cost",
        usage="python -m benchmarks.step_cost [RUN] [--OPTION ...]",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="preset or YAML file, if no RUN is given")
    parser.add_argument("--data.root", dest="root", help="data set (default: synthetic scenes)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="number of rounds (default: %(default)s)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0])
    parser.add_argument(
        "--only", nargs="+", metavar="VARIANT", help="only these and the unchanged step"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to this file")
    run, rest = split_run(args)
    options, keys = parser.parse_known_args(rest)
    options.run = run
    if options.rounds < 1:
        raise ConfigError(f"--rounds is {options.rounds}: it must be 1 or more")
    return options, keys


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CCFNetError as error:
        sys.stderr.write(f"step_cost: {error}\n")
        sys.exit(EXIT_USER_ERROR)
