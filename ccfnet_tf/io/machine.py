"""The machine and the source code that figures depend on."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
PACKAGE = Path(__file__).resolve().parents[1]


def usable_threads() -> int:
    """Returns the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Returns the model of the processor."""
    rows = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    names = [row.split(":", 1)[1].strip() for row in rows if row.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def commit() -> str | None:
    """Returns the commit of the checkout that the package is imported from.

    Returns:
        The first 12 digits, with `+` if tracked files of the package were changed since; None if
        the package is not in a checkout, or git is not installed.
    """
    digits = _git("rev-parse", "--short=12", "HEAD")
    if digits is None:
        return None
    # A checkout of something else, in which this package is installed, ignores its files.
    if not _git("ls-files", "--", str(PACKAGE / "__init__.py")):
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", str(PACKAGE))
    return digits + ("+" if changed else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(PACKAGE), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
