"""`ccfnet-tf export`: a run as a file for servers, boards or ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ccfnet_tf.cli.parser import Parser, renamed
from ccfnet_tf.errors import EXIT_DONE, ConfigError
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow


def new_parser() -> Parser:
    """Returns the parser of this verb."""
    parser = Parser(
        prog="ccfnet-tf export",
        description="Write a run's network as a file that needs neither this package nor Keras, "
        "and verify in a fresh process that its outputs equal Keras's.",
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
    size = "HEIGHTxWIDTH (default: that of the run's first test image, at most 512 a side)"
    litert.add_argument("--size", help=size)
    litert.add_argument("--outputs", help="probabilities or labels (default: probabilities)")
    litert.add_argument("--batch", type=int, help="images at once (default: 1)")
    loss = "points of pixel accuracy that int8 may lose (default: 1)"
    litert.add_argument("--max-loss", type=float, help=loss)
    return parser


def main(args: list[str]) -> int:
    """Exports a run, or verifies an export; returns the exit code."""
    parser = new_parser()
    options = parser.parse_args(renamed(args, {"--data-root": "--data.root"}))
    if (options.run is None) == (options.verify_only is None):
        raise ConfigError("give either a run folder to export, or --verify-only ARTIFACT")
    of_exports = [name for name in vars(options) if name not in ("run", "verify_only")]
    if options.verify_only is not None and (given := _given(options, *of_exports)):
        name = {"data_root": "data.root"}.get(first := next(iter(given)), first.replace("_", "-"))
        raise ConfigError(
            f"--{name} applies only to export: --verify-only takes it from the artifact"
        )
    from ccfnet_tf.io.console import new_console
    from ccfnet_tf.runtimes.manifest import find_format

    format_ = find_format(options.format or "saved_model")
    given = _given(options, "quantize", "size", "outputs", "batch", "max_loss", "precision")
    for key in given:
        needed = "saved_model" if key == "precision" else "tflite"
        if format_ != needed:
            name = key.replace("_", "-")
            raise ConfigError(f"--{name} is for --format {needed}, and the format is {format_}")
    start_tensorflow()
    from ccfnet_tf.exporters.export_run import export_run
    from ccfnet_tf.exporters.registry import new_exporter
    from ccfnet_tf.exporters.verify.verify import verify
    from ccfnet_tf.io.new_folder import refuse_unwritable

    if options.verify_only is not None:
        verify(Path(options.verify_only).expanduser(), console=new_console())
        return EXIT_DONE
    run = Path(options.run).expanduser()
    out = Path(options.out or Path("export", "models", run.resolve().name)).expanduser()
    refuse_unwritable(out)
    exporter = new_exporter(format_, given)
    export_run(run, out, exporter, data_root=options.data_root, console=new_console())
    return EXIT_DONE


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns those options that were given."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}
