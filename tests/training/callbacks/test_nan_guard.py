from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from ccfnet_tf.errors import NotFiniteError
from ccfnet_tf.training.callbacks.nan_guard import StopWhenNotFinite


class Model:
    """Fake network that skips steps."""

    def __init__(self) -> None:
        self.count = 0
        self.skipped_steps = self

    def result(self) -> int:
        return self.count

    def latest_name(self) -> str:
        return "fine_conv/kernel"


def guard(steps: int = 64, first_step: int = 0) -> StopWhenNotFinite:
    made = StopWhenNotFinite(first_step, steps=steps, console=Console(file=io.StringIO(), width=99))
    made.set_model(Model())
    made.on_epoch_begin(0)
    return made


def step(of: StopWhenNotFinite, *, skipped: bool = False, **logs: Any) -> None:
    of.on_train_batch_begin(0)
    of.model.count += skipped
    of.on_train_batch_end(0, {"loss": 1.0, **logs, "skipped_steps": of.model.count})


def test_the_error_names_the_head_and_the_step() -> None:
    of = guard(first_step=10)
    step(of, coarse_loss=1.0)
    with pytest.raises(NotFiniteError, match=r"attention_loss became nan at step 12"):
        step(of, loss=math.nan, attention_loss=math.nan)


def test_infinity_is_not_finite_either() -> None:
    with pytest.raises(NotFiniteError, match="loss became inf"):
        step(guard(), loss=math.inf)


def test_an_accuracy_may_be_anything() -> None:
    step(guard(), refine_accuracy=math.nan)


def test_five_in_a_row_are_too_many() -> None:
    of = guard(steps=10_000)
    for _ in range(3):
        for _ in range(4):
            step(of, skipped=True)
        step(of)
    for _ in range(4):
        step(of, skipped=True)
    with pytest.raises(NotFiniteError, match=r"fine_conv/kernel is not finite at step 20, the 5th"):
        step(of, skipped=True)
    assert of.console.file.getvalue().count("\n") == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("steps", "allowed"), [(8, 4), (64, 4), (500, 5), (2000, 20)])
def test_the_allowed_number_of_skipped_steps_per_epoch(steps: int, allowed: int) -> None:
    of = guard(steps=steps)
    for _ in range(allowed):
        step(of, skipped=True)
        step(of)
    with pytest.raises(NotFiniteError, match=f"{allowed + 1} steps of this epoch were skipped"):
        step(of, skipped=True)


def test_each_epoch_counts_from_zero_and_a_resumed_one_continues() -> None:
    of = guard()
    for _ in range(3):
        of.model.count = 0
        of.on_epoch_begin(1)
        for _ in range(4):
            step(of, skipped=True)
            step(of)
    resumed = guard()
    resumed.model.count = 4  # as the checkpoint says
    with pytest.raises(NotFiniteError, match="5 steps of this epoch were skipped"):
        step(resumed, skipped=True)


def test_a_loss_is_named_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "latest_name", lambda self: "coarse_loss")
    of = guard()
    step(of, skipped=True)
    said = of.console.file.getvalue()  # type: ignore[attr-defined]
    assert said == "step 1: coarse_loss is not finite: the step was skipped\n"
