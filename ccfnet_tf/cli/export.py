"""`ccfnet-tf export`: exports a run for TF Serving, LiteRT or ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ccfnet_tf.cli.argument_parser import Parser, renamed
from ccfnet_tf.errors import EXIT_DONE, ConfigError
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow


def new_parser() -> Parser:
    """Returns the argument parser of the command."""
    parser = Parser(
        prog="ccfnet-tf export",
        description="Export the network of a run to a file that needs neither this package nor "
        "Keras, and verify in a new process that its outputs equal Keras's.",
    )
    parser.add_argument("run", nargs="?", help="run folder")
    format_help = (
        "saved_model (TF Serving), tflite (LiteRT, for embedded devices) or onnx (default: "
        "saved_model)"
    )
    parser.add_argument("--format", help=format_help)
    parser.add_argument("--out", help="output folder (default: ./export/models/<run>)")
    moved = "new location of the data set, if it was moved"
    parser.add_argument("--data.root", dest="data_root", metavar="ROOT", help=moved)
    parser.add_argument(
        "--verify-only", metavar="ARTIFACT", help="repeat the verification of an exported artifact"
    )
    servers = parser.add_argument_group("options of --format saved_model")
    precision = "float32 or bfloat16 (default: float32)"
    servers.add_argument("--precision", help=precision)
    litert = parser.add_argument_group("options of --format tflite")
    quantize = "none (float32), fp16, dynamic (weights int8) or int8 (default: fp16)"
    litert.add_argument("--quantize", help=quantize)
    size = "HEIGHTxWIDTH (default: size of the first test image of the run, at most 512 per side)"
    litert.add_argument("--size", help=size)
    litert.add_argument("--outputs", help="probabilities or labels (default: probabilities)")
    litert.add_argument("--batch", type=int, help="batch size (default: 1)")
    loss = "largest loss of pixel accuracy by int8, in percentage points (default: 1)"
    litert.add_argument("--max-loss", type=float, help=loss)
    return parser


def main(args: list[str]) -> int:
    """Exports a run, or verifies an exported artifact; returns the exit code."""
    parser = new_parser()
    options = parser.parse_args(renamed(args, {"--data-root": "--data.root"}))
    if (options.run is None) == (options.verify_only is None):
        raise ConfigError("give either a run folder to export, or --verify-only ARTIFACT")
    export_options = [name for name in vars(options) if name not in ("run", "verify_only")]
    if options.verify_only is not None and (given := _given(options, *export_options)):
        name = {"data_root": "data.root"}.get(first := next(iter(given)), first.replace("_", "-"))
        raise ConfigError(
            f"--{name} applies only to export: --verify-only takes it from the artifact"
        )
    from ccfnet_tf.io.console import new_console
    from ccfnet_tf.runtimes.manifest import find_format

    format_ = find_format(options.format or "saved_model")
    given = _given(options, "quantize", "size", "outputs", "batch", "max_loss", "precision")
    for key in given:
        required = "saved_model" if key == "precision" else "tflite"
        if format_ != required:
            name = key.replace("_", "-")
            raise ConfigError(
                f"--{name} applies only to --format {required}, but the format is {format_}"
            )
    start_tensorflow()
    from ccfnet_tf.exporters.export_run import export_run
    from ccfnet_tf.exporters.registry import new_exporter
    from ccfnet_tf.exporters.verify.verify import verify
    from ccfnet_tf.io.new_folder import refuse_unwritable

    if options.verify_only is not None:
        verify(expanded(options.verify_only), console=new_console())
        return EXIT_DONE
    run = expanded(options.run)
    out = expanded(options.out or Path("export", "models", run.resolve().name))
    refuse_unwritable(out)
    exporter = new_exporter(format_, given)
    export_run(run, out, exporter, data_root=options.data_root, console=new_console())
    return EXIT_DONE


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns the options among `names` that were given."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}
