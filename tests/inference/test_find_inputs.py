from __future__ import annotations

from pathlib import Path

import pytest

from ccfnet_tf.cli.suspects import SHEET as SUSPECTS_SHEET
from ccfnet_tf.cli.suspects import TABLE as SUSPECTS
from ccfnet_tf.inference.find_inputs import (
    CONTACT_SHEET,
    TABLES,
    Failure,
    Found,
    find_below,
    find_jobs,
)
from ccfnet_tf.report.ranking_files import SHEET
from ccfnet_tf.report.ranking_files import TABLE as RANKING


@pytest.fixture
def training_set(tmp_path: Path) -> Path:
    """An image and two masks in train/, and what only looks like masks."""
    for name in ("train/images/a.jpg", "train/masks/a.png", "train/masks/sub/b.png"):
        put(tmp_path / "set" / name)
    put(tmp_path / "set" / "train/masks/notes.txt")
    put(tmp_path / "set" / "carnival/masks/c.jpg")  # no images/ beside it
    return tmp_path / "set"


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def find(*inputs: Path) -> Found:
    return find_jobs([str(path) for path in inputs], Path("nowhere"))


def test_masks_beside_images_are_left_out_of_a_folder(training_set: Path) -> None:
    found = find(training_set)
    assert [job.name for job in found.jobs] == ["carnival/masks/c", "train/images/a"]
    assert (found.labels, found.failures) == (2, [])


def test_masks_given_themselves_are_pictures(training_set: Path) -> None:
    found = find(training_set / "train" / "masks")
    assert [job.name for job in found.jobs] == ["a", "sub/b"]
    assert found.labels == 0


def test_a_glob_without_a_match_says_so(training_set: Path) -> None:
    pattern = training_set / "train" / "*.bmp"
    assert find(pattern).failures == [Failure(str(pattern), "matches no file")]
    (failure,) = find(training_set / "train" / "masks" / "*.txt").failures
    assert "contains no image or video" in failure.reason


@pytest.mark.parametrize(("table", "found"), [(RANKING, 1), (SUSPECTS, 1), ("a.csv", 2)])
def test_contact_sheets_of_earlier_calls_are_no_inputs(
    tmp_path: Path, table: str, found: int
) -> None:
    (tmp_path / "ranking").mkdir()
    for name in ("a.png", f"ranking/{table}", "ranking/contact_sheet.png"):
        (tmp_path / name).write_bytes(b"x")
    assert len(find_below(tmp_path, tmp_path / "other").jobs) == found


def test_contact_sheets_are_named_as_the_commands_write_them() -> None:
    assert (CONTACT_SHEET, TABLES) == (SHEET, (RANKING, SUSPECTS))
    assert SUSPECTS_SHEET == SHEET
