"""Runs side by side: what is refused, and what the page and the terminal say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccfnet_tf.cli import main as cli
from ccfnet_tf.config import DataConfig, RunConfig, TrainConfig, to_yaml
from ccfnet_tf.evaluation.bootstrap import bootstrap
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.report import comparison
from ccfnet_tf.report.comparison import compare, comparison_page, interval_text, read_compared
from ccfnet_tf.report.svg_plots import Line, Plot, line_plot
from tests.report.browser import Browser
from tests.report.conftest import HOSTILE, IMAGES, TAXONOMY, WriteRun


def test_the_terminal_and_the_page_have_the_same_intervals(
    write_run: WriteRun, tmp_path: Path, browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write_run(HOSTILE.replace("/", "")), write_run("second", seed=2)
    page = tmp_path / "page.html"
    assert cli.main(["compare", str(first), str(second), "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    runs = read_compared([first, second])
    drawn = compare(runs)
    accuracy = runs[1].evaluated.number("refine", "pixel_accuracy")
    assert drawn[1].figures["pixel_accuracy"] is not None
    assert drawn[1].figures["pixel_accuracy"].value == pytest.approx(accuracy)
    gain = interval_text(drawn[1].gains["mean_iou"], sign=True)
    assert gain.split()[0] in printed
    assert HOSTILE.replace("/", "")[:7] in printed
    browser.open(page)
    assert browser.complaints == []
    assert browser.requests == [page.as_uri()]
    text = browser.run("document.body.innerText")
    assert gain in text
    assert all(name in text for name in (*TAXONOMY.names, first.name, "second"))
    assert browser.run("document.querySelectorAll('.plots svg[role=img]').length") == 4


def test_a_difference_that_may_be_0_has_a_grey_bar(write_run: WriteRun) -> None:
    runs = read_compared([write_run("one"), write_run("two", seed=2)])
    drawn = compare(runs)
    page = comparison_page(runs, drawn, TAXONOMY)
    gains = [drawn[1].gains[figure] for figure in comparison.NAMES]
    unsure = [gain.low <= 0 <= gain.high for gain in gains if gain]
    assert page.count('class="range unsure"') == sum(unsure)
    assert page.count("Bars: intervals on an axis from") == len(gains) == 3


def test_figures_near_boundaries_have_intervals(write_run: WriteRun) -> None:
    runs = read_compared([write_run("one"), write_run("two", seed=2)])
    drawn, near = compare(runs), bootstrap([run.near for run in runs])
    for each, other in zip(drawn, near, strict=True):
        assert each.figures["near_mean_iou"] == other.figures["mean_iou"]
        assert each.gains["near_mean_iou"] == other.gains["mean_iou"]
    assert drawn[1].gains["near_mean_iou"] != drawn[1].gains["mean_iou"]
    page = comparison_page(runs, drawn, TAXONOMY)
    gain = interval_text(drawn[1].gains["near_mean_iou"], sign=True).split()[0]
    assert "two: mean IoU within 4 pixels of boundaries " in page
    assert gain in page


def test_calibrated_runs_are_told_from_others(write_run: WriteRun) -> None:
    paths = [write_run(name) for name in ("old", "one", "two")]
    for path, calibrated in zip(paths[1:], (True, False), strict=True):
        file = path / "evaluation.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"calibrated": calibrated}))
    rows = {row["name"]: row for row in comparison.figure_table(read_compared(paths))}
    assert rows["calibrated"] == {
        "name": "calibrated", "texts": ["-", "yes", "no"], "best": [False] * 3,
    }  # fmt: skip


def test_the_accuracy_near_boundaries_is_that_of_the_counts(write_run: WriteRun) -> None:
    runs = read_compared([write_run("one"), write_run("two", seed=2)])
    rows = {row["name"]: row["texts"] for row in comparison.figure_table(runs)}
    shares = [run.near[:, 2].sum() / run.near[:, 0].sum() for run in runs]
    expected = [f"{100 * share:.2f}" for share in shares]
    assert rows["pixel accuracy within 4 pixels of boundaries, %"] == expected
    assert expected[0] != expected[1]


@pytest.mark.parametrize("count", [2, 29, 30])
def test_intervals_of_few_images_are_said_to_be_too_narrow(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str], tmp_path: Path, count: int
) -> None:
    names = tuple(f"{index}.png" for index in range(count))
    paths = [str(write_run(name, seed=seed, names=names)) for seed, name in enumerate("ab")]
    page = tmp_path / "page.html"
    assert cli.main(["compare", *paths, "--html", str(page)]) == 0
    for text in (" ".join(capsys.readouterr().out.split()), page.read_text(encoding="utf-8")):
        assert (f"Of only {count} images, intervals are too narrow" in text) == (count < 30)


def test_a_run_beside_its_copy_is_equal(write_run: WriteRun) -> None:
    runs = read_compared([write_run("one"), write_run("two")])
    page = comparison_page(runs, compare(runs), TAXONOMY)
    assert "two: mean IoU equal to that of one, image by image." in page


def test_the_curves_are_those_of_the_prediction_that_selected_the_checkpoint(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_run("one"), write_run("two")]
    config = RunConfig(DataConfig(format="scenes"), train=TrainConfig(best_by="coarse"))
    (paths[1] / "config.yaml").write_text(to_yaml(config))
    metrics = ["epoch,val_refine_mean_iou,val_coarse_mean_iou,val_coarse_pixel_accuracy"]
    (paths[1] / "metrics.csv").write_text("\n".join([*metrics, "1,0.5,0.25,0.75", ""]))
    drawn: dict[str, dict[str, list[float]]] = {}

    def record(key: str, title: str, lines: Sequence[Line], **options: Any) -> Plot:
        drawn[key] = {line.name: line.points[1] for line in lines}
        return line_plot(key, title, lines, **options)

    monkeypatch.setattr(comparison, "line_plot", record)
    runs = read_compared(paths)
    assert "two (coarse)" in comparison_page(runs, compare(runs), TAXONOMY)
    assert drawn == {
        "validation-iou": {"one": [50.0, 75.0, pytest.approx(250 / 3), 87.5], "two (coarse)": [25]},
        "validation-accuracy": {
            "one": [60.0, 80.0, pytest.approx(260 / 3), 90.0],
            "two (coarse)": [75],
        },
    }


def test_folders_of_the_same_name_are_told_apart(write_run: WriteRun) -> None:
    runs = read_compared([write_run("a/run"), write_run("b/run")])
    assert [run.name[-5:] for run in runs] == ["a/run", "b/run"]


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        ({"split": "val"}, "one was evaluated on the val split, the other on the test split"),
        ({"names": IMAGES[:4]}, "their images differ (4 and 6)"),
        ({"names": (*IMAGES[:5], "else")}, "their images differ ('else' and 'tall')"),
        (
            {"taxonomy": Taxonomy(("sky", *TAXONOMY.names[1:]), TAXONOMY.palette)},
            f"their classes differ ('sky' and '{HOSTILE}')",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_in_one_line(
    other: dict[str, object],
    fault: str,
    write_run: WriteRun,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [str(write_run("one")), str(write_run("two", **other))]
    assert cli.main(["compare", *paths]) == 2
    error = capsys.readouterr().err
    assert fault in error
    assert error.count("\n") == 1


def test_other_labels_are_refused(write_run: WriteRun, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write_run("one"), write_run("two")
    with np.load(two / "images.npz") as arrays:
        changed = {name: arrays[name].copy() for name in arrays.files}
    cells = changed["refine"]
    wrong = (cells[:, 0] == 0) & (cells[:, 1] == 0) & (cells[:, 2] == 1)
    cells[wrong, 1] = 2  # still wrong
    np.savez_compressed(two / "images.npz", **changed)
    assert cli.main(["compare", str(one), str(two)]) == 2
    assert f"the labels of image '{IMAGES[0]}' differ" in capsys.readouterr().err


def test_what_is_no_pair_of_evaluated_runs_is_refused(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one, two = write_run("one"), write_run("two")
    (two / "images.npz").write_bytes(b"PK\3\4 damaged")
    report = tmp_path / "mine.html"
    report.write_text("<p>mine</p>")
    cases = [
        ([one], "give at least two"),
        ([one, one / "." ], "given twice"),
        ([one, two], "images.npz: damaged"),
        ([one, tmp_path / "none"], "none: no such folder; give a run folder"),
        ([one, two, "--html", report], "already exists and was not written by ccfnet-tf"),
    ]  # fmt: skip
    for args, fault in cases:
        assert cli.main(["compare", *map(str, args)]) == 2
        assert fault in capsys.readouterr().err
    assert report.read_text() == "<p>mine</p>"


@pytest.mark.parametrize(
    "name", ["evaluation.json", "images.npz", "metrics.csv", "config.yaml", "classes.json"]
)
@pytest.mark.parametrize("garbage", [b"", b"garbage\n", b"\0\xff garbage\n", b"a,b\n1,2\n"])
def test_damaged_files_are_refused_in_one_line(
    name: str, garbage: bytes, write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = write_run("one"), write_run("two", seed=2)
    (one / name).write_bytes(garbage)
    page = one.parent / "page.html"
    assert cli.main(["compare", str(one), str(two), "--html", str(page)]) == 2
    captured = capsys.readouterr()
    assert name in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not page.exists()
