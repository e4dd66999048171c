"""The screen: one kind of console and one progress bar for every verb."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ccfnet_tf.quiet import QUIET

_KEPT = ("warning", "left out")  # how lines begin that are shown all the same


class _QuietConsole(Console):
    """Shows what was asked for (tables) and what needs attention (warnings), and no notices."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as rich does, but for plain lines that are no warnings."""
        if all(isinstance(each, str) and not each.startswith(_KEPT) for each in objects):
            return
        super().print(*objects, **options)


def new_console(*, stderr: bool = False) -> Console:
    """Returns a console that prints a path as it is: no markup, no emoji, no breaking of lines."""
    kind = _QuietConsole if QUIET.get() else Console
    return kind(soft_wrap=True, markup=False, emoji=False, highlight=False, stderr=stderr)


def new_progress(console: Console, *, figures: bool = False) -> Progress:
    """Returns a progress display; with `figures` its tasks carry a text of that name.

    A console that is no terminal (a log file, a pipe) gets no bar at all.
    """
    columns = [
        TextColumn("{task.description}", markup=False),  # a file's name may hold [brackets]
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    ]
    if figures:
        columns.append(TextColumn("{task.fields[figures]}"))
    quiet = QUIET.get() or not console.is_terminal
    # transient: the lines that a verb prints stay, the bar does not
    return Progress(*columns, console=console, transient=True, disable=quiet)
