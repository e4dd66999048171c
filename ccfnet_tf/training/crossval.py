"""`crossval`: every fold trained and tested in turn, and one table of them all.

Each fold is an ordinary run, trained and evaluated in processes of its own: memory is given back
between folds, and a fold that was killed goes on as any run does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ccfnet_tf.config import RunConfig, to_yaml
from ccfnet_tf.datasets.absent_classes import allowed
from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.audit.scan import in_threads
from ccfnet_tf.datasets.base import LoadLabel
from ccfnet_tf.datasets.splits import list_set, read_parts
from ccfnet_tf.errors import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    ConfigError,
    DamagedRecordError,
    DataError,
    RunError,
    TerminatedError,
)
from ccfnet_tf.evaluation.easy_hard import HEADS
from ccfnet_tf.io.atomic_file import refuse_links
from ccfnet_tf.io.new_folder import refuse_file
from ccfnet_tf.io.verbosity import QUIET
from ccfnet_tf.labels import Sample
from ccfnet_tf.report.evaluation_tables import percent
from ccfnet_tf.runs.run_files import epochs_written, write_text
from ccfnet_tf.runs.run_folder import CHECKPOINTS, CROSSVAL_CONFIG
from ccfnet_tf.training.data import refuse_absent
from ccfnet_tf.training.data_digest import Row, read_samples
from ccfnet_tf.training.distribution.devices import cluster_of
from ccfnet_tf.training.resume import resolved_paths

RESULT = "crossval.json"
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)

FIGURES = ("pixel_accuracy", "class_accuracy", "mean_iou")


def crossval(config: RunConfig, out: Path, *, resume: bool, console: Console) -> dict[str, Any]:
    """Trains and evaluates every fold of a data set.

    Args:
        config: The configuration; its `data.fold` does not matter.
        out: Folder of the runs, `fold_0`, `fold_1`, ...
        resume: Go on with what is in `out`: finished folds stay as they are.
        console: Where the table is shown.

    Returns:
        What is written to `crossval.json`: figures of each fold, their mean and deviation.

    Raises:
        ConfigError: The set has no folds, or several workers were started.
        DataError: The training part of a fold lacks a class.
        RunError: `out` holds other runs, or a fold ended with an error (which it has shown).
    """
    if cluster_of(config.train) is not None:
        raise ConfigError(
            "crossval trains fold after fold on one machine, but the environment names several "
            "workers: unset TF_CONFIG, or give each worker a fold of its own (fit --data.fold K "
            "--train.strategy mirrored)"
        )
    config = resolved_paths(replace(config, data=replace(config.data, fold=0)))
    folds = list_set(config.data, config.seed).folds
    if folds < 2:
        raise ConfigError(
            f"{config.data.root or config.data.format}: has no folds: make some with ccfnet-tf "
            "data split, and give their folder with --data.lists"
        )
    if not (
        resume and (out / CROSSVAL_CONFIG).is_file()
    ):  # else each fold that is left looks for itself
        _refuse_absent(config, folds)
    _claim(config, out, resume)
    rows, samples = [], dict[str, Row]()
    for fold in range(folds):
        run = out / f"fold_{fold}"
        refuse_links(out, run)
        if not _finished(run, config.train.epochs):
            console.print(f"fold {fold}: {run}")
            _fit(out / CROSSVAL_CONFIG, fold, run)
            _call(["evaluate", str(run)], fold)
        _refuse_other_data(samples, run)
        rows.append(_figures(run))
    result = {"folds": rows, "mean": _over(rows, statistics.mean), "deviation": _deviation(rows)}
    write_text(out / RESULT, json.dumps(result, indent=1) + "\n")
    console.print(_table(result))
    for fold in range(folds):
        if warning := _evaluation(out / f"fold_{fold}").get("warning"):
            console.print(f"fold {fold}: {warning}", markup=False)
    console.print(f"written to {out / RESULT}")
    return result


def _refuse_absent(config: RunConfig, folds: int) -> None:
    """Refuses a fold whose training split lacks a class before any fold is trained.

    Raises:
        DataError: A class is absent, or a label cannot be used.
    """
    if allowed(config.data):
        return
    counted: dict[str, Census] = {}
    for fold in range(folds):
        data = replace(config.data, fold=fold)
        parts, load_label = read_parts(data, config.seed), list_set(data, config.seed).load_label
        classes = len(parts.taxonomy.names)

        def look(sample: Sample, load_label: LoadLabel = load_label, c: int = classes) -> Census:
            try:
                return Census.of(load_label(sample), c)
            except DamagedRecordError:
                if config.data.damaged_records == "stop":
                    raise
                return Census.empty(c)

        fresh = [s for s in (*parts.train, *parts.val) if s.name not in counted]
        found = in_threads(look, fresh, data.workers)
        counted |= {sample.name: census for sample, census in zip(fresh, found, strict=True)}
        train, val = (
            sum((counted[sample.name] for sample in part), Census.empty(classes))
            for part in (parts.train, parts.val)
        )
        try:
            refuse_absent(data, parts, train, val)
        except DataError as error:
            raise DataError(f"fold {fold}: {error}", kind=error.kind) from error


def _claim(config: RunConfig, out: Path, resume: bool) -> None:
    stored, text = out / CROSSVAL_CONFIG, to_yaml(config)
    if stored.is_file() and resume:
        if stored.read_text(encoding="utf-8", errors="replace") != text:
            raise RunError(
                f"{stored}: was begun with another configuration: leave the keys as they were, or "
                "choose another --out"
            )
        return
    refuse_file(out)
    if out.exists() and any(out.iterdir()):
        go_on = "go on with --resume, or " if stored.is_file() else ""
        raise RunError(f"{out}: already there and not empty; {go_on}choose another --out")
    write_text(stored, text)


def _refuse_other_data(samples: dict[str, Row], run: Path) -> None:
    """Refuses a fold whose images or labels are not those of the folds before it.

    Args:
        samples: Samples of the folds before; those of this one are added.
        run: The fold's run folder.

    Raises:
        RunError: A sample has changed, so that the folds have no common mean.
    """
    mine = read_samples(run)
    other = sorted(name for name, row in mine.items() if samples.get(name, row) != row)
    if other:
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise RunError(
            f"{run}: '{other[0]}'{more} is another image or label than in the folds before it, "
            "so they have no common mean: remove the folders of the folds that were trained on the "
            "older data, and go on with --resume"
        )
    samples |= mine


def _finished(run: Path, epochs: int) -> bool:
    """Returns whether a fold was trained to its end, and its test split measured after that."""
    evaluation, last = run / "evaluation.json", run / CHECKPOINTS / "last.npz"
    if epochs_written(run / "metrics.csv") < epochs or not (
        evaluation.is_file() and last.is_file()
    ):
        return False
    if evaluation.stat().st_mtime_ns < last.stat().st_mtime_ns:
        return False
    try:
        figures = _figures(run)
        split = json.loads(evaluation.read_text(encoding="utf-8"))["split"]
    except _DAMAGE:  # measured again
        return False
    return split == "test" and all(
        value is None or (type(value) in (float, int) and 0 <= value <= 1)
        for value in figures.values()
    )


def _fit(config: Path, fold: int, run: Path) -> None:
    if (run / CHECKPOINTS / "last.npz").is_file():
        keys = ["--resume"]
    else:
        begun = ["--resume"] if (run / "config.yaml").is_file() else []
        keys = ["--config", str(config), "--data.fold", str(fold), *begun]
    _call(["fit", "--out", str(run), *keys], fold)


def _call(arguments: list[str], fold: int) -> None:
    quiet = ["--quiet"] if QUIET.get() else []
    command = [sys.executable, "-P", "-m", "ccfnet_tf", *arguments, *quiet]
    code = subprocess.run(command, check=False).returncode
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code == EXIT_TERMINATED:
        raise TerminatedError(f"fold {fold}: received SIGTERM: saved; go on with --resume")
    if code:
        raise RunError(
            f"fold {fold}: ccfnet-tf {arguments[0]} ended with exit code {code}, see above; fix "
            "that, then go on with --resume"
        )


def _figures(run: Path) -> dict[str, float | None]:
    """Returns the figures of a fold, keys such as `refine.mean_iou`, fractions 0..1."""
    tree = _evaluation(run)
    figures: dict[str, float | None] = {}
    for head in HEADS:
        found = tree[head]
        # A fold measured by an older version has the mean over the labels' classes here alone.
        found["mean_iou"] = found.get("mean_iou_present", found["mean_iou"])
        figures |= {f"{head}.{name}": found[name] for name in FIGURES}
    return figures | {"difficulty.auroc": tree["difficulty"]["auroc"]}


def _evaluation(run: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    return tree


def _over(rows: Sequence[dict[str, float | None]], how: Any) -> dict[str, float | None]:
    """Returns `how` of each figure over the folds; None where a fold lacks it."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return {
        key: None if any(value is None for value in values) else how(values)
        for key, values in columns.items()
    }


def _deviation(rows: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Returns the sample standard deviation (n - 1) of each figure over the folds."""
    return _over(rows, statistics.stdev)


def _table(result: dict[str, Any]) -> Table:
    folds = result["folds"]
    title = f"{len(folds)} folds, test splits: mean and standard deviation (n - 1) over folds"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("figure %")
    for fold in range(len(folds)):
        table.add_column(str(fold), justify="right")
    table.add_column("mean", justify="right", style="bold")
    table.add_column("dev.", justify="right")
    for key in result["mean"]:
        values = [fold[key] for fold in folds]
        row = [*values, result["mean"][key], result["deviation"][key]]
        table.add_row(key.replace("_", " ").replace(".", " "), *map(percent, row))
    return table
