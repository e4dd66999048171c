"""Runs a command of this package in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from ccfnet_tf.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, RunError, TerminatedError
from ccfnet_tf.io.parent_command import environment
from ccfnet_tf.io.quiet_flag import QUIET


def run_command(arguments: Sequence[str], *, name: str, resume: str) -> None:
    """Runs `ccfnet-tf ARGUMENTS` and waits for it. Its output goes to the terminal.

    SIGTERM is passed on to the command, which can then save its state; so is the end of this
    process, if it is killed. Must be called from the main thread, the only one that can handle
    signals.

    Args:
        arguments: The command and its options.
        name: What it is run for, for messages.
        resume: How the caller is continued, for messages.

    Raises:
        KeyboardInterrupt: The command was interrupted.
        TerminatedError: The command or this process received SIGTERM.
        RunError: The command failed; it has printed its error, unless it was killed.
    """
    quiet = ["--quiet"] if QUIET.get() else []
    command = [sys.executable, "-P", "-m", "ccfnet_tf", *arguments, *quiet]
    code, terminated = _run(command, environment(resume))
    if code in (EXIT_INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if terminated or code in (EXIT_TERMINATED, -signal.SIGTERM):
        saved = ": saved" if code == EXIT_TERMINATED else ""
        raise TerminatedError(f"{name}: received SIGTERM{saved}; continue with {resume}")
    if code < 0:
        raise RunError(
            f"{name}: ccfnet-tf {arguments[0]} was killed by {_signal_name(-code)}; continue with "
            f"{resume}"
        )
    if code:
        raise RunError(
            f"{name}: ccfnet-tf {arguments[0]} ended with exit code {code}; fix the error "
            f"printed above, then continue with {resume}"
        )


def _run(command: Sequence[str], variables: Mapping[str, str]) -> tuple[int, bool]:
    """Returns the exit code of a command, and whether this process received SIGTERM meanwhile.

    The code of a command that was killed is the negative number of the signal.
    """
    process: subprocess.Popen[bytes] | None = None
    terminated = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        if process is not None:
            process.terminate()

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        with subprocess.Popen(command, env=variables) as process:
            if terminated:  # received before there was a process to pass it on to
                process.terminate()
            try:
                return process.wait(), terminated
            except BaseException:  # Ctrl-C: the command receives it too, and has had its time
                process.kill()
                raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _signal_name(number: int) -> str:
    names = {each.value: each.name for each in signal.Signals}
    lack = " (often for lack of memory)" if number == signal.SIGKILL else ""
    return names.get(number, f"signal {number}") + lack
