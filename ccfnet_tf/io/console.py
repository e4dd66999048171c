"""The console and the progress bar shared by all commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from ccfnet_tf.errors import printable
from ccfnet_tf.io.quiet_flag import QUIET


class _Console(Console):
    """A console that escapes control characters in file names, class names and other texts."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints each string on one line, and other objects as rich does."""
        super().print(
            *(printable(each) if isinstance(each, str) else each for each in objects), **options
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """Renders a cell or a title of a table."""
        return super().render_str(printable(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Renders an object; only control codes of rich itself are kept."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                lines = segment.text.split("\n")
                yield Segment("\n".join(map(printable, lines)), segment.style)


_KEPT_PREFIXES = ("warning", "left out")  # Lines with these prefixes are printed even with --quiet.


class _QuietConsole(_Console):
    """Prints results (tables) and warnings, but no notices."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as rich does, but drops strings that are not warnings."""
        if all(isinstance(each, str) and not each.startswith(_KEPT_PREFIXES) for each in objects):
            return
        super().print(*objects, **options)


def new_console(*, stderr: bool = False) -> Console:
    """Returns a console without markup, emoji and line wrapping, so that paths print unchanged.

    Control characters are escaped.
    """
    console_class = _QuietConsole if QUIET.get() else _Console
    return console_class(soft_wrap=True, markup=False, emoji=False, highlight=False, stderr=stderr)


class _FiguresColumn(ProgressColumn):
    """The last column, which alone is cut where a terminal is too narrow for all of them."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


def errors_beside(console: Console) -> Console:
    """Returns the console of failures and warnings, which go to stderr.

    If a terminal shows both streams, it is `console`, which prints above its progress bar.
    """
    # Not `Console.is_terminal`, which FORCE_COLOR makes true for files too.
    both = all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))
    return console if both else new_console(stderr=True)


def _draws_bars(console: Console) -> bool:
    """Returns whether bars can be drawn: not in a log file, a pipe, or a terminal without cursor.

    The variables FORCE_COLOR and TTY_COMPATIBLE make `Console.is_terminal` true for files too.
    """
    forced = {"FORCE_COLOR", "TTY_COMPATIBLE"} & os.environ.keys()
    on_terminal = console.is_terminal and (not forced or console.file.isatty())
    return on_terminal and not console.is_dumb_terminal


def new_progress(console: Console, *, figures: bool = False) -> Progress:
    """Returns a progress bar.

    Nothing is displayed where no bar can be drawn (a log file, a pipe), or with `--quiet`.

    Args:
        console: Where the bar is displayed.
        figures: Add a text column, set by the field `figures` of each task.
    """
    columns = [
        TextColumn("{task.description}", markup=False),  # File names may contain [brackets].
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    ]
    if figures:
        columns.append(_FiguresColumn(Column()))
    quiet = QUIET.get() or not _draws_bars(console)
    # transient: the bar disappears when it is done, printed lines stay.
    return Progress(*columns, console=console, transient=True, disable=quiet)
