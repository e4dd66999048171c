"""Paths that begin with ~."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """Returns a path with ~ and ~user replaced by the home folder of the user.

    A user who does not exist stays as typed, and the file is then not found. `Path.expanduser`
    raises RuntimeError.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111
