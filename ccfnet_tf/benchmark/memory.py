"""Resident memory of this process, in MB."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def resident() -> float:
    """Returns the current resident memory (Linux)."""
    return _row("VmRSS:")


def peak() -> float:
    """Returns the peak resident memory since `forget_peak`, or since the start of the process."""
    if _STATUS.is_file():
        return _row("VmHWM:")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e6 if sys.platform == "darwin" else 1e3)


def forget_peak() -> None:
    """Resets the peak if the system supports it (Linux); does nothing otherwise."""
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5", encoding="ascii")


def _row(name: str) -> float:
    rows = _STATUS.read_text(encoding="ascii").splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith(name)) / 1000
