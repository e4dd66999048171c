"""The `--quiet` flag, in a module of its own, so that `--help` does not import rich."""

from __future__ import annotations

from contextvars import ContextVar

QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
"""If true, progress and notices are hidden; results, warnings and errors are shown."""
