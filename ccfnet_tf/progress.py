"""The screen: one kind of console and one progress bar for every verb."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def new_console(*, stderr: bool = False) -> Console:
    """Returns a console that prints a path as it is: no markup, no emoji, no breaking of lines."""
    return Console(soft_wrap=True, markup=False, emoji=False, highlight=False, stderr=stderr)


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
    # transient: the lines that a verb prints stay, the bar does not
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
