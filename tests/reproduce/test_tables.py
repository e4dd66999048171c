"""Results and tables of runs that were made by hand."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ccfnet_tf.errors import CCFNetError, DataError, RunError
from ccfnet_tf.evaluation.bootstrap import bootstrap, image_counts
from ccfnet_tf.evaluation.read_image_table import read_cells
from ccfnet_tf.reproduce.collect import collect, spread_of
from ccfnet_tf.reproduce.console_table import console_table
from ccfnet_tf.reproduce.pages import claim_table, update_page
from ccfnet_tf.reproduce.plan import Plan, PlannedRun
from ccfnet_tf.reproduce.recipes import ABLATIONS, DATA_SETS, PAPER
from ccfnet_tf.reproduce.results_file import ResultsFile
from ccfnet_tf.reproduce.run import is_finished
from ccfnet_tf.reproduce.verdict import differences
from tests.conftest import REPOSITORY
from tests.report.conftest import IMAGES, write_drawn
from tests.reproduce.conftest import Finish, base_config, plan_of


def results(tmp_path: Path) -> ResultsFile:
    return ResultsFile(tmp_path / "results" / "stanford_background.json", "stanford_background")


def written(tmp_path: Path, plan: Plan, folder: Path) -> tuple[dict[str, Any], str]:
    """Collects a study; returns its results and the page."""
    file, page = results(tmp_path), tmp_path / "results.md"
    finished = [run for run in plan.runs if is_finished(plan, run, folder)]
    tree = file.replace(plan.study, collect(plan, finished, folder, file))
    update_page(page, tree)
    return tree, page.read_text()


def rows_of(page: str, table: str) -> Iterator[list[str]]:
    block = page.split(f" {table} -->")[1].split("<!-- /", maxsplit=1)[0]
    for line in block.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, finish: Finish) -> tuple[Plan, Path]:
    folder = tmp_path_factory.mktemp("claim")
    plan, configs = plan_of(base_config(folder))
    finish(folder, plan, configs, plan.runs[:-1])  # the last one is missing
    return plan, folder


@pytest.fixture
def claim(made: tuple[Plan, Path], tmp_path: Path) -> tuple[Plan, Path]:
    """A copy of a study whose last run is missing."""
    shutil.copytree(made[1], tmp_path / "claim")
    return made[0], tmp_path / "claim"


def test_the_claim_has_the_figures_of_its_runs(claim: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = claim
    results(tmp_path).record(plan, plan.runs[0])
    tree, page = written(tmp_path, plan, folder)
    rows = [*rows_of(page, "claim")]
    assert all(len(row) == len(rows[0]) for row in rows)
    assert [row[0][:22] for row in rows[2:]] == [
        "refine of the cascade", "plain average of its c", "fine of the cascade, f",
        "coarse trained alone", "fine trained alone", "fine trained alone, as",
    ]  # fmt: skip
    cascade, average, own_fine, coarse, fine, wide = (
        dict(zip(rows[0], row, strict=True)) for row in rows[2:]
    )
    evaluations = [
        json.loads((folder / f"{run}/evaluation.json").read_text())
        for run in ("cascade-fold0-seed0", "cascade-fold0-seed1", "cascade-fold0-seed2")
    ]
    for row, head in ((cascade, "refine"), (average, "average"), (own_fine, "fine")):
        values = [100 * each[head]["mean_iou"] for each in evaluations]
        wanted = f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
        assert row["mean IoU"] == wanted
        near = [
            100 * each["cascade"]["near_boundaries"]["4"][head]["mean_iou"] for each in evaluations
        ]
        wanted = f"{statistics.fmean(near):.2f} ± {statistics.stdev(near):.2f}"
        assert row["mean IoU near boundaries"] == wanted
    assert (cascade["difference"], cascade["refine is better"]) == ("-", "-")
    assert (cascade["seeds"], cascade["steps"], cascade["minutes"]) == ("0, 1, 2", "128", "3")
    assert (cascade["skipped steps"], cascade["scorings"], cascade["commit"]) == (
        "3",
        "1",
        "abc123",
    )
    assert cascade["machine"] == "Made ¦ CPU, 2 cores, float32, TensorFlow 2.21.0"
    assert (wide["seeds"], wide["refine is better"]) == ("0, 1", "unfinished")
    assert coarse["mean IoU"] != fine["mean IoU"]
    comparison = next(
        each for each in tree["claim"]["comparisons"] if each["recipe"] == "fine_alone"
    )
    mean = 100 * comparison["mean_iou"]["mean"]
    assert fine["difference"].startswith(f"{mean:+.2f} ± ")
    assert fine["refine is better"] == comparison["mean_iou"]["verdict"]
    assert "11 of 12 runs finished" in page
    keys = "`model.backbone mobilenet_v2`, `model.backbone_weights none`"
    assert f"Keys that differ from the preset: {keys}." in page
    near = next(each for each in tree["claim"]["comparisons"] if each["recipe"] == "coarse_alone")[
        "near_mean_iou"
    ]
    assert coarse["difference near boundaries"].startswith(f"{100 * near['mean']:+.2f} ± ")
    assert f"{PAPER['stanford_background']} % for its own network" in page
    assert "mean IoU: **" in page


def test_the_console_shows_what_the_page_says(claim: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = claim
    tree, page = written(tmp_path, plan, folder)
    table = console_table(tree, "claim")
    headings, _, *rows = rows_of(page, "claim")
    found = [[str(cell) for cell in column.cells] for column in table.columns]
    for column, cells in zip(table.columns[1:], found[1:], strict=True):
        place = headings.index(str(column.header))
        assert cells == [row[place] for row in rows]
    assert found[0][-1] == "fine trained alone, as wide as the work of the cascade allows"
    assert str(table.caption).endswith(
        "minus the row; refine is above all four in mean IoU: unfinished; 11 of 12 runs finished"
    )


def test_the_console_leaves_out_what_was_not_run(tmp_path: Path, finish: Finish) -> None:
    plan, configs = plan_of(base_config(tmp_path), "ablations", seeds=1)
    plan = replace(plan, same={"one_scale": "cascade"})
    folder = tmp_path / "out" / "ablations"
    finish(folder, plan, configs, plan.runs[:2])
    tree, _ = written(tmp_path, plan, folder)
    out, table = StringIO(), console_table(tree, "ablations")
    Console(width=80, file=out).print(table)
    printed = out.getvalue()
    names = [str(cell) for cell in table.columns[0].cells]
    assert names == [run.recipe for run in plan.runs[:2]] == ["cascade", "gate_attention"]
    assert "validation split" in printed
    assert "minus the cascade; one_scale is the same as cascade; 2 of " in " ".join(printed.split())


def test_differences_are_those_of_the_heads_in_question(
    claim: tuple[Plan, Path], tmp_path: Path
) -> None:
    plan, folder = claim
    tree, _ = written(tmp_path, plan, folder)

    def counts(recipe: str, seed: int, name: str) -> Any:
        run = folder / f"{recipe}-fold0-seed{seed}"
        cells = read_cells(run / "images.npz", 4)
        return image_counts(cells.cells[name], len(cells.names), 4)

    def pairs_of(recipe: str, head: str, prefix: str) -> list[tuple[Any, Any]]:
        return [
            (counts("cascade", seed, f"{prefix}refine"), counts(recipe, seed, f"{prefix}{head}"))
            for seed in range(3)
        ]

    for recipe, head in (
        ("cascade", "average"),
        ("cascade", "fine"),
        ("coarse_alone", "coarse"),
        ("fine_alone", "fine"),
    ):
        found = next(
            each
            for each in tree["claim"]["comparisons"]
            if (each["recipe"], each["head"]) == (recipe, head)
        )
        for prefix in ("", "near_"):
            expected = differences(pairs_of(recipe, head, prefix))["mean_iou"]
            own = found[f"{prefix}mean_iou"]
            assert (own["mean"], own["low"]) == pytest.approx((expected.mean, expected.low))
        assert found["near_mean_iou"] != found["mean_iou"]
        pairs = pairs_of(recipe, head, "")
        gain = bootstrap([pairs[0][1], pairs[0][0]])[1].gains["mean_iou"]
        assert gain is not None
        assert found["mean_iou"]["values"][0] == pytest.approx(gain.value)


def test_difficulty_is_shown_beside_every_score(claim: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = claim
    tree, page = written(tmp_path, plan, folder)
    rows = [*rows_of(page, "difficulty")]
    assert [row[0] for row in rows[2:4]] == ["difficulty", "attention"]
    assert len(rows) == 9
    assert rows[2][2] == rows[3][2] == "-"
    aurocs = [run["scores_of_coarse"]["entropy"]["auroc"] for run in tree["claim"]["runs"][:9:4]]
    entropy = next(row for row in rows if row[0] == "entropy of coarse")
    assert entropy[1] == f"{statistics.fmean(aurocs):.4f} ± {statistics.stdev(aurocs):.4f}"
    assert entropy[2] in ("yes", "no", "not shown")


def test_every_figure_of_the_scores_is_shown(claim: tuple[Plan, Path], tmp_path: Path) -> None:
    """Mean and deviation over the cascades; entropy and margin are of the head with the errors."""
    plan, folder = claim
    _, page = written(tmp_path, plan, folder)
    rows = {(row[0], row[1].split(",")[0]): row for row in rows_of(page, "scores")}
    trees = [
        json.loads((folder / f"cascade-fold0-seed{seed}" / "evaluation.json").read_text())["scores"]
        for seed in range(3)
    ]
    for (name, head), score in {
        ("difficulty", "coarse"): "difficulty",
        ("difficulty", "refine"): "difficulty",
        ("entropy of coarse", "coarse"): "entropy",
        ("entropy of refine", "refine"): "entropy",
        ("risk", "refine"): "risk",
    }.items():
        found = [tree[head][score] for tree in trees]
        assert rows[name, head][1] == f"{head}, {spread([x['error_rate'] for x in found])} %"
        keys = ["auroc", "average_precision", "fpr_at_95_recall_of_errors"]
        keys += ["fpr95_correct_positive", "aurc", "e_aurc", "augrc"]
        for cell, key in zip(rows[name, head][2:], keys, strict=False):
            assert cell == spread([each[key] for each in found], scale=1, digits=3), key
        probable = score != "entropy" and (score, head) != ("difficulty", "refine")
        for cell, key in zip(
            rows[name, head][9:], ("ece", "adaptive_ece", "ece_within_4_pixels"), strict=True
        ):
            assert cell == (spread([each[key] for each in found]) if probable else "-"), key


def spread(values: list[float], scale: float = 100, digits: int = 2) -> str:
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    return f"{scale * mean:.{digits}f} ± {scale * deviation:.{digits}f}"


def test_what_was_not_run_is_said_so(tmp_path: Path, finish: Finish) -> None:
    plan, configs = plan_of(base_config(tmp_path), "ablations", seeds=1)
    folder = tmp_path / "out" / "ablations"
    finish(folder, plan, configs, (plan.runs[0], PlannedRun.of("crop_185", 0, 0)))
    tree, page = written(tmp_path, plan, folder)
    for table, first, rows in (
        ("claim", 2, 6),
        ("ablations", 3, len(ABLATIONS) - 1),
        ("folds", 2, 1),
        ("scores", 2, 1),
    ):
        found = [*rows_of(page, table)][first:]
        assert len(found) == rows
        assert [row[0] for row in found if "not run" not in row] == (
            ["`crop_185`: crops of 185 pixels"] if table == "ablations" else []
        )
    crop = next(row for row in rows_of(page, "ablations") if row[0].startswith("`crop_185`"))
    assert crop[9] == "not shown"  # a single seed
    path = folder / "crop_185-fold0-seed0" / "evaluation.json"
    of_coarse = json.loads(path.read_text())["scores"]["coarse"]
    aurocs = [of_coarse[score]["auroc"] for score in ("attention", "difficulty")]
    assert crop[5:7] == [f"{value:.3f}" for value in aurocs]
    cascade, changed = (run["figures"]["refine"]["mean_iou"] for run in tree["ablations"]["runs"])
    assert crop[7].startswith(f"{100 * (changed - cascade):+.2f} (")
    assert f"{changed:.4f}" != f"{cascade:.4f}"
    assert "Validation split, 3 images; 2 epochs, 3 minutes for the cascade; 2 of" in page


def test_folds_have_a_mean(tmp_path: Path, finish: Finish) -> None:
    plan, configs = plan_of(base_config(tmp_path), "folds", seeds=1, folds=(0, 1, 2))
    folder = tmp_path / "out" / "folds"
    finish(folder, plan, configs, plan.runs)
    tree, page = written(tmp_path, plan, folder)
    rows = [*rows_of(page, "folds")]
    assert [row[0] for row in rows[2:]] == ["0", "1", "2", "mean of 3"]
    values = [run["figures"]["refine"]["pixel_accuracy"] for run in tree["folds"]["runs"]]
    wanted = f"{100 * statistics.fmean(values):.2f} ± {100 * statistics.stdev(values):.2f}"
    assert rows[-1][5] == wanted


def test_only_the_tables_of_a_page_change(claim: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = claim
    tree, page = written(tmp_path, plan, folder)
    path = tmp_path / "results.md"
    mine = page + "\nMine.\n<!-- results:sift_flow claim -->\nkept\n<!-- /results -->\n"
    path.write_text(mine)
    update_page(path, tree)
    assert path.read_text() == mine
    for damage, fault in (
        ("<!-- results:stanford_background other -->", "add the lines '<!-- results:stanford_back"),
        ("<!-- results:stanford_background folds -->\n<!-- results:sift_flow folds -->", "no end"),
    ):
        damaged = mine.replace("<!-- results:stanford_background folds -->", damage)
        path.write_text(damaged)
        with pytest.raises(DataError, match=fault):
            update_page(path, tree)
        assert path.read_text() == damaged
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"results\.md: cannot be read"):
        update_page(path, tree)
    del tree["claim"]["runs"][0]["figures"]
    path.write_text(page)
    for damaged in (tree, {}):
        with pytest.raises(DataError, match=r"results of .*results\.md are damaged"):
            update_page(path, damaged)
    assert path.read_text() == page


def test_a_page_has_the_tables_of_both_data_sets(claim: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = claim
    _, page = written(tmp_path, plan, folder)
    update_page(tmp_path / "results.md", {"data_set": "sift_flow", "scored": []})
    both = (tmp_path / "results.md").read_text()
    assert both.startswith(page)
    assert "<!-- results:sift_flow folds -->" in both
    ablations = (
        "<!-- results:sift_flow ablations -->\n\nValidation split; not run.\n\n<!-- /results -->"
    )
    assert ablations in both  # one line, not one per ablation


def test_a_recipe_that_equals_another_is_said_so(tmp_path: Path, finish: Finish) -> None:
    plan, configs = plan_of(base_config(tmp_path), "ablations", seeds=1)
    plan = replace(plan, same={"one_scale": "cascade"}, seeds=(1, 3))
    folder = tmp_path / "out" / "ablations"
    finish(folder, plan, configs, plan.runs[:1])
    _, page = written(tmp_path, plan, folder)
    rows = {row[0].split(":")[0]: row[1] for row in rows_of(page, "ablations")}
    assert rows["`one_scale`"] == "same as cascade"
    assert rows["`ohem`"] == "not run"
    assert "Planned with 1, then 3 seeds." in page


def test_a_run_of_another_recipe_is_refused(claim: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = claim
    config = folder / "fine_alone-fold0-seed1" / "config.yaml"
    config.write_text(config.read_text().replace("crop: 241", "crop: 185"))
    with pytest.raises(RunError, match=r"fine_alone-fold0-seed1: its config\.yaml is not that"):
        written(tmp_path, plan, folder)


def relabelled(run: Path) -> None:
    path = run / "data_digest.json"
    path.write_text(path.read_text().replace('["3", "1", "2"]', '["3", "1", "9"]'))


def left_out(run: Path) -> None:
    path = run / "data_digest.json"
    path.write_text(path.read_text().replace('["4", "1", "2"]', '["3", "1", "2"]'))


def fewer_test_images(run: Path) -> None:
    seed = json.loads((run / "evaluation.json").read_text())["weights"]
    kept = (run / "config.yaml").read_text()
    write_drawn(run, 0, "test", IMAGES[:2])
    (run / "config.yaml").write_text(kept)
    tree = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps(tree | {"weights": seed}))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (relabelled, "image or label of '3' differs from that in"),
        (left_out, "was trained and validated on other images than"),
        (fewer_test_images, "their images differ"),
    ],
)
def test_all_runs_have_the_same_data(
    claim: tuple[Plan, Path], tmp_path: Path, change: Callable[[Path], None], fault: str
) -> None:
    plan, folder = claim
    change(folder / "fine_alone-fold0-seed1")
    with pytest.raises(CCFNetError, match=fault):
        written(tmp_path, plan, folder)


def test_files_of_two_evaluations_are_refused(claim: tuple[Plan, Path], tmp_path: Path) -> None:
    """Their labels are the same: only the predictions differ."""
    plan, folder = claim
    one, other = (folder / f"{name}_alone-fold0-seed1/images.npz" for name in ("fine", "coarse"))
    shutil.copy(other, one)
    with pytest.raises(DataError, match="belongs to another evaluation than"):
        written(tmp_path, plan, folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("environment.json", '{"starts": []}'),
        ("metrics.csv", "epoch\n1\n2\n"),
        ("images.npz", "PK"),
    ],
)
def test_damaged_runs_are_refused(
    claim: tuple[Plan, Path], tmp_path: Path, name: str, text: str
) -> None:
    plan, folder = claim
    (folder / "cascade-fold0-seed1" / name).write_text(text)
    with pytest.raises(DataError, match=f"cascade-fold0-seed1/{name}"):
        written(tmp_path, plan, folder)


def test_lost_rows_of_metrics_do_not_hide_a_run(claim: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = claim
    (folder / "cascade-fold0-seed1" / "metrics.csv").unlink()
    tree, page = written(tmp_path, plan, folder)
    assert len(tree["claim"]["runs"]) == 11
    rows = [*rows_of(page, "claim")]
    cascade = dict(zip(rows[0], rows[2], strict=True))
    assert (cascade["seeds"], cascade["steps"], cascade["minutes"]) == (
        "0, 1, 2",
        "unknown",
        "unknown",
    )


def test_a_mean_of_nothing_is_none() -> None:
    assert spread_of([])["mean"] is None
    assert spread_of([0.5, None])["mean"] is None
    assert spread_of([0.5]) == {"mean": 0.5, "deviation": None, "values": 1}


@pytest.mark.parametrize(
    "results", ["results/stanford_background", "results/sift_flow", "results_hard_blend/sift_flow"]
)
def test_the_page_has_the_tables_of_the_committed_results(results: str, tmp_path: Path) -> None:
    folder, _, data_set = results.partition("/")
    page = tmp_path / f"{folder}.md"
    text = (REPOSITORY / "docs" / page.name).read_text()
    page.write_text(text)
    update_page(page, ResultsFile(REPOSITORY / f"docs/{results}.json", data_set).read())
    assert page.read_text() == text


def committed(data_set: str) -> dict[str, Any]:
    return ResultsFile(REPOSITORY / f"docs/results/{data_set}.json", data_set).read()


def words_of(path: str) -> str:
    """Returns the text of a page, its lines joined."""
    return " ".join((REPOSITORY / path).read_text().split())


def figures_of(score: str, errors_of: str, key: str, digits: int) -> str:
    """Returns a figure of a score in the claims, of both data sets."""
    rows = [
        next(
            row
            for row in committed(data_set)["claim"]["scores"]
            if (row["errors_of"], row["score"]) == (errors_of, score)
        )
        for data_set in DATA_SETS
    ]
    values = [row[key]["mean"] * (1 if key == "auroc" else 100) for row in rows]
    return " and ".join(f"{value:.{digits}f}".removeprefix("0") for value in values)


def test_the_first_screen_of_the_readme_has_the_committed_figures() -> None:
    assert (
        f"AUROC of {figures_of('difficulty', 'coarse', 'auroc', 3)}, their maximum softmax with "
        f"{figures_of('max_softmax', 'coarse', 'auroc', 3)}, and the probability that the fine "
        f"head gives to coarse's class with {figures_of('fine_difficulty', 'coarse', 'auroc', 3)}; "
        f"calibrated risk is off by {figures_of('risk', 'refine', 'ece', 1)} percentage points on "
        "average, within 4 pixels of boundaries by "
        f"{figures_of('risk', 'refine', 'ece_within_4_pixels', 0)} "
    ) in words_of("README.md")


def test_the_table_of_resnet50_is_the_committed_csv() -> None:
    page = (REPOSITORY / "docs/results.md").read_text().split("## ResNet-50 from random weights")[1]
    with (REPOSITORY / "docs/results/resnet50_random_weights.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        shares = (
            "refine_accuracy", "val_coarse_pixel_accuracy", "val_fine_pixel_accuracy",
            "val_refine_pixel_accuracy", "val_refine_mean_iou",
        )  # fmt: skip
        percents = " | ".join(f"{100 * float(row[key]):.1f}" for key in shares)
        minutes, loss, skipped = (float(row[key]) for key in ("seconds", "loss", "skipped_steps"))
        line = f"| {row['step']} | {minutes / 60:.1f} | {loss:.2f} | {percents} | {skipped:.0f} |"
        assert line in page
    assert len(rows) == 2


@pytest.mark.parametrize("study", ["claim", "folds"])
@pytest.mark.parametrize("data_set", DATA_SETS)
def test_what_a_user_may_expect_are_the_committed_figures(data_set: str, study: str) -> None:
    rows = [row for row in committed(data_set)[study]["runs"] if row["recipe"] == "cascade"]
    accuracy, iou = (
        100 * statistics.fmean(row["figures"]["refine"][key] for row in rows)
        for key in ("pixel_accuracy", "mean_iou")
    )
    text = (REPOSITORY / "docs/results.md").read_text()
    name, found = "", set()
    for row in text.split("## Goals", maxsplit=1)[0].splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) == 6:
            name = cells[0].partition(",")[0] or name  # an empty cell is the one above
            found.add((name, cells[1], cells[4], cells[5].partition(",")[0]))
    backbone = "MobileNetV2" if study == "claim" else "EfficientNet-Lite2"
    assert (DATA_SETS[data_set], backbone, f"{accuracy:.0f} %", f"{iou:.0f} %") in found
    if study == "folds":
        assert f"{accuracy:.2f} %" in text.split("## Goals")[1].split("\n## ")[0]


@pytest.mark.parametrize(
    ("verdicts", "overall"),
    [
        ({"fine": "no"}, "yes"),  # fine of the cascade is not one of the four
        ({"average": "no"}, "no"),
        ({"fine_wide": "not shown"}, "not shown"),
        ({"fine_wide": "unfinished"}, "unfinished"),
        ({"fine_wide": "unfinished", "coarse_alone": "no"}, "no"),
    ],
)
def test_the_verdict_on_the_claim_is_that_of_its_four_comparisons(
    claim: tuple[Plan, Path], tmp_path: Path, verdicts: dict[str, str], overall: str
) -> None:
    plan, folder = claim
    tree, _ = written(tmp_path, plan, folder)
    for found in tree["claim"]["comparisons"]:
        name = found["head"] if found["recipe"] == "cascade" else found["recipe"]
        found["mean_iou"]["verdict"] = verdicts.get(name, "yes")
    assert f"Refine is above all four in mean IoU: **{overall}**." in claim_table(tree)
