"""Seconds of a training step in other forms beside the step as it is, in turns in one process.

    python -m ccfnet_tf.benchmark.step_cost [RUN] [--rounds 5] [--config PRESET --KEY VALUE ...]

What the step's look at every gradient costs, and what each way to a kernel's gradient does.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from ccfnet_tf.benchmark.figures import (
    Others,
    machine,
    others_line,
    refuse_lost_json,
    write_json,
)
from ccfnet_tf.benchmark.soak import PRECISIONS, configured, split_run
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, CCFNetError, ConfigError
from ccfnet_tf.options import Parser
from ccfnet_tf.progress import new_console, new_progress
from ccfnet_tf.start import start_tensorflow

AS_IT_IS = "as it is"
Change = tuple[Any, str, Any]
"""A module or a class, the name of one of its functions, and what stands there instead."""


def forms(precision: str) -> dict[str, list[Change]]:
    """Returns what is changed in each form while it is traced; nothing in the step as it is."""
    import tensorflow as tf

    from ccfnet_tf.benchmark.soak_one import REMEDIES
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
                seconds[name].append(network.step("training", batch))
                bar.advance(task)
    what = (
        f"{config.model.backbone}, {options.precision}, {config.data.crop}x{config.data.crop}, "
        f"{config.train.batch} pictures; {options.rounds} rounds; {machine()['processor']}"
    )
    share = others.share()
    for line in [what, others_line(share), "", *markdown(seconds)]:
        console.print(line)
    if options.json:
        tree = {"what": what, "others_share": share, "seconds": seconds, "machine": machine()}
        write_json(options.json, tree)
    return EXIT_DONE


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


def markdown(seconds: dict[str, list[float]]) -> list[str]:
    """Returns the table; where a machine's speed varies, the median of ratios is what counts."""
    lines = ["| step | ms, best | of the step as it is, best | median of rounds |"]
    lines.append("| --- | --- | --- | --- |")
    base = seconds[AS_IT_IS]
    for name, found in seconds.items():
        ratios = [one / other for one, other in zip(found, base, strict=True)]
        cells = [name, f"{1000 * min(found):.0f}", f"{min(found) / min(base):.3f}"]
        lines.append(f"| {' | '.join(cells)} | {median(ratios):.3f} |")
    return lines


def _parse(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="python -m ccfnet_tf.benchmark.step_cost",
        usage="python -m ccfnet_tf.benchmark.step_cost [RUN] [--OPTION ...]",
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
