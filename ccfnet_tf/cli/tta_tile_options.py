"""The options `--tta`, `--tile` and `--overlap` of every verb that predicts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.errors import ConfigError

if TYPE_CHECKING:
    from ccfnet_tf.inference.wrap_segmenter import Wrapping


def add_wrapping_options(parser: Parser) -> None:
    """Declares the options."""
    views = (
        "average the predictions for scaled copies (scales=0.75,1,1.25), mirrored copies (flip), "
        "or both; stands after all inputs"
    )
    parser.add_argument("--tta", nargs="+", metavar="VIEWS", help=views)
    tile = "predict images larger than N pixels in overlapping tiles of NxN"
    parser.add_argument("--tile", metavar="N", help=tile)
    overlap = "share of a tile that overlaps with the next, 0 to 0.5 (default: 0.5)"
    parser.add_argument("--overlap", metavar="SHARE", help=overlap)


def parse_with_views(parser: Parser, args: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments of a verb; explains which of them `--tta` took for its own.

    Raises:
        ConfigError: The arguments are invalid.
    """
    try:
        return parser.parse_args(args)
    except ConfigError as error:
        after = args[args.index("--tta") + 1 :] if "--tta" in args else ()
        taken = [
            word
            for word in takewhile(lambda word: not word.startswith("-"), after)
            if word != "flip" and not word.startswith("scales=")
        ]
        if not taken or "required:" not in str(error):
            raise
        raise ConfigError(
            f"--tta took '{taken[0]}' as one of its views: put --tta after all other arguments"
        ) from error


def wrapping_of(options: argparse.Namespace) -> Wrapping:
    """Reads the options.

    Raises:
        ConfigError: A value that is not accepted.
    """
    from ccfnet_tf.inference.test_time import parse_augmentation
    from ccfnet_tf.inference.tiles import parse_tiling
    from ccfnet_tf.inference.wrap_segmenter import Wrapping

    augmentation = None if options.tta is None else parse_augmentation(options.tta)
    return Wrapping(augmentation, parse_tiling(options.tile, options.overlap))
