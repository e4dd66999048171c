"""Progress within an epoch, where no bar can be shown."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from ccfnet_tf.io.console import new_console
from ccfnet_tf.io.quiet_flag import QUIET
from ccfnet_tf.training.callbacks import progress_bar
from ccfnet_tf.training.callbacks.progress_bar import ProgressBar

LOGS = {
    "loss": 1.5,
    "refine_accuracy": 0.3,
    "fine_accuracy": 0.8,
    "refine_mean_iou": 0.2,
    "coarse_loss": 0.5,
    "attention_loss": 0.25,
    "refine_loss": 0.75,
}


def epoch(
    monkeypatch: pytest.MonkeyPatch,
    console: Console,
    *,
    steps: int,
    seconds: float,
    head: str = "refine",
    done: int = 0,
) -> list[str]:
    """Returns the lines printed in an epoch whose first step takes 100 s longer than the others.

    Of its steps, `done` were trained before the run was resumed.
    """
    now = 0.0
    monkeypatch.setattr(progress_bar, "time", SimpleNamespace(monotonic=lambda: now))
    if console.file is sys.stdout:
        console.file = io.StringIO()
    bar = ProgressBar(console, 3, steps, head)
    bar.set_params({"steps": steps - done})
    bar.on_epoch_begin(1)
    for step in range(steps - done):
        now += seconds + (100.0 if step == 0 else 0.0)
        bar.on_train_batch_end(step, LOGS)
    bar.on_epoch_end(1)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_log_has_a_line_after_each_tenth_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = epoch(monkeypatch, new_console(), steps=50, seconds=60.0)
    assert [line.split("  ")[1] for line in lines] == [f"step {n}/50" for n in range(5, 50, 5)]
    assert lines[0] == (
        "epoch 2/3  step 5/50  45 min left of the epoch  loss 1.500 accuracy 30.0 % "
        "mean IoU 20.0 % (losses: coarse 0.500 attention 0.250 refine 0.750)"
    )
    assert "  5 min left of the epoch  " in lines[-1]


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, [30]), (1.0, [30, 90, 150, 210, 270])])
def test_a_log_has_at_most_one_line_per_minute(
    monkeypatch: pytest.MonkeyPatch, seconds: float, expected: list[int]
) -> None:
    lines = epoch(monkeypatch, new_console(), steps=300, seconds=seconds)
    assert [int(line.split("step ")[1].split("/")[0]) for line in lines] == expected
    assert ("  <1 min left of the epoch  " in lines[-1]) == (seconds * (300 - expected[-1]) < 60)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_short_epochs_have_a_line_for_each_step_but_the_last(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    lines = epoch(monkeypatch, new_console(), steps=steps, seconds=61.0)
    assert len(lines) == steps - 1
    assert all("min left" in line for line in lines[1:])
    assert "min left" not in "".join(lines[:1])  # after one step, which traces the network


def test_the_figures_are_of_the_head_that_selects_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = epoch(monkeypatch, new_console(), steps=20, seconds=60.0, head="fine")
    assert lines[0].endswith("of the epoch  loss 1.500 accuracy 80.0 %")


def test_quiet_prints_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    token = QUIET.set(True)
    try:
        assert epoch(monkeypatch, new_console(), steps=20, seconds=60.0) == []
    finally:
        QUIET.reset(token)


def test_a_resumed_epoch_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = epoch(monkeypatch, new_console(), steps=50, seconds=60.0, done=33)
    assert [line.split("  ")[1] for line in lines] == ["step 35/50", "step 40/50", "step 45/50"]
    assert "  15 min left of the epoch  " in lines[0]


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("forced", [False, True])
def test_a_terminal_has_a_bar_instead(monkeypatch: pytest.MonkeyPatch, forced: bool) -> None:
    monkeypatch.setenv("TERM", "xterm")
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    output = "\n".join(
        epoch(monkeypatch, Console(file=Terminal(), width=200), steps=20, seconds=60.0, done=3)
    )
    assert "20/20" in output
    assert "left of the epoch" not in output


@pytest.mark.parametrize(
    ("file", "variables"),
    [
        (io.StringIO, {"FORCE_COLOR": "1", "TERM": "xterm"}),
        (Terminal, {"TERM": "dumb"}),
        (Terminal, {"TTY_COMPATIBLE": "0", "TERM": "xterm"}),
    ],
)
def test_what_cannot_show_a_bar_has_lines(
    monkeypatch: pytest.MonkeyPatch, file: type[io.StringIO], variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    lines = epoch(
        monkeypatch,
        Console(file=file(), width=200, highlight=False, soft_wrap=True),
        steps=20,
        seconds=60.0,
    )
    assert [line[:9] for line in lines] == ["epoch 2/3"] * 9
