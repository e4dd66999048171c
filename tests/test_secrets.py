"""Users and passwords in URLs are never printed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from ccfnet_tf import Predictor
from ccfnet_tf.cli import main as cli
from ccfnet_tf.errors import CCFNetError, DataError, without_secrets
from ccfnet_tf.inference.find_inputs import find_jobs
from ccfnet_tf.io.console import new_console
from ccfnet_tf.runs.write_run_files import write_environment
from ccfnet_tf.runtimes.served import Patience, ServedNetwork
from tests import test_export_embedded

SHOWN = {
    "rtsp://joe:hush@10.0.0.7:554/live": "rtsp://***@10.0.0.7:554/live",
    "rtsp://joe@10.0.0.7/live": "rtsp://***@10.0.0.7/live",
    "http://joe:hu/sh@h/a": "http://***@h/a",
    "http://joe:hu@sh@h/a": "http://***@h/a",
    "http://joe:hu sh@h/a": "http://***@h/a",
    "http://joe:hu#s?h@h/a": "http://***@h/a",
    "https://h/a?user=joe&pwd=hush": "https://h/a?***",
    "RTSP://joe:hush@h/a?key=hush": "RTSP://***@h/a?***",
    "http:/joe:hush@h/a": "http:/***@h/a",
    "http://127.0.0.1:8501/v1/models/ccfnet": "http://127.0.0.1:8501/v1/models/ccfnet",
    "rtsp://[::1]:554/live": "rtsp://[::1]:554/live",
    "joe@example.org": "joe@example.org",
    "C:/photos/a@2x.png": "C:/photos/a@2x.png",
}
ADDRESSES = [address for address, masked in SHOWN.items() if address != masked]


@pytest.mark.parametrize("address", SHOWN)
def test_secrets_in_a_url_are_masked(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    masked = SHOWN[address]
    assert without_secrets(address) == masked
    assert str(DataError(f"{address}: no answer: see b.txt")) == f"{masked}: no answer: see b.txt"
    assert without_secrets(f"'{address}' and {address}, or") == f"'{masked}' and {masked}, or"
    new_console().print(f"to {address}")
    assert capsys.readouterr().out == f"to {masked}\n"


COMMANDS = [
    ["predict", "@", "a.png"],
    ["predict", "runs/none", "@"],
    ["predict", "runs/none", "a.png", "--out", "@"],
    ["benchmark", "@"],
    ["serve", "@"],
    ["serve", "runs/none", "--host", "@"],
    ["evaluate", "@"],
    ["export", "@"],
    ["export", "--verify-only", "@"],
    ["data", "check", "@"],
    ["data", "convert", "@", "--out", "x"],
    ["fit", "--data.root", "@"],
    ["fit", "--config", "@"],
    ["fit", "--resume", "--out", "@"],
    ["crossval", "--data.root", "@", "--out", "x"],
    ["predict", "runs/none", "a.png", "--siz", "@"],
    ["@"],
]


@pytest.mark.parametrize(
    ("command", "debug"),
    [(each, False) for each in COMMANDS] + [(["data", "check", "@"], True)],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_no_command_prints_them(
    command: list[str],
    debug: bool,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for address in (ADDRESSES[0], ADDRESSES[2], ADDRESSES[6]):
        words = [address if word == "@" else word for word in command]
        assert cli.main(words + debug * ["--debug"]) in (1, 2)
        output = "".join(capfd.readouterr())
        assert output
        for secret in ("joe", "hush", "hu/sh", "hu sh", "sh@"):
            assert secret not in output, output


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_exception_of_the_python_api_contains_them(address: str) -> None:
    for ask in (
        lambda: Predictor(address),
        lambda: Predictor(Path(address)),
        lambda: ServedNetwork(address, patience=Patience(1.0, 1, 0.0)),
    ):
        with pytest.raises(CCFNetError) as caught:
            ask()
        assert "hush" not in str(caught.value)
        assert "joe" not in str(caught.value)
    result = find_jobs([address, f"x{address}"], Path("out"))
    assert "joe" not in f"{result.failures} {[job.name + job.shown for job in result.jobs]}"


def test_a_run_does_not_store_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fit", f"--data.root={ADDRESSES[0]}"])
    write_environment(tmp_path, [], "float32")
    written = (tmp_path / "environment.json").read_text()
    assert "***@10.0.0.7" in written
    assert "hush" not in written


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_embedded_program_does_not_print_them(address: str) -> None:
    program: Any = test_export_embedded.load()
    with pytest.raises(program.RunError) as caught:
        program._source(address)
    assert "hush" not in str(caught.value)
    assert "joe" not in str(caught.value)
