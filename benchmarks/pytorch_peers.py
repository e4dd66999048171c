"""Compares the speed of CCFNet with PyTorch networks on the same machine: `make bench-peers`.

    python -m benchmarks.pytorch_peers [--size 240] [--batch 4] [--rounds 3] [--json FILE]

PyTorch is installed in a separate environment. Each side is a process. It first prints a JSON line
with its versions and networks, `{"versions": {name: version}, "gmac": {network: GMAC}}`. It then
responds to each line `{"network", "phase", "precision"}` with `{"seconds"}` of one step. The
requests alternate between the two sides, so one is idle while the other works, and variations in
the speed of the machine affect both. Networks differ in size, so milliseconds per GMAC of each
network are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks import REPOSITORY
from ccfnet_tf.benchmark.machine import (
    Others,
    machine,
    new_table,
    others_line,
    refuse_lost_json,
    write_json,
)
from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, CCFNetError, ConfigError, ResourceError
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.machine import usable_threads

if TYPE_CHECKING:
    from ccfnet_tf.benchmark.speed import Phase
    from ccfnet_tf.config import ComputeType

PEER = Path(".venv-peers/bin/python")
OURS = "CCFNet"
PHASES: tuple[Phase, ...] = ("training", "inference")
PRECISIONS: tuple[ComputeType, ...] = ("float32", "bfloat16")
STRIDE = 8
CLASSES = 8

REST = 0.3
"""Pause between two sides in seconds: threads of the previous one keep spinning for a while."""


@dataclass
class Timed:
    """One phase of one network in one precision.

    Attributes:
        network: Name of the network.
        gmac: 10^9 multiply-adds per image.
        phase: `training` or `inference`.
        precision: `float32` or `bfloat16`.
        seconds: Seconds per step, best of the rounds.
    """

    network: str
    gmac: float
    phase: Phase
    precision: ComputeType
    seconds: float = float("inf")

    def ms_per_gmac(self, batch: int) -> float:
        """Returns milliseconds per image and GMAC of a forward pass."""
        return 1000 * self.seconds / batch / self.gmac


class Side:
    """A process that times steps of its networks on request.

    Attributes:
        versions: Library -> version.
        gmac: Network -> GMAC of an image.
        process: Process id.
    """

    def __init__(self, command: Sequence[str], log: Any) -> None:
        self._command, self._log = command, log
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=log,
            text=True,
            bufsize=1,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        try:
            greeting = self._read()
        except BaseException:  # including Ctrl-C: no caller can end the process yet
            self._process.kill()
            raise
        self.process = self._process.pid
        self.versions: dict[str, str] = greeting["versions"]
        self.gmac: dict[str, float] = greeting["gmac"]

    def seconds(self, timed: Timed) -> float:
        """Returns the seconds of one step.

        Raises:
            ResourceError: The process ended.
        """
        assert self._process.stdin
        request = {key: getattr(timed, key) for key in ("network", "phase", "precision")}
        with suppress(BrokenPipeError):  # the process has ended; its log has the reason
            self._process.stdin.write(json.dumps(request) + "\n")
        return float(self._read()["seconds"])

    def close(self) -> None:
        """Kills the process if it is running."""
        with self._process:
            self._process.kill()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        code = self._process.wait()
        self.close()
        self._log.seek(0)
        log = self._log.read().strip().splitlines() or ["no output"]
        raise ResourceError(f"{self._command[0]}: exited with {code}: {log[-1]}")


def main(args: Sequence[str]) -> int:
    """Measures both sides, prints the table and returns the exit code."""
    options = _parse(args)
    refuse_lost_json(options.json)
    if not options.python.is_file():
        raise ConfigError(
            f"{options.python}: no such file: create the environment with `make bench-peers`, or "
            "pass --python FILE of one with benchmarks/pytorch_peers.txt installed"
        )
    console = new_console()
    with _sides(options) as sides, new_progress(console) as bar:
        rows = [
            (side, Timed(name, gmac, phase, precision))
            for precision, phase, side in product(PRECISIONS, PHASES, sides)
            for name, gmac in side.gmac.items()
        ]
        others = Others(*[side.process for side in sides])
        task = bar.add_task("", total=len(rows) * (options.rounds + 1))
        for number in range(options.rounds + 1):
            for side, timed in rows:
                what = f"{timed.network}, {timed.phase} in {timed.precision}"
                when = f"round {number} of {options.rounds}" if number else "first step"
                bar.update(task, description=f"{when}: {what}")
                seconds = side.seconds(timed)
                if number:  # the first step builds and traces
                    timed.seconds = min(timed.seconds, seconds)
                bar.advance(task)
                time.sleep(REST)
        share = others.share()
        versions = {name: value for side in sides for name, value in side.versions.items()}
    measured = [timed for _, timed in rows]
    console.print(table(measured, options.size, options.batch))
    here = machine()
    console.print(
        f"{here['threads']} threads of {here['processor']}; best of {options.rounds} rounds; "
        f"{', '.join(f'{name} {value}' for name, value in versions.items())}"
    )
    console.print(others_line(share))
    if options.json:
        tree = as_json(measured, versions, options) | {"others_share": share}
        write_json(options.json, tree)
        console.print(f"written to {options.json}")
    return EXIT_DONE


def table(measured: Sequence[Timed], size: int, batch: int) -> Table:
    """Returns the table of all measurements."""
    result = new_table(
        f"{size}x{size} pixels, {batch} images per step",
        "GMAC of a forward pass of one image, also in training; relative: time per GMAC over that "
        "of CCFNet",
        ["", "network", "GMAC", "ms per\nimage", "ms per\nGMAC", "relative to\nCCFNet"],
    )
    for timed in measured:
        cells = [
            f"{timed.phase} {timed.precision}",
            timed.network,
            f"{timed.gmac:.1f}",
            f"{1000 * timed.seconds / batch:.0f}",
            f"{timed.ms_per_gmac(batch):.2f}",
            f"{relative_to_ccfnet(timed, measured):.2f}",
        ]
        result.add_row(*cells)
    return result


def relative_to_ccfnet(timed: Timed, measured: Sequence[Timed]) -> float:
    """Returns the time per GMAC divided by that of CCFNet in the same phase and precision."""
    same = (timed.phase, timed.precision)
    ours = next(t for t in measured if t.network == OURS and (t.phase, t.precision) == same)
    return timed.ms_per_gmac(1) / ours.ms_per_gmac(1)


def as_json(
    measured: Sequence[Timed], versions: dict[str, str], options: argparse.Namespace
) -> dict[str, Any]:
    """Returns all figures in the form of the JSON file; times in milliseconds."""
    return {
        "size": options.size,
        "batch": options.batch,
        "rounds": options.rounds,
        "machine": machine(),
        "versions": versions,
        "speeds": [
            {
                "network": timed.network,
                "gmac": timed.gmac,
                "phase": timed.phase,
                "precision": timed.precision,
                "ms_an_image": 1000 * timed.seconds / options.batch,
                "ms_per_gmac": timed.ms_per_gmac(options.batch),
                "beside_ours": relative_to_ccfnet(timed, measured),
            }
            for timed in measured
        ],
    }


def _parse(args: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.pytorch_peers", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--python", type=Path, default=PEER, help="Python with PyTorch (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, default=240, help="height and width of an image (default: 240)"
    )
    parser.add_argument("--batch", type=int, default=4, help="images per step (default: 4)")
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="number of rounds, of which the best counts (default: 3)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to this file")
    options = parser.parse_args(args)
    if options.size < 32 or options.size % STRIDE:
        raise ConfigError(
            f"--size is {options.size}: it must be a multiple of {STRIDE}, 32 or more"
        )
    if options.batch < 2:
        raise ConfigError(
            f"--batch is {options.batch}: it must be 2 or more for the batch norm of the peers"
        )
    if options.rounds < 1:
        raise ConfigError(f"--rounds is {options.rounds}: it must be 1 or more")
    return options


@contextmanager
def _sides(options: argparse.Namespace) -> Iterator[list[Side]]:
    """Starts the processes of CCFNet and of the peers in sequence; kills both at the end."""
    settings = {
        "size": options.size,
        "batch": options.batch,
        "classes": CLASSES,
        "threads": usable_threads(),
    }
    arguments = json.dumps(settings)
    here = Path(__file__).parent
    commands = [
        [sys.executable, "-P", "-m", "benchmarks.pytorch_peers_tensorflow", arguments],
        # -P keeps the modules of this folder off the path of the peer
        [str(options.python), "-P", str(here / "pytorch_peers_torch.py"), arguments],
    ]
    with ExitStack() as stack:
        sides = []
        for command in commands:
            log = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            side = Side(command, log)
            stack.callback(side.close)
            sides.append(side)
        yield sides


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CCFNetError as error:
        sys.stderr.write(f"peers: {error}\n")
        sys.exit(EXIT_USER_ERROR)
