"""How a command in a process of its own ends, and what its caller makes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccfnet_tf.errors import RunError, TerminatedError
from ccfnet_tf.runs.run_command import run_command

Run = Callable[[str], None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Returns a function that runs a shell script as if it were the command."""

    def of(script: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))
        run_command(["fit", "--out", "a"], name="fold 1", resume="--resume")

    return of


def test_the_command_gets_its_arguments(run: Run, tmp_path: Path) -> None:
    run(f'echo "$@" > {tmp_path}/arguments')
    assert (tmp_path / "arguments").read_text() == "-P -m ccfnet_tf fit --out a\n"


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("exit 2", RunError, "ccfnet-tf fit ended with exit code 2; fix the error printed above,"),
        (
            "kill -KILL $$",
            RunError,
            "ccfnet-tf fit was killed by SIGKILL (often for lack of memory);",
        ),
        ("kill -SEGV $$", RunError, "ccfnet-tf fit was killed by SIGSEGV;"),
        ("exit 143", TerminatedError, "received SIGTERM: saved;"),
        ("kill -TERM $$", TerminatedError, "received SIGTERM;"),
    ],
)
def test_failures_say_what_ended_the_command(
    script: str, kind: type[Exception], message: str, run: Run
) -> None:
    with pytest.raises(kind) as caught:
        run(script)
    text = str(caught.value)
    assert text.startswith(f"fold 1: {message}")
    assert text.endswith("continue with --resume")


INTERRUPTED = (
    f"exec {sys.executable} -c 'import os, signal; "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGINT)'"
)
"""Of a shell, SIGINT stays ignored if the tests themselves were started in the background."""


@pytest.mark.parametrize("script", ["exit 130", INTERRUPTED], ids=["exit code", "signal"])
def test_an_interrupted_command_interrupts_its_caller(script: str, run: Run) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(script)


def waiting(tmp_path: Path, code: int) -> str:
    """Returns a script that waits for SIGTERM for at most 20 s, and then exits with `code`."""
    return (
        f"trap 'exit {code}' TERM\ntouch {tmp_path}/ready\n"
        "for _ in $(seq 400); do sleep .05; done\nexit 9"
    )


@pytest.mark.parametrize(("code", "saved"), [(143, ": saved"), (0, ""), (2, "")])
def test_sigterm_is_passed_on(code: int, saved: str, run: Run, tmp_path: Path) -> None:
    def terminate() -> None:
        while not (tmp_path / "ready").exists() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before, end = signal.getsignal(signal.SIGTERM), time.monotonic() + 10
    sender = threading.Thread(target=terminate)
    sender.start()
    with pytest.raises(TerminatedError, match=rf"^fold 1: received SIGTERM{saved}; continue"):
        run(waiting(tmp_path, code))
    sender.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert time.monotonic() < end


def test_sigterm_before_the_command_runs_is_passed_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", Slow)
    start = time.monotonic()
    with pytest.raises(TerminatedError):
        run(waiting(tmp_path, 143))
    assert time.monotonic() - start < 10
