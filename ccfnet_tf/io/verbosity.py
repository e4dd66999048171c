"""Whether `--quiet` was given; a module of its own, since `--help` does not wait for the screen."""

from __future__ import annotations

from contextvars import ContextVar

QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
"""Progress and notices are not shown; results, warnings and errors are."""
