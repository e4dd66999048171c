"""What the parsers of all verbs share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from ccfnet_tf.errors import ConfigError

_NOT_COMPLETED = frozenset(("--data", "--model", "--train"))
"""Whole sections at once."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Raises a ConfigError that points to the verb's help."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def renamed(args: list[str], names: Mapping[str, str]) -> list[str]:
    """Returns the arguments with old spellings of options replaced, which a line says.

    Args:
        args: The arguments.
        names: Old spelling -> new one. The old ones go with the next version.
    """
    new = []
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if option in names:
            now = names[option]
            sys.stderr.write(f"note: {option} is {now} now, and goes with the next version\n")
            new.append(f"{now}{equals}{value}")
        elif arg == "--":
            return [*new, *args[position:]]
        else:
            new.append(arg)
    return new


def option_names(parser: Any) -> list[str]:
    """Returns the long options of a parser, for shell completion."""
    names = [name for action in parser._actions for name in action.option_strings]
    return sorted({name for name in names if name.startswith("--")} - _NOT_COMPLETED)
