"""Runs that were evaluated, of a network that nobody trained, and a browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.config import DataConfig, RunConfig, to_yaml
from ccfnet_tf.evaluation.evaluate import evaluate
from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs, Prediction
from ccfnet_tf.labels import Sample, Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runs.write_run_files import write_classes
from tests.evaluation.conftest import drawn
from tests.report.browser import Browser

HOSTILE = "<script>alert(1)</script>"
TAXONOMY = Taxonomy(
    (HOSTILE, "\"two\" & 'one' {{ 7 * 7 }}", "海 $x$", "never seen"),
    ((70, 130, 220), (60, 160, 70), (220, 170, 60), (200, 60, 60)),
)
IMAGES = (
    "</script><img src=x onerror=alert(2)>",
    'a "quoted" name',
    "folder/ünïcode 海",
    "plain",
    "wide",
    "tall",
)


@dataclass
class Drawn:
    """Answers an image that is filled with a number by the outputs drawn for that number."""

    seed: int = 0
    taxonomy: Taxonomy = TAXONOMY
    at_once: int = 1
    calibration: Calibration = UNCALIBRATED

    def head_outputs(self, image: np.ndarray) -> HeadOutputs:
        return outputs_of(int(image[0, 0, 0]), self.seed)

    def prediction(self, outputs: HeadOutputs) -> Prediction:
        """From the definitions, in float64."""
        probabilities = np.exp(outputs.refine.astype(float))
        labels, coarse = outputs.refine.argmax(-1), outputs.coarse.argmax(-1)
        rows, columns = np.indices(labels.shape)
        attention = 1 / (1 + np.exp(-outputs.attention))
        difficulty, risk = (1 - probabilities[rows, columns, ids] for ids in (coarse, labels))
        return Prediction(labels, attention, difficulty, risk, probabilities)

    def predict(self, image: np.ndarray) -> Prediction:
        raise NotImplementedError


def samples(names: tuple[str, ...] = IMAGES) -> list[Sample]:
    return [Sample(name, str(index), str(index)) for index, name in enumerate(names)]


def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    index = int(sample.image)
    label = drawn(index, classes=3, size=size_of(index))[0]
    return np.full((*label.shape, 3), index, np.uint8), label


def size_of(index: int) -> tuple[int, int]:
    return 48 + 6 * (index % 5), 66 - 6 * (index % 5)


def outputs_of(index: int, seed: int) -> HeadOutputs:
    """Returns outputs for four classes, of which the last is never likely."""
    heads = drawn(index, classes=3, size=size_of(index))[1]
    rng = np.random.default_rng([seed, index])
    logits = [
        np.pad(logs + seed * rng.normal(size=logs.shape), ((0, 0), (0, 0), (0, 1)),
               constant_values=-30)
        for logs in heads[:3]
    ]  # fmt: skip
    logs = [each - np.log(np.exp(each).sum(-1, keepdims=True)) for each in logits]
    return HeadOutputs(*(each.astype(np.float32) for each in logs), heads.attention)


@pytest.fixture(scope="session")
def evaluation() -> Evaluation:
    return evaluate(Drawn(), samples(), load)


WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Returns a function that writes the folder of a run that was evaluated."""

    def write(
        name: str,
        *,
        seed: int = 0,
        split: str = "test",
        names: tuple[str, ...] = IMAGES,
        taxonomy: Taxonomy = TAXONOMY,
    ) -> Path:
        run = tmp_path / name
        run.mkdir(parents=True)
        write_drawn(run, seed, split, names, taxonomy)
        return run

    return write


def write_evaluated(run: Path, evaluation: Evaluation) -> None:
    """Writes the folder of a run with this evaluation."""
    _write(run, evaluation.taxonomy, _files_of(evaluation))


def write_drawn(
    run: Path, seed: int, split: str, names: tuple[str, ...] = IMAGES, taxonomy: Taxonomy = TAXONOMY
) -> None:
    """Writes the folder of a run with the evaluation of drawn outputs, which is computed once."""
    _write(run, taxonomy, _drawn_files(seed, split, names, taxonomy))


@cache
def _drawn_files(
    seed: int, split: str, names: tuple[str, ...], taxonomy: Taxonomy
) -> dict[str, bytes]:
    return _files_of(evaluate(Drawn(seed, taxonomy), samples(names), load, split=split))


def _files_of(evaluation: Evaluation) -> dict[str, bytes]:
    return {
        "evaluation.json": json.dumps(evaluation.to_json()).encode(),
        "images.csv": evaluation.images.to_csv().encode(),
        "images.npz": evaluation.images.to_npz(),
    }


def _write(run: Path, taxonomy: Taxonomy, files: dict[str, bytes]) -> None:
    (run / "config.yaml").write_text(to_yaml(RunConfig(data=DataConfig(format="scenes"))))
    write_classes(run, taxonomy)
    for name, content in files.items():
        (run / name).write_bytes(content)
    rows = ["epoch,refine_loss,coarse_loss,val_refine_mean_iou,val_refine_pixel_accuracy"]
    rows += [f"{n},{1 / n},{2 / n},{1 - 0.5 / n},{1 - 0.4 / n}" for n in range(1, 5)]
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for the tests of a module."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("browser")) as found:
        yield found
