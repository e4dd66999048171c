"""Terminal tables about a data set, readable at 80 columns.

This module does not import TensorFlow: the tables are shown before any training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ccfnet_tf.datasets.audit.find_problems import Finding, Report
from ccfnet_tf.datasets.audit.make_folds import Split
from ccfnet_tf.datasets.audit.stats import Stats
from ccfnet_tf.errors import printable
from ccfnet_tf.labels import Taxonomy

LISTED = 20
"""Maximum number of findings listed per kind; the JSON report contains all."""

_SIZES = 3
_FOLDS = 6


def check_report(report: Report) -> RenderableType:
    """Returns the number of findings per kind, then each finding, then a summary."""
    blocks: list[RenderableType] = []
    if report.findings or report.notes:
        table = _table(_counts(report.counts), "kind", "number")
        table.add_column("first", overflow="fold")
        for kind, findings in _rows(report):
            first = findings[0]
            table.add_row(kind, str(len(findings)), Text(printable(first.file or first.text)))
        blocks.append(table)
        for kind, findings in _rows(report):
            blocks += [Text(f"{kind}: {len(findings)}", style="bold"), *_lines(findings)]
    classes = f"{len(report.classes)} classes"
    ok = "nothing to fix" if report.ok else f"{len(report.findings)} to fix, see above"
    return Group(*blocks, Text(f"{_counts(report.counts)}, {classes}: {ok}", style="bold"))


def stats_table(stats: Stats, taxonomy: Taxonomy) -> RenderableType:
    """Returns a table with one row per class, then void share, image sizes and colours."""
    census = stats.census
    title = f"{census.samples} images, {int(census.pixels.sum()):,} labelled pixels"
    table = _table(title, "class", "share %", "images", "median freq.", "inverse log")
    columns = (
        [share_percent(share) for share in census.shares()],
        [str(count) for count in census.pictures],
        [_weight(weight) for weight in census.median_frequency()],
        [_weight(weight) for weight in census.inverse_log()],
    )
    for name, *values in zip(taxonomy.names, *columns, strict=True):
        table.add_row(Text(printable(name)), *values)  # Text: a name may contain [brackets]
    return Group(
        table,
        Text(f"void: {share_percent(stats.void_share)} % of all pixels"),
        Text(f"sizes (width x height): {_sizes(stats)}"),
        Text(f"mean of red, green, blue: {_three(stats.mean)}"),
        Text(f"standard deviation: {_three(stats.deviation)}"),
        Text(
            "train.class_weights auto computes the median frequency on the training split only; "
            "this table counts all splits",
            style="dim",
        ),
    )


def split_table(split: Split, taxonomy: Taxonomy) -> RenderableType:
    """Returns a table of the share of each class in the test split of each fold."""
    shares = np.array([census.shares() for census in split.census])
    image_counts = np.array([census.samples for census in split.census])
    title = f"{int(image_counts.sum())} images in {len(image_counts)} folds"
    few = len(image_counts) <= _FOLDS
    heads = [f"fold {k}" for k in range(len(image_counts))] if few else ["smallest", "largest"]
    table = _table(title, "class %", *heads)
    for name, row in zip(taxonomy.names, shares.T, strict=True):
        shown = row if few else (row.min(), row.max())
        table.add_row(Text(printable(name)), *map(share_percent, shown))
    table.add_section()
    shown = image_counts if few else np.array([image_counts.min(), image_counts.max()])
    table.add_row("images", *map(str, shown.tolist()))
    frames = f"; {split.frames} images look like another frame" if split.frames else ""
    lines = [
        Text(f"{split.kept} groups of copies or near-duplicates, each kept in one fold{frames}")
    ]
    lines += [
        Text(f"fold {fold} has no '{taxonomy.names[index]}': try another --seed or fewer --folds")
        for fold, index in split.absent
    ]
    return Group(table, *lines)


def share_percent(share: float) -> str:
    """Formats a share 0..1 in percent with two decimals, small shares with two digits."""
    value = share * 100
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def _rows(report: Report) -> list[tuple[str, list[Finding]]]:
    """Groups findings, then notes, by kind, in order of first appearance."""
    rows: dict[str, list[Finding]] = {}
    for finding in report.findings:
        rows.setdefault(finding.kind, []).append(finding)
    for note in report.notes:
        rows.setdefault(f"{note.kind} (note)", []).append(note)
    return list(rows.items())


def _lines(findings: Sequence[Finding]) -> list[Text]:
    lines = [Text(f"  {f.part}: {f}" if f.part else f"  {f}") for f in findings[:LISTED]]
    more = len(findings) - LISTED
    return [*lines, Text(f"  and {more} more (--json lists all)")] if more > 0 else lines


def _counts(counts: Mapping[str, int]) -> str:
    if not any(counts.values()):
        return "no images"
    return ", ".join(f"{part} {count}" for part, count in counts.items()) + " images"


def _sizes(stats: Stats) -> str:
    rows = stats.by_count()
    shown = [f"{width}x{height} ({count})" for (height, width), count in rows[:_SIZES]]
    rest = len(rows) - len(shown)
    return ", ".join(shown) + (f" and {rest} more sizes" if rest else "")


def _weight(weight: float) -> str:
    return f"{weight:#.3g}" if weight < 100 else f"{weight:.0f}"


def _three(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def _table(title: str, first: str, *others: str) -> Table:
    """Returns a table; columns after the first are right-aligned."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table
