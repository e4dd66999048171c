"""What a training step in other forms costs beside the step as it is, in turns in one process.

    python -m benchmarks.step_cost [RUN] [--rounds 5] [--config PRESET --KEY VALUE ...]

What the look at every gradient costs, mean IoU and attention's accuracy, and each way to a kernel's
gradient: in seconds, and in the processor's seconds, which other processes disturb less.
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
from ccfnet_tf.cli.parser import Parser
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, CCFNetError, ConfigError
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

AS_IT_IS = "as it is"
Change = tuple[Any, str, Any]
"""A module or a class, the name of one of its functions, and what stands there instead."""


def forms(precision: str) -> dict[str, list[Change]]:
    """Returns what is changed in each form while it is traced; nothing in the step as it is."""
    import tensorflow as tf

    from benchmarks.gradient_soak_process import REMEDIES
    from ccfnet_tf.network import layers, model

    def apply(self: Any, finite: Any, gradients: Any, variables: Any) -> None:
        del finite
        self.optimizer.apply(gradients, variables)

    found: dict[str, list[Change]] = {
        AS_IT_IS: [],
        "gradients not looked at": [
            (model, "_first_not_finite", lambda _: tf.constant(-1)),
            (model.CCFNet, "_moving_statistics", lambda _: []),  # which a skipped step puts back
            (model.CCFNet, "_apply", apply),
        ],
        "Keras's gradients": [(layers, "own_gradients", lambda: False)],
    }
    if precision != "float32":  # which has no kernel gradient of our own above 1x1
        for name, gradient in REMEDIES.items():
            if gradient is not layers.kernel_gradient:
                found[f"kernel gradient: {name}"] = [(layers, "kernel_gradient", gradient)]
    return found


def main(args: Sequence[str]) -> int:
    """Measures every form and shows the table; returns the exit code."""
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
        for name, changes in forms(options.precision).items()
        if name == AS_IT_IS or not options.only or name in options.only
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
    network = networks[AS_IT_IS].model
    alone = {
        "the look at gradients": look_alone(network, options.rounds),
        "mean IoU and attention's accuracy": figures_alone(network, batch, options.rounds),
    }
    said = [
        f"{name} alone: {1000 * used:.1f} ms of the processor at best, "
        f"{used / min(work[AS_IT_IS]):.2%} of the step's"
        for name, used in alone.items()
    ]
    for line in [what, others_line(share), "", *markdown(seconds, work), "", *said]:
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


def look_alone(network: Any, rounds: int) -> float:
    """Returns the processor's seconds that it takes to look at gradients of all variables."""
    import tensorflow as tf

    from ccfnet_tf.network import model

    values = [tf.ones_like(variable) for variable in network.trainable_variables]
    return _least(tf.function(model._first_not_finite), [values], rounds)


def figures_alone(network: Any, batch: Any, rounds: int) -> float:
    """Returns the processor's seconds that mean IoU and attention's accuracy take in a step."""
    import tensorflow as tf

    from ccfnet_tf.network import losses, model

    target = losses.split_void(batch[1], network.classes)
    attention = tf.random.stateless_normal([*target.labels.shape, 2], seed=(0, 0))

    def figures(attention: Any, labels: Any, valid: Any) -> Any:
        confusion = model._confusion(labels, losses.Target(labels, valid), network.classes)
        judged = tf.math.count_nonzero(model._judges_right(attention, valid) & valid)
        return tf.reduce_sum(confusion) + judged

    return _least(tf.function(figures), [attention, *target], rounds)


def _least(function: Any, arguments: Sequence[Any], rounds: int) -> float:
    """Returns the fewest seconds of the processor that a call takes after the first."""
    found = []
    for _ in range(rounds + 1):  # the first traces
        began = time.process_time()
        int(function(*arguments))
        found.append(time.process_time() - began)
    return min(found[1:])


@contextmanager
def changed(changes: Sequence[Change]) -> Iterator[None]:
    """Has functions replaced meanwhile."""
    before = [getattr(place, name) for place, name, _ in changes]
    for place, name, value in changes:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name, _), value in zip(changes, before, strict=True):
            setattr(place, name, value)


def markdown(seconds: dict[str, list[float]], work: dict[str, list[float]]) -> list[str]:
    """Returns the table; ratios are medians of the rounds' own, since a machine's speed varies."""
    lines = ["| step | ms, best | ratio | ratio of processor time | its range |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, found in seconds.items():
        time_, used = (_ratios(each[name], each[AS_IT_IS]) for each in (seconds, work))
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
    parser.add_argument("--config", help="preset or YAML file, without a RUN")
    parser.add_argument("--data.root", dest="root", help="data; without it, scenes drawn here")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0])
    parser.add_argument("--only", nargs="+", metavar="FORM", help="these beside the step as it is")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there")
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
