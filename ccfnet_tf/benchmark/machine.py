"""How the figures of a benchmark are shown and kept, and what machine they are of."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.io.atomic_file import write_atomic
from ccfnet_tf.io.new_folder import refuse_unwritable

CPU_INFO = Path("/proc/cpuinfo")
CPU_TIMES = Path("/proc/stat")

BUSY = 0.1
"""Threads that wait for each other lose far more than the share that others take."""


class Others:
    """What other processes take of the machine from when this is made (Linux)."""

    def __init__(self, *workers: int) -> None:
        self._mine = ("self", *map(str, workers))
        self._began = time.perf_counter()
        self._used = self._used_by_others()

    def share(self) -> float | None:
        """Returns what share of the processors others used, in 0..1; None where it is not known."""
        used, began = self._used_by_others(), self._used
        if used is None or began is None:
            return None
        whole = (time.perf_counter() - self._began) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (used - began) / whole))

    def _used_by_others(self) -> float | None:
        """Returns seconds of processors, the host's too where it took them from this machine."""
        if not CPU_TIMES.is_file():
            return None
        user, nice, system, _, _, irq, softirq, steal = map(
            int, CPU_TIMES.read_text(encoding="ascii").split()[1:9]
        )
        ticks = user + nice + system + irq + softirq + steal
        for process in self._mine:
            after_name = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
            ticks -= int(after_name[11]) + int(after_name[12])  # utime, stime
        return ticks / os.sysconf("SC_CLK_TCK")


def others_line(share: float | None) -> str:
    """Returns what to think of figures that were measured beside others."""
    if share is None:
        return "what other processes took meanwhile is not known on this system"
    worth = "" if share < BUSY else ": too much to compare anything; measure again when it is quiet"
    return f"other processes took {share:.0%} of the processors meanwhile{worth}"


def refuse_lost_json(file: Path | None) -> None:
    """Refuses a place where figures could not be written, before minutes are spent on them.

    Raises:
        ConfigError: Its folder is missing, or it is a folder itself.
        ResourceError: Its folder cannot be written.
    """
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise ConfigError(f"--json {file}: it must be a file in a folder that is there")
    if file is not None:
        refuse_unwritable(file.parent, "--json")


def write_json(file: Path, tree: dict[str, Any]) -> None:
    """Writes figures for programs to read.

    Raises:
        ResourceError: The disk is full or the folder cannot be written.
    """
    text = json.dumps(tree, indent=1) + "\n"
    cure = "free space, or give another --json"
    write_atomic(file, lambda to: to.write(text.encode()), fix=cure, otherwise=cure)


def new_table(title: str, caption: str, headings: Sequence[str]) -> Table:
    """Returns an empty table whose first column holds names and whose others hold numbers."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        caption_style="none",
    )
    for number, heading in enumerate(headings):
        # As Text, since a line break in a plain string is shown as an escape.
        table.add_column(Text(heading), justify="right" if number else "left", no_wrap=True)
    return table


def machine(*packages: str) -> dict[str, Any]:
    """Returns what figures depend on besides the code: the processor and versions."""
    return {
        "processor": _processor(),
        "threads": usable_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def usable_threads() -> int:
    """Returns how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    rows = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    names = [row.split(":", 1)[1].strip() for row in rows if row.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
