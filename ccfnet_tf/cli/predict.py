"""`ccfnet-tf predict`: label images, folders, videos and streams."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ccfnet_tf.cli.argument_parser import Parser, add_palette_option
from ccfnet_tf.cli.tta_tile_options import add_wrapping_options, parse_with_views, wrapping_of
from ccfnet_tf.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_USER_ERROR
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

if TYPE_CHECKING:
    from ccfnet_tf.inference.labels_of_inputs import Known
    from ccfnet_tf.inference.predict import Outcome
    from ccfnet_tf.inference.segmenter_protocol import Segmenter
    from ccfnet_tf.runtimes.open_segmenter import Source

RESULTS = """\
names for --save, and the files of an image:
  label            STEM.label.png            class ids *
  color            STEM.color.png            colours of the classes *
  overlay          STEM.overlay.png          the image tinted by class, with a legend *
  difficulty       STEM.difficulty.png       probability that the coarse label is wrong:
                                             dark = easy, bright = hard *
  attention        STEM.attention.png        the same, as the attention head alone estimates it
  risk             STEM.risk.png             probability that the final label is wrong
  MAP_grey         STEM.MAP_grey.png         one of these three as 8-bit grey, 255 = certainly wrong
  MAP_npy          STEM.MAP.npy              the same as a float32 NumPy array
  MAP_tiff         STEM.MAP.tiff             the same as a float32 TIFF
files of a video or a stream:
  all of the above STEM.frames/              for every frame *
  film             STEM.overlay.mp4          the video tinted by class, without audio; H.264 if
                                             OpenCV or ffmpeg can encode it *
(* written by default)

Folders are searched recursively, and relative paths are kept. A masks/ folder next to images/
contains labels and is skipped unless given explicitly. camera:0 is the first camera; Ctrl-C ends a
stream. --size is applied first, then --tile, then --tta. Every input that was not predicted is
reported on standard error; the exit code is then 1, or 2 if nothing at all was predicted.
"""


def new_parser() -> Parser:
    """Returns the parser of this command."""
    parser = Parser(
        prog="ccfnet-tf predict",
        description="Label images, folders, globs and videos with a run, an exported file or a "
        "server.",
        epilog=RESULTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    network = (
        "run folder; exported folder, .tflite or .onnx file; or the address of a server "
        "(http://HOST:8501/v1/models/ccfnet, grpc://HOST:8500/ccfnet)"
    )
    parser.add_argument("network", metavar="NETWORK", help=network)
    inputs = "image, folder, glob, video, camera:0, or the address of a stream (rtsp://...)"
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=inputs)
    out = "folder for the results (default: %(default)s)"
    parser.add_argument("--out", default="predictions", help=out)
    save = "files to write, separated by commas; see below"
    parser.add_argument("--save", metavar="NAMES", help=save)
    size = (
        "shrink images whose longest side is above N, or that are larger than HEIGHTxWIDTH, before "
        "the network sees them; smaller images are never enlarged; results have the size of the "
        "image"
    )
    parser.add_argument("--size", metavar="N", help=size)
    add_wrapping_options(parser)
    abstain = (
        "leave pixels with a risk above R, 0 to 1, without a label (void, 255 in label files); "
        "reports the share of pixels that keep one, and how many of these are right in images of "
        "the run's data set or with masks/ beside images/"
    )
    parser.add_argument("--abstain-above", metavar="R", help=abstain)
    add_palette_option(parser)
    there = parser.add_mutually_exclusive_group()
    skip = "skip inputs whose results exist"
    there.add_argument("--skip-existing", action="store_true", help=skip)
    there.add_argument("--overwrite", action="store_true", help="replace existing results")
    bare = "no legends: every file has the size of the image"
    parser.add_argument("--no-legends", action="store_true", help=bare)
    return parser


def main(args: list[str]) -> int:
    """Labels images, videos and streams; returns the exit code."""
    options = parse_with_views(new_parser(), args)
    from ccfnet_tf.inference.abstain import parse_threshold
    from ccfnet_tf.inference.downscale import parse_box
    from ccfnet_tf.inference.predict import Wanted, parse_save, predict_all
    from ccfnet_tf.io.console import errors_beside, new_console
    from ccfnet_tf.io.new_folder import refuse_unwritable
    from ccfnet_tf.runtimes.letterbox import parse_size
    from ccfnet_tf.runtimes.open_segmenter import find_source

    threshold = None
    if options.abstain_above is not None:
        threshold = parse_threshold(options.abstain_above)
    wanted = Wanted(
        legends=not options.no_legends,
        overwrite=options.overwrite,
        skip_existing=options.skip_existing,
        box=parse_box(options.size) if options.size is not None else None,
        wrapping=wrapping_of(options),
        abstain_above=threshold,
        palette=options.palette,
    )
    if options.save is not None:
        kinds, film = parse_save(options.save)
        wanted = replace(wanted, kinds=kinds, film=film)
    out_folder = expanded(options.out)
    refuse_unwritable(out_folder)
    source, console = find_source(options.network), new_console()
    tiling = wanted.wrapping.tiling
    tiles_fit = tiling and source.size and tiling.side <= min(parse_size(source.size))
    if source.size and not tiles_fit:
        console.print(f"{source.place} takes {source.size}: larger images are made smaller for it")

    def opened() -> Segmenter:
        if source.needs_tensorflow:
            start_tensorflow()
        return source.open()

    outcome = predict_all(
        opened,
        options.inputs,
        out_folder,
        wanted=wanted,
        trained=source.trained,
        known=None if threshold is None else _known_training(source),
        console=console,
        errors=errors_beside(console),
    )
    for line in _predicted(outcome, options.out):
        console.print(line)
    return _exit_code(outcome)


def _known_training(source: Source) -> Known | None:
    """Returns what is known of the training of a run; None for exports and servers."""
    from ccfnet_tf.inference.labels_of_inputs import Known
    from ccfnet_tf.training.data_digest import read_seen

    if source.data is None:
        return None
    return Known(source.data, {row.image for row in read_seen(Path(source.place))})


def _exit_code(outcome: Outcome) -> int:
    """Returns the exit code: if every input failed, the inputs are wrong."""
    if not outcome.failures:
        return EXIT_DONE
    done = outcome.pictures + outcome.frames + outcome.skipped
    return EXIT_FINDINGS if done else EXIT_USER_ERROR


def _predicted(outcome: Outcome, out: str) -> list[str]:
    """Returns lines on what was written and what was skipped."""
    lines = []
    in_part = sum(failure.in_part for failure in outcome.failures)
    failed = len(outcome.failures) - in_part
    partly = f" ({in_part} of them only the first of several frames)" if in_part else ""
    counts = ((outcome.pictures, "image", partly), (outcome.frames, "frame", " of videos"))
    done = [f"{_counted(count, noun)}{of}" for count, noun, of in counts if count]
    if done:
        others = f"; {failed} failed" if failed else ""
        see = ", see above" if outcome.failures else ""
        lines.append(f"{out}: {' and '.join(done)}{others}{see}")
    if outcome.coverage is not None:
        lines.append(_coverage(outcome))
    if outcome.skipped:
        lines.append(f"skipped {_counted(outcome.skipped, 'input')} whose results exist")
    if outcome.others:
        kinds = ", ".join(sorted(outcome.others))
        count = _counted(sum(outcome.others.values()), "file")
        lines.append(
            f"skipped {count} that {_are(outcome.others)} neither image nor video ({kinds})"
        )
    if outcome.labels:
        lines.append(f"skipped {_counted(outcome.labels, 'file')} in masks/ next to images/")
    return lines


def _coverage(outcome: Outcome) -> str:
    """Returns what abstaining left of the labels, and how accurate they are where that is known."""
    kept = f"{100 * (outcome.coverage or 0):.1f} % of pixels have a label; the others are void"
    if outcome.accuracy is not None:
        of = f" of {outcome.pictures}" if outcome.compared < outcome.pictures else ""
        noun = "image" if outcome.pictures == 1 else "images"
        return (
            f"{kept}; {100 * outcome.accuracy:.1f} % of these labels are right in the "
            f"{outcome.compared}{of} {noun} whose labels were found{_of_training(outcome)}"
        )
    if outcome.compared:
        return f"{kept}; none of these pixels is labelled in the data set"
    return (
        f"{kept}; no labels were found to tell how many of these are right; on a split: ccfnet-tf "
        "evaluate RUN --abstain-above R"
    )


def _of_training(outcome: Outcome) -> str:
    """Returns a remark on images of the training, which are predicted better than others."""
    if not outcome.trained:
        return ""
    if outcome.trained == outcome.compared:
        return "; the run was trained on them, so new images are predicted less well"
    return f"; the run was trained on {outcome.trained} of them, so that is too good for new images"


def _are(counts: Counter[str]) -> str:
    return "is" if sum(counts.values()) == 1 else "are"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
