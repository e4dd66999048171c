"""Checks of `fit` before training; tests/test_end_to_end.py tests training itself."""

from __future__ import annotations

import errno
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, TrainConfig, to_yaml
from ccfnet_tf.errors import ConfigError, ResourceError, RunError
from ccfnet_tf.runs.checkpoint_file import write_arrays
from ccfnet_tf.runs.run_folder import read_config
from ccfnet_tf.training import fit as module
from ccfnet_tf.training.checkpoint import Progress
from ccfnet_tf.training.claim_run_folder import keep_files, open_run
from ccfnet_tf.training.data_digest import Row, write_digest

CONFIG = RunConfig(
    data=DataConfig(format="scenes", scenes=10, scene_size=(32, 32), crop=33),
    model=ModelConfig(backbone="mobilenet_v2", backbone_weights="none", head_channels=4),
    train=TrainConfig(epochs=3, batch=2, precision="float32", strategy="none"),
)


class ReadsDataError(Exception):
    """Raised in place of reading all images."""


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends `fit` before it reads the data."""

    def stop(config: RunConfig, console: Console) -> None:
        raise ReadsDataError

    monkeypatch.setattr(module, "check_data", stop)


def begun(run: Path, *, epochs: int, checkpoints: tuple[str, ...] = ()) -> Path:
    """Writes a run folder with rows for `epochs` epochs and empty checkpoints."""
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(CONFIG))
    (run / "classes.json").write_text(json.dumps({"names": ["a"], "palette": [[0, 0, 0]]}))
    rows = "".join(f"{epoch},0.5\n" for epoch in range(1, epochs + 1))
    (run / "metrics.csv").write_text(f"epoch,loss\n{rows}")
    for name in checkpoints:
        (run / "checkpoints" / f"{name}.npz").touch()
    return run


def start(run: Path, config: RunConfig = CONFIG, *, resume: bool = False) -> str:
    """Runs `fit` until it reads the data; returns its output."""
    console = Console(file=io.StringIO(), width=400)
    with pytest.raises(ReadsDataError):
        module.fit(config, run, resume=resume, console=console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def refusal(
    run: Path, config: RunConfig = CONFIG, *, resume: bool = False, config_given: bool = False
) -> str:
    with pytest.raises((ConfigError, RunError)) as caught:
        module.fit(
            config, run, resume=resume, console=Console(quiet=True), config_given=config_given
        )
    return str(caught.value)


def with_model(**keys: str) -> RunConfig:
    return replace(CONFIG, model=replace(CONFIG.model, **keys))  # type: ignore[arg-type]


def test_a_run_that_lost_its_checkpoints_is_not_restarted(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", epochs=2)
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    assert refusal(run, resume=True) == (
        f"{run}/checkpoints/last.npz: missing, so the run cannot be resumed, and there is "
        "no previous.npz or best.npz in the same folder: start another run with --out NEW"
    )
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


@pytest.mark.parametrize("left", ["previous", "best"])
def test_a_run_that_lost_its_last_checkpoint_is_resumed_from_another(
    left: str, tmp_path: Path
) -> None:
    run = begun(tmp_path / "run", epochs=2, checkpoints=(left,))
    assert start(run, resume=True) == ""  # no message about a restart


def test_a_run_with_best_weights_but_without_rows_is_not_restarted(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", epochs=0)
    for epoch, begins_anew in ((1, True), (2, False)):  # epoch 1: killed before the first save
        write_arrays(
            run / "checkpoints" / "best.npz",
            {
                "state": np.array(
                    json.dumps({**vars(Progress()), "epoch": epoch, "step": 4 * epoch})
                )
            },
        )
        assert ("starting from epoch 1" in start(run, resume=True)) is begins_anew


def test_a_run_killed_before_its_first_save_is_restarted(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", epochs=5)
    seldom = replace(CONFIG, train=replace(CONFIG.train, checkpoint_every="5 epochs"))
    assert "missing, so the run cannot be resumed" in refusal(run, seldom, resume=True)
    (run / "config.yaml").write_text(to_yaml(seldom))
    assert "starting from epoch 1" in start(run, seldom, resume=True)


def test_the_same_command_starts_and_resumes_a_run(tmp_path: Path) -> None:
    assert "no run to resume" in refusal(tmp_path / "run", resume=True)
    console = Console(file=io.StringIO(), width=400)
    with pytest.raises(ReadsDataError):
        module.fit(CONFIG, tmp_path / "run", resume=True, console=console, config_given=True)
    assert "starting from epoch 1" in console.file.getvalue()  # type: ignore[attr-defined]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    assert "no run to resume" in refusal(other, resume=True, config_given=True)


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_killed_in_its_first_epoch_is_restarted(tmp_path: Path, epochs: int) -> None:
    run = begun(tmp_path / "run", epochs=epochs)
    said = start(run, resume=True)
    assert said.startswith(f"{run}: no checkpoint yet: starting from epoch 1\n")


def test_a_run_killed_before_its_configuration_was_written_is_restarted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    open_run(run, resume=False)
    (run / "lists").mkdir()
    console = Console(file=io.StringIO(), width=400)
    with pytest.raises(ReadsDataError):
        module.fit(CONFIG, run, resume=True, console=console, config_given=True)
    assert "starting from epoch 1" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_new_run_does_not_mention_checkpoints(tmp_path: Path) -> None:
    assert start(tmp_path / "run") == ""


@pytest.mark.parametrize("given", [True, False])
def test_a_change_suggests_to_omit_config_if_it_was_given(tmp_path: Path, given: bool) -> None:
    run = begun(tmp_path / "run", epochs=2, checkpoints=("best", "last"))
    other = replace(CONFIG, train=replace(CONFIG.train, epochs=9))
    text = refusal(run, other, resume=True, config_given=given)
    assert "train.epochs is 9 but" in text
    assert text.endswith(
        "(omit --config: a resumed run uses its own configuration)"
        if given
        else f"use a new --out with --model.init_from {run}"
    )


def test_the_weights_file_is_checked_before_the_data(tmp_path: Path) -> None:
    text = refusal(tmp_path / "run", with_model(backbone_weights=str(tmp_path / "x.h5")))
    assert f"{tmp_path / 'x.h5'} does not exist" in text
    (tmp_path / "x.h5").touch()
    assert start(tmp_path / "run", with_model(backbone_weights=str(tmp_path / "x.h5"))) == ""


def test_the_run_to_fine_tune_is_checked_before_the_data(tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    text = refusal(tmp_path / "run", with_model(init_from=str(tuned)))
    assert f"model.init_from: {tuned}: no such folder" in text
    begun(tuned, epochs=0)
    text = refusal(tmp_path / "run", with_model(init_from=str(tuned)))
    assert text.startswith("model.init_from: ")
    assert "no checkpoint yet" in text
    (tuned / "checkpoints" / "last.npz").touch()
    config = with_model(init_from=str(tuned), backbone="resnet50")
    assert "its backbone is mobilenet_v2" in refusal(tmp_path / "run", config)
    said = start(tmp_path / "run", with_model(init_from=str(tuned)))
    assert said.startswith(f"warning: model.init_from {tuned}: no readable data_digest.json: ")
    assert said.count("\n") == 1
    write_digest(tuned, {"train": [Row("0", "1", "2")], "val": []})
    assert start(tmp_path / "run", with_model(init_from=str(tuned))) == ""
    (tuned / "config.yaml").write_text(
        to_yaml(replace(CONFIG, data=replace(CONFIG.data, format="shards", root="/shards")))
    )
    said = start(tmp_path / "run", with_model(init_from=str(tuned)))
    assert said.startswith(f"warning: model.init_from {tuned}: images in shards: ")


def test_a_resumed_run_does_not_need_its_initial_weights(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", epochs=2, checkpoints=("best", "last"))
    config = with_model(init_from=str(tmp_path / "gone"))
    (run / "config.yaml").write_text(to_yaml(config))
    assert start(run, config, resume=True) == ""


def test_frozen_batch_norm_of_a_random_backbone_raises_a_warning(tmp_path: Path) -> None:
    frozen = replace(CONFIG, train=replace(CONFIG.train, batch_norm="frozen"))
    said = start(tmp_path / "run", frozen)
    assert said.startswith(
        "warning: train.batch_norm is frozen and the backbone is randomly initialised"
    )
    assert said.endswith("add --train.batch_norm synchronised\n")
    assert said.count("\n") == 1
    trained = replace(frozen, model=replace(frozen.model, backbone_weights="imagenet"))
    assert start(tmp_path / "run", trained) == ""
    run = begun(tmp_path / "begun", epochs=2, checkpoints=("last",))
    (run / "config.yaml").write_text(to_yaml(frozen))
    assert start(run, frozen, resume=True) == ""


def test_a_full_disk_is_reported_without_promising_a_checkpoint(tmp_path: Path) -> None:
    import tensorflow as tf

    text = f"{tmp_path}: {module.os.strerror(errno.ENOSPC)}"
    with (
        pytest.raises(
            ResourceError, match="no checkpoint was damaged: free disk space and continue"
        ),
        module._resource_errors(CONFIG, tmp_path),
    ):
        raise tf.errors.ResourceExhaustedError(None, None, text)


def test_lists_and_label_map_are_kept_in_the_run(tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    for fold in range(2):
        (lists / f"fold_{fold}").mkdir(parents=True)
        (lists / f"fold_{fold}" / "train.txt").write_text(f"{fold}\n")
    (lists / "near_duplicates.txt").write_text("0\t1\n")
    (tmp_path / "map.yaml").write_text("x: [a]\n")
    data = DataConfig(lists=str(lists), label_map=str(tmp_path / "map.yaml"), fold=1)
    run = tmp_path / "run"
    kept = keep_files(data, run)
    assert (kept.lists, kept.label_map) == (str(run / "lists"), str(run / "label_map.yaml"))
    assert sorted(p.relative_to(run).as_posix() for p in run.rglob("*.*")) == [
        "label_map.yaml",
        "lists/fold_1/train.txt",
        "lists/near_duplicates.txt",
    ]
    assert keep_files(kept, run) == kept  # a restarted run has its copies already


def test_a_moved_run_finds_its_own_lists(tmp_path: Path) -> None:
    run = begun(tmp_path / "old", epochs=1, checkpoints=("last",))
    (run / "lists").mkdir()
    (run / "lists" / "train.txt").write_text("a\n")
    mine = replace(CONFIG, data=replace(CONFIG.data, lists=str(run / "lists")))
    (run / "config.yaml").write_text(to_yaml(mine))
    moved = run.rename(tmp_path / "new")
    assert read_config(moved / "config.yaml").data.lists == str(moved / "lists")
    start(moved, mine, resume=True)
    other = replace(CONFIG, data=replace(CONFIG.data, lists=str(tmp_path / "others")))
    assert "data.lists is" in refusal(moved, other, resume=True)
