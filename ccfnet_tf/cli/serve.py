"""`ccfnet-tf serve`: runs a development server for an exported SavedModel."""

from __future__ import annotations

import argparse

from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.errors import EXIT_DONE
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow


def new_parser() -> Parser:
    """Returns the argument parser of the command."""
    from ccfnet_tf.serving.admission import DEFAULT_MAX_PIXELS

    parser = Parser(
        prog="ccfnet-tf serve",
        description="Serve an exported SavedModel with the APIs of TensorFlow Serving. For "
        "development: one model, no batching, no encryption.",
    )
    parser.add_argument(
        "folder",
        help="OUT/ccfnet, of which the highest version is served, or the folder of a version",
    )
    parser.add_argument("--rest-port", type=_port, default=8501, help="default: %(default)s")
    parser.add_argument("--grpc-port", type=_port, default=8500, help="default: %(default)s")
    host = "address to listen on (default: %(default)s, only reachable from this machine)"
    parser.add_argument("--host", default="127.0.0.1", help=host)
    pixels = "limit on the pixels of a request, and of all concurrent requests; each pixel needs "
    pixels += "about 650 bytes of memory with ResNet-50 (default: %(default)s, 2048x2048)"
    parser.add_argument(
        "--max-pixels", type=_pixels, default=DEFAULT_MAX_PIXELS, metavar="N", help=pixels
    )
    return parser


def main(args: list[str]) -> int:
    """Serves until the process receives a signal; returns the exit code."""
    parser = new_parser()
    options = parser.parse_args(args)

    from ccfnet_tf.io.console import new_console
    from ccfnet_tf.serving.find_served import find_served

    folder = expanded(options.folder)
    find_served(folder)  # refuses another folder before TensorFlow is waited for
    start_tensorflow()
    from ccfnet_tf.serving.server import serve

    serve(
        folder,
        host=options.host,
        rest_port=options.rest_port,
        grpc_port=options.grpc_port,
        max_pixels=options.max_pixels,
        console=new_console(),
    )
    return EXIT_DONE


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a port: expected 0 (any free one) to 65535"
        )
    return int(text)


def _pixels(text: str) -> int:
    if not text.isdecimal() or not 1024 <= int(text) <= 4096 * 4096:
        raise argparse.ArgumentTypeError(f"'{text}': expected 1024 to {4096 * 4096} pixels")
    return int(text)
