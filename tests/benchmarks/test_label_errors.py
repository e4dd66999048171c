"""Planted label errors, the predictions that they are found by, and the figures of rankings."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.label_errors import (
    KINDS,
    SCORES,
    SEEDS,
    Example,
    Figures,
    _read_cache,
    all_calibrated,
    average_precision,
    figures_of,
    interval,
    measure,
    plant,
    precision_at,
    predictions,
    relabel,
    shift,
    table,
)
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.labels import VOID
from ccfnet_tf.network.calibration_parameters import Calibration
from ccfnet_tf.runs.calibration_file import calibration_text
from ccfnet_tf.runs.run_data import read_run_parts
from ccfnet_tf.runs.run_folder import read_run
from ccfnet_tf.training.data_digest import write_digest
from ccfnet_tf.training.images_not_trained_on import read_runs


def blocks(seed: int) -> np.ndarray:
    """Returns int32 [40, 60] of blocks of 10 x 10 pixels, with a void corner."""
    label = np.random.default_rng(seed).integers(0, 4, (4, 6)).repeat(10, 0).repeat(10, 1)
    label[:3, :3] = VOID
    return label.astype(np.int32)


def test_a_dropped_component_becomes_the_class_around_it() -> None:
    label = np.full((20, 20), 2, np.int32)
    label[5:9, 5:9] = 1
    label[5, 9] = VOID
    changed = relabel(label, "drop", 4, np.random.default_rng(0))
    assert changed is not None
    expected = np.where(label == 1, 2, label)
    np.testing.assert_array_equal(changed, expected)
    assert (label[5:9, 5:9] == 1).all()


def test_a_swapped_component_becomes_each_other_class() -> None:
    label = np.full((20, 20), 2, np.int32)
    label[5:9, 5:9] = 1
    seen = set()
    for seed in range(40):
        changed = relabel(label, "swap", 4, np.random.default_rng(seed))
        assert changed is not None
        assert set(np.flatnonzero((changed != label).ravel())) == set(
            np.flatnonzero((label == 1).ravel())
        )
        seen |= set(changed[label == 1].tolist())
    assert seen == {0, 2, 3}


@pytest.mark.parametrize("fill", [1, VOID])
def test_a_label_map_without_a_fitting_component_is_passed_over(fill: int) -> None:
    label = np.full((20, 20), fill, np.int32)
    assert relabel(label, "drop", 4, np.random.default_rng(0)) is None
    assert set(plant([label], 4, np.random.default_rng(0))) == set()


def test_a_shift_moves_the_map_and_repeats_its_edge() -> None:
    label = np.arange(60 * 70).reshape(60, 70).astype(np.int32)
    for seed in range(20):
        moved = shift(label, np.random.default_rng(seed))
        down, right = np.array([30, 35]) - np.divmod(int(moved[30, 35]), 70)
        assert 7.2 <= np.hypot(down, right) <= 24.8
        for y, x in [(0, 0), (59, 69), (10, 50)]:
            source = np.clip(y - down, 0, 59), np.clip(x - right, 0, 69)
            assert moved[y, x] == label[source]


def test_a_tenth_of_the_maps_is_changed_by_all_kinds_in_turn() -> None:
    labels = [blocks(seed) for seed in range(61)]
    planted = plant(labels, 4, np.random.default_rng(1))
    assert [kind for kind, _ in planted.values()] == [*KINDS, *KINDS]
    assert all((labels[place] != changed).any() for place, (_, changed) in planted.items())
    again = plant(labels, 4, np.random.default_rng(1))
    assert list(again) == list(planted)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_average_precision_equals_that_of_scikit_learn(levels: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(levels)
    for _ in range(20):
        values = rng.integers(0, levels, 40).astype(float)
        positive = rng.random(40) < 0.3
        positive[0] = True
        expected = metrics.average_precision_score(positive, values)
        assert average_precision(values, positive) == pytest.approx(expected)
    assert np.isnan(average_precision(values, positive & False))


def test_figures_of_a_ranking() -> None:
    values = np.arange(100, 0, -1.0)
    kinds = np.array(["drop", "", "swap", "shift", *[""] * 96])
    found = figures_of(values, kinds)
    assert found.average_precision == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert (found.at_cut, found.at_errors) == (3 / 50, 2 / 3)
    assert (found.drop, found.swap, found.shift) == (1, 1 / 2, 1 / 2)
    assert precision_at(50, values[:4], kinds[:4] != "") == 3 / 4


def test_an_interval_is_that_of_student() -> None:
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert half == pytest.approx(1.9634, abs=1e-3)  # scipy.stats.t.interval(.95, 4, 3, sem)


def test_a_perfect_network_finds_large_errors() -> None:
    labels = [blocks(seed) for seed in range(30)]
    logs = [
        np.log(np.where(label[..., None] == np.arange(4), 0.97, 0.01)).astype(np.float16)
        for label in labels
    ]
    examples = [Example(*each) for each in zip(labels, logs, strict=True)]
    found = measure(examples, SCORES, Console(quiet=True))
    for figures in found.values():
        assert len(figures) == SEEDS
        assert all(each.average_precision == 1 for each in figures)
    lines = table(found, 30)
    assert lines[0].startswith("30 images, 3 with a planted error")
    assert "| average precision | 1.000 ± 0.000 |" in lines[5]


def test_a_cache_of_another_run_is_not_used_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    cache, buffer = tmp_path / "cache.npz", io.BytesIO()
    assert _read_cache(cache, "a", 1) is None
    np.savez(buffer, np.array("a"), np.ones((2, 2, 3), np.float16))
    cache.write_bytes(buffer.getvalue())
    assert _read_cache(cache, "b", 1) is None
    found = _read_cache(cache, "a", 1)
    assert found is not None
    assert found[0].shape == (2, 2, 3)
    cache.write_bytes(buffer.getvalue()[:100])
    with pytest.raises(ConfigError, match="not a cache of predictions"):
        _read_cache(cache, "a", 1)


def test_every_fold_predicts_its_own_test_split(run: Path, tmp_path: Path) -> None:
    """Of other weights, calibrations or images the cache is not used."""
    folder, cache, console = tmp_path / "folds", tmp_path / "cache.npz", Console(quiet=True)
    for fold in range(2):
        shutil.copytree(run, folder / f"fold_{fold}")
        write_digest(folder / f"fold_{fold}", {"train": [], "val": []})
    text = calibration_text(
        folder / "fold_1/checkpoints/best.npz", Calibration(scale=(0.5,)), {"split": "val"}
    )
    (folder / "fold_1/calibration.json").write_text(text)
    (folder / "crossval.yaml").write_text("")
    (folder / "crossval.json").write_text('{"folds": [{}, {}]}')
    runs = read_runs(folder)
    found = predictions(runs, cache, console)
    parts = read_run_parts(read_run(run), None)
    assert len(found) == 2 * len(parts.test)
    for fold in range(2):
        network = KerasNetwork(folder / f"fold_{fold}")
        own = found[fold * len(parts.test) :]
        for example, (image, label) in zip(own, map(parts.load, parts.test), strict=False):
            np.testing.assert_array_equal(example.label, label)
            expected = network.predict(image).probabilities
            kept = np.exp(example.logs.astype(np.float32))
            np.testing.assert_allclose(kept, expected, rtol=3e-2, atol=1e-6)
    assert not np.array_equal(found[0].logs, found[len(parts.test)].logs)
    assert not all_calibrated(runs)
    written = cache.stat().st_mtime_ns
    predictions(runs, cache, console)
    assert cache.stat().st_mtime_ns == written
    (folder / "fold_1/calibration.json").unlink()
    again = predictions(read_runs(folder), cache, console)
    np.testing.assert_array_equal(again[0].logs, again[len(parts.test)].logs)


def test_the_page_shows_the_committed_figures() -> None:
    docs = Path(__file__).parents[2] / "docs"
    tree = json.loads((docs / "results" / "label_errors.json").read_text(encoding="utf-8"))
    rows = {name: [Figures(**each) for each in found] for name, found in tree["figures"].items()}
    page = (docs / "label_errors.md").read_text(encoding="utf-8")
    assert "\n".join(table(rows, tree["images"])[3:]) in page
    assert (tree["runs"], tree["calibrated"]) == (5, True)
