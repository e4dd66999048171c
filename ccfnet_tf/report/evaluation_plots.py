"""The plots of a report and a comparison, drawn from `evaluation.json` and `metrics.csv`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ccfnet_tf.evaluation.boundaries import BANDS
from ccfnet_tf.evaluation.easy_hard import HEADS
from ccfnet_tf.report.read_evaluation_json import Curve, Evaluated
from ccfnet_tf.report.svg_plots import Line, Plot, histogram, line_plot
from ccfnet_tf.runs.run_folder import METRICS
from ccfnet_tf.runs.write_run_files import all_rows

COVERAGE = ("share of the pixels that are kept, %", "errors among them, %")
STATED = ("stated probability of an error", "share that is wrong")
WITHIN = ("pixels from a boundary, at most", "pixel accuracy, %")

Rows = Sequence[Mapping[str, str]]
"""Rows of `metrics.csv`."""


def map_plots(evaluated: Evaluated) -> list[Plot]:
    """Returns the plots of the three maps: risk-coverage, reliability, histogram."""
    maps = (("risk", "refine"), ("difficulty", "coarse"), ("attention", "coarse"))
    risk = {"risk": "risk", "entropy": "entropy, free", "margin": "margin, free"}
    coarse = {
        "difficulty": "difficulty",
        "attention": "attention",
        "max_softmax": "max softmax, free",
    }
    plots = [
        coverage_plot(
            "refine-coverage", "Errors of refine when uncertain pixels are left out",
            {name: _percent(evaluated.risk_coverage("refine", key)) for key, name in risk.items()},
            evaluated.number("scores", "refine", "risk", "error_rate"),
        ),
        coverage_plot(
            "coarse-coverage", "Errors of coarse when uncertain pixels are left out",
            {name: _percent(evaluated.risk_coverage("coarse", key))
             for key, name in coarse.items()},
            evaluated.number("scores", "coarse", "difficulty", "error_rate"),
        ),
        reliability_plot(
            "reliability", {name: evaluated.reliability(head, name) for name, head in maps}
        ),
    ]  # fmt: skip
    bins = evaluated.reliability("coarse", "difficulty")
    if bins:
        plots.append(
            histogram(
                "difficulty-histogram", "Difficulty of right and of wrong pixels", bins,
                axes=("difficulty", "share of the pixels, %, logarithmic"),
                note="A useful map puts right pixels to the left and wrong ones to the right.",
            )
        )  # fmt: skip
    return plots


def coverage_plot(
    key: str, title: str, curves: Mapping[str, Curve], error_rate: float | None
) -> Plot:
    """Returns a risk-coverage plot of named curves in percent."""
    note = "The most certain pixels are kept first; lower is better."
    return line_plot(
        key,
        title,
        [Line(name, curve) for name, curve in curves.items()],
        axes=COVERAGE,
        level=None if error_rate is None else 100 * error_rate,
        note=note if error_rate is None else f"{note} Dotted: pixels left out at random.",
    )


def reliability_plot(key: str, curves: Mapping[str, Sequence[tuple[int, float, float]]]) -> Plot:
    """Returns a reliability plot of named bins (pixels, stated, observed)."""
    return line_plot(
        key,
        "Stated probability of an error, and errors found",
        [
            Line(name, ([stated for _, stated, _ in bins], [found for _, _, found in bins]))
            for name, bins in curves.items()
        ],
        axes=STATED,
        diagonal=True,
        marks=True,
        note="On the dotted diagonal a probability comes true. Above it there are more errors than "
        "stated. 15 bins of equal width; those to the right may hold few pixels.",
    )


def boundary_plots(evaluated: Evaluated) -> list[Plot]:
    """Returns the plots of accuracy and of what refine changes near boundaries."""
    near = ("cascade", "near_boundaries")
    accuracy = [
        Line(
            name,
            _points(
                [(w, evaluated.number(*near, str(w), name, "pixel_accuracy")) for w in BANDS], 100
            ),
        )
        for name in ("refine", "coarse", "fine", "oracle")
    ]
    changes = []
    for name in ("corrected", "spoiled"):
        counts = [(w, evaluated.count(*near, str(w), name)) for w in BANDS]
        pixels = [evaluated.count(*near, str(w), "pixels") for w in BANDS]
        shares = [
            (w, count / every if every else None)
            for (w, count), every in zip(counts, pixels, strict=True)
        ]
        changes.append(Line(name, _points(shares, 100)))
    return [
        line_plot(
            "near-accuracy", "Accuracy near boundaries", accuracy, axes=WITHIN, marks=True,
            note="oracle: coarse where it is right, else fine; no blend of the two is better.",
        ),
        line_plot(
            "near-changes", "What refine changes of coarse near boundaries", changes,
            axes=(WITHIN[0], "share of all pixels there, %"), marks=True,
        ),
    ]  # fmt: skip


def training_plots(run: Path) -> list[Plot]:
    """Returns the curves of `metrics.csv`; none if the run has no such file.

    Raises:
        DataError: It is damaged.
    """
    rows = all_rows(run / METRICS)
    if not rows:
        return []
    losses = {name: f"{name}_loss" for name in ("refine", "coarse", "fine", "attention")}
    accuracy = {name: f"val_{name}_pixel_accuracy" for name in ("refine", "coarse", "fine")}
    mean_iou = {name: f"val_{name}_mean_iou" for name in ("refine", "coarse", "fine")}
    wanted = (
        ("training-loss", "Loss on the training split", losses, "loss", 1.0),
        ("validation-accuracy", "Accuracy on the validation split", accuracy, "pixel accuracy, %",
         100.0),
        ("validation-iou", "Mean IoU on the validation split", mean_iou, "mean IoU, %", 100.0),
    )  # fmt: skip
    plots = []
    for key, title, columns, unit, factor in wanted:
        lines = [Line(name, column_curve(rows, column, factor)) for name, column in columns.items()]
        drawn = [line for line in lines if line.points[0]]
        if drawn:
            few = len(rows) < 40
            plots.append(line_plot(key, title, drawn, axes=("epoch", unit), marks=few, whole=True))
    return plots


def column_curve(rows: Rows, column: str, factor: float) -> Curve:
    """Returns a column of `metrics.csv` over the epochs; empty cells are left out."""
    values = [(int(row["epoch"]), float(row.get(column) or "nan")) for row in rows]
    return _points([(x, y) for x, y in values if math.isfinite(y)], factor)


def figure_rows(evaluated: Evaluated) -> list[tuple[str, list[float | None]]]:
    """Returns pixel accuracy, class accuracy, mean IoU and Boundary IoU of each prediction."""
    figures = ("pixel_accuracy", "class_accuracy", "mean_iou", "mean_boundary_iou")
    names = (*HEADS[:2], "average", "refine", "oracle")
    return [(name, [evaluated.number(name, figure) for figure in figures]) for name in names]


def _percent(curve: Curve) -> Curve:
    return [100 * x for x in curve[0]], [100 * y for y in curve[1]]


def _points(values: Sequence[tuple[int, float | None]], factor: float) -> Curve:
    there = [(float(x), factor * y) for x, y in values if y is not None]
    return [x for x, _ in there], [y for _, y in there]
