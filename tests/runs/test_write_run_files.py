from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ccfnet_tf.config import DataConfig, RunConfig, to_yaml
from ccfnet_tf.errors import DataError, RunError
from ccfnet_tf.io import machine
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runs import write_run_files
from ccfnet_tf.runs.run_folder import read_run

SCENES = RunConfig(data=DataConfig(format="scenes"))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_of_unfinished_epochs_are_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = write_run_files.MetricsTable(path, epochs_done=0)
    for epoch in (1, 2, 3):
        table.append({"epoch": epoch, "loss": 1.0 / epoch})
    # Killed after the third row, before the third checkpoint.
    table = write_run_files.MetricsTable(path, epochs_done=2)
    table.append({"epoch": 3, "loss": 0.25})
    assert [row["epoch"] for row in read(path)] == ["1", "2", "3"]
    assert read(path)[-1]["loss"] == "0.25"


def test_a_new_run_starts_an_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_run_files.MetricsTable(path, epochs_done=0).append({"epoch": 1})
    write_run_files.MetricsTable(path, epochs_done=0).append({"epoch": 1, "loss": 2.0})
    assert len(read(path)) == 1


def test_a_figure_missing_in_one_epoch_leaves_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = write_run_files.MetricsTable(path, epochs_done=0)
    table.append({"epoch": 1})
    table.append({"epoch": 2, "val_difficulty_auroc": 0.8})
    assert [row["val_difficulty_auroc"] for row in read(path)] == ["", "0.8"]


def test_a_resumed_older_run_has_the_present_name_of_a_column(tmp_path: Path) -> None:
    """Attention was called difficulty when it was written."""
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,val_difficulty_auroc\n1,0.7\n")
    table = write_run_files.MetricsTable(path, epochs_done=1)
    table.append({"epoch": 2, "val_attention_auroc": 0.8, "val_difficulty_auroc": 0.9})
    assert read(path) == [
        {"epoch": "1", "val_attention_auroc": "0.7", "val_difficulty_auroc": ""},
        {"epoch": "2", "val_attention_auroc": "0.8", "val_difficulty_auroc": "0.9"},
    ]
    table = write_run_files.MetricsTable(path, epochs_done=2)
    table.append({"epoch": 3, "val_difficulty_auroc": 0.95})
    assert [row["val_difficulty_auroc"] for row in read(path)] == ["", "0.9", "0.95"]


def test_epochs_written_are_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert write_run_files.epochs_written(path) == 0
    table = write_run_files.MetricsTable(path, epochs_done=0)
    for epoch in (1, 2):
        table.append({"epoch": epoch, "loss": 1.0})
        assert write_run_files.epochs_written(path) == epoch


ROWS = "epoch,step,loss\n1,4,0.5\n2,8,0.25\n3,12,0.125\n"
GARBLED = {
    "binary": (bytes(range(256)) * 4, []),
    "empty": (b"", []),
    "no epoch column": (ROWS.replace("epoch", "epoc").encode(), []),
    "an epoch that is not a number": (ROWS.replace("\n2,", "\nx,").encode(), [1, 3]),
    "an epoch that is NaN": (ROWS.replace("\n2,", "\nnan,").encode(), [1, 3]),
    "an epoch below 1": (ROWS.replace("\n2,", "\n-2,").encode(), [1, 3]),
    "a cell too many": (ROWS.replace("8,0.25", "8,0.25,7").encode(), [1, 3]),
    "a cell too few": (ROWS.replace("8,0.25", "8").encode(), [1, 3]),
    "a cut row": (ROWS.encode()[:-8], [1, 2]),
    "a cut number": (ROWS.encode()[:-3], [1, 2]),
    "an epoch twice": ((ROWS + "2,8,0.5\n").encode(), [1, 2, 3]),
    "zeros": (ROWS.encode()[:26] + bytes(3) + ROWS.encode()[29:], [1, 3]),
    "no UTF-8": (ROWS.encode().replace(b"0.25", b"0.\xff5"), [1, 3]),
    "an open quote": (ROWS.replace("8,0.25", '8,"0.25').encode(), [1]),
    "a huge cell": ((ROWS + "4,8," + "5" * 200_000).encode(), [1, 2, 3]),
}


@pytest.mark.parametrize("name", GARBLED)
def test_a_damaged_table_is_set_aside_and_its_valid_rows_are_kept(
    name: str, tmp_path: Path
) -> None:
    content, sound = GARBLED[name]
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    assert write_run_files.epochs_written(path) == len(sound)
    said: list[str] = []
    write_run_files.keep_sound_rows(path, 3, said.append)
    (line,) = said
    assert line.startswith(f"warning: {path}: damaged: kept as metrics.csv.damaged")
    assert "\n" not in line
    lost = [number for number in (1, 2, 3) if number not in sound]
    assert (f"the row of epoch {', '.join(map(str, lost))} is lost" in line) is bool(lost)
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == content
    write_run_files.MetricsTable(path, epochs_done=3).append({"epoch": 4, "step": 16, "loss": 1.0})
    assert [int(row["epoch"]) for row in read(path)] == [*sound, 4]


@pytest.mark.parametrize("name", [*GARBLED, "a word", "a header", "a cell that is no number"])
def test_a_page_refuses_a_damaged_table(name: str, tmp_path: Path) -> None:
    others = {"a word": "garbage\n", "a header": ROWS[:16]}
    text = others.get(name, ROWS.replace("0.25", "0.2x5")).encode()
    path = tmp_path / "metrics.csv"
    assert write_run_files.all_rows(path) == []
    path.write_text(ROWS)
    assert [int(row["epoch"]) for row in write_run_files.all_rows(path)] == [1, 2, 3]
    path.write_bytes(GARBLED[name][0] if name in GARBLED else text)
    with pytest.raises(DataError, match=r"metrics\.csv: damaged \(.*\): restore it"):
        write_run_files.all_rows(path)


def test_missing_rows_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    said: list[str] = []
    write_run_files.keep_sound_rows(path, 0, said.append)
    path.write_text(ROWS)
    write_run_files.keep_sound_rows(path, 3, said.append)
    assert said == []
    write_run_files.keep_sound_rows(path, 5, said.append)
    assert said == [f"warning: {path}: rows are missing; the row of epoch 4, 5 is lost"]
    assert path.read_text() == ROWS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"starts": [{"comma',
        b"[1, 2]",
        b'{"other": []}',
        b'{"starts": {}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_damaged_environment_file_is_set_aside(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    said: list[str] = []
    for name in ("environment.json.damaged", "environment.json.damaged.1"):  # none is lost
        path.write_bytes(content)
        write_run_files.write_environment(tmp_path, ["/device:CPU:0"], "float32", warn=said.append)
        assert said.pop() == f"warning: {path}: damaged: kept as {name}; a new file is written"
        assert (tmp_path / name).read_bytes() == content
        assert len(json.loads(path.read_text())["starts"]) == 1


def test_environment_names_versions_and_devices(tmp_path: Path) -> None:
    write_run_files.write_environment(tmp_path, ["/device:CPU:0"], "float32")
    write_run_files.write_environment(tmp_path, ["/device:GPU:0"], "float32")  # resumed elsewhere
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert [start["devices"] for start in starts] == [["/device:CPU:0"], ["/device:GPU:0"]]
    assert starts[0]["versions"]["tensorflow"].startswith("2.")
    assert starts[0]["commit"] == machine.commit()
    assert starts[0]["processor"] == machine.processor()


def test_a_library_under_another_name_has_no_version() -> None:
    assert write_run_files.installed("no-such-library") is None


def test_classes_round_trip(tmp_path: Path) -> None:
    write_run_files.write_classes(tmp_path, Taxonomy(("sky",), ((1, 2, 3),)))
    tree = json.loads((tmp_path / "classes.json").read_text())
    assert tree == {"names": ["sky"], "palette": [[1, 2, 3]]}


def test_a_run_stores_the_size_of_its_largest_image(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(SCENES), encoding="utf-8")
    write_run_files.write_classes(tmp_path, Taxonomy(("sky",), ((1, 2, 3),)))
    assert read_run(tmp_path).trained is None  # an older version's
    write_run_files.write_sizes(tmp_path, [(240, 320), (640, 480), (500, 500)])
    assert read_run(tmp_path).trained == (640, 480)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"largest": 3}', "[" * 9999])
def test_damaged_sizes_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(SCENES), encoding="utf-8")
    write_run_files.write_classes(tmp_path, Taxonomy(("sky",), ((1, 2, 3),)))
    (tmp_path / "picture_sizes.json").write_text(text)
    with pytest.raises(RunError, match=r"picture_sizes.json: damaged .*: remove it"):
        read_run(tmp_path)
