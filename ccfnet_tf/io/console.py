"""The screen: one kind of console and one progress bar for every verb."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from ccfnet_tf.errors import printable
from ccfnet_tf.io.verbosity import QUIET


class _Console(Console):
    """A console on which a name of a file or a class cannot move the cursor or begin a line."""

    def print(self, *objects: Any, **how: Any) -> None:
        """Prints texts on a line each, and anything else as rich does."""
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **how)

    def render_str(self, text: str, **how: Any) -> Text:
        """Returns a text of a table: a cell, a title."""
        return super().render_str(printable(text), **how)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yields what is shown; nothing but rich's own codes is obeyed."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                lines = segment.text.split("\n")
                yield Segment("\n".join(map(printable, lines)), segment.style)


_KEPT = ("warning", "left out")  # how lines begin that are shown all the same


class _QuietConsole(_Console):
    """Shows what was asked for (tables) and what needs attention (warnings), and no notices."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as rich does, but for plain lines that are no warnings."""
        if all(isinstance(each, str) and not each.startswith(_KEPT) for each in objects):
            return
        super().print(*objects, **options)


def new_console(*, stderr: bool = False) -> Console:
    """Returns a console that prints a path as it is: no markup, no emoji, no breaking of lines.

    What a terminal would obey in it is shown as an escape.
    """
    kind = _QuietConsole if QUIET.get() else _Console
    return kind(soft_wrap=True, markup=False, emoji=False, highlight=False, stderr=stderr)


def new_progress(console: Console, *, figures: bool = False) -> Progress:
    """Returns a progress display; with `figures` its tasks carry a text of that name.

    A console that is not a terminal (a log file, a pipe) gets no bar at all.
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
