"""The command line: verbs, their options, and what an error looks like.

TensorFlow is imported inside the verbs, after the arguments were understood.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccfnet_tf.completion import SHELLS, script
from ccfnet_tf.errors import (
    EXIT_DONE,
    EXIT_FINDINGS,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EXIT_UNEXPECTED,
    EXIT_USER_ERROR,
    EXIT_WORKER_LOST,
    CCFNetError,
    ConfigError,
    TerminatedError,
    VerificationError,
    WorkerLostError,
    is_disk_full,
    nearest,
    printable,
    without_secrets,
)
from ccfnet_tf.quiet import QUIET
from ccfnet_tf.start import start_tensorflow

if TYPE_CHECKING:
    from ccfnet_tf.inference.predict import Outcome
    from ccfnet_tf.inference.prediction import Network
    from ccfnet_tf.options import Parser

HELP = """\
usage: ccfnet-tf VERB ...

CCFNet: semantic segmentation that knows where it may be wrong.

  fit        train a network; without options, a demo on scenes drawn here
  evaluate   accuracy, mean IoU and the quality of the difficulty map of a run
  predict    label pictures, folders and videos with a run, an exported file or a server
  crossval   fit and evaluate every fold of a data set
  data       check, count, show, split and convert data sets
  export     write a run as a file for servers, boards or ONNX, proven equal to it
  serve      answer over REST and gRPC, for development
  benchmark  how fast a run's network, or what was exported of it, is on this machine
  presets    list the shipped configurations
  completion a script that completes verbs and options in bash, zsh or fish

  ccfnet-tf VERB --help      options of a verb
  ccfnet-tf --version        versions of this package and of what it runs on
  --quiet                    with any verb: no progress, but results, warnings and errors
  --debug                    with any verb: show the traceback of an error

Exit codes: 0 done, 1 finished with failures, 2 an error of input or use, 3 unexpected,
130 stopped by Ctrl-C, 138 another worker was lost, 142 the other workers did not come,
143 stopped by SIGTERM (after saving).
"""

RESULTS = """\
what --save names, and what is written of a picture:
  label            STEM.label.png            class ids *
  color            STEM.color.png            the classes' colours *
  overlay          STEM.overlay.png          the picture, tinted by class, with a legend *
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code."""
    _open_closed_streams()
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    quiet = QUIET.set("--quiet" in args)
    args = [arg for arg in args if arg not in ("--debug", "--quiet")]
    # Pillow warns of odd EXIF and of large pictures; what matters of it our readers refuse.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        code = _dispatch(args)
        sys.stdout.flush()  # here, where a full disk behind it gets its line
        return code
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            print(without_secrets(traceback.format_exc()), file=sys.stderr, end="")
        return _report(error, args)
    finally:
        QUIET.reset(quiet)


def _open_closed_streams() -> None:
    """Puts nothing in the place of standard streams that the caller closed (`>&-`).

    Python has None there, and the next file that is opened would get the stream's number, so what
    libraries print would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8"))


def _report(error: BaseException, args: list[str]) -> int:
    """Says in one line what went wrong; returns the exit code."""
    if isinstance(error, BrokenPipeError):  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    line, code = _explain(error, args)
    print(f"ccfnet-tf: {printable(line)}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # full: at its end Python would try again, and say so in its own way
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _explain(error: BaseException, args: list[str]) -> tuple[str, int]:
    first_line = (str(error).splitlines() or [""])[0]
    if isinstance(error, CCFNetError):
        codes = {WorkerLostError: EXIT_WORKER_LOST, VerificationError: EXIT_FINDINGS}
        return str(error), codes.get(type(error), EXIT_USER_ERROR)
    if isinstance(error, TerminatedError):
        return str(error), EXIT_TERMINATED
    if isinstance(error, KeyboardInterrupt):
        goes_on = "; the run goes on with --resume" if args[:1] == ["fit"] else ""
        return f"stopped{goes_on}", EXIT_INTERRUPTED
    if isinstance(error, ImportError) and ".so" in first_line:
        fix = "for OpenCV on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0"
        return f"a system library is missing ({first_line}); {fix}", EXIT_USER_ERROR
    if isinstance(error, OSError) and (error.filename or is_disk_full(error)):
        place = error.filename or "what this command prints to"
        cure = ": free space, then run it again" if is_disk_full(error) else ""
        return f"{place}: {error.strerror}{cure}", EXIT_USER_ERROR
    report = "run again with --debug and report the traceback"
    return f"unexpected {type(error).__name__}: {first_line} ({report})", EXIT_UNEXPECTED


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return EXIT_DONE if args else EXIT_USER_ERROR
    if args[0] == "--version":
        _print_versions()
        return EXIT_DONE
    if args[0] not in VERBS:
        raise ConfigError(
            f"'{args[0]}' is not a command: expected {', '.join(VERBS)}" + nearest(args[0], VERBS)
        )
    _refuse_empty(args)
    return VERBS[args[0]](args[1:])


def _refuse_empty(args: list[str]) -> None:
    """Refuses an argument of no characters, which as a path would be the current folder."""
    for position, arg in enumerate(args):
        if arg == "" or (arg.startswith("--") and arg.endswith("=")):
            before = args[position - 1] if arg == "" else arg[:-1]
            of = f"the value of {before}" if before.startswith("--") else "an argument"
            raise ConfigError(f"{of} is empty: give one; in a shell, see that the variable is set")


def _print_versions() -> None:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras", "numpy"))
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"ccfnet-tf {version('ccfnet-tf')} (Python {python}, {libraries})")


def _fit(args: list[str]) -> int:
    from ccfnet_tf.options import parse_fit
    from ccfnet_tf.progress import new_console

    options = parse_fit(args)

    start_tensorflow()
    from ccfnet_tf.training.fit import fit

    fit(
        options.config,
        options.out,
        resume=options.resume,
        console=new_console(),
        config_given=options.config_given,
        accept_changed_data=options.accept_changed_data,
    )
    return EXIT_DONE


def _evaluate_parser() -> Parser:
    from ccfnet_tf.options import Parser

    parser = Parser(
        prog="ccfnet-tf evaluate",
        description="Measure a run on a part of its data; writes evaluation.json in the run.",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("--split", choices=["test", "val", "train"], default="test")
    parser.add_argument("--batch", type=int, default=None, help="pictures at once (default: 1)")
    parser.add_argument("--data.root", dest="root", help="where the data lie now")
    return parser


def _evaluate(args: list[str]) -> int:
    parser = _evaluate_parser()
    options = parser.parse_args(args)
    if options.batch is not None and options.batch < 1:
        raise ConfigError(f"--batch is {options.batch}: it must be 1 or more")

    from ccfnet_tf.progress import new_console

    start_tensorflow()
    from ccfnet_tf.training.measure import measure

    measure(
        Path(options.run).expanduser(),
        split=options.split,
        batch=options.batch,
        root=options.root,
        console=new_console(),
    )
    return EXIT_DONE


def _predict_parser() -> Parser:
    from ccfnet_tf.options import Parser

    parser = Parser(
        prog="ccfnet-tf predict",
        description="Label pictures, folders, globs and videos by a run, an exported file or a "
        "server.",
        epilog=RESULTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    network = (
        "run folder; exported folder, .tflite or .onnx file; or a server's address "
        "(http://HOST:8501/v1/models/ccfnet, grpc://HOST:8500/ccfnet)"
    )
    parser.add_argument("network", metavar="NETWORK", help=network)
    inputs = "picture, folder, glob, video, camera:0, or a stream's address (rtsp://...)"
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=inputs)
    out = "folder for the results (default: %(default)s)"
    parser.add_argument("--out", default="predictions", help=out)
    save = "what is written, with commas between; see below"
    parser.add_argument("--save", metavar="NAMES", help=save)
    size = (
        "show the network pictures of at most this longest side, or HEIGHTxWIDTH; results keep "
        "the picture's size"
    )
    parser.add_argument("--size", metavar="N", help=size)
    there = parser.add_mutually_exclusive_group()
    skip = "leave out inputs whose results are already there"
    there.add_argument("--skip-existing", action="store_true", help=skip)
    there.add_argument("--overwrite", action="store_true", help="replace results already there")
    bare = "no legends: every file has the picture's size"
    parser.add_argument("--no-legends", action="store_true", help=bare)
    return parser


def _predict(args: list[str]) -> int:
    parser = _predict_parser()
    options = parser.parse_args(args)
    from ccfnet_tf.artifacts.open import look_at
    from ccfnet_tf.inference.predict import Wanted, parse_save, predict_all
    from ccfnet_tf.inference.smaller import parse_box
    from ccfnet_tf.new_folder import refuse_unwritable
    from ccfnet_tf.progress import new_console

    wanted = Wanted(
        legends=not options.no_legends,
        overwrite=options.overwrite,
        skip_existing=options.skip_existing,
        box=parse_box(options.size) if options.size is not None else None,
    )
    if options.save is not None:
        kinds, film = parse_save(options.save)
        wanted = replace(wanted, kinds=kinds, film=film)
    out_folder = Path(options.out).expanduser()
    refuse_unwritable(out_folder)
    source, console = look_at(options.network), new_console()
    if source.size:
        console.print(
            f"{source.place} takes {source.size}: larger pictures are made smaller for it"
        )

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
    counts = ((outcome.pictures, "picture", ""), (outcome.frames, "frame", " of videos"))
    done = [f"{_counted(count, noun)}{of}" for count, noun, of in counts if count]
    if done:
        failed = f"; {len(outcome.failures)} failed, see above" if outcome.failures else ""
        lines.append(f"{out}: {' and '.join(done)}{failed}")
    if outcome.skipped:
        lines.append(f"skipped {_counted(outcome.skipped, 'input')} whose results are there")
    if outcome.others:
        kinds = ", ".join(sorted(outcome.others))
        count = _counted(sum(outcome.others.values()), "file")
        lines.append(f"left out {count} that {_are(outcome.others)} no picture or video ({kinds})")
    if outcome.labels:
        lines.append(f"skipped {_counted(outcome.labels, 'file')} in masks/ beside images/")
    return lines


def _are(counts: Counter[str]) -> str:
    return "is" if sum(counts.values()) == 1 else "are"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _crossval(args: list[str]) -> int:
    from ccfnet_tf.options import parse_fit
    from ccfnet_tf.progress import new_console

    options = parse_fit(args, verb="crossval")
    if options.accept_changed_data:
        raise ConfigError(
            "--accept-changed-data is for fit: folds of different data have no common mean; begin "
            "anew in another --out"
        )

    start_tensorflow()
    from ccfnet_tf.training.crossval import crossval

    console = new_console()
    crossval(options.config, options.out, resume=options.resume, console=console)
    return EXIT_DONE


def _data(args: list[str]) -> int:
    from ccfnet_tf.data_verbs import main as data_main

    return data_main(args)


def _export_parser() -> Parser:
    from ccfnet_tf.options import Parser

    parser = Parser(
        prog="ccfnet-tf export",
        description="Write a run's network as a file that needs neither this package nor Keras, "
        "and prove in a fresh process that it answers as Keras does.",
    )
    parser.add_argument("run", nargs="?", help="run folder")
    format_help = (
        "saved_model (TF Serving), tflite (LiteRT, for boards), onnx (default: saved_model)"
    )
    parser.add_argument("--format", help=format_help)
    parser.add_argument("--out", help="folder of artifacts (default: ./export/models/<run>)")
    moved = "where the run's data lie now, if they were moved"
    parser.add_argument("--data.root", dest="data_root", metavar="ROOT", help=moved)
    parser.add_argument(
        "--verify-only", metavar="ARTIFACT", help="repeat the check of an exported artifact"
    )
    servers = parser.add_argument_group("of --format saved_model")
    precision = "what it computes in: float32 or bfloat16 (default: float32)"
    servers.add_argument("--precision", help=precision)
    litert = parser.add_argument_group("of --format tflite")
    quantize = "none (float32), fp16, dynamic (weights int8) or int8 (default: fp16)"
    litert.add_argument("--quantize", help=quantize)
    size = "HEIGHTxWIDTH (default: that of the run's first test picture, at most 512 a side)"
    litert.add_argument("--size", help=size)
    litert.add_argument("--outputs", help="probabilities or labels (default: probabilities)")
    litert.add_argument("--batch", type=int, help="pictures at once (default: 1)")
    loss = "points of pixel accuracy that int8 may lose (default: 1)"
    litert.add_argument("--max-loss", type=float, help=loss)
    return parser


def _export(args: list[str]) -> int:
    parser = _export_parser()
    from ccfnet_tf.options import renamed

    options = parser.parse_args(renamed(args, {"--data-root": "--data.root"}))
    if (options.run is None) == (options.verify_only is None):
        raise ConfigError("give either a run folder to export, or --verify-only ARTIFACT")
    of_exports = [name for name in vars(options) if name not in ("run", "verify_only")]
    if options.verify_only is not None and (given := _given(options, *of_exports)):
        name = {"data_root": "data.root"}.get(first := next(iter(given)), first.replace("_", "-"))
        raise ConfigError(f"--{name} is of exporting: --verify-only takes it from the artifact")
    from ccfnet_tf.artifacts.contract import find_format
    from ccfnet_tf.progress import new_console

    format_ = find_format(options.format or "saved_model")
    given = _given(options, "quantize", "size", "outputs", "batch", "max_loss", "precision")
    for key in given:
        needed = "saved_model" if key == "precision" else "tflite"
        if format_ != needed:
            name = key.replace("_", "-")
            raise ConfigError(f"--{name} is for --format {needed}, and the format is {format_}")
    start_tensorflow()
    from ccfnet_tf.export.artifact import export_run
    from ccfnet_tf.export.order import new_order
    from ccfnet_tf.export.proof import verify
    from ccfnet_tf.new_folder import refuse_unwritable

    if options.verify_only is not None:
        verify(Path(options.verify_only).expanduser(), console=new_console())
        return EXIT_DONE
    run = Path(options.run).expanduser()
    out = Path(options.out or Path("export", "models", run.resolve().name)).expanduser()
    refuse_unwritable(out)
    order = new_order(format_, run, given, data_root=options.data_root)
    export_run(run, out, order, data_root=options.data_root, console=new_console())
    return EXIT_DONE


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns those options that were given."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _serve_parser() -> Parser:
    from ccfnet_tf.options import Parser
    from ccfnet_tf.serving.room import MAX_PIXELS

    parser = Parser(
        prog="ccfnet-tf serve",
        description="Serve an exported SavedModel with the faces of TensorFlow Serving. For "
        "development: one model, no batching, no encryption.",
    )
    parser.add_argument("folder", help="OUT/ccfnet, whose highest version is served, or a version")
    parser.add_argument("--rest-port", type=_port, default=8501, help="default: %(default)s")
    parser.add_argument("--grpc-port", type=_port, default=8500, help="default: %(default)s")
    host = "address to listen on (default: %(default)s, this machine alone)"
    parser.add_argument("--host", default="127.0.0.1", help=host)
    pixels = "most pixels of a request, and of all requests computed at a time; each takes "
    pixels += "about 650 bytes with ResNet-50 (default: %(default)s, 2048x2048)"
    parser.add_argument("--max-pixels", type=_pixels, default=MAX_PIXELS, metavar="N", help=pixels)
    return parser


def _serve(args: list[str]) -> int:
    parser = _serve_parser()
    options = parser.parse_args(args)

    from ccfnet_tf.progress import new_console

    start_tensorflow()
    from ccfnet_tf.serving.server import serve

    serve(
        Path(options.folder).expanduser(),
        host=options.host,
        rest_port=options.rest_port,
        grpc_port=options.grpc_port,
        max_pixels=options.max_pixels,
        console=new_console(),
    )
    return EXIT_DONE


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is no port: expected 0 (any free one) to 65535")
    return int(text)


def _pixels(text: str) -> int:
    if not text.isdecimal() or not 1024 <= int(text) <= 4096 * 4096:
        raise argparse.ArgumentTypeError(f"'{text}': expected 1024 to {4096 * 4096} pixels")
    return int(text)


def _benchmark(args: list[str]) -> int:
    from ccfnet_tf.benchmark.verb import main as benchmark_main

    return benchmark_main(args)


def _completion_parser() -> Parser:
    from ccfnet_tf.options import Parser

    parser = Parser(
        prog="ccfnet-tf completion",
        description="Print a script that completes verbs and options with the Tab key. For this "
        'shell alone: eval "$(ccfnet-tf completion bash)".',
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def _completion(args: list[str]) -> int:
    shell = _completion_parser().parse_args(args).shell
    from ccfnet_tf.benchmark.verb import benchmark_parser
    from ccfnet_tf.data_verbs import PARSERS
    from ccfnet_tf.options import fit_options, option_names

    parsers = {
        "evaluate": _evaluate_parser(),
        "predict": _predict_parser(),
        "export": _export_parser(),
        "serve": _serve_parser(),
        "benchmark": benchmark_parser(),
        "presets": _presets_parser(),
    }
    words = {verb: [*option_names(parser), *ALWAYS] for verb, parser in parsers.items()}
    words |= {verb: [*fit_options(), *ALWAYS] for verb in ("fit", "crossval")}
    keys = [key for key in fit_options() if key.startswith("--data.") or key == "--seed"]
    for verb, parser in PARSERS.items():
        own = option_names(parser())
        words[f"data {verb}"] = [*own, *(keys if "--config" in own else []), *ALWAYS]
    words |= {"": [*VERBS, "--help", "--version", *ALWAYS]}
    words |= {"data": list(PARSERS), "completion": list(SHELLS)}
    print(script(shell, words), end="")
    return EXIT_DONE


def _presets_parser() -> Parser:
    from ccfnet_tf.options import Parser

    return Parser(prog="ccfnet-tf presets", description="List the shipped configurations.")


def _presets(args: list[str]) -> int:
    parser = _presets_parser()
    parser.parse_args(args)
    from ccfnet_tf.config import find_config, preset_names

    for name in preset_names():
        lines = find_config(name).read_text(encoding="utf-8").splitlines()
        comment = " ".join(line[1:].strip() for line in lines if line.startswith("#"))
        print(f"{name}\n    {comment}")
    return EXIT_DONE


ALWAYS = ("--quiet", "--debug")
"""Options of every verb."""

VERBS: dict[str, Callable[[list[str]], int]] = {
    "fit": _fit,
    "evaluate": _evaluate,
    "predict": _predict,
    "crossval": _crossval,
    "data": _data,
    "export": _export,
    "serve": _serve,
    "benchmark": _benchmark,
    "presets": _presets,
    "completion": _completion,
}
