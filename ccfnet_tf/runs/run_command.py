"""Runs a command of this package in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from ccfnet_tf.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, RunError, TerminatedError
from ccfnet_tf.io.quiet_flag import QUIET


def run_command(arguments: Sequence[str], *, name: str, resume: str) -> None:
    """Runs `ccfnet-tf ARGUMENTS` and waits for it. Its output goes to the terminal.

    Args:
        arguments: The command and its options.
        name: What it is run for, for messages.
        resume: How the caller is continued, for messages.

    Raises:
        KeyboardInterrupt: The command was interrupted.
        TerminatedError: The command received SIGTERM.
        RunError: The command failed; it has printed its error.
    """
    quiet = ["--quiet"] if QUIET.get() else []
    command = [sys.executable, "-P", "-m", "ccfnet_tf", *arguments, *quiet]
    code = subprocess.run(command, check=False).returncode
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code == EXIT_TERMINATED:
        raise TerminatedError(f"{name}: received SIGTERM: saved; continue with {resume}")
    if code:
        raise RunError(
            f"{name}: ccfnet-tf {arguments[0]} ended with exit code {code}; fix the error "
            f"printed above, then continue with {resume}"
        )
