"""`ccfnet-tf predict`: label images, folders, videos and streams."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ccfnet_tf.cli.parser import Parser
from ccfnet_tf.cli.wrapping_options import add_wrapping_options, wrapping_of
from ccfnet_tf.errors import EXIT_DONE, EXIT_FINDINGS
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

if TYPE_CHECKING:
    from ccfnet_tf.inference.predict import Outcome
    from ccfnet_tf.inference.segmenter import Network

RESULTS = """\
what --save names, and what is written of an image:
  label            STEM.label.png            class ids *
  color            STEM.color.png            the classes' colours *
  overlay          STEM.overlay.png          the image, tinted by class, with a legend *
  difficulty       STEM.difficulty.png       how likely the first answer is wrong: dark = easy,
                                             bright = hard *
  difficulty_grey  STEM.difficulty_grey.png  the same as 8-bit grey, 255 = surely wrong
  difficulty_npy   STEM.difficulty.npy       the same as float32 for NumPy
  difficulty_tiff  STEM.difficulty.tiff      the same as float32 TIFF
of a video or a stream:
  those above      STEM.frames/              of every frame *
  film             STEM.overlay.mp4          the video, tinted by class; H.264 where OpenCV or
                                             ffmpeg writes it, and without sound *
(* without --save)

A folder is searched to the bottom and its paths are kept. masks/ that lies beside images/ holds
labels and is skipped; given itself, it is read like any folder. camera:0 is the first camera, and
Ctrl-C ends a stream. Exit code 1: an input was left out, which a line says.
"""


def new_parser() -> Parser:
    """Returns the parser of this verb."""
    parser = Parser(
        prog="ccfnet-tf predict",
        description="Label images, folders, globs and videos by a run, an exported file or a "
        "server.",
        epilog=RESULTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    network = (
        "run folder; exported folder, .tflite or .onnx file; or a server's address "
        "(http://HOST:8501/v1/models/ccfnet, grpc://HOST:8500/ccfnet)"
    )
    parser.add_argument("network", metavar="NETWORK", help=network)
    inputs = "image, folder, glob, video, camera:0, or a stream's address (rtsp://...)"
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=inputs)
    out = "folder for the results (default: %(default)s)"
    parser.add_argument("--out", default="predictions", help=out)
    save = "what is written, with commas between; see below"
    parser.add_argument("--save", metavar="NAMES", help=save)
    size = (
        "show the network images of at most this longest side, or HEIGHTxWIDTH; results keep "
        "the image's size"
    )
    parser.add_argument("--size", metavar="N", help=size)
    add_wrapping_options(parser)
    there = parser.add_mutually_exclusive_group()
    skip = "leave out inputs whose results are already there"
    there.add_argument("--skip-existing", action="store_true", help=skip)
    there.add_argument("--overwrite", action="store_true", help="replace results already there")
    bare = "no legends: every file has the image's size"
    parser.add_argument("--no-legends", action="store_true", help=bare)
    return parser


def main(args: list[str]) -> int:
    """Labels images, videos and streams; returns the exit code."""
    parser = new_parser()
    options = parser.parse_args(args)
    from ccfnet_tf.inference.downscale import parse_box
    from ccfnet_tf.inference.predict import Wanted, parse_save, predict_all
    from ccfnet_tf.io.console import new_console
    from ccfnet_tf.io.new_folder import refuse_unwritable
    from ccfnet_tf.runtimes.letterbox import parse_size
    from ccfnet_tf.runtimes.sources import find_source

    wanted = Wanted(
        legends=not options.no_legends,
        overwrite=options.overwrite,
        skip_existing=options.skip_existing,
        box=parse_box(options.size) if options.size is not None else None,
        wrapping=wrapping_of(options),
    )
    if options.save is not None:
        kinds, film = parse_save(options.save)
        wanted = replace(wanted, kinds=kinds, film=film)
    out_folder = Path(options.out).expanduser()
    refuse_unwritable(out_folder)
    source, console = find_source(options.network), new_console()
    tiling = wanted.wrapping.tiling
    tiles_fit = tiling and source.size and tiling.side <= min(parse_size(source.size))
    if source.size and not tiles_fit:
        console.print(f"{source.place} takes {source.size}: larger images are made smaller for it")

    def opened() -> Network:
        if source.needs_tensorflow:
            start_tensorflow()
        return source.open()

    outcome = predict_all(
        opened,
        options.inputs,
        out_folder,
        wanted=wanted,
        trained=source.trained,
        console=console,
    )
    for line in _predicted(outcome, options.out):
        console.print(line)
    return EXIT_FINDINGS if outcome.failures else EXIT_DONE


def _predicted(outcome: Outcome, out: str) -> list[str]:
    """Returns what was written, if anything was, and what was left out."""
    lines = []
    counts = ((outcome.pictures, "image", ""), (outcome.frames, "frame", " of videos"))
    done = [f"{_counted(count, noun)}{of}" for count, noun, of in counts if count]
    if done:
        failed = f"; {len(outcome.failures)} failed, see above" if outcome.failures else ""
        lines.append(f"{out}: {' and '.join(done)}{failed}")
    if outcome.skipped:
        lines.append(f"skipped {_counted(outcome.skipped, 'input')} whose results are there")
    if outcome.others:
        kinds = ", ".join(sorted(outcome.others))
        count = _counted(sum(outcome.others.values()), "file")
        lines.append(f"left out {count} that {_are(outcome.others)} no image or video ({kinds})")
    if outcome.labels:
        lines.append(f"skipped {_counted(outcome.labels, 'file')} in masks/ beside images/")
    return lines


def _are(counts: Counter[str]) -> str:
    return "is" if sum(counts.values()) == 1 else "are"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
