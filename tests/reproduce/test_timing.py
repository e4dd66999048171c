"""How long a study still takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ccfnet_tf.reproduce.plan import Timing, config_of
from ccfnet_tf.reproduce.run import say_run
from ccfnet_tf.reproduce.timing import minutes_left
from tests.epoch_states import write_state
from tests.reproduce.conftest import EPOCHS, base_config, plan_of, train


def test_an_epoch_takes_as_long_as_those_of_its_recipe(tmp_path: Path) -> None:
    plan, configs = plan_of(base_config(tmp_path), seeds=2)
    cascade, coarse = plan.runs[:2]
    assert (cascade.recipe, coarse.recipe) == ("cascade", "coarse_alone")
    assert minutes_left(plan, plan.runs, tmp_path) is None  # nothing was trained
    train(tmp_path / cascade.name, config_of(cascade, configs["cascade"]))  # 90 s per epoch
    assert minutes_left(plan, plan.runs, tmp_path) == 7 * EPOCHS * 1.5
    train(tmp_path / coarse.name, config_of(coarse, configs["coarse_alone"]))
    metrics = tmp_path / coarse.name / "metrics.csv"
    metrics.write_text(metrics.read_text().replace(",90,", ",30,"))
    # Of the next seed, the cascade takes 90 s, coarse alone 30 s, the others 60 s, as all do.
    assert minutes_left(plan, plan.runs, tmp_path) == EPOCHS * (1.5 + 0.5 + 4 * 1.0)
    assert minutes_left(plan, (cascade,), tmp_path) == 0.0


def test_before_the_first_epoch_the_timed_steps_count(tmp_path: Path) -> None:
    plan, configs = plan_of(base_config(tmp_path), seeds=1)
    timed = replace(plan, timing=Timing(start_seconds=20.0, step_seconds=1.5, steps=80))
    assert minutes_left(timed, plan.runs, tmp_path) == 4 * EPOCHS * 2.0
    train(tmp_path / plan.runs[0].name, config_of(plan.runs[0], configs["cascade"]))
    assert minutes_left(timed, plan.runs, tmp_path) == 3 * EPOCHS * 1.5


def test_finished_epochs_of_an_interrupted_run_do_not_count(tmp_path: Path) -> None:
    plan, configs = plan_of(base_config(tmp_path), seeds=1)
    run = plan.runs[0]
    train(tmp_path / run.name, config_of(run, configs["cascade"]))
    write_state(tmp_path / run.name / "checkpoints" / "last.npz", 1)
    assert minutes_left(plan, (run,), tmp_path) == 1.5


def test_the_end_of_an_interrupted_epoch_does_not_make_the_others_shorter(tmp_path: Path) -> None:
    plan, configs = plan_of(base_config(tmp_path), seeds=1)
    run = plan.runs[0]
    train(tmp_path / run.name, config_of(run, configs["cascade"]))
    metrics = tmp_path / run.name / "metrics.csv"
    seconds = (150.0, 60.0, 1.0, 60.0, 60.0)  # the third was resumed at its last step
    rows = [f"{epoch},{each}\n" for epoch, each in enumerate(seconds, start=1)]
    metrics.write_text("epoch,seconds\n" + "".join(rows))
    assert minutes_left(plan, plan.runs[1:2], tmp_path) == EPOCHS * 1.0


def test_a_file_that_cannot_be_read_gives_no_estimate(tmp_path: Path) -> None:
    plan, _ = plan_of(base_config(tmp_path), seeds=1)
    metrics = tmp_path / plan.runs[0].name / "metrics.csv"
    metrics.parent.mkdir()
    metrics.symlink_to("/proc/self/mem")  # reading it fails, for root too
    with pytest.raises(OSError, match="Input/output error"):
        metrics.read_bytes()
    assert minutes_left(plan, plan.runs, tmp_path) is None


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "epoch\n1\n",
        "epoch,seconds\n1,fast\n",
        "epoch,seconds\n1,nan\n",
        "epoch,seconds\n1,inf\n",
    ],
)
def test_damaged_metrics_give_no_estimate(tmp_path: Path, damage: str) -> None:
    plan, configs = plan_of(base_config(tmp_path), seeds=1)
    run = plan.runs[0]
    train(tmp_path / run.name, config_of(run, configs["cascade"]))
    (tmp_path / run.name / "metrics.csv").write_text(damage)
    assert minutes_left(plan, plan.runs, tmp_path) is None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ("1", "a minute"),
        ("14", "a minute"),
        ("15", "2 minutes"),
        ("600", "60 minutes"),
        ("1200", "2.0 hours"),
    ],
)
def test_long_durations_are_in_hours(tmp_path: Path, seconds: str, expected: str) -> None:
    plan, configs = plan_of(base_config(tmp_path), seeds=1)
    first, second, *_ = plan.runs
    train(tmp_path / first.name, config_of(first, configs["cascade"]))
    metrics = tmp_path / first.name / "metrics.csv"
    metrics.write_text(metrics.read_text().replace(",90,", f",{seconds},"))
    console = Console(width=300)
    with console.capture() as captured:
        say_run(plan, second, plan.runs, tmp_path, console)
    assert f": 2 epochs; about {expected} of training left in all runs" in captured.get()
