"""Code shared by the argument parsers of all commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.palettes import PALETTES

_NOT_COMPLETED = frozenset(("--data", "--model", "--train"))
"""Options that set a complete section of the configuration."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError with a reference to the help of the command."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def add_palette_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--palette`."""
    text = "colours of the classes; accessible: for colour-vision deficiency (default: dataset)"
    parser.add_argument("--palette", choices=PALETTES, default="dataset", help=text)


def renamed(args: list[str], names: Mapping[str, str]) -> list[str]:
    """Replaces deprecated options by their new names, with a note on stderr.

    Args:
        args: The arguments.
        names: Old name -> new name. The old names will be removed in the next version.
    """
    new = []
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if option in names:
            new_name = names[option]
            sys.stderr.write(
                f"note: {option} is deprecated, removed in the next version: use {new_name}\n"
            )
            new.append(f"{new_name}{equals}{value}")
        elif arg == "--":
            return [*new, *args[position:]]
        else:
            new.append(arg)
    return new


def option_names(parser: Any) -> list[str]:
    """Returns the long options of a parser, for shell completion."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    names = [name for action in shown for name in action.option_strings]
    return sorted({name for name in names if name.startswith("--")} - _NOT_COMPLETED)
