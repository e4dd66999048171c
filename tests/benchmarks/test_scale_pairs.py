"""Two heads at several scales, and their averages, without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.scale_pairs import count, main, tables
from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.resize import resize_image, resize_map
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs, Prediction
from ccfnet_tf.labels import VOID, Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED
from ccfnet_tf.runs.run_data import read_run_parts
from ccfnet_tf.runs.run_folder import read_run

SCALES = (0.5, 1.0, 1.5)


class Colours:
    """Takes red, green and blue for the logits of three classes; fine is surer, and inverted."""

    taxonomy = Taxonomy(("red", "green", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    at_once = 1
    calibration = UNCALIBRATED

    def head_outputs(self, image: np.ndarray) -> HeadOutputs:
        logits = image.astype(np.float32) / 40
        coarse, fine = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logits, -2 * logits))
        return HeadOutputs(coarse, fine, coarse, np.zeros(image.shape[:2], np.float32))

    def prediction(self, outputs: HeadOutputs) -> Prediction:
        raise NotImplementedError

    def predict(self, image: np.ndarray) -> Prediction:
        raise NotImplementedError


def test_views_and_averages_are_those_of_resized_probabilities() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 20, 3), np.uint8)
    label = np.where(rng.random((12, 20)) < 0.1, VOID, rng.integers(0, 3, (12, 20)))
    found = count(image, label, Colours(), SCALES)
    assert len(found) == 6 + 9 + 3
    pairs = [views for views in found if len(views) == 2 and views[0][0] == "fine"]
    assert [(one[1], two[1]) for one, two in pairs] == [(0.5, 1.0), (0.5, 1.5), (1.0, 1.5)]
    for views, state in found.items():
        mean = np.zeros((12, 20, 3))
        for head, scale in views:
            view = resize_image(image, (round(12 * scale), round(20 * scale)))
            logs = getattr(Colours().head_outputs(view), head)
            mean += resize_map(np.exp(logs), (12, 20)).astype(float) / len(views)
        expected = np.zeros((3, 3), int)
        for truth, guess in zip(label.ravel(), mean.argmax(-1).ravel(), strict=True):
            if truth != VOID:
                expected[truth, guess] += 1
        np.testing.assert_array_equal(state.counts, expected)


def test_the_tables() -> None:
    a, b = (  # no label has the third class, so that means are over two
        Confusion(np.array([[right, 4 - right, 0], [0, 4, 0], [0, 0, 0]])) for right in (3, 2)
    )
    coarse, fine = ([(head, scale) for scale in (1.0, 1.5)] for head in ("coarse", "fine"))
    counts = {(view,): a for view in coarse} | {(view,): b for view in fine}
    counts |= {(one, two): a for one in coarse for two in fine} | {(fine[0], fine[1]): b}
    first, second = "87.50 / 77.50", "75.00 / 58.33"
    assert [*tables(counts, (1.0, 1.5))] == [
        "| validation, pixel accuracy / mean IoU, % | coarse | fine |",
        "|---|---|---|",
        f"| 1 | {first} | {second} |",
        f"| 1.5 | {first} | {second} |",
        "",
        "| coarse at, averaged with fine at | 1 | 1.5 |",
        "|---|---|---|",
        f"| 1 | {first} | {first} |",
        f"| 1.5 | {first} | {first} |",
        "",
        "| fine at, averaged with fine at | 1 | 1.5 |",
        "|---|---|---|",
        f"| 1 |  | {second} |",
        "| 1.5 |  |  |",
    ]


@pytest.mark.parametrize("scale", ["0.1", "5", "nan"])
def test_a_scale_out_of_range_is_refused(scale: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected numbers from 0\.25 to 4"):
        main([str(tmp_path), "--scales", "1", scale])


def test_a_run_is_evaluated(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At scale 1, both heads are those of the validation split."""
    assert main([str(run), "--scales", "0.5", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    network, parts = KerasNetwork(run), read_run_parts(read_run(run), None)
    assert parts.val
    cells = []
    for head in ("coarse", "fine"):
        state = Confusion.empty(3)
        for image, label in map(parts.load, parts.val):
            labels = getattr(network.head_outputs(image), head).argmax(-1)
            state = state.merge(Confusion.of(label, labels, classes=3))
        cells.append(f"{100 * state.pixel_accuracy:.2f} / {100 * state.mean_iou_present:.2f}")
    assert f"| 1 | {cells[0]} | {cells[1]} |" in shown


def test_a_run_without_validation_images_is_refused(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("val_share: 0.2", "val_share: 0.0"))
    with pytest.raises(DataError, match=r"no validation split: give a run with data.val_share"):
        main([str(run)])
