"""The commit of the checkout that the package is imported from."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ccfnet_tf.io import machine


@pytest.fixture
def commit_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str | None]:
    def of(package: Path) -> str | None:
        monkeypatch.setattr(machine, "PACKAGE", package)
        machine.commit.cache_clear()
        found = machine.commit()
        machine.commit.cache_clear()
        return found

    return of


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_commit_says_whether_the_package_was_changed(
    tmp_path: Path, commit_of: Callable[[Path], str | None]
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert commit_of(package) is None
    git(tmp_path, "init", "-q")
    assert commit_of(package) is None  # no commit yet
    (tmp_path / "page.md").write_text("1")
    git(tmp_path, "add", "page.md")
    git(tmp_path, "commit", "-qm", "page")
    assert commit_of(package) is None  # installed in a checkout of something else
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-qm", "package")
    digits = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert commit_of(package) == digits
    (tmp_path / "page.md").write_text("2")
    assert commit_of(package) == digits
    (package / "notes.txt").write_text("not tracked")
    assert commit_of(package) == digits
    (package / "__init__.py").write_text("x = 1\n")
    assert commit_of(package) == f"{digits}+"


def test_without_git_there_is_no_commit(
    commit_of: Callable[[Path], str | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(machine.PACKAGE) is None


def test_a_processor_has_a_name() -> None:
    assert machine.processor().strip()
    assert machine.usable_threads() >= 1
