"""The command line: its verbs, exit codes, and what an error looks like.

Each verb is a module of this package, imported when it is called, so that `--help` does not wait.
Its `main` takes the arguments after the verb and returns the exit code; it imports TensorFlow once
the arguments were understood.
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
from ccfnet_tf.io.verbosity import QUIET

VERBS = (
    "fit",
    "evaluate",
    "predict",
    "crossval",
    "data",
    "export",
    "serve",
    "benchmark",
    "presets",
    "completion",
)

HELP = """\
usage: ccfnet-tf VERB ...

CCFNet: semantic segmentation that knows where it may be wrong.

  fit        train a network; without options, a demo on scenes drawn here
  evaluate   accuracy, mean IoU and the quality of the difficulty map of a run
  predict    label images, folders and videos with a run, an exported file or a server
  crossval   fit and evaluate every fold of a data set
  data       check, count, show, split and convert data sets
  export     write a run as a file for servers, boards or ONNX, verified against Keras
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code."""
    _open_closed_streams()
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    quiet = QUIET.set("--quiet" in args)
    args = [arg for arg in args if arg not in ("--debug", "--quiet")]
    # Pillow warns of odd EXIF and of large images; what matters of it our readers refuse.
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
    said = first_line(error)
    if isinstance(error, CCFNetError):
        codes = {WorkerLostError: EXIT_WORKER_LOST, VerificationError: EXIT_FINDINGS}
        return str(error), codes.get(type(error), EXIT_USER_ERROR)
    if isinstance(error, TerminatedError):
        return str(error), EXIT_TERMINATED
    if isinstance(error, KeyboardInterrupt):
        goes_on = "; the run goes on with --resume" if args[:1] == ["fit"] else ""
        return f"stopped{goes_on}", EXIT_INTERRUPTED
    if isinstance(error, ImportError) and ".so" in said:
        fix = "for OpenCV on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0"
        return f"a system library is missing ({said}); {fix}", EXIT_USER_ERROR
    if isinstance(error, OSError) and (error.filename or is_disk_full(error)):
        place = error.filename or "what this command prints to"
        cure = ": free space, then run it again" if is_disk_full(error) else ""
        return f"{place}: {error.strerror}{cure}", EXIT_USER_ERROR
    report = "run again with --debug and report the traceback"
    return f"unexpected {type(error).__name__}: {said} ({report})", EXIT_UNEXPECTED


def _refuse_empty(args: list[str]) -> None:
    """Refuses an argument of no characters, which as a path would be the current folder."""
    for position, arg in enumerate(args):
        if arg == "" or (arg.startswith("--") and arg.find("=") == len(arg) - 1):
            before = args[position - 1] if arg == "" else arg[:-1]
            of = f"the value of {before}" if before.startswith("--") else "an argument"
            raise ConfigError(f"{of} is empty: give one; in a shell, see that the variable is set")


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
    return int(import_module(f"ccfnet_tf.cli.{args[0]}").main(args[1:]))


def _print_versions() -> None:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras", "numpy"))
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"ccfnet-tf {version('ccfnet-tf')} (Python {python}, {libraries})")
