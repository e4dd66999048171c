"""Compares the weights of a run with their running average (`train.ema`) at its last checkpoint.

    python -m benchmarks.ema_gain RUN [--part val]

`evaluate` uses the best checkpoint, which holds only the average and may be of another epoch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, CCFNetError, RunError
from ccfnet_tf.io.console import new_console
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

if TYPE_CHECKING:  # TensorFlow starts after the arguments are parsed
    from rich.console import Console

    from ccfnet_tf.evaluation.epoch_end_states import EpochCounts


def main(args: Sequence[str]) -> int:
    """Prints the table and returns the exit code."""
    parser = Parser(
        prog="python -m benchmarks.ema_gain",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="a run trained with train.ema")
    parser.add_argument("--part", choices=("val", "test"), default="val", help="(%(default)s)")
    given = parser.parse_args(args)
    start_tensorflow()
    console = new_console()
    for line in table(compare(given.run, given.part, console), given.part):
        console.print(line)
    return EXIT_DONE


def compare(run: Path, part: str, console: Console) -> dict[str, EpochCounts]:
    """Returns the evaluation of the weights and of their average.

    Args:
        run: The run folder.
        part: `val` or `test`.
        console: Console for progress messages.

    Raises:
        RunError: The run was trained without `train.ema`.
        CCFNetError: The run or its data are invalid.
    """
    import tensorflow as tf

    from ccfnet_tf.datasets.audit.check_split import check
    from ccfnet_tf.evaluation.epoch_end_states import Evaluator
    from ccfnet_tf.pipeline.batch import evaluation_batches
    from ccfnet_tf.runs.run_folder import read_run
    from ccfnet_tf.training.build_network import build_model
    from ccfnet_tf.training.check_data import check_data
    from ccfnet_tf.training.checkpoint import restore
    from ccfnet_tf.training.claim_run_folder import last_checkpoint
    from ccfnet_tf.training.ema import averaged

    config = read_run(run).config
    if not config.train.ema:
        raise RunError(f"{run}: trained without train.ema, so it has no average of its weights")
    data = check_data(config, console)
    parts, samples = data.parts, getattr(data.parts, part)
    steps = len(parts.train) // config.train.batch
    model = build_model(config, tf.distribute.get_strategy(), data, steps, console, fresh=False)
    restore(last_checkpoint(run), model, console.print, epochs=config.train.epochs)
    checked = data.val
    if part == "test":
        checked = check(samples, parts.load, len(parts.taxonomy.names))
    batches, _ = evaluation_batches(samples, checked.sizes, parts.load, config.data, batch=1)
    evaluator = Evaluator(model, parts.taxonomy)
    evaluations = {"weights": evaluator.run(batches, pictures=len(samples))}
    with averaged(model):
        evaluations["average"] = evaluator.run(batches, pictures=len(samples))
    return evaluations


def table(evaluations: dict[str, EpochCounts], part: str) -> list[str]:
    """Returns pixel accuracy and mean IoU of every head as a Markdown table."""
    from ccfnet_tf.evaluation.easy_hard import HEADS
    from ccfnet_tf.report.evaluation_tables import percent

    names = " | ".join(f"{head} {kind}" for head in HEADS for kind in ("accuracy", "mean IoU"))
    rows = [f"| {part}, % | {names} |", "|---" * (1 + 2 * len(HEADS)) + "|"]
    for name, evaluation in evaluations.items():
        states = [getattr(evaluation, head) for head in HEADS]
        figures = [(state.pixel_accuracy, state.mean_iou_present) for state in states]
        cells = " | ".join(percent(figure) for pair in figures for figure in pair)
        rows.append(f"| {name} | {cells} |")
    return rows


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CCFNetError as error:
        sys.stderr.write(f"average: {error}\n")
        sys.exit(EXIT_USER_ERROR)
