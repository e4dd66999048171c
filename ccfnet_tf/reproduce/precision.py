"""What `train.precision auto` is on this machine.

    python -m ccfnet_tf.reproduce.precision

Run as a process, so that the caller need not import TensorFlow.
"""

from __future__ import annotations

import subprocess
import sys

from ccfnet_tf.config import ComputeType, choices
from ccfnet_tf.errors import RunError


def auto() -> ComputeType:
    """Runs this module as a process; returns what it prints.

    Raises:
        RunError: The process failed; it has printed its error.
    """
    command = [sys.executable, "-P", "-m", __name__]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    last = (done.stdout.splitlines() or [""])[-1]
    for known in choices(ComputeType):
        if not done.returncode and last == known:
            return known  # type: ignore[return-value]
    raise RunError(
        "the precision of this machine could not be determined: fix the error printed above, or "
        "give --train.precision float32"
    )


def _main() -> None:
    from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

    start_tensorflow()
    from ccfnet_tf.training.distribution.devices import resolve_precision

    sys.stdout.write(resolve_precision("auto") + "\n")


if __name__ == "__main__":
    _main()
