"""Selection of best.npz by `fit`, and the score in metrics.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.evaluation.epoch_end_states import EpochCounts, Evaluator
from ccfnet_tf.network.backbone_weights import named_variables
from ccfnet_tf.runs.checkpoint_file import read_arrays
from ccfnet_tf.training import build_network, fit
from ccfnet_tf.training.callbacks import progress_bar

CONFIG = RunConfig(
    data=DataConfig(format="scenes", scenes=10, scene_size=(32, 32), crop=33, val_share=0.2),
    model=ModelConfig(backbone="mobilenet_v2", backbone_weights="none"),
    train=TrainConfig(epochs=3, batch=4, precision="float32", strategy="none"),
)

# Of 9 pixels of class 0 and 9 of class 1 each; no label has class 2.
WORSE = [[8, 1, 0], [2, 7, 0]]  # accuracy .833, mean IoU .714
BETTER = [[9, 0, 0], [1, 8, 0]]  # .944, .894
BETTER_BUT_ONE_STRAY = [[9, 0, 0], [1, 7, 1]]  # .889, .839; with class 2 in the mean .559
WORSE_BUT_NO_STRAY = [[9, 0, 0], [3, 6, 0]]  # .833, .708
NOTHING_LABELLED = [[0, 0, 0], [0, 0, 0]]


def confusion(rows: list[list[int]], classes: int) -> Confusion:
    counts = np.zeros((classes, classes), np.int64)
    counts[:2, :3] = rows
    return Confusion(counts)


@pytest.fixture
def trained(
    toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, list[dict[str, str]]]]:
    """Trains a toy with given validation results; returns the best epoch and metrics.csv."""

    def train(*epochs: list[list[int]], by: str = "refine") -> tuple[int, list[dict[str, str]]]:
        seen: list[dict[str, np.ndarray]] = []
        run = Evaluator.run

        def answer(self: Evaluator, *args: Any, **options: Any) -> EpochCounts:
            true = run(self, *args, **options)
            weights = named_variables(self._model)
            seen.append({key: variable.numpy() for key, variable in weights.items()})
            counted = confusion(epochs[len(seen) - 1], true.refine.counts.shape[0])
            # The others do not change: one prediction alone chooses.
            least = confusion([[1, 8, 0], [8, 1, 0]], true.refine.counts.shape[0])
            heads = dict.fromkeys(("coarse", "fine", "refine"), least) | {by: counted}
            return replace(true, **heads)

        monkeypatch.setattr(Evaluator, "run", answer)
        monkeypatch.setattr(build_network, "build_ccfnet", lambda classes, **_: toy(classes))
        config = replace(CONFIG, train=replace(CONFIG.train, epochs=len(epochs), best_by=by))
        out = tmp_path / "run"
        monkeypatch.setattr(progress_bar, "SECONDS", 0.0)
        output = io.StringIO()
        fit.fit(config, out, resume=False, console=Console(file=output, width=300))
        lines = [line for line in output.getvalue().splitlines() if "  step " in line]
        assert lines  # within epochs, with the figures of the head that chooses
        assert all((" mean IoU " in line) == (by == "refine") for line in lines)
        best = read_arrays(out / "checkpoints" / "best.npz")
        number = int(json.loads(bytes(best["state"]))["best_epoch"])
        for key, value in seen[number - 1].items():
            np.testing.assert_array_equal(best[f"model/{key}"], value)
        assert any((seen[0][key] != seen[1][key]).any() for key in seen[0])
        with (out / "metrics.csv").open() as file:
            return number, list(csv.DictReader(file))

    return train


@pytest.mark.parametrize(
    ("epochs", "best"),
    [
        pytest.param((WORSE, BETTER_BUT_ONE_STRAY, WORSE), 2, marks=pytest.mark.slow),
        ((BETTER_BUT_ONE_STRAY, WORSE_BUT_NO_STRAY), 1),
        ((BETTER_BUT_ONE_STRAY, BETTER, WORSE), 2),
        # Of equals the first.
        pytest.param((WORSE, BETTER, BETTER), 2, marks=pytest.mark.slow),
        ((NOTHING_LABELLED, NOTHING_LABELLED), 2),  # nothing to choose by: the newest
    ],
)
def test_the_best_epoch_has_the_best_mean_over_the_classes_of_the_labels(
    trained: Callable[..., tuple[int, list[dict[str, str]]]],
    epochs: tuple[list[list[int]], ...],
    best: int,
) -> None:
    number, rows = trained(*epochs)
    assert number == best
    for counted, row in zip(epochs, rows, strict=True):
        wanted = confusion(counted, 4).mean_iou_present
        found = row.get("val_refine_mean_iou")
        assert (float(found) if found else None) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("by", ["fine", pytest.param("coarse", marks=pytest.mark.slow)])
def test_the_prediction_that_chooses_is_a_key(
    trained: Callable[..., tuple[int, list[dict[str, str]]]], by: str
) -> None:
    assert trained(BETTER, WORSE, by=by)[0] == 1
