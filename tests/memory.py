"""How much memory a part of a test takes, whatever the process did before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")


@contextmanager
def grows_at_most(limit: int) -> Iterator[None]:
    """Fails where the process takes more than `limit` bytes more than at the beginning.

    `ru_maxrss` cannot tell: it keeps the peak of all tests before.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _bytes("VmRSS")
    yield
    grown = _bytes("VmHWM") - before
    assert grown <= limit, f"{grown >> 20} MiB more"


def peak_of(status: str) -> int:
    """Returns the most that was resident, in bytes, from the text of a `/proc/PID/status`.

    `ru_maxrss` of a child cannot tell: it begins at the peak of the process that started it.
    """
    return _read(status, "VmHWM")


def _bytes(name: str) -> int:
    return _read(STATUS.read_text(), name)


def _read(status: str, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10
