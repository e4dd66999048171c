"""The line that is printed after an epoch."""

from __future__ import annotations

import pytest

from ccfnet_tf.training.callbacks.epoch_end import epoch_line

ROW = {
    "loss": 1.5,
    "skipped_steps": 0.0,
    **{f"{head}_accuracy": value for head, value in (("coarse", 0.1), ("refine", 0.3))},
    **{f"val_{head}_pixel_accuracy": 0.2 for head in ("coarse", "fine", "refine")},
    "fine_accuracy": 0.8,
    "val_fine_pixel_accuracy": 0.75,
}


@pytest.mark.parametrize(
    ("head", "figures"),
    [
        ("refine", "accuracy 30.0 %  validation: coarse 20.0 %, refine 20.0 %"),
        ("fine", "accuracy 80.0 %  validation: fine 75.0 %"),
    ],
)
def test_the_figures_are_of_the_head_that_selects_the_checkpoint(head: str, figures: str) -> None:
    assert epoch_line(2, 4, ROW, 61.4, head) == f"epoch 2/4  61 s  loss 1.500  {figures}"


def test_without_a_validation_split_there_are_no_figures_of_it() -> None:
    row = {key: value for key, value in ROW.items() if not key.startswith("val_")}
    line = epoch_line(1, 1, {**row, "skipped_steps": 2.0}, 3.0, "refine")
    assert line == "epoch 1/1  3 s  loss 1.500  accuracy 30.0 %  skipped steps 2"
    assert epoch_line(1, 1, {}, 3.0, "coarse") == "epoch 1/1  3 s"
