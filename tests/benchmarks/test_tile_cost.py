"""The geometry of tiles, the cascade that computes fine on some of them, and the tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import tile_cost, tile_cost_network
from benchmarks.tile_cost import (
    SHARES,
    Spent,
    accuracy_table,
    cost_lines,
    cost_table,
    measure,
    switched,
)
from benchmarks.tile_cost_network import (
    WHOLE,
    Tiles,
    cascade,
    compiled,
    rows,
)
from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs
from ccfnet_tf.runs.run_data import read_run_parts
from ccfnet_tf.runs.run_folder import read_run

CLASSES = 5
RAGGED = Tiles(height=40, width=56, side=16, halo=8)
"""3 x 4 tiles, of which the last row and column exceed the image."""


@pytest.fixture(scope="module")
def stages(toy: Callable[..., Any]) -> tuple[Any, Any]:
    keras.utils.set_random_seed(0)
    model = toy(CLASSES)
    outputs = {name: model.outputs_by_name[name] for name in ("coarse", "attention")}
    fine = keras.Model(model.input, model.get_layer("fine_logits").output)
    return keras.Model(model.input, outputs), fine


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    values = np.random.default_rng(0).uniform(0, 255, (1, RAGGED.height, RAGGED.width, 3))
    return values.astype(np.float32)


def by_definition(values: np.ndarray, tiles: Tiles) -> list[np.ndarray]:
    """Returns the parts of the map that lie in each tile, row by row."""
    rows, columns = (range(0, length, tiles.side) for length in values.shape)
    return [values[y : y + tiles.side, x : x + tiles.side] for y in rows for x in columns]


@pytest.mark.parametrize(
    ("tiles", "grid", "outer"),
    [
        (Tiles(240, 320, 80, 0), (3, 4), 81),
        (Tiles(240, 320, 80, 16), (3, 4), 113),
        (Tiles(240, 320, 32, 8), (8, 10), 49),
        (Tiles(213, 320, 64, 16), (4, 5), 97),
    ],
)
def test_tiles_cover_the_image_on_the_grid_of_features(
    tiles: Tiles, grid: tuple[int, int], outer: int
) -> None:
    assert (tiles.grid, tiles.outer) == (grid, outer)
    assert tiles.outer % 8 == 1
    assert (tiles.taken(0), tiles.taken(0.5), tiles.taken(1)) == (
        0,
        tiles.total // 2,
        tiles.total,
    )


def test_a_map_is_split_into_tiles_and_joined_again() -> None:
    values = np.random.default_rng(1).normal(size=(RAGGED.height, RAGGED.width))
    parts = RAGGED.split(values).numpy()
    for part, expected in zip(parts, by_definition(values, RAGGED), strict=True):
        height, width = expected.shape
        np.testing.assert_array_equal(part[:height, :width], expected)
        assert not part[height:].any()
        assert not part[:, width:].any()
    np.testing.assert_array_equal(RAGGED.join(parts).numpy(), values)


def test_a_window_is_the_tile_with_its_halo(images: np.ndarray) -> None:
    margin = RAGGED.halo, RAGGED.halo + RAGGED.side + 1
    padded = np.pad(images[0], [margin, margin, (0, 0)], mode="edge")
    chosen = np.array([11, 0, 6], np.int32)
    windows = RAGGED.windows(images[0], tf.constant(chosen)).numpy()
    for window, index in zip(windows, chosen, strict=True):
        y, x = (RAGGED.side * place for place in divmod(index, RAGGED.grid[1]))
        expected = padded[y : y + RAGGED.outer, x : x + RAGGED.outer]
        np.testing.assert_array_equal(window, expected)


def test_tiles_are_ranked_by_the_expected_errors_of_coarse() -> None:
    logit = np.random.default_rng(2).normal(0, 3, (RAGGED.height, RAGGED.width))
    probability = 1 / (1 + np.exp(-logit))
    expected = [part.sum() for part in by_definition(probability, RAGGED)]
    np.testing.assert_allclose(RAGGED.errors(logit).numpy(), expected)


@pytest.mark.parametrize("taken", [0, 5, 12])
def test_fine_labels_the_hardest_tiles_and_coarse_the_others(
    stages: tuple[Any, Any], images: np.ndarray, taken: int
) -> None:
    """A halo of 8 pixels exceeds the receptive field, so only the border of the image differs."""
    first, fine = stages
    outputs, logits = first(images), fine(images)[0].numpy()
    coarse, attention = outputs["coarse"][0].numpy(), outputs["attention"][0].numpy()
    heads = HeadOutputs(coarse, logits, logits, attention[..., 0] - attention[..., 1])
    probability = 1 / (1 + np.exp(-heads.attention))
    errors = [part.sum() for part in by_definition(probability, RAGGED)]
    hardest = np.argsort(errors)[::-1][:taken]
    expected, from_fine = coarse.argmax(-1), logits.argmax(-1)
    assert (expected != from_fine).mean() > 0.1
    for index in hardest:
        by_definition(expected, RAGGED)[index][:] = by_definition(from_fine, RAGGED)[index]
    pasted = switched(heads, RAGGED, taken / RAGGED.total)
    np.testing.assert_array_equal(pasted, expected)
    found = cascade(first, fine, RAGGED, taken)(tf.constant(images))[0].numpy()
    np.testing.assert_array_equal(found[2:-2, 2:-2], expected[2:-2, 2:-2])


def test_multiply_adds_of_every_row(stages: tuple[Any, Any]) -> None:
    body, coarse, attention, fine = 3 * 6 * 9, 6 * CLASSES, 6 * 2, 6 * CLASSES * 9
    pixels = RAGGED.height * RAGGED.width
    first, tile = pixels * (body + coarse + attention), 33**2 * (body + fine)
    whole = Tiles(RAGGED.height, RAGGED.width, 56, 0)  # one tile
    found = {name: round(1e9 * row.gmac) for name, row in rows(*stages, [RAGGED, whole]).items()}
    expected = {WHOLE: pixels * (body + fine), "no tile": first}
    for taken in (6, 9, 12):
        expected[f"{taken} of 12 tiles of 16 pixels, halo 8"] = first + taken * tile
    for taken in (0, 1):
        name = f"{taken} of 1 tiles of 56 pixels, halo 0"
        expected[name] = first + taken * 57**2 * (body + fine)
    assert found == expected


def test_both_runtimes_return_the_labels_of_the_network(
    stages: tuple[Any, Any], images: np.ndarray
) -> None:
    network = cascade(*stages, RAGGED, 6)
    expected = network(tf.constant(images))[0].numpy()
    for run in compiled(network, (RAGGED.height, RAGGED.width)).values():
        labels = next(values for values in run(images) if values.ndim == 2)
        assert (labels == expected).mean() > 0.999  # rounding may change a label at a tie


def test_the_table_has_medians_of_the_ratios_of_each_round() -> None:
    rounds = {
        WHOLE: [(1.0, 2.0), (2.0, 2.0), (4.0, 4.0)],
        "a": [(0.5, 1.0), (1.2, 1.8), (4.0, 4.0)],
    }
    spent = {name: {"LiteRT": [Spent(*one) for one in of]} for name, of in rounds.items()}
    *_, whole, tiles = cost_table({WHOLE: 2.0, "a": 1.0}, spent)
    assert whole == f"| {WHOLE} | 2 | 1.00 | 2000 | 1.00 | 2000 | 1.00 |"
    assert tiles == "| a | 1 | 0.50 | 1200 | 0.60 | 1800 | 0.90 |"


def test_the_table_of_accuracies() -> None:
    right, half = (Confusion(np.array(counts)) for counts in ([[2, 0], [0, 2]], [[2, 0], [2, 0]]))
    states = {(32, 0.0): half, (32, 1.0): right, (64, 0.0): half, (64, 1.0): right}
    assert list(accuracy_table(states)) == [
        "| validation, % | tiles of 32 pixels | tiles of 64 pixels |",
        "|---|---|---|",
        "| 0.0% of the tiles | 50.00 / 25.00 | 50.00 / 25.00 |",
        "| 100.0% of the tiles | 100.00 / 100.00 | 100.00 / 100.00 |",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tile", "60"], "--tile 60 with --halo 0: both must be multiples of 8"),
        (["--tile", "64", "--halo", "-8"], "--tile 64 with --halo -8"),
        (["--tile", "16", "--halo", "0"], "at least 32 pixels"),
        (["--size", "16x320"], "--size is 16x320: at least 32 on each side"),
        (["--size", "320"], "--size is '320'"),
        (["--rounds", "0"], "--rounds is 0: it must be 1 or more"),
        (["run", "--rounds", "3"], "--rounds applies only without a RUN"),
    ],
)
def test_arguments_that_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tile_cost.main(arguments)


def test_the_accuracy_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All tiles from fine, and none, are fine and coarse of the validation split."""
    file = run / "shares.json"
    assert tile_cost.main([str(run), "--tile", "32", "--json", str(file)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "of the tiles" in line]
    assert len(rows) == len(SHARES)
    network, parts = KerasNetwork(run), read_run_parts(read_run(run), None)
    assert parts.val
    states = {"coarse": Confusion.empty(3), "fine": Confusion.empty(3)}
    for image, label in map(parts.load, parts.val):
        outputs = network.head_outputs(image)
        for head, state in states.items():
            labels = getattr(outputs, head).argmax(-1)
            states[head] = state.merge(Confusion.of(label, labels, classes=3))
    assert states["coarse"] != states["fine"]
    for row, state in zip((rows[0], rows[-1]), states.values(), strict=True):
        assert f"| {100 * state.pixel_accuracy:.2f} / {100 * state.mean_iou_present:.2f} |" in row
    none, *_, whole = json.loads(file.read_text())["figures"]
    assert [none["share"], whole["share"], none["tile"]] == [0.0, 1.0, 32]
    assert none["mean_iou"] == states["coarse"].mean_iou_present
    assert whole["pixel_accuracy"] == states["fine"].pixel_accuracy


def test_a_run_without_validation_images_is_refused(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("val_share: 0.2", "val_share: 0.0"))
    with pytest.raises(DataError, match=r"no validation split: give a run with data.val_share"):
        tile_cost.main([str(run)])


def test_every_network_is_measured_in_every_round(stages: tuple[Any, Any]) -> None:
    tiles = Tiles(64, 96, 32, 0)
    networks = {name: row.network for name, row in list(rows(*stages, [tiles]).items())[:2]}
    spent = measure(networks, (64, 96), 2, lambda items, _: items)
    assert list(spent) == list(networks)
    for kinds in spent.values():
        assert set(kinds) == {"TensorFlow", "LiteRT"}
        assert all(len(found) == 2 for found in kinds.values())  # without the first round
        assert all(one.seconds > 0 and one.work > 0 for found in kinds.values() for one in found)


def test_the_json_has_what_was_measured_and_is_printed(
    stages: tuple[Any, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = rows(*stages, [Tiles(64, 96, 32, 0)])
    spent = {
        name: {"LiteRT": [Spent(1.0 + index, 20.0 + index), Spent(3.0 + index, 40.0 + index)]}
        for index, name in enumerate(table)
    }
    monkeypatch.setattr(tile_cost_network, "build", lambda _: stages)
    monkeypatch.setattr(tile_cost, "measure", lambda *_: spent)
    file = tmp_path / "costs.json"
    options = ["--size", "64x96", "--tile", "32", "--halo", "0", "--rounds", "2"]
    assert tile_cost.main([*options, "--json", str(file)]) == 0
    tree = json.loads(file.read_text())
    assert (tree["backbone"], tree["size"]) == ("mobilenet_v2", [64, 96])
    assert [each["name"] for each in tree["networks"]] == list(table)
    assert [each["gmac"] for each in tree["networks"]] == [row.gmac for row in table.values()]
    assert tree["networks"][1]["rounds"] == {
        "LiteRT": [{"seconds": 2.0, "work": 21.0}, {"seconds": 4.0, "work": 41.0}]
    }
    assert capsys.readouterr().out.splitlines() == [*cost_lines(tree), f"written to {file}"]


def test_a_json_file_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--json .*: it must be a file in an existing folder"):
        tile_cost.main(["--json", str(tmp_path / "none" / "costs.json")])


def test_the_page_has_the_committed_measurements() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    page = (docs / "performance.md").read_text(encoding="utf-8")
    files = sorted((docs / "results").glob("tiles_*.json"))
    assert len(files) == 4
    for file in files:
        *table, network, others = cost_lines(json.loads(file.read_text()))
        printed = "\n".join([*table, "", f"{network}; {others}."])
        (own,) = [part for part in page.split("    taskset ") if file.name in part]
        assert printed in own
