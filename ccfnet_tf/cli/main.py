"""Entry point of the command line: dispatches commands and reports errors.

Each command is a module of this package and is imported on demand, so that `--help` is fast. Its
`main` takes the arguments after the command and returns the exit code. TensorFlow is imported only
after the arguments have been parsed.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

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
    first_line,
    is_disk_full,
    nearest,
    printable,
    without_secrets,
)
from ccfnet_tf.io.parent_command import IS_PART, end_with_parent
from ccfnet_tf.io.quiet_flag import QUIET

VERBS = (
    "fit",
    "evaluate",
    "calibrate",
    "report",
    "compare",
    "predict",
    "rank",
    "crossval",
    "reproduce",
    "data",
    "export",
    "serve",
    "benchmark",
    "presets",
    "completion",
)

_CONTINUED = {
    "fit": "; continue the run with --resume",
    "crossval": "; continue with --resume",
    "reproduce": "; continue with the same command",
}
"""What continues a command after Ctrl-C."""

HELP = """\
usage: ccfnet-tf COMMAND ...

CCFNet: semantic segmentation that says where it may be wrong.

  fit        train a network; without options, a demo on synthetic scenes
  evaluate   compute accuracy, mean IoU and the quality of the difficulty map of a run
  calibrate  make the probabilities of a run agree with how often it is wrong
  report     write an evaluation as one HTML page: summary, plots, gallery of images
  compare    show runs side by side, with confidence intervals of their differences
  predict    segment images, folders and videos with a run, an exported file or a server
  rank       choose the unlabelled images to label next
  crossval   train and evaluate every fold of a data set
  reproduce  run the experiments behind docs/results.md and write its tables
  data       check, summarize, show, split and convert data sets; list suspect labels
  export     export a run for TF Serving, LiteRT or ONNX, verified against Keras
  serve      serve an exported network over REST and gRPC, for development
  benchmark  measure the speed of runs and exported files on this machine
  presets    list the shipped configurations
  completion print a shell completion script for bash, zsh or fish

  ccfnet-tf COMMAND --help   options of a command
  ccfnet-tf --version        versions of this package and of its main dependencies
  --quiet                    any command: no progress, only results, warnings and errors
  --debug                    any command: show the traceback of an error

Exit codes: 0 success, 1 finished with failures, 2 invalid input or usage, 3 unexpected error,
130 interrupted by Ctrl-C, 138 another worker was lost, 142 the other workers did not start,
143 stopped by SIGTERM (after saving).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    _open_closed_streams()
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    quiet = QUIET.set("--quiet" in args)
    args = [arg for arg in args if arg not in ("--debug", "--quiet")]
    # Pillow warns about unusual EXIF data and large images; the image readers check both.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        end_with_parent()
        code = _dispatch(args)
        sys.stdout.flush()  # Flushed here, so that a full disk is reported in one line.
        return code
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            print(without_secrets(traceback.format_exc()), file=sys.stderr, end="")
        return _report(error, args)
    finally:
        QUIET.reset(quiet)


def _open_closed_streams() -> None:
    """Redirects standard streams that the caller closed (`>&-`) to the null device.

    Python sets such streams to None, and the next opened file would get the descriptor of the
    stream, so that output of libraries would be written into it.
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
    """Prints an error in one line; returns the exit code."""
    if isinstance(error, BrokenPipeError):  # The reader of the pipe, such as head, exited.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    line, code = _explain(error, args)
    print(f"ccfnet-tf: {printable(line)}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # Disk full: Python would flush again at exit and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _explain(error: BaseException, args: list[str]) -> tuple[str, int]:
    message = first_line(error)
    if isinstance(error, CCFNetError):
        codes = {WorkerLostError: EXIT_WORKER_LOST, VerificationError: EXIT_FINDINGS}
        return str(error), codes.get(type(error), EXIT_USER_ERROR)
    if isinstance(error, TerminatedError):
        return str(error), EXIT_TERMINATED
    if isinstance(error, KeyboardInterrupt):
        hint = "" if IS_PART else _CONTINUED.get(args[0] if args else "", "")
        return f"interrupted{hint}", EXIT_INTERRUPTED
    if isinstance(error, ImportError) and ".so" in message:
        fix = "for OpenCV on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0"
        return f"a system library is missing ({message}); {fix}", EXIT_USER_ERROR
    if isinstance(error, OSError) and (error.filename or is_disk_full(error)):
        target = error.filename or "standard output"
        fix = ": free space, then run the command again" if is_disk_full(error) else ""
        return f"{target}: {error.strerror}{fix}", EXIT_USER_ERROR
    report = "run again with --debug and report the traceback"
    return f"unexpected {type(error).__name__}: {message} ({report})", EXIT_UNEXPECTED


def _refuse_empty(args: list[str]) -> None:
    """Refuses empty arguments, which as paths would mean the current folder."""
    for position, arg in enumerate(args):
        if arg == "" or (arg.startswith("--") and arg.find("=") == len(arg) - 1):
            before = args[position - 1] if arg == "" else arg[:-1]
            of = f"the value of {before}" if before.startswith("--") else "an argument"
            raise ConfigError(
                f"{of} is empty: give a value; in a shell, check that the variable is set"
            )


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return EXIT_DONE if args else EXIT_USER_ERROR
    if args[0] == "--version":
        _print_versions()
        return EXIT_DONE
    if args[0] not in VERBS:
        raise ConfigError(
            f"unknown command '{args[0]}': expected {', '.join(VERBS)}" + nearest(args[0], VERBS)
        )
    _refuse_empty(args)
    return int(import_module(f"ccfnet_tf.cli.{args[0]}").main(args[1:]))


def _print_versions() -> None:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras", "numpy"))
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"ccfnet-tf {version('ccfnet-tf')} (Python {python}, {libraries})")
