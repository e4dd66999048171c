from __future__ import annotations

import csv
import json
from pathlib import Path

from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.training import journal


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_of_unfinished_epochs_are_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = journal.MetricsTable(path, epochs_done=0)
    for epoch in (1, 2, 3):
        table.append({"epoch": epoch, "loss": 1.0 / epoch})
    # Killed after the third row, before the third checkpoint.
    table = journal.MetricsTable(path, epochs_done=2)
    table.append({"epoch": 3, "loss": 0.25})
    assert [row["epoch"] for row in read(path)] == ["1", "2", "3"]
    assert read(path)[-1]["loss"] == "0.25"


def test_a_new_run_starts_an_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    journal.MetricsTable(path, epochs_done=0).append({"epoch": 1})
    journal.MetricsTable(path, epochs_done=0).append({"epoch": 1, "loss": 2.0})
    assert len(read(path)) == 1


def test_a_figure_missing_in_one_epoch_leaves_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = journal.MetricsTable(path, epochs_done=0)
    table.append({"epoch": 1})
    table.append({"epoch": 2, "val_difficulty_auroc": 0.8})
    assert [row["val_difficulty_auroc"] for row in read(path)] == ["", "0.8"]


def test_epochs_written_are_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert journal.epochs_written(path) == 0
    table = journal.MetricsTable(path, epochs_done=0)
    for epoch in (1, 2):
        table.append({"epoch": epoch, "loss": 1.0})
        assert journal.epochs_written(path) == epoch


def test_environment_names_versions_and_devices(tmp_path: Path) -> None:
    journal.write_environment(tmp_path, ["/device:CPU:0"], "float32")
    journal.write_environment(tmp_path, ["/device:GPU:0"], "float32")  # resumed elsewhere
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert [start["devices"] for start in starts] == [["/device:CPU:0"], ["/device:GPU:0"]]
    assert starts[0]["versions"]["tensorflow"].startswith("2.")


def test_a_library_under_another_name_has_no_version() -> None:
    assert journal.installed("no-such-library") is None


def test_classes_round_trip(tmp_path: Path) -> None:
    journal.write_classes(tmp_path, Taxonomy(("sky",), ((1, 2, 3),)))
    tree = json.loads((tmp_path / "classes.json").read_text())
    assert tree == {"names": ["sky"], "palette": [[1, 2, 3]]}
