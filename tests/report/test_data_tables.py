from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console, RenderableType

from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.audit.find_problems import Finding, Report
from ccfnet_tf.datasets.audit.make_folds import Split
from ccfnet_tf.datasets.audit.stats import Stats
from ccfnet_tf.labels import Taxonomy, distinct_colours
from ccfnet_tf.report.data_tables import check_report, share_percent, split_table, stats_table

TAXONOMY = Taxonomy(("[red] sky", "sea"), distinct_colours(2))


def lines(table: RenderableType, *, soft_wrap: bool = False) -> list[str]:
    console = Console(width=80, soft_wrap=soft_wrap)
    with console.capture() as captured:
        console.print(table)
    return captured.get().splitlines()


def census(*pixels: int, void: int = 0, samples: int = 2) -> Census:
    counts = np.array(pixels, np.int64)
    shown = (counts > 0) * samples
    return Census(counts, shown, shown * counts.sum() // samples, void, samples)


def test_a_valid_set_is_one_line() -> None:
    report = Report({"train": 4, "test": 2}, TAXONOMY.names, (), ())
    assert lines(check_report(report)) == ["train 4, test 2 images, 2 classes: nothing to fix"]


def test_findings_are_counted_and_listed_up_to_20_per_kind() -> None:
    sizes = [Finding("size", "train", f"{i:02}.jpg", "3x2 pixels") for i in range(23)]
    value = Finding("value", "val", "x.png", "value 9 on 3 pixels")
    notes = (Finding("absent", "", "", "class '[red] sky' occurs nowhere"),)
    report = Report({"train": 30, "val": 2}, TAXONOMY.names, (*sizes, value), notes)
    found = lines(check_report(report))
    assert max(map(len, found)) <= 80
    text = "\n".join(found)
    for row in ("│ size          │     23 │ 00.jpg", "│ value         │      1 │ x.png"):
        assert row in text
    assert "│ absent (note) │      1 │ class '[red] sky' occurs nowhere" in text
    assert sum("3x2 pixels" in line for line in found) == 20
    assert "  train: 19.jpg: 3x2 pixels" in found
    assert "  and 3 more (--json lists all)" in found
    assert "  val: x.png: value 9 on 3 pixels" in found
    assert "  class '[red] sky' occurs nowhere" in found
    assert found[-1] == "train 30, val 2 images, 2 classes: 24 to fix, see above"


def test_long_paths_are_not_truncated() -> None:
    address = "/data/" + "folder/" * 20 + "a.jpg"
    finding = Finding("size", "train", address, "3x2 pixels")
    found = lines(check_report(Report({"train": 1}, TAXONOMY.names, (finding,), ())))
    assert max(map(len, found)) <= 80
    assert "".join(found).count("a.jpg") == 2  # wrapped, in the table and in the list
    found = lines(
        check_report(Report({"train": 1}, TAXONOMY.names, (finding,), ())), soft_wrap=True
    )
    assert f"  train: {address}: 3x2 pixels" in found


def test_stats() -> None:
    stats = Stats(
        census(999_000, 1000, void=250_000),
        {(240, 320): 4, (1, 1): 1, (1, 2): 1, (1, 3): 1, (1, 4): 1},
        (0, 0, 0),
        (0, 0, 0),
    )
    text = "\n".join(lines(stats_table(stats, TAXONOMY)))
    assert "2 images, 1,000,000 labelled pixels" in text
    assert "│ [red] sky │   99.90 │      2 │        0.501 │        1.42 │" in text
    assert "│ sea       │    0.10 │      2 │          500 │        48.1 │" in text
    assert "void: 20.00 % of all pixels" in text
    assert "320x240 (4), 1x1 (1), 2x1 (1) and 2 more sizes" in text
    assert max(map(len, text.splitlines())) <= 80


def dealt(folds: int, absent: tuple[tuple[int, int], ...] = ()) -> Split:
    counted = tuple(census(100 - k, k, samples=10 + k % 2) for k in range(folds))
    return Split(tuple(Path(f"fold_{k}") for k in range(folds)), counted, 3, 0, absent)


def test_folds_side_by_side() -> None:
    text = "\n".join(lines(split_table(dealt(3, absent=((0, 1),)), TAXONOMY)))
    assert "31 images in 3 folds" in text
    assert "│ [red] sky │ 100.00 │  99.00 │  98.00 │" in text
    assert "│ sea       │   0.00 │   1.00 │   2.00 │" in text
    assert "│ images    │     10 │     11 │     10 │" in text
    assert "3 groups of copies or near-duplicates, each kept in one fold" in text
    assert "fold 0 has no 'sea':" in text


def test_many_folds_as_a_range() -> None:
    text = "\n".join(lines(split_table(dealt(20), TAXONOMY)))
    assert "│ [red] sky │    81.00 │  100.00 │" in text
    assert "│ images    │       10 │      11 │" in text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.00"), (1.0, "100.00"), (0.001, "0.10"), (0.0009, "0.09"), (1.23e-6, "0.00012")],
)
def test_small_shares_keep_two_digits(share: float, text: str) -> None:
    assert share_percent(share) == text


def test_tables_do_not_import_tensorflow() -> None:
    code = "import sys, ccfnet_tf.report.data_tables; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
