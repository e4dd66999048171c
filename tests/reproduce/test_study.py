"""The command: what it runs, keeps, continues and refuses."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ccfnet_tf.benchmark.flops import Cost
from ccfnet_tf.cli import calibrate as calibrate_verb
from ccfnet_tf.cli import evaluate as evaluate_verb
from ccfnet_tf.cli import main as cli
from ccfnet_tf.cli.fit_options import parse_fit
from ccfnet_tf.config import DataConfig, RunConfig, from_yaml, to_yaml
from ccfnet_tf.datasets.open_data_set import read_parts
from ccfnet_tf.datasets.samples import fingerprint
from ccfnet_tf.errors import RunError
from ccfnet_tf.io.locked_folder import locked_folder
from ccfnet_tf.labels import Sample
from ccfnet_tf.reproduce import equal_work, initial_weights, precision, run, timing
from ccfnet_tf.reproduce.equal_work import Width
from ccfnet_tf.reproduce.recipes import with_keys
from ccfnet_tf.runs.progress import read_epoch
from ccfnet_tf.runs.run_folder import read_config
from ccfnet_tf.training.data_digest import Row, write_digest
from tests.epoch_states import write_state
from tests.reproduce.conftest import base_config, calibrate, score, train


def command(data: Path, out: Path, *options: str) -> list[str]:
    return [
        *("reproduce", "stanford_background", "--out", str(out), "--data.format", "folder"),
        *("--data.root", str(data / "set"), "--data.lists", str(data / "lists")),
        *("--data.crop", "33", "--data.val_share", "0.2", "--model.backbone", "mobilenet_v2"),
        *("--model.backbone_weights", "none", "--model.head_channels", "4", "--train.batch", "2"),
        *("--train.precision", "float32", "--results", str(out / "results"), *options),
    ]


class Processes:
    """Does what the commands would do, and remembers them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.arguments: list[list[str]] = []
        self.fail_at = -1
        self.before: Callable[[str], None] = lambda _: None

    def run(self, arguments: list[str], *, name: str, resume: str) -> None:
        verb = arguments[0]
        accepted = {"calibrate": calibrate_verb, "evaluate": evaluate_verb}
        if verb == "fit":
            config = parse_fit(arguments[1:]).config
        else:
            accepted[verb].new_parser().parse_args(arguments[1:])
        self.calls.append((verb, name))
        self.arguments.append(arguments)
        if len(self.calls) == self.fail_at:
            raise RunError(f"{name}: {verb} failed; continue with {resume}")
        self.before(verb)
        if verb == "fit":
            assert arguments[3] == "--resume"
            shutil.rmtree(arguments[2], ignore_errors=True)
            train(Path(arguments[2]), config)
        elif verb == "evaluate":
            score(Path(arguments[1]), arguments[3], seed=0)
        else:
            calibrate(Path(arguments[1]))

    def names(self, verb: str) -> list[str]:
        return [name for called, name in self.calls if called == verb]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    found = Processes()
    monkeypatch.setattr(run, "run_command", found.run)
    monkeypatch.setattr(equal_work, "measure", lambda *_: Width(7, 0.5, 0.51))
    return found


def test_the_claim_is_trained_and_scored_in_order_and_once(
    data: Path, tmp_path: Path, processes: Processes
) -> None:
    args = command(data, tmp_path, "--seeds", "1", "--train.epochs", "2")
    assert cli.main(args) == 0
    first = [
        f"{name}-fold0-seed0" for name in ("cascade", "coarse_alone", "fine_alone", "fine_wide")
    ]
    assert processes.names("fit") == processes.names("evaluate") == first
    assert processes.names("calibrate") == ["cascade-fold0-seed0"]
    wide = from_yaml((tmp_path / "claim/fine_wide-fold0-seed0.yaml").read_text(), source="file")
    assert (wide.model.head_channels, wide.seed, wide.data.fold) == (7, 0, 0)
    tree = json.loads((tmp_path / "results/stanford_background.json").read_text())
    assert [each["recipe"] for each in tree["scored"]] == [
        "cascade", "coarse_alone", "fine_alone", "fine_wide",
    ]  # fmt: skip
    assert len(tree["claim"]["runs"]) == 4
    assert "(7 channels: 0.5 of 0.51 GMAC)" in (tmp_path / "results.md").read_text()
    processes.calls.clear()
    assert cli.main(args) == 0
    assert processes.calls == []


def test_an_interrupted_study_is_continued(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    args = command(data, tmp_path, "--folds", "0", "1", "--train.epochs", "2")
    processes.fail_at = 5  # calibrate of the second run
    assert cli.main(args) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "ccfnet-tf: cascade-fold1-seed0: calibrate failed; continue with the same command\n"
    )
    lines = [line for line in captured.out.splitlines() if line.startswith("run ")]
    assert lines[0].endswith("cascade-fold0-seed0: 2 epochs")
    assert lines[1].startswith("run 2 of 2")
    assert lines[1].endswith(": 2 epochs; about 3 minutes of training left in all runs")  # 2 x 90 s
    tree = json.loads((tmp_path / "results/stanford_background.json").read_text())
    assert [each["fold"] for each in tree["folds"]["runs"]] == [0]  # written after each run
    processes.calls.clear()
    processes.fail_at = -1
    assert cli.main(args) == 0
    assert "Stanford Background, folds, test split, %" in capsys.readouterr().out
    fold = "cascade-fold1-seed0"
    assert processes.calls == [("calibrate", fold), ("evaluate", fold)]


@pytest.mark.parametrize(
    ("options", "image", "fault"),
    [
        (["--folds", "0", "1"], "5", "1 of the 4 images of the test split of fold 1 and seed 0"),
        (["--seeds", "2"], "3", "1 of the 4 images of the test split of fold 0 and seed 0"),
        (["--seeds", "2"], "5", None),
        (["--ablations", "ohem", "--seeds", "2"], "3", None),
        (["--ablations", "ohem"], "val 0", "images of the val split of fold 0 and seed 0"),
        (["--ablations", "ohem"], "val 1", None),
        (["--ablations", "ohem", "--seeds", "2"], "val 1", "of the val split of fold 0 and seed 1"),
    ],
)
def test_initial_weights_that_have_seen_images_of_the_split_are_refused(
    data: Path,
    tmp_path: Path,
    processes: Processes,
    *,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    image: str,
    fault: str | None,
) -> None:
    first = tmp_path / "first"
    train(first, base_config(data))
    args = command(data, tmp_path, "--train.epochs", "2", "--model.init_from", str(first), *options)
    lists = DataConfig(root=str(data / "set"), lists=str(data / "lists"), val_share=0.2)
    vals = [{each.name for each in read_parts(lists, seed).val} for seed in range(2)]
    assert vals[0] - vals[1]
    assert vals[1] - vals[0]
    names = {"val 0": min(vals[0] - vals[1]), "val 1": min(vals[1] - vals[0])}
    name = names.get(image, image)
    seen = fingerprint(Sample("", str(data / f"set/images/{name}.png"), ""))
    write_digest(first, {"train": [Row("x", seen, "")], "val": []})
    assert cli.main(args) == (2 if fault else 0)
    error = capsys.readouterr().err
    assert (f"model.init_from {first}: was trained on" in error) == bool(fault)
    assert (fault or "") in error
    assert bool(processes.calls) != bool(fault)


def test_a_study_is_continued_where_its_data_are_now(
    data: Path, tmp_path: Path, processes: Processes
) -> None:
    def stop(_: str) -> None:
        if len(processes.calls) > 1:  # after the first run was trained
            raise RunError("stopped")

    args = command(data, tmp_path, "--folds", "0", "1", "--train.epochs", "2")
    processes.before = stop
    assert cli.main(args) == 2
    processes.before = lambda _: None
    folders = [tmp_path / f"folds/cascade-fold{fold}-seed0" for fold in range(2)]
    write_state(folders[0] / "checkpoints" / "last.npz", 1)
    assert not folders[1].exists()
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    processes.arguments.clear()
    assert cli.main(command(moved, tmp_path, *args[-5:], "--data.workers", "2")) == 0
    fits = [each for each in processes.arguments if each[0] == "fit"]
    assert fits[0][4:7] == [f"--data.root={moved / 'set'}", "--data.cache=none", "--data.workers=2"]
    assert "--config" not in fits[0]
    for folder in folders:
        assert read_config(folder / "config.yaml").data.root == str(moved / "set")
    others = [each for each in processes.arguments if each[0] != "fit"]
    assert [each[-2:] for each in others] == [["--data.root", str(moved / "set")]] * 4


def test_finished_runs_do_not_need_the_initial_weights(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.h5"
    args = command(data, tmp_path, "--folds", "--train.epochs", "2")
    args[args.index("--model.backbone_weights") + 1] = str(weights)
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert f"model.backbone_weights is {weights}: no such file" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "folds").exists()
    weights.write_bytes(b"1")
    assert cli.main(args) == 0
    processes.calls.clear()
    weights.unlink()
    assert cli.main(args) == 0
    assert processes.calls == []
    weights.write_bytes(b"2")
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    changed = "recipe 'cascade' has changed since this study was started"
    assert f"{changed} (content of model.backbone_weights): use" in error
    weights.write_bytes(b"1")
    assert cli.main([*args, "--data.crop", "49", "--model.gate", "attention"]) == 2
    error = capsys.readouterr().err
    assert f"{changed} (data.crop 33, now 49, model.gate affine, now attention): use" in error
    args[args.index("--model.backbone_weights") + 1] = "none"
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert f"{changed} (model.backbone_weights {weights}, now none" in error


def test_weights_that_cannot_be_downloaded_are_reported_once(
    data: Path,
    tmp_path: Path,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []

    def offline(backbone: str) -> None:
        asked.append(backbone)
        raise RunError("no route")

    args = command(data, tmp_path, "--folds", "0", "1", "--train.epochs", "2")
    args[args.index("--model.backbone_weights") + 1] = "imagenet"
    monkeypatch.setattr(initial_weights, "download", offline)
    assert cli.main(args) == 2
    assert capsys.readouterr().err == "ccfnet-tf: no route\n"
    assert (asked, processes.calls) == (["mobilenet_v2"], [])
    monkeypatch.setattr(initial_weights, "download", asked.append)
    assert cli.main(args) == 0
    assert asked == ["mobilenet_v2"] * 2
    assert cli.main(args) == 0  # runs that have begun do not need them
    assert asked == ["mobilenet_v2"] * 2


@pytest.mark.slow  # imports TensorFlow in a process
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "efficientnet_lite0"])
def test_a_download_that_fails_is_one_line(
    backbone: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(RunError, match=f"imagenet: the weights of {backbone} could not be loaded"):
        initial_weights.download(backbone)
    error = capfd.readouterr().err
    assert f"ccfnet-tf: the ImageNet weights of {backbone} could not be downloaded" in error
    assert "Traceback" not in error


def test_a_study_without_a_checkpoint_may_change(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.fail_at = 1
    assert cli.main(command(data, tmp_path, "--folds", "--train.epochs", "3")) == 2
    assert cli.main(command(data, tmp_path, "--folds", "--train.epochs", "2")) == 0
    assert json.loads((tmp_path / "folds/plan.json").read_text())["epochs"] == 2
    assert cli.main(command(data, tmp_path, "--folds", "--train.epochs", "3")) == 2
    assert "was started with epochs 2, now 3" in capsys.readouterr().err


def test_only_requested_runs_are_trained_and_the_others_kept(
    data: Path, tmp_path: Path, processes: Processes
) -> None:
    processes.fail_at = 1
    args = command(data, tmp_path, "--ablations", "crop_185", "wide_scale", "--train.epochs", "2")
    assert cli.main(args) == 2
    assert processes.names("evaluate") == [
        "crop_185-fold0-seed0",
        "wide_scale-fold0-seed0",
    ]  # went on
    processes.calls.clear()
    processes.fail_at = -1
    args = command(data, tmp_path, "--ablations", "ohem", "--train.epochs", "2")
    assert cli.main(args) == 0
    assert processes.names("fit") == ["cascade-fold0-seed0", "ohem-fold0-seed0"]
    tree = json.loads((tmp_path / "results/stanford_background.json").read_text())
    assert [each["recipe"] for each in tree["ablations"]["runs"]] == [
        "cascade", "crop_185", "wide_scale", "ohem",
    ]  # fmt: skip


def test_several_failed_runs_are_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str], *, name: str, resume: str) -> None:
        raise RunError(f"{name}: {resume}")

    monkeypatch.setattr(run, "run_command", fail)
    assert cli.main(command(data, tmp_path, "--folds", "0", "1", "--train.epochs", "2")) == 2
    captured = capsys.readouterr()
    assert "2 of 2 runs failed (cascade-fold0-seed0, cascade-fold1-seed0)" in captured.err
    assert "cascade-fold0-seed0: failed: cascade-fold0-seed0: the same command" in captured.out


def test_a_run_of_another_recipe_is_not_scored(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    args = command(data, tmp_path, "--folds", "--train.epochs", "2")
    processes.fail_at = 2
    assert cli.main(args) == 2
    config = tmp_path / "folds/cascade-fold0-seed0/config.yaml"
    config.write_text(config.read_text().replace("crop: 33", "crop: 65"))
    processes.calls.clear()
    assert cli.main(args) == 2
    assert "its config.yaml is not that of cascade-fold0-seed0.yaml" in capsys.readouterr().err
    assert processes.calls == []


def test_a_scoring_by_hand_is_recorded(data: Path, tmp_path: Path, processes: Processes) -> None:
    args = command(data, tmp_path, "--folds", "--train.epochs", "2")
    processes.fail_at = 3  # before evaluate
    assert cli.main(args) == 2
    score(tmp_path / "folds/cascade-fold0-seed0", "test", seed=0)
    shutil.rmtree(tmp_path / "results")
    assert cli.main(args) == 0
    assert processes.names("evaluate") == ["cascade-fold0-seed0"]  # the one that failed
    tree = json.loads((tmp_path / "results/stanford_background.json").read_text())
    assert [each["recipe"] for each in tree["scored"]] == ["cascade"]


@pytest.mark.parametrize("next_one", ["crop_185", "no_ema"])
def test_an_ablation_scored_by_hand_is_recorded_and_evaluated_again(
    next_one: str, data: Path, tmp_path: Path, processes: Processes
) -> None:
    args = command(data, tmp_path, "--train.epochs", "2", "--ablations")
    assert cli.main([*args, "crop_185"]) == 0
    score(tmp_path / "ablations/crop_185-fold0-seed0", "test", seed=0)
    processes.calls.clear()
    assert cli.main([*args, next_one]) == 0
    assert "crop_185-fold0-seed0" in processes.names("evaluate")
    tree = json.loads((tmp_path / "results/stanford_background.json").read_text())
    assert [each["recipe"] for each in tree["scored"]] == ["crop_185"]


@pytest.mark.parametrize("next_one", ["crop_185", "no_ema"])
def test_an_ablation_that_the_study_did_not_calibrate_is_refused(
    next_one: str,
    data: Path,
    tmp_path: Path,
    processes: Processes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    epochs = ("--train.epochs", "2")
    assert cli.main(command(data, tmp_path, "--ablations", "crop_185", *epochs)) == 0
    run = tmp_path / "ablations/crop_185-fold0-seed0"
    calibrate(run)
    score(run, "val", seed=0)
    args = command(data, tmp_path, "--ablations", next_one, *epochs)
    for more in ((), ("--again",)):
        assert cli.main([*args, *more]) == 2
        error = capsys.readouterr().err
        assert f"{run / 'calibration.json'}: ablations are compared without calibration" in error
    (run / "calibration.json").unlink()
    processes.calls.clear()
    assert cli.main(args) == 0
    assert run.name in processes.names("evaluate")
    tree = json.loads((tmp_path / "results/stanford_background.json").read_text())
    assert "crop_185" in [row["recipe"] for row in tree["ablations"]["runs"]]


def test_the_other_recipes_of_the_claim_may_be_calibrated(
    data: Path, tmp_path: Path, processes: Processes
) -> None:
    args = command(data, tmp_path, "--seeds", "1", "--train.epochs", "2")
    assert cli.main(args) == 0
    calibrate(tmp_path / "claim/fine_alone-fold0-seed0")
    score(tmp_path / "claim/fine_alone-fold0-seed0", "test", seed=0)
    assert cli.main(args) == 0


def test_the_figures_of_each_finished_run_are_printed(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(data, tmp_path, "--folds", "--train.epochs", "2")) == 0
    tree = json.loads((tmp_path / "results/stanford_background.json").read_text())
    figures = tree["folds"]["runs"][0]["figures"]["refine"]
    said = (
        "cascade-fold0-seed0: refine on the test split: pixel accuracy "
        f"{100 * figures['pixel_accuracy']:.2f} %, mean IoU {100 * figures['mean_iou']:.2f} %"
    )
    assert said in capsys.readouterr().out
    figures["pixel_accuracy"] = 0.1234  # those of the run are printed, not those of the page
    (tmp_path / "results/stanford_background.json").write_text(json.dumps(tree))
    assert cli.main(command(data, tmp_path, "--folds", "--train.epochs", "2")) == 0
    assert said in capsys.readouterr().out


def test_the_precision_is_chosen_once(
    data: Path, tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found = iter(["bfloat16"])
    monkeypatch.setattr(precision, "auto", lambda: next(found))
    args = command(data, tmp_path, "--folds", "--train.epochs", "2")
    args[args.index("--train.precision") + 1] = "auto"
    for folds in (["0"], ["0", "1"]):  # the second time perhaps on another machine
        assert cli.main([*args, "--folds", *folds]) == 0
    for fold in range(2):
        config = read_config(tmp_path / f"folds/cascade-fold{fold}-seed0/config.yaml")
        assert config.train.precision == "bfloat16"
    assert cli.main([*args, "--train.precision", "float32"]) == 2
    assert "was started with precision bfloat16, now float32" in capsys.readouterr().err


def test_results_are_not_replaced_by_those_of_fewer_runs(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ["--results", str(tmp_path / "results"), "--train.epochs", "2"]
    args = command(data, tmp_path / "one", "--folds", "0", "1", *results)
    assert cli.main(args) == 0
    before = (tmp_path / "results/stanford_background.json").read_bytes()
    processes.calls.clear()
    other = command(data, tmp_path / "other", "--folds", "0", "1", *results)
    assert cli.main(other) == 2
    assert "has 2 finished runs of 'folds', --out has 0" in capsys.readouterr().err
    assert processes.calls == []
    assert (tmp_path / "results/stanford_background.json").read_bytes() == before
    assert not (tmp_path / "other/folds").exists()
    processes.before = lambda _: (
        None if (tmp_path / "results/stanford_background.json").read_bytes() == before else 1 / 0
    )
    processes.fail_at = 2  # before any run is finished
    assert cli.main([*other[:-1], "2", "--folds", "0", "--again"]) == 2
    assert (tmp_path / "results/stanford_background.json").read_bytes() == before


def test_one_process_at_a_time(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    args = command(data, tmp_path, "--folds", "--train.epochs", "2")
    with locked_folder(tmp_path / "folds"):
        assert cli.main(args) == 2
    assert "another process reproduces this study: wait for it" in capsys.readouterr().err
    assert processes.calls == []
    assert cli.main(args) == 0


def test_a_scoring_is_recorded_before_it_begins(
    data: Path, tmp_path: Path, processes: Processes
) -> None:
    recorded = []

    def look(verb: str) -> None:
        path = tmp_path / "results/stanford_background.json"
        recorded.append((verb, path.is_file() and len(json.loads(path.read_text())["scored"])))

    processes.before = look
    assert cli.main(command(data, tmp_path, "--folds", "--train.epochs", "2")) == 0
    assert recorded == [("fit", 0), ("calibrate", 0), ("evaluate", 1)]


def test_a_changed_recipe_is_scored_again_only_on_request(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    results = ["--results", str(one / "results"), "--train.epochs", "2"]
    assert cli.main(command(data, one, "--folds", *results)) == 0
    processes.calls.clear()
    changed = command(data, other, "--folds", *results, "--model.dropout", "0.2")
    assert cli.main(changed) == 2
    error = capsys.readouterr().err
    assert "recipe 'cascade' was scored on the test split before it was changed" in error
    assert error.count("\n") == 1
    assert processes.calls == []
    assert not (other / "folds").exists()
    assert cli.main([*changed, "--again"]) == 0
    tree = json.loads((one / "results/stanford_background.json").read_text())
    assert tree["folds"]["runs"][0]["scorings"] == 2
    assert "| 2 | abc123 |" in (one / "results.md").read_text()


def test_a_recipe_scored_by_another_study_is_scored_again_only_on_request(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--results", str(tmp_path / "results"), "--train.epochs", "2"]
    assert cli.main(command(data, tmp_path / "one", "--seeds", "1", *options)) == 0
    processes.calls.clear()
    changed = command(data, tmp_path / "other", *options, "--model.dropout", "0.2")
    assert cli.main([*changed, "--folds", "1", "0"]) == 2
    assert "recipe 'cascade' was scored on the test split before it" in capsys.readouterr().err
    assert processes.calls == []
    assert cli.main([*changed, "--folds", "1"]) == 0  # a test split of other images
    capsys.readouterr()
    assert cli.main([*changed, "--folds", "0", "--again"]) == 0
    tree = json.loads((tmp_path / "results/stanford_background.json").read_text())
    assert {run["fold"]: run["scorings"] for run in tree["folds"]["runs"]} == {0: 2, 1: 1}


def test_what_another_process_has_scored_meanwhile_is_not_scored_or_replaced(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results/stanford_background.json"
    entry = {"study": "folds", "recipe": "cascade", "fold": 0, "digest": "1", "commit": "1"}
    others = {"data_set": "stanford_background", "scored": [entry]}

    def score_elsewhere(verb: str) -> None:
        if verb == "fit":
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(others))

    processes.before = score_elsewhere
    args = command(data, tmp_path, "--folds", "0", "--train.epochs", "2")
    assert cli.main(args) == 2
    assert "recipe 'cascade' was scored on the test split before it" in capsys.readouterr().err
    assert processes.names("evaluate") == []
    assert json.loads(path.read_text()) == others

    def replace_elsewhere(verb: str) -> None:
        if verb == "evaluate":
            tree = json.loads(path.read_text())
            tree["folds"]["runs"] *= 3
            path.write_text(json.dumps(tree))

    shutil.rmtree(path.parent)
    processes.before = lambda _: None
    assert cli.main(args) == 0
    processes.before = replace_elsewhere
    assert cli.main(command(data, tmp_path, "--folds", "0", "1", "--train.epochs", "2")) == 2
    assert "has 3 finished runs of 'folds', --out has 2" in capsys.readouterr().err


def test_a_finished_run_that_was_evaluated_otherwise_is_evaluated_again(
    data: Path, tmp_path: Path, processes: Processes
) -> None:
    args = command(data, tmp_path, "--folds", "0", "--train.epochs", "2")
    assert cli.main(args) == 0
    path = tmp_path / "folds/cascade-fold0-seed0/evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"wrapping": "--tta flip"}))
    processes.calls.clear()
    assert cli.main(args) == 0
    assert [verb for verb, _ in processes.calls] == ["calibrate", "evaluate"]


def test_what_cannot_be_written_or_scored_is_refused_before_training(
    data: Path, tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(timing, "measure", lambda *_: 1 / 0)
    options = ["--folds", "0", "--train.epochs", "2"]
    assert cli.main(command(data, tmp_path, *options)) == 0
    page, results = tmp_path / "results.md", tmp_path / "results/stanford_background.json"
    other = command(data, tmp_path / "other", "--folds", "--results", str(results.parent))
    processes.calls.clear()
    assert cli.main([*other, "--budget", "1"]) == 2  # before steps are timed
    assert "has 1 finished run of 'folds', --out has 0" in capsys.readouterr().err
    tree = json.loads(results.read_text())
    del tree["folds"]
    results.write_text(json.dumps(tree))
    assert cli.main([*other, "--budget", "1", "--model.dropout", "0.2"]) == 2
    assert "was scored on the test split before it was changed" in capsys.readouterr().err
    assert cli.main(command(data, tmp_path / "b", *options, "--data.val_share", "0")) == 2
    assert "is empty: data.val_share is 0: raise it" in capsys.readouterr().err
    more = command(data, tmp_path, "--folds", "1", "0", "--train.epochs", "2")
    results.write_text(json.dumps(tree | {"claim": {"runs": [{}]}}))
    assert cli.main(more) == 2
    assert "are damaged (KeyError" in capsys.readouterr().err
    results.write_text(json.dumps(tree))
    page.write_text(page.read_text().replace("<!-- /results -->", ""))
    assert cli.main(more) == 2
    assert "has no end: add the line '<!-- /results -->'" in capsys.readouterr().err
    assert processes.calls == []


def test_results_stay_while_runs_are_evaluated_again(
    data: Path, tmp_path: Path, processes: Processes
) -> None:
    names = ("crop_185", "wide_scale", "ohem")
    args = command(data, tmp_path, "--train.epochs", "2", "--ablations")
    assert cli.main([*args, *names]) == 0
    results = tmp_path / "results/stanford_background.json"
    before = results.read_bytes()

    def damage() -> None:
        for name in names[1:]:
            (tmp_path / f"ablations/{name}-fold0-seed0/evaluation.json").write_text("{")
        processes.calls.clear()

    damage()
    assert cli.main([*args, "crop_185"]) == 0  # evaluates the others again too
    assert results.read_bytes() == before
    assert processes.names("evaluate") == [f"{name}-fold0-seed0" for name in names[1:]]
    damage()
    processes.fail_at = 2
    assert cli.main([*args, *names]) == 2  # the first was evaluated, the second failed
    assert results.read_bytes() == before
    processes.fail_at = -1
    (tmp_path / "ablations/plan.json").unlink()
    assert cli.main([*args, *names]) == 0
    assert results.read_bytes() == before
    assert processes.names("evaluate") == [f"{name}-fold0-seed0" for name in (*names[1:], "ohem")]


def test_a_damaged_run_does_not_stop_the_others(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    args = command(data, tmp_path, "--ablations", "ohem", "--train.epochs", "2")
    assert cli.main(args) == 0
    (tmp_path / "ablations/cascade-fold0-seed0/config.yaml").unlink()
    (tmp_path / "ablations/ohem-fold0-seed0/evaluation.json").unlink()
    processes.calls.clear()
    assert cli.main(args) == 2
    assert "cascade-fold0-seed0" in capsys.readouterr().err
    assert processes.calls == [("evaluate", "ohem-fold0-seed0")]


@pytest.mark.parametrize("again", [[], ["--again"]])
def test_only_the_checkpoint_that_validation_chose_is_scored(
    again: list[str],
    data: Path,
    tmp_path: Path,
    processes: Processes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = command(data, tmp_path, "--folds", "0", "1", "--train.epochs", "2")
    assert cli.main(args) == 0
    results = tmp_path / "results/stanford_background.json"
    before = results.read_bytes()
    best = tmp_path / "folds/cascade-fold0-seed0/checkpoints/best.npz"
    best.unlink()
    processes.calls.clear()
    assert cli.main([*args, *again]) == 2
    assert f"{best}: no such file, but validation chose this checkpoint" in capsys.readouterr().err
    assert processes.calls == []
    assert results.read_bytes() == before


OF_A_RUN = (
    "environment.json",
    "data_digest.json",
    "classes.json",
    "calibration.json",
    "config.yaml",
    "evaluation.json",
    "images.npz",
    "checkpoints/best.npz",
    "checkpoints/last.npz",
    "../cascade-fold0-seed0.yaml",
)
"""Files of a run that its results need."""


@pytest.mark.parametrize("damage", [*itertools.product(OF_A_RUN, [None, "rubbish"])])
def test_a_damaged_file_of_a_finished_run_stops_no_other_run(
    damage: tuple[str, str | None],
    data: Path,
    tmp_path: Path,
    processes: Processes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not even if that run is not requested: its results stay, and it is named."""
    assert cli.main(command(data, tmp_path, "--folds", "0", "--train.epochs", "2")) == 0
    results = tmp_path / "results/stanford_background.json"
    run = tmp_path / "folds/cascade-fold0-seed0"
    stored = json.loads(results.read_text())["folds"]["runs"]
    file, content = damage
    path = run / file
    kept = path.read_bytes()
    path.unlink()
    if content is not None:  # else it is missing
        path.write_text(content)
    other = command(data, tmp_path, "--folds", "1", "--train.epochs", "2")
    code = cli.main(other)
    printed = capsys.readouterr().err
    assert processes.names("fit")[-1] == "cascade-fold1-seed0"
    found = json.loads(results.read_text())["folds"]["runs"]
    assert found[0]["figures"] == stored[0]["figures"]
    if code == 0:  # the results do not need the file
        assert len(found) == 2
    else:
        assert printed.count("\n") == 1
        assert run.name in printed
        assert " again" in printed
        assert "write it again" not in printed
    path.write_bytes(kept)
    processes.calls.clear()
    assert cli.main(other) == 0
    assert processes.calls == []
    assert len(json.loads(results.read_text())["folds"]["runs"]) == 2


def test_a_figure_that_is_missing_from_an_evaluation_stops_no_other_run(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    args = command(data, tmp_path, "--folds", "0", "--train.epochs", "2")
    assert cli.main(args) == 0
    path = tmp_path / "folds/cascade-fold0-seed0/evaluation.json"
    tree = json.loads(path.read_text())
    del tree["refine"]["mean_iou"]
    path.write_text(json.dumps(tree))
    assert cli.main(command(data, tmp_path, "--folds", "0", "1", "--train.epochs", "2")) == 2
    assert processes.names("fit")[-1] == "cascade-fold1-seed0"
    assert f"{path}: 'refine.mean_iou' is " in capsys.readouterr().err


def test_a_failed_run_and_unwritten_results_are_both_named(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(data, tmp_path, "--folds", "0", "--train.epochs", "2")) == 0
    path = tmp_path / "folds/cascade-fold0-seed0/environment.json"
    path.unlink()
    processes.calls.clear()
    processes.fail_at = 1
    assert cli.main(command(data, tmp_path, "--folds", "1", "0", "--train.epochs", "2")) == 2
    error = capsys.readouterr().err
    assert "1 of 2 runs failed (cascade-fold1-seed0)" in error
    assert str(path) in error


@pytest.mark.parametrize("file", ["images.npz", "evaluation.json"])
@pytest.mark.parametrize("study", ["--folds", "--ablations"])
def test_a_damaged_evaluation_is_repeated_on_the_split_of_the_study(
    study: str, file: str, data: Path, tmp_path: Path, processes: Processes
) -> None:
    names = ["0"] if study == "--folds" else ["crop_185"]
    args = command(data, tmp_path, study, *names, "--train.epochs", "2")
    assert cli.main(args) == 0
    results = tmp_path / "results/stanford_background.json"
    before = results.read_bytes()
    (tmp_path / study.removeprefix("--") / "cascade-fold0-seed0" / file).write_text("rubbish")
    processes.calls.clear()
    assert cli.main(args) == 0
    assert processes.names("evaluate") == ["cascade-fold0-seed0"]
    assert processes.names("fit") == []
    assert results.read_bytes() == before


def test_a_lost_configuration_of_a_study_is_written_again(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    args = command(data, tmp_path, "--folds", "0", "--train.epochs", "2")
    assert cli.main(args) == 0
    planned = tmp_path / "folds/cascade-fold0-seed0.yaml"
    content = planned.read_bytes()
    planned.unlink()
    processes.calls.clear()
    assert cli.main(args) == 0
    assert planned.read_bytes() == content
    own = tmp_path / "folds/cascade-fold0-seed0/config.yaml"
    own.unlink()
    assert cli.main(args) == 2
    assert f"{own}: no such file; it says what the run was" in capsys.readouterr().err
    assert processes.calls == []


@pytest.mark.parametrize(
    "name", ["results.md", "results/stanford_background.json", "folds/plan.json"]
)
def test_results_that_are_folders_are_refused_before_training(
    name: str, data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir(parents=True)
    assert cli.main(command(data, tmp_path, "--folds", "--train.epochs", "2")) == 2
    assert f"{tmp_path / name}: is a folder: move it away" in capsys.readouterr().err
    assert processes.calls == []


def test_results_of_another_version_are_named(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    args = command(data, tmp_path, "--folds", "--train.epochs", "2")
    assert cli.main(args) == 0
    path = tmp_path / "results/stanford_background.json"
    tree = json.loads(path.read_text())
    del tree["folds"]["runs"][0]["scoring_commits"]
    path.write_text(json.dumps(tree))
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ccfnet-tf: {path}: the results of ")
    assert "scoring_commits" in error


def test_an_ablation_that_cannot_be_made_is_named(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    args = command(data, tmp_path, "--train.epochs", "2", "--train.fine_loss_weight", "0")
    assert cli.main([*args, "--ablations"]) == 2
    error = capsys.readouterr().err
    assert "recipe 'hard_blend': train.fine_loss_pixels is hard" in error
    assert "or name the ablations to train, without it" in error
    assert processes.calls == []


def test_the_threshold_of_a_hard_blend_is_chosen_before_it_is_scored(
    data: Path, tmp_path: Path, processes: Processes
) -> None:
    names = ("hard_blend", "hard_blend_all_pixels")
    args = command(data, tmp_path, "--ablations", *names, "ohem", "--train.epochs", "2")
    assert cli.main(args) == 0
    assert processes.names("calibrate") == [f"{name}-fold0-seed0" for name in names]


def test_ablations_are_scored_on_the_validation_split(
    data: Path, tmp_path: Path, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--ablations", "crop_185", "enlarged_coarse")
    assert cli.main(command(data, tmp_path, *options, "--train.epochs", "2")) == 0
    assert "enlarged_coarse: left out, because it is the same as cascade" in capsys.readouterr().out
    assert processes.names("evaluate") == ["cascade-fold0-seed0", "crop_185-fold0-seed0"]
    assert processes.names("calibrate") == []
    tree = json.loads((tmp_path / "results/stanford_background.json").read_text())
    assert tree["scored"] == []
    assert tree["ablations"]["split"] == "val"


def test_a_budget_is_turned_into_epochs_once(
    data: Path, tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    measured = []

    def measure(*_: object) -> timing.Timing:
        measured.append(1)
        return timing.Timing(start_seconds=6, step_seconds=7, steps=4)

    monkeypatch.setattr(timing, "measure", measure)
    args = command(data, tmp_path, "--folds", "--budget", "1")
    for _ in range(2):
        assert cli.main(args) == 0
    assert measured == [1]
    assert cli.main(command(data, tmp_path, "--folds", "--budget", "2")) == 2
    assert "was started with --budget 1, now 2: use the original" in capsys.readouterr().err
    assert cli.main(command(data, tmp_path, "--folds")) == 2
    assert "was started with --budget 1, now none" in capsys.readouterr().err
    assert measured == [1]
    config = from_yaml((tmp_path / "folds/cascade-fold0-seed0.yaml").read_text(), source="file")
    assert config.train.epochs == 1
    assert cli.main(command(data, tmp_path / "new", "--folds", "--budget", "0.5")) == 2
    assert (
        "--budget 0.5: one epoch takes about 0.6 minutes on this machine" in capsys.readouterr().err
    )


def test_a_data_set_without_folds_has_fold_0(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = str(data / "lists" / "fold_0")
    assert cli.main(command(data, tmp_path, "--data.lists", lists, "--folds", "7")) == 2
    assert "--folds 7: the data set has no fold but 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--ablations", "oehm"], "--ablations oehm: expected"),
        (["--seeds", "0"], "--seeds 0: give a number from 1 to 100"),
        (["--budget", "-1"], "--budget -1: give minutes"),
        (["--budget", "nan"], "--budget nan: give minutes"),
        (["--budget", "5", "--train.epochs", "3"], "train.epochs is 3: --budget sets it"),
        (["--budget", "5", "--train.epochs=40"], "train.epochs is 40: --budget sets it"),
        (["--budget", "5", "--train", "{epochs: 40}"], "train.epochs is 40: --budget sets it"),
        (["--data", "{fold: 0}"], "data.fold is 0: --folds sets it for each run: remove it"),
        (["--train.best_by", "refine"], "train.best_by is refine: each recipe sets it"),
        (["--seed=0"], "seed is 0: --seeds sets it for each run: remove it"),
        (["--folds", "0", "--seeds", "2"], "--seeds has no effect with --folds"),
        (["--folds", "2"], "--folds 2: the data set has the folds 0 to 1"),
        (["--seed", "3"], "seed is 3: --seeds sets it for each run: remove it"),
        (["--data.fold", "1"], "data.fold is 1: --folds sets it for each run: remove it"),
        (["--data", "{fold: 1}"], "data.fold is 1: --folds sets it"),
        (["--train.best_by=fine"], "train.best_by is fine: each recipe sets it: remove it"),
        (["--train.epoch", "3"], "unknown key 'train.epoch'"),
        (["--results", "/"], "--results /: give a folder with a name"),
        (["--ablations", "--folds"], "not allowed with argument"),
        (["--config", "demo"], "unknown key 'config'"),
        (["--ablation", "no_ema"], "unknown key 'ablation'; did you mean '--ablations'?"),
        (["--zzz", "red"], "unknown key 'zzz'; see ccfnet-tf reproduce --help"),
        (["--train.batch", "64"], "train.batch is 64: the training split has"),
    ],
)
def test_invalid_options_are_refused_in_one_line(
    options: list[str],
    fault: str,
    data: Path,
    processes: Processes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(command(data, data / "out", *options)) == 2
    error = capsys.readouterr().err
    assert fault in error
    assert error.count("\n") == 1
    assert processes.calls == []
    assert not (data / "out").exists()


def test_widths_are_found_where_the_work_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(config: RunConfig, width: int, classes: int) -> Cost:
        backbone = 2.0 if config.model.coarse_scale == 1 else 2.5
        return Cost(backbone, 3.0 * width, 0.25 * width, 1e-2 * width**2 + 0.5 * width)

    monkeypatch.setattr(equal_work, "_cost", cost)
    base = base_config(Path("none"))
    for scale, backbone in ((1.0, 2.0), (0.5, 2.5)):
        found = equal_work.find(with_keys(base, {"model.coarse_scale": scale}), 3)
        cascade = backbone + 3.25 * 128 + 1e-2 * 128**2 + 0.5 * 128
        assert found.cascade_gmac == pytest.approx(cascade)
        works = [2.0 + 1e-2 * w**2 + 0.5 * w for w in range(found.channels - 1, found.channels + 2)]
        assert works[0] < cascade < works[2]
        assert found.gmac == pytest.approx(works[1])


def test_a_failed_count_of_the_work_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("data: {}\nbatch: 3\n")
    with pytest.raises(RunError, match=r"config\.yaml: the multiply-adds of its network could not"):
        equal_work.measure(tmp_path / "config.yaml", 8)
    error = capfd.readouterr().err
    assert "unknown key 'batch'" in error
    assert "Traceback" not in error


@pytest.mark.slow  # imports TensorFlow in a process
def test_the_precision_is_that_of_fit() -> None:
    from ccfnet_tf.training.distribution.devices import resolve_precision

    assert precision.auto() == resolve_precision("auto")


def test_a_precision_that_cannot_be_found_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RunError, match="precision of this machine could not be determined"):
        precision.auto()


@pytest.mark.slow
def test_the_work_of_the_wide_network_is_that_of_the_cascade(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(base_config(tmp_path)))
    found = equal_work.measure(tmp_path / "config.yaml", 8)
    assert found.channels > 128
    assert found.gmac == pytest.approx(found.cascade_gmac, rel=0.01)


@pytest.mark.slow
def test_a_killed_study_is_continued_by_the_same_command(data: Path, tmp_path: Path) -> None:
    args = command(data, tmp_path, "--folds", "0", "1", "--train.epochs", "3")
    full = [sys.executable, "-m", "ccfnet_tf", *args]
    process = subprocess.Popen(full, start_new_session=True)
    second = tmp_path / "folds" / "cascade-fold1-seed0"
    try:
        while not (second / "checkpoints" / "last.npz").is_file():  # after its first epoch
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = (tmp_path / "folds/cascade-fold0-seed0/evaluation.json").stat().st_mtime_ns
    plan = (tmp_path / "folds/plan.json").read_bytes()
    done = subprocess.run(full, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search("resuming after epoch [12] of 3", done.stdout)
    assert (tmp_path / "folds/cascade-fold0-seed0/evaluation.json").stat().st_mtime_ns == kept
    assert (tmp_path / "folds/plan.json").read_bytes() == plan
    tree = json.loads((tmp_path / "results/stanford_background.json").read_text())
    assert [each["steps"] for each in tree["folds"]["runs"]] == [12, 12]
    assert [each["fold"] for each in tree["scored"]] == [0, 1]
    page = (tmp_path / "results.md").read_text()
    assert "mean of 2" in page
    whole = command(data, tmp_path / "whole", "--folds", "1", "--train.epochs", "3")
    subprocess.run([sys.executable, "-m", "ccfnet_tf", *whole], check=True)
    other = json.loads((tmp_path / "whole/results/stanford_background.json").read_text())
    (uninterrupted,) = other["folds"]["runs"]
    assert uninterrupted["figures"] == tree["folds"]["runs"][1]["figures"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals that a parent has ended")
def test_training_is_saved_and_ends_when_only_the_study_is_killed(
    data: Path, tmp_path: Path
) -> None:
    args = command(data, tmp_path, "--folds", "--train.epochs", "200")
    full = [sys.executable, "-m", "ccfnet_tf", *args]
    last = tmp_path / "folds" / "cascade-fold0-seed0" / "checkpoints" / "last.npz"
    with subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as it:
        assert it.stdout is not None
        while not last.is_file():
            assert it.poll() is None
            time.sleep(0.05)
        it.kill()
        said = it.stdout.read()  # ends with the last process that has it open
    assert "saved; continue with the same command" in said
    assert 0 < read_epoch(last) < 200
