"""Measures what is saved by computing fine only on the tiles that attention ranks first.

    python -m benchmarks.tile_cost [--size 240x320] [--tile 80] [--halo 0 16] [--json FILE]
    python -m benchmarks.tile_cost RUN [--tile 32 64] [--json FILE]

Coarse and attention read the image at half size. Backbone and fine head then read K square tiles at
full size, in one batch, and fine's labels replace those of coarse there. K is fixed, as exports
require. It is compared with fine alone on the whole image: multiply-adds and time, which do not
depend on the weights. Fine does not see the probabilities of coarse here, so that it can run alone.
Other processes affect the processor time less than the clock if one core is used (`taskset -c 0`).

With a RUN, the tool prints the accuracy by share of the tiles on its validation split instead.
Tiles get the labels of the run's own fine on the whole image: an upper bound, because fine sees
less context in a tile.

Shapes: image H x W, T tiles of N x N pixels, K of them computed by fine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ccfnet_tf.benchmark.machine import (
    Others,
    machine,
    others_line,
    refuse_lost_json,
    write_json,
)
from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, CCFNetError, ConfigError, DataError
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.inference.segmenter_protocol import SMALLEST
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.runtimes.letterbox import parse_size

if TYPE_CHECKING:  # TensorFlow starts after the arguments are parsed
    from benchmarks.tile_cost_network import Network, Tiles
    from ccfnet_tf.inference.segmenter_protocol import HeadOutputs

STRIDE = 8
"""Tiles begin at multiples of it, so that they are sampled where the whole image is."""

_OF_TIMING = ("--backbone", "--size", "--halo", "--rounds")
"""Options that have no effect on the accuracy of a run."""

SHARES = tuple(step / 8 for step in range(9))
"""Shares of the tiles whose accuracy is printed."""

Track = Callable[[Iterable[Any], str], Iterable[Any]]
"""Passes items through, and shows how many are done of what."""


class Spent(NamedTuple):
    """Seconds that a network took in one round, and its processor time in seconds."""

    seconds: float
    work: float


Rounds = dict[str, dict[str, list[Spent]]]
"""Every round, by network and runtime."""


def measure(
    networks: dict[str, Network], size: tuple[int, int], rounds: int, track: Track
) -> Rounds:
    """Compiles networks for one image size, and runs all of them in turn in every round."""
    from benchmarks.tile_cost_network import compiled

    images = np.random.default_rng(0).uniform(0, 255, (1, *size, 3)).astype(np.float32)
    names = track(networks, "networks compiled")
    runtimes = {name: compiled(networks[name], size) for name in names}
    spent: Rounds = {name: {kind: [] for kind in kinds} for name, kinds in runtimes.items()}
    for number in track(range(rounds + 1), "rounds"):
        for name, kinds in runtimes.items():
            for kind, network in kinds.items():
                began, used = time.perf_counter(), time.process_time()
                network(images)
                found = Spent(time.perf_counter() - began, time.process_time() - used)
                if number:  # the first round allocates memory
                    spent[name][kind].append(found)
    return spent


def cost_table(gmac: dict[str, float], spent: Rounds) -> Iterator[str]:
    """Yields the lines of a table. Ratios are computed per round, as the machine's speed varies."""
    from benchmarks.tile_cost_network import WHOLE

    headings = [f"{kind}, ms | ratio | processor ms | ratio" for kind in spent[WHOLE]]
    yield f"| | GMAC | ratio | {' | '.join(headings)} |"
    yield "|---" * (3 + 4 * len(headings)) + "|"
    for name, found in spent.items():
        cells = [f"{gmac[name]:.3g}", f"{gmac[name] / gmac[WHOLE]:.2f}"]
        for kind, rounds in found.items():
            for time_of in (attrgetter("seconds"), attrgetter("work")):
                times, whole = map(time_of, rounds), map(time_of, spent[WHOLE][kind])
                ratios = [one / of for one, of in zip(times, whole, strict=True)]
                cells.append(f"{1000 * median(map(time_of, rounds)):.0f}")
                cells.append(f"{median(ratios):.2f}")
        yield f"| {name} | {' | '.join(cells)} |"


def accuracy(run: Path, sides: list[int], track: Track) -> dict[tuple[int, float], Confusion]:
    """Returns the validation split's confusion of fine in a share of the tiles, coarse elsewhere.

    Raises:
        CCFNetError: The run or its data are invalid.
    """
    from benchmarks.tile_cost_network import Tiles
    from ccfnet_tf.inference.keras_network import KerasNetwork
    from ccfnet_tf.runs.run_data import read_run_parts
    from ccfnet_tf.runs.run_folder import read_run

    network, parts = KerasNetwork(run), read_run_parts(read_run(run), None)
    if not parts.val:
        raise DataError(f"{run}: has no validation split: give a run with data.val_share above 0")
    classes = len(network.taxonomy.names)
    states = {key: Confusion.empty(classes) for key in product(sides, SHARES)}
    for sample in track(parts.val, "validation"):
        image, label = parts.load(sample)
        outputs, (height, width) = network.head_outputs(image), label.shape
        for (side, share), state in states.items():
            labels = switched(outputs, Tiles(height, width, side, 0), share)
            states[side, share] = state.merge(Confusion.of(label, labels, classes=classes))
    return states


def switched(outputs: HeadOutputs, tiles: Tiles, share: float) -> np.ndarray:
    """Returns the labels [H, W]: fine's in the share of the tiles with the most expected errors."""
    order = np.argsort(-tiles.errors(outputs.attention).numpy(), kind="stable")
    taken = np.zeros((tiles.total, 1, 1), bool)
    taken[order[: tiles.taken(share)]] = True
    mask = tiles.join(np.broadcast_to(taken, (tiles.total, tiles.side, tiles.side))).numpy()
    return np.where(mask, outputs.fine.argmax(-1), outputs.coarse.argmax(-1))


def accuracy_table(states: dict[tuple[int, float], Confusion]) -> Iterator[str]:
    """Yields the lines of a table of pixel accuracy / mean IoU."""
    from ccfnet_tf.report.evaluation_tables import percent

    sides, shares = (list(dict.fromkeys(keys)) for keys in zip(*states, strict=True))
    yield f"| validation, % | {' | '.join(f'tiles of {side} pixels' for side in sides)} |"
    yield "|---" * (1 + len(sides)) + "|"
    for share in shares:
        found = [states[side, share] for side in sides]
        cells = [f"{percent(s.pixel_accuracy)} / {percent(s.mean_iou_present)}" for s in found]
        yield f"| {share:.1%} of the tiles | {' | '.join(cells)} |"


def main(args: list[str]) -> int:
    """Prints the tables and returns the exit code."""
    options = _parse(args)
    start_tensorflow()
    console = new_console()
    with new_progress(console) as bar:

        def track(items: Iterable[Any], what: str) -> Iterable[Any]:
            return bar.track(list(items), description=what)

        lines, tree = (_costs if options.run is None else _accuracies)(options, track)
    for line in lines:
        console.print(line)
    if options.json:
        write_json(options.json, tree)
        console.print(f"written to {options.json}")
    return EXIT_DONE


def _costs(options: argparse.Namespace, track: Track) -> tuple[list[str], dict[str, Any]]:
    """Measures multiply-adds and time; returns the lines of a table, and the figures for JSON."""
    from benchmarks.tile_cost_network import Tiles, build, rows

    (height, width), pairs = options.size, product(options.tile, options.halo)
    tilings = [Tiles(height, width, side, halo) for side, halo in pairs]
    table = rows(*build(options.backbone), tilings)
    others = Others()
    networks = {name: row.network for name, row in table.items()}
    spent = measure(networks, options.size, options.rounds, track)
    tree = {
        "backbone": options.backbone,
        "size": [height, width],
        "machine": machine("tensorflow"),
        "others_share": others.share(),
        "networks": [
            {
                "name": name,
                "gmac": row.gmac,
                "rounds": {kind: [one._asdict() for one in of] for kind, of in spent[name].items()},
            }
            for name, row in table.items()
        ],
    }
    return list(cost_lines(tree)), tree


def cost_lines(tree: dict[str, Any]) -> Iterator[str]:
    """Yields what is printed of the figures in a JSON file of the costs."""
    spent = {
        each["name"]: {kind: [Spent(**one) for one in of] for kind, of in each["rounds"].items()}
        for each in tree["networks"]
    }
    yield from cost_table({each["name"]: each["gmac"] for each in tree["networks"]}, spent)
    size, here = "x".join(map(str, tree["size"])), tree["machine"]
    yield f"{tree['backbone']}, {size}; {here['processor']}, threads: {here['threads']}"
    yield others_line(tree["others_share"])


def _accuracies(options: argparse.Namespace, track: Track) -> tuple[list[str], dict[str, Any]]:
    """Measures the accuracy of a run; returns the lines of a table, and the figures for JSON."""
    states = accuracy(options.run, options.tile, track)
    figures = [
        {
            "tile": side,
            "share": share,
            "pixel_accuracy": state.pixel_accuracy,
            "mean_iou": state.mean_iou_present,
        }
        for (side, share), state in states.items()
    ]
    return list(accuracy_table(states)), {"run": str(options.run), "figures": figures}


def _parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.tile_cost",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, nargs="?", help="print its accuracy instead")
    parser.add_argument("--backbone", default="mobilenet_v2", help="(%(default)s)")
    parser.add_argument("--size", type=parse_size, default=(240, 320), help="(240x320)")
    parser.add_argument("--tile", type=int, nargs="+", default=[80], metavar="N", help="pixels")
    parser.add_argument("--halo", type=int, nargs="+", default=[0, 16], metavar="N", help="pixels")
    parser.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    timing = [name for name in args if name.partition("=")[0] in _OF_TIMING]
    options = parser.parse_args(args)
    if options.run is not None and timing:
        raise ConfigError(f"{timing[0]} applies only without a RUN, whose accuracy is printed")
    if options.run is not None:
        options.halo = [0]
    for side, halo in product(options.tile, options.halo):
        if side < 1 or halo < 0 or side % STRIDE or halo % STRIDE or side + 2 * halo < SMALLEST:
            raise ConfigError(
                f"--tile {side} with --halo {halo}: both must be multiples of {STRIDE}, and the "
                f"tile with its halo at least {SMALLEST} pixels"
            )
    if min(options.size) < SMALLEST:
        raise ConfigError(
            f"--size is {options.size[0]}x{options.size[1]}: at least {SMALLEST} on each side"
        )
    if options.rounds < 1:
        raise ConfigError(f"--rounds is {options.rounds}: it must be 1 or more")
    refuse_lost_json(options.json)
    return options


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CCFNetError as error:
        sys.stderr.write(f"tile_cost: {error}\n")
        sys.exit(EXIT_USER_ERROR)
