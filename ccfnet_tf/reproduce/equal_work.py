"""The width at which fine alone takes as much work as the complete cascade.

    python -m ccfnet_tf.reproduce.equal_work CONFIG CLASSES

Run as a process, it prints a `Width` as JSON in its last line, so that the caller need not import
TensorFlow.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ccfnet_tf.config import RunConfig, from_yaml
from ccfnet_tf.errors import CCFNetError, RunError

if TYPE_CHECKING:
    from ccfnet_tf.benchmark.flops import Cost

LARGEST = 4096
"""Largest `model.head_channels`."""


@dataclass(frozen=True)
class Width:
    """Widths with equal work.

    Attributes:
        channels: `model.head_channels` of fine alone.
        gmac: Multiply-adds of backbone and fine head of that width for one crop, in 10^9.
        cascade_gmac: Those of the complete cascade.
    """

    channels: int
    gmac: float
    cascade_gmac: float


def measure(config: Path, classes: int) -> Width:
    """Runs this module as a process; returns what it prints.

    Raises:
        RunError: The process failed; it has printed its error.
    """
    command = [sys.executable, "-P", "-m", __name__, str(config), str(classes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        width = Width(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        width = None
    if done.returncode or width is None:
        raise RunError(
            f"{config}: the multiply-adds of its network could not be counted: see the error "
            "printed above"
        )
    return width


def find(config: RunConfig, classes: int) -> Width:
    """Builds the network at a few widths, and returns the one with equal work.

    The multiply-adds of the heads are a quadratic function of their width: a convolution between
    hidden layers grows with its square, one from the backbone linearly.
    """
    narrow = config.model.head_channels
    whole, alone = _cost(config, narrow, classes), _fine_alone(config, narrow, classes)
    widths = [narrow, 2 * narrow, 3 * narrow]
    works = [alone, *(_fine_alone(config, width, classes) for width in widths[1:])]
    square, linear, constant = np.polyfit(widths, works, 2)
    roots = np.roots([square, linear, constant - whole.total])
    channels = min(LARGEST, max(narrow, round(max(float(root.real) for root in roots))))
    gmac = _fine_alone(config, channels, classes)
    return Width(channels, round(gmac, 4), round(whole.total, 4))


def _fine_alone(config: RunConfig, width: int, classes: int) -> float:
    """Returns the multiply-adds of the backbone at one scale and the fine head, in 10^9."""
    one_scale = replace(config.model, coarse_scale=1.0, attention_scale=1.0)
    found = _cost(replace(config, model=one_scale), width, classes)
    return found.backbone + found.fine


def _cost(config: RunConfig, width: int, classes: int) -> Cost:
    from ccfnet_tf.benchmark.flops import cost
    from ccfnet_tf.network.ccfnet import build_ccfnet

    keys = {**config.model.architecture(), "head_channels": width}
    model = build_ccfnet(classes, backbone_weights=None, **keys)
    return cost(model, config.data.crop, config.data.crop)


def _main(path: Path, classes: int) -> None:
    config = from_yaml(path.read_text(encoding="utf-8"), source=str(path))
    from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

    start_tensorflow()
    sys.stdout.write(json.dumps(asdict(find(config, classes))) + "\n")


if __name__ == "__main__":
    try:
        _main(Path(sys.argv[1]), int(sys.argv[2]))
    except CCFNetError as fault:
        sys.exit(f"ccfnet-tf: {fault}")
