"""Compares runs: figures with intervals, and differences to the first run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ccfnet_tf.errors import ConfigError, DataError, printable
from ccfnet_tf.evaluation.bootstrap import RESAMPLES, Interval, Resampled, bootstrap, image_counts
from ccfnet_tf.evaluation.image_table import NEAR_PREFIX
from ccfnet_tf.evaluation.read_image_table import IMAGES_NPZ, read_cells
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.report.evaluation_in_words import counted
from ccfnet_tf.report.evaluation_plots import column_curve, coverage_plot, reliability_plot
from ccfnet_tf.report.html_pages import css_colour, decimal, hundredths, render
from ccfnet_tf.report.read_evaluation_json import EVALUATION, Curve, Evaluated
from ccfnet_tf.report.svg_plots import Line, Plot, line_plot
from ccfnet_tf.runs.run_folder import CONFIG, METRICS, read_config
from ccfnet_tf.runs.write_run_files import all_rows

NAMES = {
    "pixel_accuracy": "pixel accuracy",
    "mean_iou": "mean IoU",
    NEAR_PREFIX + "mean_iou": "mean IoU within 4 pixels of boundaries",
}
"""Figures with intervals, and their names."""

_IS_CALIBRATED = {True: "yes", False: "no", None: "-"}

FIGURES: tuple[tuple[str, tuple[str, ...], bool, bool], ...] = (
    ("pixel accuracy, %", ("refine", "pixel_accuracy"), True, True),
    ("class accuracy, %", ("refine", "class_accuracy"), True, True),
    ("mean IoU, %", ("refine", "mean_iou"), True, True),
    (
        "pixel accuracy within 4 pixels of boundaries, %",
        ("cascade", "near_boundaries", "4", "refine", "pixel_accuracy"),
        True,
        True,
    ),
    ("mean Boundary IoU, %", ("refine", "mean_boundary_iou"), True, True),
    ("pixel accuracy of coarse, %", ("coarse", "pixel_accuracy"), True, True),
    (
        "share of coarse's errors that refine corrects, %",
        ("cascade", "everywhere", "corrected_share"),
        True,
        True,
    ),
    (
        "share of coarse's right pixels that refine spoils, %",
        ("cascade", "everywhere", "spoiled_share"),
        True,
        False,
    ),
    ("AUROC of attention", ("scores", "coarse", "attention", "auroc"), False, True),
    ("AUROC of difficulty", ("scores", "coarse", "difficulty", "auroc"), False, True),
    ("AUROC of risk", ("scores", "refine", "risk", "auroc"), False, True),
    ("average precision of risk", ("scores", "refine", "risk", "average_precision"), False, True),
    ("AURC of risk", ("scores", "refine", "risk", "aurc"), False, False),
    ("ECE of risk, %", ("scores", "refine", "risk", "ece"), True, False),
)
"""Name, keys in `evaluation.json`, whether it is shown in percent, and whether more is better."""

NOTE = (
    f"Intervals: 95 % of {RESAMPLES} paired bootstrap resamples of the images, the same ones for "
    "every run. They show how the figures vary with the images, not with the seed of the training."
)

FEW_IMAGES = 30
"""Number of images below which percentiles of a bootstrap are clearly too narrow."""


@dataclass(frozen=True, eq=False)
class Compared:
    """A run that is compared.

    Attributes:
        name: Name in tables and plots.
        path: Folder of the run.
        evaluated: Its `evaluation.json`.
        images: Names of the N images.
        counts: int64 [N, 3, C]; truth, predicted and hits of a prediction in each image.
        near: The same within 4 pixels of the boundaries of the label.
    """

    name: str
    path: Path
    evaluated: Evaluated
    images: tuple[str, ...]
    counts: np.ndarray
    near: np.ndarray


def read_compared(paths: Sequence[Path]) -> list[Compared]:
    """Reads runs that were evaluated on the same images.

    Raises:
        ConfigError: Fewer than two runs, or one of them twice.
        DataError: A run was not evaluated, or on other classes, another split, other images or
            other labels than the first.
    """
    if len(paths) < 2:
        raise ConfigError("one run: give at least two to compare")
    places = [path.resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ConfigError(f"{paths[number]}: given twice: give each run once")
    names = [place.name for place in places]
    named = names if len(set(names)) == len(names) else [str(path) for path in paths]
    runs = [read_prediction(name, path) for name, path in zip(named, paths, strict=True)]
    for run in runs[1:]:
        refuse_unlike(runs[0], run)
    return runs


def refuse_unlike(first: Compared, other: Compared) -> None:
    """Refuses a run that cannot be compared with the first one.

    Raises:
        DataError: Classes, splits, images or labels differ; the first difference is named.
    """
    where = f"{other.path} and {first.path} cannot be compared"
    pairs = (
        ("classes", other.evaluated.classes, first.evaluated.classes),
        ("images", other.images, first.images),
    )
    if other.evaluated.split != first.evaluated.split:
        raise DataError(
            f"{where}: one was evaluated on the {other.evaluated.split} split, the other on the "
            f"{first.evaluated.split} split: evaluate both with the same --split"
        )
    for what, one, two in pairs:
        if one != two:
            raise DataError(
                f"{where}: their {what} differ ({_difference(one, two)}): evaluate both on the "
                "same data"
            )
    same = (first.counts[:, 0] == other.counts[:, 0]).all(axis=1)
    if not same.all():
        name = first.images[int(np.argmin(same))]
        raise DataError(
            f"{where}: the labels of image '{name}' differ: evaluate both on the same data"
        )


def comparison_tables(runs: Sequence[Compared], drawn: Sequence[Resampled]) -> RenderableType:
    """Returns the tables for a terminal: figures with intervals, further figures, classes."""
    figures = _table("Figures", "figure")
    classes = _table("IoU of refine, %", "class")
    for run in runs:
        for table in (figures, classes):
            table.add_column(Text(printable(run.name)), justify="right", overflow="fold")
    for row in figure_table(runs):
        figures.add_row(row["name"], *row["texts"])
    columns = [run.evaluated.by_class("refine", "iou") for run in runs]
    for name, *values in zip(runs[0].evaluated.classes, *columns, strict=True):
        classes.add_row(Text(printable(name)), *(hundredths(value, 2) for value in values))
    intervals = [_interval_table(runs, drawn, figure) for figure in NAMES]
    return Group(*intervals, Text(_note(runs), style="dim"), figures, classes)


def _note(runs: Sequence[Compared]) -> str:
    images = len(runs[0].images)
    if images >= FEW_IMAGES:
        return NOTE
    return f"{NOTE} Of only {counted(images, 'image')}, intervals are too narrow: evaluate more."


def _interval_table(runs: Sequence[Compared], drawn: Sequence[Resampled], figure: str) -> Table:
    images = counted(len(runs[0].images), "image")
    table = _table(f"{runs[0].evaluated.split}, {images}: {NAMES[figure]}", "run")
    table.add_column("% (95 % interval)", justify="right")
    table.add_column("difference in points", justify="right")
    for place, (run, each) in enumerate(zip(runs, drawn, strict=True)):
        gain = interval_text(each.gains[figure], sign=True) if place else ""
        table.add_row(Text(printable(run.name)), interval_text(each.figures[figure]), gain)
    return table


def comparison_page(
    runs: Sequence[Compared], drawn: Sequence[Resampled], taxonomy: Taxonomy
) -> str:
    """Returns the comparison as an HTML page with curves; `taxonomy` has the colours."""
    columns = [run.evaluated.by_class("refine", "iou") for run in runs]
    rows = zip(runs[0].evaluated.classes, taxonomy.palette, *columns, strict=True)
    return render(
        "compare.html",
        None,
        {
            "names": [run.name for run in runs],
            "split": runs[0].evaluated.split,
            "images": counted(len(runs[0].images), "image"),
            "classes": len(runs[0].evaluated.classes),
            "sentences": list(_sentences(runs, drawn)),
            "tables": [_interval_rows(runs, drawn, figure) for figure in NAMES],
            "figures": figure_table(runs),
            "class_rows": [
                {"name": name, "colour": css_colour(colour), "values": values,
                 "gains": [_gain(value, values[0]) for value in values]}
                for name, colour, *values in rows
            ],
            "plots": _plots(runs),
            "note": _note(runs),
        },
    )  # fmt: skip


def figure_table(runs: Sequence[Compared]) -> list[dict[str, Any]]:
    """Returns rows of figures: name, a text for each run, and which of them is the best."""
    options = [run.evaluated.wrapping or "none" for run in runs]
    calibrated = [_IS_CALIBRATED[run.evaluated.calibrated] for run in runs]
    facts = {"options of evaluate": options, "calibrated": calibrated}
    rows = [
        {"name": key, "texts": each, "best": [False] * len(runs)} for key, each in facts.items()
    ]
    for name, keys, in_percent, more in FIGURES:
        values = [run.evaluated.number(*keys) for run in runs]
        known = [value for value in values if value is not None]
        texts = [hundredths(value, 2) if in_percent else decimal(value) for value in values]
        best = texts[values.index((max if more else min)(known))] if known else None
        best_ones = [len(set(texts)) > 1 and text == best for text in texts]
        rows.append({"name": name, "texts": texts, "best": best_ones})
    return rows


def interval_text(interval: Interval | None, *, sign: bool = False) -> str:
    """Returns `66.63 (64.10 to 69.02)` in percent, or in points with a sign."""
    if interval is None:
        return decimal(None)
    form = "{:+.2f}" if sign else "{:.2f}"
    value, low, high = (
        form.format(100 * each) for each in (interval.value, interval.low, interval.high)
    )
    return f"{value} ({low} to {high})"


def read_prediction(name: str, path: Path, prediction: str = "refine") -> Compared:
    """Reads the evaluation of a run and its counts per image.

    Args:
        name: Name of the run in tables and plots.
        path: Its folder.
        prediction: The prediction that is counted, one of `image_table.COMPARED`.

    Raises:
        DataError: A file is missing or damaged, or the two are of different evaluations.
    """
    evaluated = Evaluated.read(path / EVALUATION)
    classes = len(evaluated.classes)
    cells = read_cells(path / IMAGES_NPZ, classes)
    counts, near = (
        image_counts(cells.cells[prefix + prediction], len(cells.names), classes)
        for prefix in ("", NEAR_PREFIX)
    )
    pixels, hits = (int(counts[:, row].sum()) for row in (0, 2))
    accuracy = evaluated.number(prediction, "pixel_accuracy")
    same = pixels == evaluated.count("pixels") and (
        accuracy is None or math.isclose(hits, accuracy * pixels, abs_tol=0.5)
    )
    if not same:
        raise DataError(
            f"{path / IMAGES_NPZ}: belongs to another evaluation than {EVALUATION}: run `ccfnet-tf "
            "evaluate` again, on the same split"
        )
    return Compared(name, path, evaluated, cells.names, counts, near)


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Returns the first difference of two lists of names, or their lengths."""
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)}"
    one, two = next((one, two) for one, two in zip(ours, theirs, strict=True) if one != two)
    return f"'{one}' and '{two}'"


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold")
    return table


def _gain(value: float | None, first: float | None) -> float | None:
    return None if value is None or first is None else value - first


def _sentences(runs: Sequence[Compared], drawn: Sequence[Resampled]) -> Iterator[str]:
    first = runs[0].name
    for run, each in zip(runs[1:], drawn[1:], strict=True):
        for figure, name in NAMES.items():
            gain = each.gains[figure]
            if gain is None:
                continue
            points = f"{abs(100 * gain.value):.2f} points"
            ends = f"{100 * gain.low:+.2f} to {100 * gain.high:+.2f}"
            how = "higher" if gain.value > 0 else "lower"
            if points == "0.00 points" and (gain.low or gain.high):
                yield f"{run.name}: {name} within 0.01 points of that of {first} ({ends})."
            elif gain.low == gain.high == 0:
                yield f"{run.name}: {name} equal to that of {first}, image by image."
            elif gain.low <= 0 <= gain.high:
                yield (
                    f"{run.name}: {name} {points} {how} than {first}; the interval ({ends}) "
                    "contains 0, so these images do not show a difference."
                )
            else:
                yield (
                    f"{run.name}: {name} {points} {how} than {first}; the interval ({ends}) does "
                    "not contain 0."
                )


def _interval_rows(
    runs: Sequence[Compared], drawn: Sequence[Resampled], figure: str
) -> dict[str, Any]:
    """Returns a table of one figure; bars are in percent of the range of all intervals."""
    figures = [each.figures[figure] for each in drawn]
    gains = [each.gains[figure] for each in drawn[1:]]
    return {
        "name": NAMES[figure],
        "axis": _axis(figures, gains),
        "rows": [
            {
                "name": run.name,
                "figure": interval_text(each.figures[figure]),
                "bar": _bar(each.figures[figure], figures, []),
                "gain": interval_text(each.gains[figure], sign=True) if place else "",
                "gain_bar": _bar(each.gains[figure], gains, [0.0]) if place else None,
            }
            for place, (run, each) in enumerate(zip(runs, drawn, strict=True))
        ],
    }


def _bar(
    interval: Interval | None, others: Sequence[Interval | None], also: Sequence[float]
) -> dict[str, float | bool] | None:
    if interval is None:
        return None
    low, high = _range(others, also)
    width = (high - low) or 1.0
    marks: dict[str, float] = {"low": interval.low, "high": interval.high, "value": interval.value}
    if also:
        marks["zero"] = 0.0
    places = {
        key: round(min(max(100 * (value - low) / width, 0), 100), 2) for key, value in marks.items()
    }
    return places | {"unsure": bool(also) and interval.low <= 0 <= interval.high}


def _range(intervals: Sequence[Interval | None], also: Sequence[float]) -> tuple[float, float]:
    known = [each for each in intervals if each is not None]
    low = min([*(each.low for each in known), *also])
    return low, max([*(each.high for each in known), *also])


def _axis(figures: Sequence[Interval | None], gains: Sequence[Interval | None]) -> str:
    """Returns what the bars of a table show, which have no axis; empty without a figure."""
    if not any(figures):
        return ""
    low, high = _range(figures, [])
    text = f"Bars: intervals on an axis from {100 * low:.2f} to {100 * high:.2f} %, dots: figures."
    if any(gains):
        low, high = _range(gains, [0.0])
        text += (
            f" Differences: from {100 * low:+.2f} to {100 * high:+.2f} points, the dotted line is "
            "0; a bar is grey if its interval contains 0, so that these images show no difference."
        )
    return text


def _plots(runs: Sequence[Compared]) -> list[Plot]:
    coverage: dict[str, Curve] = {}
    for run in runs:
        x, y = run.evaluated.risk_coverage("refine", "risk")
        coverage[run.name] = [100 * each for each in x], [100 * each for each in y]
    plots = [
        coverage_plot("coverage", "Errors when uncertain pixels are left out", coverage, None),
        reliability_plot(
            "reliability", {run.name: run.evaluated.reliability("refine", "risk") for run in runs}
        ),
    ]
    columns = (
        ("validation-iou", "Mean IoU on the validation split", "mean_iou"),
        ("validation-accuracy", "Accuracy on the validation split", "pixel_accuracy"),
    )
    for key, title, figure in columns:
        lines = [_validation_line(run, figure) for run in runs]
        if any(line.points[0] for line in lines):
            plots.append(
                line_plot(
                    key, title, lines, axes=("epoch", "%"), marks=True, whole=True,
                    note="Of refine, or of the prediction in brackets if that selected the "
                    "checkpoint.",
                )
            )  # fmt: skip
    return plots


def _validation_line(run: Compared, figure: str) -> Line:
    """Returns the curve of the prediction that selected the checkpoint of a run."""
    head = read_config(run.path / CONFIG).train.best_by
    column = f"val_{head}_{figure}"
    name = run.name if head == "refine" else f"{run.name} ({head})"
    return Line(name, column_curve(all_rows(run.path / METRICS), column, 100))


def compare(runs: Sequence[Compared], *, resamples: int = RESAMPLES) -> list[Resampled]:
    """Returns the intervals of `NAMES` and of their differences to the first run."""
    everywhere = bootstrap([run.counts for run in runs], resamples=resamples)
    near = bootstrap([run.near for run in runs], resamples=resamples)
    return [
        Resampled(
            one.figures | {NEAR_PREFIX + name: each for name, each in other.figures.items()},
            one.gains | {NEAR_PREFIX + name: each for name, each in other.gains.items()},
        )
        for one, other in zip(everywhere, near, strict=True)
    ]
