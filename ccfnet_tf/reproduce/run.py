"""Trains and evaluates the runs of a plan, each in processes of its own.

Whatever is finished is kept, so the same command continues after an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ccfnet_tf.config import RunConfig
from ccfnet_tf.errors import DataError, RunError
from ccfnet_tf.io.atomic_file import refuse_links
from ccfnet_tf.report.comparison import read_prediction
from ccfnet_tf.report.evaluation_in_words import counted
from ccfnet_tf.report.is_evaluated import is_evaluated
from ccfnet_tf.report.read_evaluation_json import EVALUATION, Evaluated
from ccfnet_tf.reproduce.plan import (
    MAY_CHANGE,
    Plan,
    PlannedRun,
    config_file,
    has_begun,
    refuse_foreign,
)
from ccfnet_tf.reproduce.results_file import ResultsFile
from ccfnet_tf.reproduce.timing import minutes_left
from ccfnet_tf.runs.calibration_file import CALIBRATION
from ccfnet_tf.runs.progress import read_epoch
from ccfnet_tf.runs.run_command import run_command
from ccfnet_tf.runs.run_folder import CHECKPOINTS, CONFIG, read_config, refuse_without_best

RESUME = "the same command"


def is_trained(run: Path, epochs: int) -> bool:
    """Returns whether a run has all its epochs.

    The checkpoint says so, because `metrics.csv` has the row of an epoch before it is saved.
    """
    return read_epoch(run / CHECKPOINTS / "last.npz") == epochs


def is_scored(run: Path, plan: Plan, recipe: str) -> bool:
    """Returns whether a trained run has an evaluation of its checkpoint on the study's split."""
    try:
        return is_evaluated(run, plan.split, calibrated=_calibrates(plan, recipe, run))
    except RunError:  # its configuration is missing or damaged, which `carry_out` reports
        return False


def is_finished(plan: Plan, run: PlannedRun, folder: Path) -> bool:
    """Returns whether a run is trained and scored."""
    path = folder / run.name
    return is_trained(path, plan.epochs) and is_scored(path, plan, run.recipe)


def carry_out(
    plan: Plan,
    run: PlannedRun,
    folder: Path,
    base: RunConfig,
    results: ResultsFile,
    *,
    again: bool,
) -> None:
    """Trains and evaluates a run, unless that was done.

    Args:
        plan: The plan of the study.
        run: One of its runs.
        folder: Folder of the study.
        base: Configuration of the study, which says where the data are stored now.
        results: Records what is scored on the test split, before it is.
        again: Score a changed recipe on the test split once more.

    Raises:
        ConfigError: Another process has scored the recipe in another form meanwhile.
        RunError: A command failed, which has printed its error, the run is not of this study, or it
            lost the checkpoint that validation chose.
        KeyboardInterrupt: It was interrupted.
        TerminatedError: It received SIGTERM.
    """
    path = folder / run.name
    refuse_links(folder, path)
    if has_begun(path):
        refuse_foreign(folder, run)
    if not is_trained(path, plan.epochs):
        _call(["fit", "--out", str(path), "--resume", *_fit_options(folder, run, base)], run)
    if is_soundly_scored(path, plan, run.recipe):
        return
    refuse_without_best(path)
    data = ["--data.root", str(base.data.root)]
    if _calibrates(plan, run.recipe, path):
        _call(["calibrate", str(path), *data], run)
    if plan.split == "test":
        with results.locked():
            if not again:
                digests = {plan.recipe(run.recipe).digest}
                results.refuse_second_scoring(run.recipe, [run.fold], digests)
            results.record(plan, run)
    _call(["evaluate", str(path), "--split", plan.split, *data], run)


def is_soundly_scored(run: Path, plan: Plan, recipe: str) -> bool:
    """Returns whether a run is scored and its counts per image are sound, so that it is kept."""
    if not is_scored(run, plan, recipe):
        return False
    try:
        read_prediction(run.name, run, "refine")
    except DataError:
        return False
    return True


def refuse_calibrated(plan: Plan, folder: Path) -> None:
    """Checks that ablations are not calibrated, since the difficulty of all of them is compared.

    Raises:
        RunError: One is, though the study did not calibrate it.
    """
    for run in plan.runs if plan.split == "val" else ():
        path = folder / run.name
        try:
            foreign = (path / CALIBRATION).is_file() and not _calibrates(plan, run.recipe, path)
        except RunError:  # its configuration is missing or damaged, which `carry_out` reports
            continue
        if foreign:
            raise RunError(
                f"{path / CALIBRATION}: ablations are compared without calibration, but for hard "
                f"blends: move the file away, then continue with {RESUME}"
            )


def record_by_hand(plan: Plan, folder: Path, results: ResultsFile) -> None:
    """Records ablations that somebody has scored on the test split."""
    for run in plan.runs if plan.split == "val" else ():
        try:
            split = Evaluated.read(folder / run.name / EVALUATION).split
        except DataError:  # missing or damaged: `carry_out` evaluates it
            continue
        if split == "test":
            with results.locked():
                results.record_once(plan, run)


def _fit_options(folder: Path, run: PlannedRun, base: RunConfig) -> list[str]:
    """Returns the configuration of a run: its own, once it has begun, at the present places."""
    if not has_begun(folder / run.name):
        return ["--config", str(config_file(folder, run))]
    return [
        f"--{section}.{key}={getattr(getattr(base, section), key)}"
        for section, keys in MAY_CHANGE.items()
        for key in keys
    ]


def say_run(
    plan: Plan, run: PlannedRun, runs: Sequence[PlannedRun], folder: Path, console: Console
) -> None:
    """Prints which run of how many comes next, and about how long the training that is left takes.

    Args:
        plan: The plan of the study.
        run: The next run.
        runs: The requested runs from this one on.
        folder: Folder of the study.
        console: Where it is printed.
    """
    number, state = plan.runs.index(run) + 1, "finished"
    if not is_finished(plan, run, folder):
        state = counted(plan.epochs, "epoch")
        if left := minutes_left(plan, runs, folder):
            state += f"; about {_duration(left)} of training left in all runs"
    console.print(f"run {number} of {len(plan.runs)}: {folder / run.name}: {state}")


def _duration(minutes: float) -> str:
    """Returns a duration, in hours if it is long."""
    if minutes < 1.5:
        return "a minute"
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def _calibrates(plan: Plan, recipe: str, run: Path) -> bool:
    """Returns whether a trained run is calibrated on the validation split before it is scored.

    On the test split that makes its maps probabilities. A hard blend is calibrated on any, because
    that chooses its threshold.
    """
    if plan.recipe(recipe).head != "refine":
        return False
    return plan.split == "test" or read_config(run / CONFIG).model.blend == "hard"


def _call(arguments: list[str], run: PlannedRun) -> None:
    run_command(arguments, name=run.name, resume=RESUME)
