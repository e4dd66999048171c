"""Damaged files of an evaluation, as `report` and `compare` read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from markupsafe import Markup

from ccfnet_tf.evaluation.evaluate import evaluate
from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.evaluation.read_image_table import read_rows
from ccfnet_tf.io.console import new_console
from ccfnet_tf.report import svg_plots
from ccfnet_tf.report.comparison import compare, comparison_page, comparison_tables, read_compared
from ccfnet_tf.report.read_evaluation_json import Evaluated
from ccfnet_tf.report.run_report import report_page
from tests.hostile.test_fuzz_runs import fuzz
from tests.report.conftest import TAXONOMY, Drawn, load, samples, write_evaluated


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(Drawn(), samples()[:2], load)


@pytest.fixture
def runs(evaluation: Evaluation, tmp_path: Path) -> tuple[Path, Path]:
    """Two runs that were evaluated on the same images."""
    paths = tmp_path / "one", tmp_path / "two"
    for path in paths:
        path.mkdir()
        write_evaluated(path, evaluation)
    return paths


@pytest.mark.parametrize("name", ["evaluation.json", "images.csv", "images.npz", "metrics.csv"])
def test_the_files_of_an_evaluation(
    name: str, runs: tuple[Path, Path], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is drawn was read and checked before; drawing 300 pages would take minutes.
    monkeypatch.setattr(svg_plots, "_svg", lambda *_: Markup())

    def read() -> None:
        read_rows(runs[0] / "images.csv")
        report_page(Evaluated.read(runs[0] / "evaluation.json"), TAXONOMY, title="", run=runs[0])
        found = read_compared(runs)
        drawn = compare(found, resamples=20)
        with new_console().capture():
            new_console().print(comparison_tables(found, drawn))
        comparison_page(found, drawn, TAXONOMY)

    fuzz(runs[0] / name, read, count)
