from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ccfnet_tf.errors import ConfigError, ResourceError
from ccfnet_tf.io.new_folder import being_written, new_folder, refuse_unwritable


def test_the_folder_appears_complete(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "out") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    assert (tmp_path / "a" / "out" / "x").read_text() == "1"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "a" / "b" / "out") as folder:
            (folder / "x").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_given_by_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with new_folder(Path()) as folder:
        (folder / "x").write_text("1")
    assert (tmp_path / "out" / "x").is_file()


def test_invalid_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    for target in (tmp_path, tmp_path / "x", Path("gs://bucket/x")):
        with pytest.raises((ConfigError, ResourceError)), new_folder(target):
            pass
    assert (tmp_path / "x").read_text() == "mine"


def test_concurrent_writers_do_not_interfere(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("first")
        assert being_written(tmp_path / "out")
        with (
            pytest.raises(ConfigError, match="another process is writing it"),
            new_folder(tmp_path / "out"),
        ):
            pass
    assert not being_written(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "x"]
    assert (tmp_path / "out" / "x").read_text() == "first"


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from ccfnet_tf.io.new_folder import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'old').mkdir(); (folder / 'old' / 'x').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert not being_written(tmp_path / "out")
    with new_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("whole")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "x"]


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.ENOSPC, "free space, or give another --out"),
        (errno.EDQUOT, "free space, or give another --out"),
        (errno.EROFS, "make its folder writable, or give another --out"),
    ],
)
def test_the_error_states_the_fix(code: int, cure: str, tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught, new_folder(tmp_path / "a"):
        raise OSError(code, os.strerror(code))
    assert str(caught.value) == (
        f"{os.strerror(code)} while writing {tmp_path / 'a'}: nothing was kept: {cure}"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_no_file_can_be_made_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in /proc, or on a file system that is read-only for root too: permissions do not tell."""

    def refused(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("ccfnet_tf.io.new_folder.TemporaryFile", refused)
    with pytest.raises(ResourceError, match=r"cannot be written \(Read-only file system\): give"):
        refuse_unwritable(tmp_path / "out")
