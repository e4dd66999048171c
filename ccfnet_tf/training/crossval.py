"""Cross-validation: trains and evaluates every fold in turn, and reports them in one table.

Each fold is an ordinary run that is trained, calibrated on its validation split, if it has one, and
evaluated in separate processes. Memory is released between folds, and an interrupted fold is
resumed like any other run.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ccfnet_tf.config import RunConfig, from_yaml, to_yaml
from ccfnet_tf.datasets.absent_classes import allowed
from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.open_data_set import list_set, read_parts
from ccfnet_tf.datasets.samples import LoadLabel
from ccfnet_tf.errors import ConfigError, DamagedRecordError, DataError, RunError
from ccfnet_tf.evaluation.easy_hard import HEADS
from ccfnet_tf.io.atomic_file import refuse_links
from ccfnet_tf.io.in_threads import in_threads
from ccfnet_tf.io.new_folder import refuse_unwritable
from ccfnet_tf.labels import Sample
from ccfnet_tf.report.evaluation_tables import percent
from ccfnet_tf.report.is_evaluated import is_evaluated
from ccfnet_tf.runs.absolute_paths import resolved_paths
from ccfnet_tf.runs.progress import read_epoch
from ccfnet_tf.runs.run_command import run_command
from ccfnet_tf.runs.run_folder import (
    CHECKPOINTS,
    CROSSVAL_CONFIG,
    CROSSVAL_RESULT,
    refuse_without_best,
)
from ccfnet_tf.runs.write_run_files import write_text
from ccfnet_tf.training.check_data import refuse_absent
from ccfnet_tf.training.data_digest import Row, read_samples
from ccfnet_tf.training.distribution.devices import cluster_of
from ccfnet_tf.training.images_not_trained_on import refuse_seen

_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)

FIGURES = ("pixel_accuracy", "class_accuracy", "mean_iou")


def crossval(config: RunConfig, out: Path, *, resume: bool, console: Console) -> dict[str, Any]:
    """Trains, calibrates and evaluates every fold of a data set.

    Args:
        config: Configuration of the runs. Its `data.fold` is ignored.
        out: Folder of the runs `fold_0`, `fold_1`, ...
        resume: Resume the folds in `out`. Finished folds are kept.
        console: Where the table is printed.

    Returns:
        The content of `crossval.json`: metrics of each fold, their mean and standard deviation.

    Raises:
        ConfigError: The data set has no folds, or several workers were started.
        DataError: A class is missing from the training split of a fold.
        RunError: `out` contains other runs, or a fold failed (its error has been printed).
        ResourceError: `out` is a file or cannot be written.
    """
    if cluster_of(config.train) is not None:
        raise ConfigError(
            "crossval trains one fold after another on one machine, but the environment names "
            "several workers: unset TF_CONFIG, or train one fold per worker (fit --data.fold K "
            "--train.strategy mirrored)"
        )
    refuse_unwritable(out)
    config = resolved_paths(replace(config, data=replace(config.data, fold=0)))
    folds = list_set(config.data, config.seed).folds
    if folds < 2:
        raise ConfigError(
            f"{config.data.root or config.data.format}: has no folds: create them with ccfnet-tf "
            "data split, and pass their folder as --data.lists"
        )
    _refuse_seen(config, folds)
    if not (
        resume and (out / CROSSVAL_CONFIG).is_file()
    ):  # otherwise each remaining fold checks its own data
        _refuse_absent(config, folds)
    _claim(config, out, resume)
    rows, samples = [], dict[str, Row]()
    for fold in range(folds):
        run = out / f"fold_{fold}"
        refuse_links(out, run)
        calibrated = bool(read_parts(replace(config.data, fold=fold), config.seed).val)
        if not _finished(run, config.train.epochs, calibrated=calibrated):
            console.print(f"fold {fold}: {run}")
            _fit(out / CROSSVAL_CONFIG, fold, run)
            if calibrated:
                refuse_without_best(run)
                _call(["calibrate", str(run)], fold)
            _call(["evaluate", str(run)], fold)
        _refuse_other_data(samples, run)
        rows.append(_figures(run))
        accuracy, iou = (
            percent(rows[-1][f"refine.{key}"]) for key in ("pixel_accuracy", "mean_iou")
        )
        console.print(f"fold {fold}: refine: pixel accuracy {accuracy} %, mean IoU {iou} %")
    result = {
        "folds": rows,
        "mean": _reduce(rows, statistics.mean),
        "deviation": _deviation(rows),
    }
    write_text(out / CROSSVAL_RESULT, json.dumps(result, indent=1) + "\n")
    console.print(_table(result))
    for fold in range(folds):
        if warning := _evaluation(out / f"fold_{fold}").get("warning"):
            console.print(f"fold {fold}: {warning}", markup=False)
    console.print(f"written to {out / CROSSVAL_RESULT}")
    return result


def _refuse_seen(config: RunConfig, folds: int) -> None:
    """Checks that `model.init_from` was trained on no test image of any fold.

    Raises:
        ConfigError: It was, so that the mean over the folds would be meaningless.
    """
    if config.model.init_from is None:
        return
    for fold in range(folds):
        parts = read_parts(replace(config.data, fold=fold), config.seed)
        refuse_seen(config.model.init_from, parts.test, parts, f"test images of fold {fold}")


def _refuse_absent(config: RunConfig, folds: int) -> None:
    """Checks that every training split contains all classes, before any fold is trained.

    Raises:
        DataError: A class is absent, or a label cannot be used.
    """
    if allowed(config.data):
        return
    censuses: dict[str, Census] = {}
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

        unread = [s for s in (*parts.train, *parts.val) if s.name not in censuses]
        results = in_threads(look, unread, data.workers)
        censuses |= {sample.name: census for sample, census in zip(unread, results, strict=True)}
        train, val = (
            sum((censuses[sample.name] for sample in samples), Census.empty(classes))
            for samples in (parts.train, parts.val)
        )
        try:
            refuse_absent(data, parts, train, val)
        except DataError as error:
            raise DataError(f"fold {fold}: {error}", kind=error.kind) from error


def _config_of(stored: Path) -> RunConfig | None:
    """Returns the configuration of a cross-validation, which an older version may have written."""
    try:
        return from_yaml(stored.read_text(encoding="utf-8", errors="replace"), source=str(stored))
    except ConfigError:
        return None


def _claim(config: RunConfig, out: Path, resume: bool) -> None:
    stored, text = out / CROSSVAL_CONFIG, to_yaml(config)
    if stored.is_file() and resume:
        if _config_of(stored) != config:
            raise RunError(
                f"{stored}: was started with another configuration: use the original options, or "
                "choose another --out"
            )
        return
    if out.exists() and any(out.iterdir()):
        resuming = "continue with --resume, or " if stored.is_file() else ""
        raise RunError(f"{out}: already exists and is not empty; {resuming}choose another --out")
    write_text(stored, text)


def _refuse_other_data(samples: dict[str, Row], run: Path) -> None:
    """Checks that the images and labels of a fold are the same as in the previous folds.

    Args:
        samples: Samples of the previous folds by name; those of this fold are added.
        run: Run folder of the fold.

    Raises:
        RunError: A sample has changed, so that a mean over the folds would be meaningless.
    """
    own = read_samples(run)
    changed = sorted(name for name, row in own.items() if samples.get(name, row) != row)
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise RunError(
            f"{run}: the image or label of '{changed[0]}'{more} differs from that in the previous "
            "folds: remove the folders of the folds that were trained on the older data, and "
            "continue with --resume"
        )
    samples |= own


def _finished(run: Path, epochs: int, *, calibrated: bool) -> bool:
    """Returns whether a fold was trained completely, calibrated, and then evaluated."""
    # metrics.csv has the row of an epoch before its checkpoint is saved.
    if read_epoch(run / CHECKPOINTS / "last.npz") < epochs:
        return False
    if not is_evaluated(run, "test", calibrated=calibrated):
        return False
    try:
        figures = _figures(run)
    except _DAMAGE:  # evaluated again
        return False
    return all(
        value is None or (type(value) in (float, int) and 0 <= value <= 1)
        for value in figures.values()
    )


def _fit(config: Path, fold: int, run: Path) -> None:
    if (run / CHECKPOINTS / "last.npz").is_file():
        options = ["--resume"]
    else:
        resuming = ["--resume"] if (run / "config.yaml").is_file() else []
        options = ["--config", str(config), "--data.fold", str(fold), *resuming]
    _call(["fit", "--out", str(run), *options], fold)


def _call(arguments: list[str], fold: int) -> None:
    run_command(arguments, name=f"fold {fold}", resume="--resume")


def _figures(run: Path) -> dict[str, float | None]:
    """Returns the metrics of a fold, with keys such as `refine.mean_iou` and values 0..1."""
    tree = _evaluation(run)
    figures: dict[str, float | None] = {}
    for head in HEADS:
        metrics = tree[head]
        # Older versions store the mean over the classes of the labels as `mean_iou`.
        metrics["mean_iou"] = metrics.get("mean_iou_present", metrics["mean_iou"])
        figures |= {f"{head}.{name}": metrics[name] for name in FIGURES}
    # Not `difficulty.auroc`, which is that of attention in files of older versions: without
    # `scores`, a fold is evaluated again.
    return figures | {"difficulty.auroc": tree["scores"]["coarse"]["difficulty"]["auroc"]}


def _evaluation(run: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    return tree


def _reduce(rows: Sequence[dict[str, float | None]], function: Any) -> dict[str, float | None]:
    """Aggregates each metric over the folds with `function`; None if a fold does not have it."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return {
        key: None if any(value is None for value in values) else function(values)
        for key, values in columns.items()
    }


def _deviation(rows: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Returns the sample standard deviation (n - 1) of each metric over the folds."""
    return _reduce(rows, statistics.stdev)


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
