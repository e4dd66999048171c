"""`ccfnet-tf presets`: lists the shipped configurations."""

from __future__ import annotations

from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.config import find_config, preset_names
from ccfnet_tf.errors import EXIT_DONE


def new_parser() -> Parser:
    """Returns the argument parser of the command."""
    return Parser(prog="ccfnet-tf presets", description="List the shipped configurations.")


def main(args: list[str]) -> int:
    """Lists the presets; returns the exit code."""
    new_parser().parse_args(args)
    for name in preset_names():
        lines = find_config(name).read_text(encoding="utf-8").splitlines()
        comment = " ".join(line[1:].strip() for line in lines if line.startswith("#"))
        print(f"{name}\n    {comment}")
    return EXIT_DONE
