from __future__ import annotations

import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, TrainConfig, to_yaml
from ccfnet_tf.datasets.samples import fingerprint
from ccfnet_tf.errors import ConfigError, DataError, RunError
from ccfnet_tf.evaluation.shard_files import weights_digest
from ccfnet_tf.labels import Sample, Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runs.absolute_paths import resolved_paths
from ccfnet_tf.runs.calibration_file import calibration_text
from ccfnet_tf.runs.run_folder import read_run
from ccfnet_tf.runs.write_run_files import write_classes
from ccfnet_tf.training import crossval as crossval_module
from ccfnet_tf.training.crossval import _claim, _finished, crossval
from ccfnet_tf.training.data_digest import Row, write_digest
from tests.epoch_states import write_state


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Nine small images in a folder, and lists of three folds."""
    root = tmp_path / "set"
    rng = np.random.default_rng(0)
    for side in ("images", "masks"):
        (root / side).mkdir(parents=True)
    for i in range(9):
        mask = rng.integers(0, 2, (40, 44), np.uint8)
        Image.fromarray(rng.integers(0, 255, (40, 44, 3), np.uint8)).save(root / f"images/{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("a\nb\n")
    for fold in range(3):
        folder = tmp_path / "lists" / f"fold_{fold}"
        folder.mkdir(parents=True)
        test = range(3 * fold, 3 * fold + 3)
        (folder / "test.txt").write_text("".join(f"{i}\n" for i in test))
        (folder / "train.txt").write_text("".join(f"{i}\n" for i in range(9) if i not in test))
    return root


def config(root: Path, **data: object) -> RunConfig:
    return RunConfig(
        data=DataConfig(root=str(root), crop=33, val_share=0.0, **data),  # type: ignore[arg-type]
        model=ModelConfig(backbone="mobilenet_v2", backbone_weights="none", head_channels=4),
        train=TrainConfig(epochs=1, batch=2, precision="float32", strategy="none"),
    )


def finished(out: Path, fold: int, accuracy: float, *, split: str = "test") -> Path:
    """Writes the files that `fit` and `evaluate` write in a run of one epoch."""
    run = out / f"fold_{fold}"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("best", "last"):
        write_state(run / "checkpoints" / f"{name}.npz", 1)
    (run / "config.yaml").write_text("data: {root: set}\n")
    write_classes(run, Taxonomy(("a", "b"), ((0, 0, 0), (255, 255, 255))))
    (run / "metrics.csv").write_text("epoch\n1\n")
    # As older versions wrote it: `mean_iou` was over the classes of the predictions too.
    figures = {"pixel_accuracy": accuracy, "class_accuracy": 0.5}
    figures |= {"mean_iou": 0.25, "mean_iou_present": accuracy / 2}
    heads = dict.fromkeys(("coarse", "refine"), figures)
    heads["fine"] = figures | {"mean_iou_present": None}
    scores = {"coarse": {"difficulty": {"auroc": 0.75}}}
    weights = weights_digest(read_run(run), UNCALIBRATED)
    tree = heads | {"scores": scores, "split": split, "weights": weights}
    (run / "images.npz").touch()
    (run / "evaluation.json").write_text(json.dumps(tree))
    return run


def test_folds_with_different_data_are_refused(plain: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", config(plain, lists=str(tmp_path / "lists"))
    for fold, accuracy in enumerate((0.8, 0.9, 0.85)):
        run = finished(out, fold, accuracy)
        rows = [Row(str(i), "1", "2") for i in range(9) if i // 3 != fold]
        write_digest(run, {"train": rows, "val": []})
    console = Console(quiet=True)
    assert _resumed(out, settings, console)["mean"]["refine.pixel_accuracy"] == pytest.approx(0.85)
    rows = [Row(str(i), "1", "3" if i < 2 else "2") for i in range(6)]
    write_digest(out / "fold_2", {"train": rows, "val": []})
    with pytest.raises(RunError, match=r"fold_2: the image or label of '0' \(and 1 more\) differs"):
        _resumed(out, settings, console)


def test_initial_weights_that_have_seen_a_test_image_are_refused(
    plain: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    image = fingerprint(Sample("", str(plain / "images/4.png"), ""))
    write_digest(first, {"train": [Row("x", image, "")], "val": []})
    settings = config(plain, lists=str(tmp_path / "lists"))
    settings = replace(settings, model=replace(settings.model, init_from=str(first)))
    with pytest.raises(ConfigError, match="was trained on 1 of the 3 test images of fold 1"):
        crossval(settings, tmp_path / "out", resume=False, console=Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_mean_and_deviation_of_finished_folds(plain: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    out, settings = tmp_path / "out", config(plain, lists=str(tmp_path / "lists"))
    for fold, accuracy in enumerate((0.8, 0.9, 0.85)):
        finished(out, fold, accuracy)
    result = _resumed(out, settings, console)
    assert result["mean"]["refine.pixel_accuracy"] == pytest.approx(0.85)
    wanted = statistics.stdev((0.8, 0.9, 0.85))
    assert result["deviation"]["refine.pixel_accuracy"] == pytest.approx(wanted)
    assert result["mean"]["fine.mean_iou"] is None
    assert result["mean"]["refine.mean_iou"] == pytest.approx(0.425)
    assert json.loads((out / "crossval.json").read_text()) == result
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "refine pixel accuracy" in shown
    assert "fold 1: refine: pixel accuracy 90.00 %, mean IoU 45.00 %\n" in shown
    assert max(map(len, shown.splitlines())) <= 80


def other_weights(run: Path) -> None:
    write_state(run / "checkpoints" / "best.npz", 1, variable=1.0)


def calibrated_since(run: Path) -> None:
    text = calibration_text(run / "checkpoints" / "best.npz", Calibration((2.0,)), {})
    (run / "calibration.json").write_text(text)


def calibrated_by_an_older_version(run: Path) -> None:
    calibrated_since(run)
    tree = json.loads((run / "calibration.json").read_text())
    del tree["kernels"]
    (run / "calibration.json").write_text(json.dumps(tree))
    (run / "config.yaml").write_text("data: {root: set}\ntrain: {precision: bfloat16}\n")


def other_part(run: Path) -> None:
    text = (run / "evaluation.json").read_text()
    (run / "evaluation.json").write_text(text.replace('"test"', '"val"'))


def half_trained(run: Path) -> None:
    """As after a kill between the row of the last epoch and its checkpoint."""
    write_state(run / "checkpoints" / "last.npz", 0)


@pytest.mark.parametrize(
    "change",
    [
        other_weights,
        calibrated_since,
        calibrated_by_an_older_version,
        other_part,
        half_trained,
    ],
)
def test_a_fold_with_outdated_files_is_not_finished(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    called: list[tuple[str, str]] = []

    def stop(arguments: list[str], *, name: str, resume: str) -> None:
        called.append((name, arguments[0]))
        raise RunError("stopped")

    monkeypatch.setattr(crossval_module, "run_command", stop)
    out, settings = tmp_path / "out", config(plain, lists=str(tmp_path / "lists"))
    for fold in range(3):
        finished(out, fold, 0.8)
    change(out / "fold_1")
    with pytest.raises(RunError, match="stopped"):
        _resumed(out, settings, Console(quiet=True))
    assert called == [("fold 1", "fit")]


def test_a_fold_that_fails_is_named(plain: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", config(plain, lists=str(tmp_path / "lists"))
    for fold in range(3):
        finished(out, fold, 0.8)
    half_trained(out / "fold_1")
    # It resumes the fold, whose checkpoint is fake.
    with pytest.raises(RunError, match="fold 1: ccfnet-tf fit ended with exit code 2"):
        _resumed(out, settings, Console(quiet=True))


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"split": "test"}', "[" * 100_000])
def test_a_damaged_evaluation_is_repeated(tmp_path: Path, text: str) -> None:
    run = finished(tmp_path, 0, 0.8)
    assert _finished(run, 1, calibrated=False)
    (run / "evaluation.json").write_text(text)
    assert not _finished(run, 1, calibrated=False)


def test_only_the_checkpoint_that_validation_chose_is_scored(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(crossval_module, "_fit", lambda *_: None)  # all epochs are trained
    monkeypatch.setattr(crossval_module, "_call", lambda arguments, _: calls.append(arguments))
    settings = config(plain, lists=str(tmp_path / "lists"))
    settings = replace(settings, data=replace(settings.data, val_share=0.5))
    out = tmp_path / "out"
    (finished(out, 0, 0.8) / "checkpoints/best.npz").unlink()
    with pytest.raises(RunError, match=r"fold_0/checkpoints/best\.npz: no such file, but valid"):
        _resumed(out, settings, Console(quiet=True))
    assert calls == []


def test_a_fold_with_a_validation_split_is_calibrated(tmp_path: Path) -> None:
    assert not _finished(finished(tmp_path, 0, 0.8), 1, calibrated=True)


def test_an_evaluation_of_an_older_version_is_repeated(tmp_path: Path) -> None:
    run = finished(tmp_path, 0, 0.5)
    tree = json.loads((run / "evaluation.json").read_text())
    del tree["scores"]
    tree["difficulty"] = {"auroc": 0.75}  # that of attention
    (run / "evaluation.json").write_text(json.dumps(tree))
    assert not _finished(run, 1, calibrated=False)


@pytest.mark.parametrize("value", ["../../x", float("nan"), 1e300, 10**400, -1, [0.5], True])
@pytest.mark.parametrize("key", ["fine", "mean_iou_present"])
def test_an_evaluation_with_invalid_metrics_is_repeated(
    tmp_path: Path, key: str, value: object
) -> None:
    run = finished(tmp_path, 0, 0.8)
    tree = json.loads((run / "evaluation.json").read_text())
    (tree if key == "fine" else tree["coarse"])[key] = value
    (run / "evaluation.json").write_text(json.dumps(tree))
    assert not _finished(run, 1, calibrated=False)


def _resumed(out: Path, settings: RunConfig, console: Console) -> dict:  # type: ignore[type-arg]
    (out / "crossval.yaml").write_text(to_yaml(resolved_paths(settings)))
    return crossval(settings, out, resume=True, console=console)


def test_a_fold_with_a_single_class_is_reported(plain: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", config(plain, lists=str(tmp_path / "lists"))
    for fold in range(3):
        run = finished(out, fold, 1.0)
        rows = [Row(str(i), "1", "2") for i in range(9) if i // 3 != fold]
        write_digest(run, {"train": rows, "val": []})
    tree = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps(tree | {"warning": "The labels contain 'a'"}))
    console = Console(file=io.StringIO(), width=80)
    _resumed(out, settings, console)
    assert "fold 2: The labels contain 'a'" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_fold_without_a_class_is_refused_before_any_is_trained(
    plain: Path, tmp_path: Path
) -> None:
    for i in range(3, 9):  # class b is in the test part of fold 0 alone
        mask = np.zeros((40, 44), np.uint8)
        Image.fromarray(mask).save(plain / "masks" / f"{i}.png")
    settings = config(plain, lists=str(tmp_path / "lists"))
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"fold 0: .*: class 'b' occurs nowhere in the training"):
        crossval(settings, out, resume=False, console=Console(quiet=True))
    assert not out.exists()


def test_a_set_without_folds(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no folds: create them with ccfnet-tf data split"):
        crossval(config(plain), tmp_path / "out", resume=False, console=Console(quiet=True))


def test_other_runs_in_the_folder_are_refused(plain: Path, tmp_path: Path) -> None:
    settings = config(plain, lists=str(tmp_path / "lists"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "crossval.yaml").write_text("data: {}\n")
    with pytest.raises(RunError, match="started with another configuration"):
        crossval(settings, out, resume=True, console=Console(quiet=True))
    with pytest.raises(RunError, match="continue with --resume, or choose another --out"):
        crossval(settings, out, resume=False, console=Console(quiet=True))


def test_the_configuration_of_an_older_version_is_the_same(plain: Path, tmp_path: Path) -> None:
    settings = resolved_paths(config(plain, lists=str(tmp_path / "lists")))
    lines = to_yaml(settings).splitlines(keepends=True)
    older = [line for line in lines if "hard_pixel_weight" not in line]
    assert len(older) == len(lines) - 1
    out = tmp_path / "out"
    out.mkdir()
    (out / "crossval.yaml").write_text("".join(older))
    _claim(settings, out, resume=True)
    with pytest.raises(RunError, match="started with another configuration"):
        _claim(replace(settings, seed=settings.seed + 1), out, resume=True)


@pytest.mark.slow
def test_every_fold_is_trained_and_tested_and_a_killed_one_is_resumed(
    plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "ccfnet_tf", "crossval", "--config", "folder", "--out", str(out)),
        *("--data.root", str(plain), "--data.lists", str(tmp_path / "lists"), "--data.crop", "33"),
        *("--data.val_share", "0.4", "--model.backbone", "mobilenet_v2", "--train.batch", "2"),
        *("--model.backbone_weights", "none", "--model.head_channels", "4"),
        *("--train.epochs", "1", "--train.strategy", "none"),
    ]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        while not (out / "fold_1" / "config.yaml").is_file():
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = (out / "fold_0" / "evaluation.json").stat().st_mtime_ns
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "fold_0" / "evaluation.json").stat().st_mtime_ns == kept
    tree = json.loads((out / "crossval.json").read_text())
    assert len(tree["folds"]) == 3
    tests = [json.loads((out / f"fold_{k}/evaluation.json").read_text()) for k in range(3)]
    assert [t["pictures"] for t in tests] == [3, 3, 3]
    for fold in range(3):  # each on the validation split of its own
        measured = json.loads((out / f"fold_{fold}" / "calibration.json").read_text())["measured"]
        assert (measured["split"], measured["images"]) == ("val", 2)
    assert "3 folds, test splits" in done.stdout


def test_several_workers_are_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"index": 0}}))
    auto = replace(config(plain), train=TrainConfig(batch=2))
    with pytest.raises(ConfigError, match="on one machine, but the environment names several"):
        crossval(auto, tmp_path / "out", resume=False, console=Console(quiet=True))
