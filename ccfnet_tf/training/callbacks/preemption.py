"""SIGTERM, with which schedulers take a machine back: noted, and acted on where nothing is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ccfnet_tf.errors import TerminatedError


class Preemption:
    """Whether the process received SIGTERM since `listening` began."""

    def __init__(self) -> None:
        self.now = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Notes SIGTERM inside the context; afterwards the previous handler is back."""
        former = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, former)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.now = True


def terminated(step: int) -> TerminatedError:
    """Returns what ends a run that has saved itself."""
    return TerminatedError(f"received SIGTERM at step {step}: saved; the run goes on with --resume")
