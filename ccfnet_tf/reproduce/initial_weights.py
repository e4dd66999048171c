"""Downloads ImageNet weights once, before the runs of a study, each of which would fail for them.

    python -m ccfnet_tf.reproduce.initial_weights BACKBONE

Run as a process, so that the caller need not import TensorFlow.
"""

from __future__ import annotations

import subprocess
import sys

from ccfnet_tf.config import IMAGENET
from ccfnet_tf.errors import CCFNetError, RunError


def download(backbone: str) -> None:
    """Runs this module as a process, which does nothing if the weights are in Keras's cache.

    Raises:
        RunError: The process failed; it has printed its error.
    """
    command = [sys.executable, "-P", "-m", __name__, backbone]
    if subprocess.run(command, check=False).returncode:
        raise RunError(
            f"model.backbone_weights is {IMAGENET}: the weights of {backbone} could not be loaded: "
            "see the error printed above"
        )


def _main(backbone: str) -> None:
    from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

    start_tensorflow()
    from ccfnet_tf.network.backbone_weights import plain_backbone
    from ccfnet_tf.network.backbones import find_backbone

    plain_backbone(find_backbone(backbone).application, backbone, IMAGENET)


if __name__ == "__main__":
    try:
        _main(sys.argv[1])
    except CCFNetError as fault:
        sys.exit(f"ccfnet-tf: {fault}")
