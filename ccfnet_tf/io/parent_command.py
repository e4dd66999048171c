"""Commands such as `reproduce` run others, such as `fit`, as parts of themselves.

A part names what continues the whole, leaves the next step to it, and ends if it was killed.
"""

from __future__ import annotations

import os
import re
import signal
import sys

from ccfnet_tf.errors import TerminatedError

_PARENT, _CONTINUE_WITH = "CCFNET_TF_PARENT", "CCFNET_TF_CONTINUE_WITH"
_PR_SET_PDEATHSIG = 1
"""Of `prctl`; see <linux/prctl.h>."""

IS_PART = os.environ.get(_PARENT) == str(os.getppid())
"""Whether another command started this process as a part of itself."""

CONTINUE_WITH = os.environ.get(_CONTINUE_WITH, "--resume") if IS_PART else "--resume"
"""What continues training after an interruption, for messages."""


def environment(continue_with: str) -> dict[str, str]:
    """Returns the environment of a part of this process.

    Args:
        continue_with: What continues the whole, for messages.
    """
    return {**os.environ, _PARENT: str(os.getpid()), _CONTINUE_WITH: continue_with}


def end_with_parent() -> None:
    """Has the system send SIGTERM to a part when the whole ends, however it does; on Linux.

    Raises:
        TerminatedError: It has ended already.
    """
    if IS_PART and sys.platform == "linux":
        import ctypes  # only parts need it, and every command starts here

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    parent = os.environ.get(_PARENT, "")
    if re.fullmatch(r"[0-9]{1,9}", parent) and not _is_alive(int(parent)):
        raise TerminatedError("the command that started this one has ended")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
