from __future__ import annotations

from pathlib import Path

import pytest

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.new_folder import new_folder


def test_the_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "out") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    assert (tmp_path / "a" / "out" / "x").read_text() == "1"


def test_nothing_stays_of_a_failure(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "x").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_filled_by_its_relative_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with new_folder(Path()) as folder:
        (folder / "x").write_text("1")
    assert (tmp_path / "out" / "x").is_file()


def test_places_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    for place in (tmp_path, tmp_path / "x", Path("gs://bucket/x")):
        with pytest.raises(ConfigError), new_folder(place):
            pass
    assert (tmp_path / "x").read_text() == "mine"
