"""Tables, JSON files and machine description of benchmarks."""

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
from ccfnet_tf.io.machine import processor, usable_threads
from ccfnet_tf.io.new_folder import refuse_unwritable

CPU_TIMES = Path("/proc/stat")

BUSY = 0.1
"""Share of other processes above which figures are unreliable: waiting threads lose far more."""


class Others:
    """Measures the processor time of other processes since its construction (Linux)."""

    def __init__(self, *workers: int) -> None:
        self._own_processes = ("self", *map(str, workers))
        self._began = time.perf_counter()
        self._used = self._used_by_others()

    def share(self) -> float | None:
        """Returns the share of the processors that others used, 0..1; None if unknown."""
        used, began = self._used_by_others(), self._used
        if used is None or began is None:
            return None
        total = (time.perf_counter() - self._began) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (used - began) / total))

    def _used_by_others(self) -> float | None:
        """Returns processor seconds of others, including time that the host took (steal)."""
        if not CPU_TIMES.is_file():
            return None
        user, nice, system, _, _, irq, softirq, steal = map(
            int, CPU_TIMES.read_text(encoding="ascii").split()[1:9]
        )
        ticks = user + nice + system + irq + softirq + steal
        for process in self._own_processes:
            after_name = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
            ticks -= int(after_name[11]) + int(after_name[12])  # utime, stime
        return ticks / os.sysconf("SC_CLK_TCK")


def others_line(share: float | None) -> str:
    """Returns a note about the influence of other processes on the figures."""
    if share is None:
        return "the load by other processes is not known on this system"
    warning = (
        "" if share < BUSY else ": too much for a comparison; measure again on an idle machine"
    )
    return f"other processes used {share:.0%} of the processors meanwhile{warning}"


def refuse_lost_json(file: Path | None) -> None:
    """Checks before a long measurement that the JSON file can be written.

    Raises:
        ConfigError: The file's folder does not exist, or the path is a folder.
        ResourceError: The file's folder is not writable.
    """
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise ConfigError(f"--json {file}: it must be a file in an existing folder")
    if file is not None:
        refuse_unwritable(file.parent, "--json")


def write_json(file: Path, tree: dict[str, Any]) -> None:
    """Writes figures as JSON.

    Raises:
        ResourceError: The disk is full or the folder is not writable.
    """
    text = json.dumps(tree, indent=1) + "\n"
    fix = "free space, or give another --json"
    write_atomic(file, lambda to: to.write(text.encode()), fix=fix, otherwise=fix)


def new_table(title: str, caption: str, headings: Sequence[str]) -> Table:
    """Returns an empty table with a first column of names and further columns of numbers."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        caption_style="none",
    )
    for number, heading in enumerate(headings):
        # Text, because line breaks in plain strings are displayed as escapes.
        table.add_column(Text(heading), justify="right" if number else "left", no_wrap=True)
    return table


def machine(*packages: str) -> dict[str, Any]:
    """Returns the processor, the number of threads and versions, on which figures depend."""
    return {
        "processor": processor(),
        "threads": usable_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
