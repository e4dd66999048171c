"""Records SIGTERM, which schedulers send before preemption, so that the run can be saved first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ccfnet_tf.errors import TerminatedError
from ccfnet_tf.io.parent_command import CONTINUE_WITH


class Preemption:
    """Records whether the process received SIGTERM inside `listening`."""

    def __init__(self) -> None:
        self.now = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Records SIGTERM inside the context, and restores the previous handler afterwards."""
        previous = signal.signal(signal.SIGTERM, self._record)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.now = True


def terminated(step: int) -> TerminatedError:
    """Returns the exception that ends a saved run."""
    return TerminatedError(f"received SIGTERM at step {step}: saved; continue with {CONTINUE_WITH}")
