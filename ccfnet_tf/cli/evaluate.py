"""`ccfnet-tf evaluate`: measures a run on a split of its data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccfnet_tf.cli.parser import Parser
from ccfnet_tf.datasets.audit.scan import check
from ccfnet_tf.datasets.splits import read_parts, without_damage
from ccfnet_tf.errors import EXIT_DONE, ConfigError, DataError
from ccfnet_tf.io.atomic_file import remove_leftovers
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.new_folder import refuse_unwritable
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.runs.run_files import write_text
from ccfnet_tf.runs.run_folder import load_run, read_run, refuse_other_classes

if TYPE_CHECKING:
    from rich.console import Console

    from ccfnet_tf.evaluation.evaluate import Evaluation

FIX = {
    "test": "evaluate --split val, or put images in ROOT/test/{images,masks}",
    "val": "evaluate --split test, or train with data.val_share above 0",
    "train": "check data.root",
}


def new_parser() -> Parser:
    """Returns the parser of this verb."""
    parser = Parser(
        prog="ccfnet-tf evaluate",
        description="Measure a run on a part of its data; writes evaluation.json in the run.",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("--split", choices=["test", "val", "train"], default="test")
    parser.add_argument("--batch", type=int, default=None, help="images at once (default: 1)")
    parser.add_argument("--data.root", dest="root", help="where the data lie now")
    return parser


def main(args: list[str]) -> int:
    """Evaluates a run; returns the exit code."""
    parser = new_parser()
    options = parser.parse_args(args)
    if options.batch is not None and options.batch < 1:
        raise ConfigError(f"--batch is {options.batch}: it must be 1 or more")
    measure(
        Path(options.run).expanduser(),
        split=options.split,
        batch=options.batch,
        root=options.root,
        console=new_console(),
    )
    return EXIT_DONE


def measure(
    run: Path, *, split: str, batch: int | None, root: str | None, console: Console
) -> Evaluation:
    """Evaluates a run, shows the tables, and writes `evaluation.json`.

    Args:
        run: The run folder.
        split: `test`, `val` or `train`.
        batch: Images at once; 1 when None.
        root: Where the data lie now, if they were moved.
        console: Where progress and tables are shown.

    Raises:
        CCFNetError: The run or its data cannot be used, or memory ran out.
    """
    info = read_run(run)
    refuse_unwritable(run, "copy of the run")  # before TensorFlow is waited for
    start_tensorflow()
    from ccfnet_tf.evaluation.evaluate import evaluate
    from ccfnet_tf.pipeline.batch import evaluation_batches
    from ccfnet_tf.report.evaluation_tables import report
    from ccfnet_tf.training.callbacks.epoch_end import EVALUATION_BATCH
    from ccfnet_tf.training.data import say_left_out

    config = info.config
    data = config.data if root is None else replace(config.data, root=root)
    parts = read_parts(data, config.seed)
    refuse_other_classes(parts.taxonomy, info)
    samples = getattr(parts, split)
    if not samples:
        raise DataError(f"{data.root or parts.format}: has no {split} split; {FIX[split]}")
    model = load_run(run)
    pictures = batch or EVALUATION_BATCH
    with new_progress(console) as bar:
        task = bar.add_task("checking labels", total=len(samples))
        seen = check(
            samples,
            parts.load,
            len(parts.taxonomy.names),
            leave_out=data.damaged_records == "skip",
            workers=data.workers,
            advance=lambda: bar.advance(task),
        )
        say_left_out(seen.damaged, console)
        load = without_damage(parts.load) if seen.damaged else parts.load
        batches, count = evaluation_batches(samples, seen.sizes, load, data, batch=pictures)
        task = bar.add_task(f"evaluating {split}", total=count)
        evaluation = evaluate(
            model,
            batches,
            parts.taxonomy,
            split=split,
            pictures=len(samples),
            advance=lambda: bar.advance(task),
        )
    tree: dict[str, Any] = evaluation.to_json()
    remove_leftovers(run)
    write_text(run / "evaluation.json", json.dumps(tree, indent=1) + "\n")
    console.print(report(evaluation))
    console.print(f"written to {run / 'evaluation.json'}")
    return evaluation
