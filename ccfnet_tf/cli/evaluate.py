"""`ccfnet-tf evaluate`: evaluates a run on a split of its data."""

from __future__ import annotations

import json
import re
import shlex
import sys
from argparse import SUPPRESS, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.cli.tta_tile_options import add_wrapping_options, parse_with_views, wrapping_of
from ccfnet_tf.datasets.audit.check_split import check
from ccfnet_tf.datasets.open_data_set import without_damage
from ccfnet_tf.errors import EXIT_DONE, ConfigError, DataError
from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.evaluation.shard_files import merge_shards, weights_digest, write_shard
from ccfnet_tf.inference.abstain import parse_threshold
from ccfnet_tf.io.atomic_file import remove_leftovers
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.new_folder import refuse_unwritable
from ccfnet_tf.io.parent_command import IS_PART
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED
from ccfnet_tf.report.evaluation_tables import percent, report
from ccfnet_tf.runs.run_data import read_run_parts
from ccfnet_tf.runs.run_folder import read_run
from ccfnet_tf.runs.write_run_files import write_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from ccfnet_tf.config import DataConfig
    from ccfnet_tf.datasets.open_data_set import Parts
    from ccfnet_tf.datasets.samples import Load
    from ccfnet_tf.inference.wrap_segmenter import Wrapping
    from ccfnet_tf.labels import Sample

FIX = {
    "test": "evaluate --split val, or put images in ROOT/test/{images,masks}",
    "val": "evaluate --split test, or train with data.val_share above 0",
    "train": "check data.root",
}


def new_parser() -> Parser:
    """Returns the parser of this verb."""
    parser = Parser(
        prog="ccfnet-tf evaluate",
        description="Evaluate a run on a split of its data; writes evaluation.json, images.csv and "
        "images.npz to the run.",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("--split", choices=["test", "val", "train"], help="default: test")
    parser.add_argument("--data.root", dest="root", help="where the data are stored now")
    add_wrapping_options(parser)
    abstain = (
        "also report the share of pixels with a risk of at most R, 0 to 1, and their accuracy; the "
        "others are those that predict --abstain-above R leaves without a label"
    )
    parser.add_argument("--abstain-above", metavar="R", help=abstain)
    parser.add_argument("--batch", help=SUPPRESS)  # deprecated
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--shard",
        type=_shard,
        metavar="K/N",
        help="evaluate only the K-th of N parts of the images; writes evaluation.K-of-N.json",
    )
    parts.add_argument(
        "--merge",
        nargs="+",
        metavar="FILE",
        help="add up the files of all N parts, without reading images",
    )
    return parser


def main(args: list[str]) -> int:
    """Evaluates a run; returns the exit code."""
    options = parse_with_views(new_parser(), args)
    if options.batch is not None:
        sys.stderr.write("note: --batch is deprecated: it has no effect; leave it out\n")
    run, console = expanded(options.run), new_console()
    above = None if options.abstain_above is None else parse_threshold(options.abstain_above)
    if options.shard and above is not None:
        raise ConfigError("--abstain-above has no effect with --shard: give it with --merge")
    if options.merge:
        _refuse_ignored(options)
        merge(run, [expanded(each) for each in options.merge], console, above)
    else:
        measure(
            run,
            split=options.split or "test",
            root=options.root,
            shard=options.shard,
            wrapping=wrapping_of(options),
            above=above,
            console=console,
        )
    return EXIT_DONE


def _refuse_ignored(options: Namespace) -> None:
    """Refuses options that the parts to merge have decided already."""
    given = {"split": options.split, "data.root": options.root, "tta": options.tta}
    given |= {"tile": options.tile, "overlap": options.overlap}
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"--{name} has no effect with --merge: give it with --shard")


def measure(
    run: Path,
    *,
    split: str,
    root: str | None,
    console: Console,
    shard: tuple[int, int] | None,
    wrapping: Wrapping,
    above: float | None = None,
) -> None:
    """Evaluates a run, shows the tables, and writes `evaluation.json` and figures per image.

    Args:
        run: The run folder.
        split: `test`, `val` or `train`.
        root: Where the data are stored now, if they were moved.
        console: Where progress and tables are shown.
        shard: (K, N) evaluates the K-th of N parts and writes what `merge` adds up.
        wrapping: Views and tiles of every image.
        above: Risk of `write_evaluation`.

    Raises:
        CCFNetError: The run or its data cannot be used, or memory ran out.
    """
    info = read_run(run)
    refuse_unwritable(run, "copy of the run")  # before TensorFlow is waited for
    calibration = info.calibration()
    weights = weights_digest(info, calibration)
    start_tensorflow()
    from ccfnet_tf.evaluation.evaluate import evaluate
    from ccfnet_tf.inference.keras_network import KerasNetwork
    from ccfnet_tf.inference.wrap_segmenter import wrap
    from ccfnet_tf.training.images_not_trained_on import warn_of_trained

    data, parts = info.config.data, read_run_parts(info, root)
    samples = getattr(parts, split)
    if not samples:
        raise DataError(f"{root or data.root or parts.format}: has no {split} split; {FIX[split]}")
    first, step = shard or (1, 1)
    mine = samples[first - 1 :: step]
    if split != "train":
        warn_of_trained(run, mine, parts, new_console(stderr=True))
    network = wrap(KerasNetwork(run, calibration=calibration), wrapping)
    with new_progress(console) as bar:
        load = checked_load(mine, parts, data, bar)
        task = bar.add_task(f"evaluating {split}", total=len(mine))
        evaluation = evaluate(
            network,
            samples,
            load,
            split=split,
            wrapping=_described(wrapping),
            calibration=calibration,
            shard=(first, step),
            advance=lambda: bar.advance(task),
        )
    if shard is None:
        calibrated = calibration is not UNCALIBRATED
        write_evaluation(run, evaluation, weights, console, above, calibrated=calibrated)
        of_refine = info.config.train.best_by == "refine"  # only its probabilities are calibrated
        if not calibrated and split != "val" and parts.val and of_refine:
            place = f" --data.root {shlex.quote(root)}" if root else ""
            console.print(
                f"not calibrated, so risk may be too high or too low: ccfnet-tf calibrate "
                f"{shlex.quote(str(run))}{place}, then evaluate again"
            )
    else:
        path = write_shard(run, evaluation, shard, weights)
        parts_of_run = f"{shlex.quote(str(run))}/evaluation.*-of-{step}.json"
        console.print(
            f"written to {path}; with all parts: ccfnet-tf evaluate {shlex.quote(str(run))} "
            f"--merge {parts_of_run}"
        )


def checked_load(samples: Sequence[Sample], parts: Parts, data: DataConfig, bar: Progress) -> Load:
    """Checks every image and label of a split; returns what reads those that can be used.

    Raises:
        DataError: One is damaged, unless `data.damaged_records` is `skip`; then it is reported.
    """
    from ccfnet_tf.training.check_data import say_left_out

    task = bar.add_task("checking labels", total=len(samples))
    checked = check(
        samples,
        parts.load,
        len(parts.taxonomy.names),
        leave_out=data.damaged_records == "skip",
        workers=data.workers,
        advance=lambda: bar.advance(task),
    )
    say_left_out(checked.damaged, bar.console)
    return without_damage(parts.load) if checked.damaged else parts.load


def merge(run: Path, files: list[Path], console: Console, above: float | None = None) -> None:
    """Adds up the parts that `measure` wrote, on this machine or on others.

    Args:
        run: The run folder.
        files: All parts, in any order.
        console: Where tables are shown.
        above: Risk of `write_evaluation`.

    Raises:
        CCFNetError: The run or a file cannot be used, or a part is missing.
    """
    info = read_run(run)
    refuse_unwritable(run, "copy of the run")
    calibration = info.calibration()
    weights, calibrated = weights_digest(info, calibration), calibration is not UNCALIBRATED
    evaluation = merge_shards(files, info.taxonomy, weights)
    write_evaluation(run, evaluation, weights, console, above, calibrated=calibrated)


def write_evaluation(
    run: Path,
    evaluation: Evaluation,
    weights: str,
    console: Console,
    above: float | None,
    *,
    calibrated: bool,
) -> None:
    """Writes the files of an evaluation and shows its tables.

    Args:
        run: The run folder.
        evaluation: The evaluation.
        weights: Digest of the checkpoint and the calibration that were evaluated.
        console: Where tables are shown.
        above: Risk, 0..1, above which pixels are left out of a last line; None for no such line.
        calibrated: Whether a calibration was applied.

    Raises:
        ResourceError: The disk is full or the run cannot be written.
    """
    remove_leftovers(run)
    write_text(run / "images.csv", evaluation.images.to_csv())
    write_text(run / "images.npz", evaluation.images.to_npz())
    tree = evaluation.to_json() | {"weights": weights, "calibrated": calibrated}
    if above is not None:
        tree["abstain"] = {"above": above, **evaluation.kept(above)._asdict()}
    text = json.dumps(tree, indent=1, allow_nan=False)
    write_text(run / "evaluation.json", text + "\n")
    if not IS_PART:  # the whole shows a table of all runs
        console.print(report(evaluation))
    if above is not None:
        kept = evaluation.kept(above)
        found = (
            f"coverage {percent(kept.coverage)} %, pixel accuracy {percent(kept.pixel_accuracy)} %"
            if kept.coverage
            else "no labelled pixel is left"
        )
        console.print(f"without pixels whose risk is above {above:g}: {found}")
    if not IS_PART:
        console.print("what each figure means: docs/evaluation.md")
    console.print(f"written to {run}: evaluation.json, images.csv, images.npz")


def _described(wrapping: Wrapping) -> str:
    """Returns the options that a wrapping was made from; empty for none."""
    words = []
    if views := wrapping.augmentation:
        scales = ",".join(f"{scale:g}" for scale in views.scales)
        words += ["--tta", f"scales={scales}", *(["flip"] if views.flip else [])]
    if tiling := wrapping.tiling:
        words += ["--tile", str(tiling.side), "--overlap", f"{tiling.overlap:g}"]
    return " ".join(words)


def _shard(text: str) -> tuple[int, int]:
    """Returns (K, N) of K/N."""
    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
    if found is None or int(found[1]) > int(found[2]):
        raise ArgumentTypeError(f"'{text}' is not K/N with 1 <= K <= N, such as 2/4")
    return int(found[1]), int(found[2])
