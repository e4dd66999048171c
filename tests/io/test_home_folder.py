"""Paths that begin with ~."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccfnet_tf.cli import main as cli
from ccfnet_tf.io.home_folder import expanded


def test_the_home_folder_is_found_and_that_of_nobody_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert expanded("~/a") == Path("/home/somebody/a")
    assert expanded("~no-such-user/a") == Path("~no-such-user/a")
    assert expanded("a/~") == Path("a/~")


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "~no-such-user/run"],
        ["predict", "~no-such-user/run", "a.jpg"],
        ["fit", "--data.root", "~no-such-user/data", "--out", "run"],
        ["fit", "--config", "~no-such-user/c.yaml"],
        ["data", "check", "~no-such-user/data"],
        ["report", "~no-such-user/run"],
        ["compare", "~no-such-user/run", "b"],
    ],
)
def test_the_home_folder_of_nobody_is_not_found(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "~no-such-user" in error
    assert error.count("\n") == 1
