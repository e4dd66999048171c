"""Converts the arguments of `fit` to a `RunConfig`: a preset or YAML file plus single keys."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccfnet_tf.cli.argument_parser import Parser, option_names
from ccfnet_tf.config import (
    SECTIONS,
    DataConfig,
    RunConfig,
    choices,
    find_config,
    from_tree,
    key_descriptions,
    key_types,
    kinds_of,
    read_section,
    read_tree,
    read_value,
    tree_to_yaml,
    with_defaults,
)
from ccfnet_tf.errors import EXIT_DONE, ConfigError, nearest
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.runs.run_folder import CONFIG, CROSSVAL_CONFIG

DEFAULT_CONFIG = "demo"
DEFAULT_WITH_DATA = "folder"
REAL_DATA_KEYS = (
    "root",
    "lists",
    "label_map",
    "fold",
    "void_value",
    "mask_values",
    "absent_classes",
    "damaged_records",
)
"""Keys of `data` that have no meaning for synthetic scenes."""
FORMAT_KEYS = {
    "scenes": ("scenes", "scene_size"),
    "folder": ("void_value",),
    "shards": ("damaged_records",),
}
TYPES: dict[type, str] = {tuple: "list", dict: "mapping", str: "string"}
"""Names in the help of types whose names differ between YAML and Python."""
STORED = {"fit": CONFIG, "crossval": CROSSVAL_CONFIG}
USAGE = "ccfnet-tf {verb} [--config PRESET|FILE.yaml] [--out RUN] [--resume] [--KEY VALUE ...]"
DESCRIPTION = {
    "fit": "Train a network",
    "crossval": "Train and evaluate a network for every fold of a data set in turn",
}
OUT = {
    "fit": "--out RUN              output folder of the run (default: runs/NAME-OF-THE-CONFIG)",
    "crossval": "--out DIR              output folder of the runs and of crossval.json (default:\n"
    "                       runs/NAME-OF-THE-CONFIG_crossval)",
}
RESUME = {
    "fit": "--resume               continue the run in --out from its last valid checkpoint\n"
    "--accept-changed-data  with --resume: continue even if images, labels or class names have\n"
    "                       changed",
    "crossval": "--resume               continue the folds in --out; finished ones are kept",
}
EPILOG = """\
--config PRESET|FILE   initial values of the keys (see ccfnet-tf presets; default: folder if
                       data.root or another key of real data is given, else demo)
{out}
{resume}
--quiet                no progress, only warnings and errors
--debug                show the traceback of an error
"""


@dataclass(frozen=True)
class FitOptions:
    """Parsed arguments of `fit` and `crossval`.

    Attributes:
        config: Configuration of the run.
        out: Output folder.
        resume: Continue the run in `out`.
        config_given: Whether `--config` was given.
        accept_changed_data: Continue even if the data have changed.
    """

    config: RunConfig
    out: Path
    resume: bool
    config_given: bool = False
    accept_changed_data: bool = False


def fit_options() -> list[str]:
    """Returns the long options of `fit` and `crossval`."""
    return option_names(_new_parser("fit"))


def parse_fit(args: list[str], *, verb: str = "fit") -> FitOptions:
    """Parses the arguments of `fit` or `crossval`, which have the same options.

    Raises:
        ConfigError: A key is unknown, a value is invalid, or a key has no effect for the format of
            the data.
        SystemExit: After `--help` or `--print_config`.
    """
    known = _parsed(args, verb)
    if known.accept_changed_data and not known.resume:
        raise ConfigError("--accept-changed-data applies only to a resumed run: add --resume")
    name = known.config or _default_config(known.given)
    ending = "" if verb == "fit" else f"_{verb}"
    out = expanded(known.out or f"runs/{Path(name).stem}{ending}")
    stored_config = out / STORED[verb]
    stored = known.resume and known.config is None and stored_config.is_file()
    config = _configured(
        stored_config if stored else find_config(name), known, stored=stored, verb=verb
    )
    given = known.config is not None
    return FitOptions(config, out, known.resume, given, known.accept_changed_data)


def parse_config(
    base: Path,
    keys: list[str],
    verb: str = "fit",
    options: Sequence[str] = (),
    refused: Mapping[str, str] | None = None,
) -> RunConfig:
    """Reads a configuration file and applies keys such as `--train.epochs 3`.

    Args:
        base: Path of the file.
        keys: The arguments.
        verb: The command that they were given to, for messages.
        options: Its own long options, which a misspelled key may mean.
        refused: Keys that may not be given, and what sets them.

    Raises:
        ConfigError: A key is unknown or refused, a value is invalid, or a key has no effect for the
            format of the data.
        SystemExit: After `--help` or `--print_config`.
    """
    known = _parsed(keys, verb, options)
    for option in ("config", "out", "resume", "accept_changed_data"):
        if getattr(known, option):  # Options of `fit` that have no effect here.
            raise ConfigError(_unknown(option.replace("_", "-"), verb, options))
    for key, why in (refused or {}).items():
        if key in known.given:
            raise ConfigError(f"{key} is {known.given[key]}: {why}: remove it")
    return _configured(base, known, stored=False, verb="fit")


def _configured(base: Path, known: argparse.Namespace, *, stored: bool, verb: str) -> RunConfig:
    """Returns the configuration of a file with the given keys applied.

    A stored configuration of a run may have a root with the scenes format, since earlier versions
    allowed it.
    """
    tree = read_tree(base)
    for key, value in known.given.items():
        section, _, name = key.rpartition(".")
        if section:
            tree.setdefault(section, {})[name] = value
        else:
            tree[name] = value
    if known.help:
        _new_parser(verb, tree, base.name).print_help()
        raise SystemExit(EXIT_DONE)
    if known.print_config:
        sys.stdout.write(tree_to_yaml(with_defaults(tree)))
        raise SystemExit(EXIT_DONE)
    config = from_tree(tree)
    _refuse_unused(config.data, known.given, stored)
    return config


def _default_config(given: Mapping[str, Any]) -> str:
    """Returns the default preset: `folder` if the arguments specify real data, else `demo`."""
    layout = given.get("data.format")
    real_data = any(f"data.{key}" in given for key in REAL_DATA_KEYS)
    if layout == "scenes" or (layout is None and not real_data):
        return DEFAULT_CONFIG
    return DEFAULT_WITH_DATA


def _refuse_unused(data: DataConfig, given: Mapping[str, Any], stored: bool) -> None:
    """Refuses keys that would be silently ignored."""
    if data.format == "scenes" and data.root and ("data.root" in given or not stored):
        raise ConfigError(
            f"data.root is {data.root}: the format is 'scenes', which reads no folder: add "
            "--data.format auto, or another --config, to use the folder; otherwise remove "
            "data.root"
        )
    for layout, keys in FORMAT_KEYS.items():
        others = data.format != layout and (layout == "scenes" or data.format != "auto")
        for key in keys:
            if others and f"data.{key}" in given:
                raise ConfigError(
                    f"data.{key} applies only to format '{layout}', but the format is "
                    f"'{data.format}': remove it"
                )


def _parsed(args: list[str], verb: str, options: Sequence[str] = ()) -> argparse.Namespace:
    """Parses the options; keys of the configuration are collected in `given`.

    Args:
        args: The arguments.
        verb: The command that they were given to, for messages.
        options: Its long options, which a misspelled key may mean; by default those of `fit`.

    Raises:
        ConfigError: An option is unknown, or a value has the wrong type.
    """
    parser = _new_parser("fit")
    parser.prog = f"ccfnet-tf {verb}"
    known, others = parser.parse_known_args(args, argparse.Namespace(given={}))
    if others and others[0].startswith("-"):
        key = others[0].lstrip("-").partition("=")[0] or others[0]
        raise ConfigError(_unknown(key, verb, options or [*parser._option_string_actions]))
    if others:
        raise ConfigError(
            f"unexpected argument '{others[0]}': give the folder of images with --data.root"
        )
    return known


class _Key(argparse.Action):
    """An option such as `--data.crop 65`, which sets one key of the configuration."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option: object = None
    ) -> None:
        """Stores the value."""
        namespace.given[self.dest] = read_value(self.dest, values)


class _Section(argparse.Action):
    """An option such as `--data {root: x, crop: 65}`, which sets several keys of a section."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option: object = None
    ) -> None:
        """Stores the values."""
        for key, value in read_section(self.dest, values, source=f"--{self.dest}").items():
            namespace.given[f"{self.dest}.{key}"] = value


def _new_parser(verb: str, tree: Mapping[str, Any] | None = None, source: str = "") -> Parser:
    """Returns the parser of `fit` or `crossval`.

    Args:
        verb: `fit` or `crossval`.
        tree: Configuration whose values the help shows as defaults; see `read_tree`.
        source: Name of its file.
    """
    parser = Parser(
        prog=f"ccfnet-tf {verb}",
        usage=USAGE.format(verb=verb),
        description=f"{DESCRIPTION[verb]}; every key of the configuration is an option.\n"
        f"The defaults shown are those of {source}.",
        epilog=EPILOG.format(out=OUT[verb], resume=RESUME[verb]),
        formatter_class=_Help,
        add_help=False,
        allow_abbrev=False,
    )
    for option in ("--config", "--out"):
        parser.add_argument(option, help=argparse.SUPPRESS)
    for option in ("--resume", "--accept-changed-data"):
        parser.add_argument(option, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-h", "--help", action="store_true", help="show this help and exit")
    printed = "print the resulting configuration as YAML and exit"
    parser.add_argument("--print_config", action="store_true", help=printed)
    values, texts = with_defaults(tree or {}), key_descriptions()
    groups: dict[str, Any] = {"": parser}
    for section, cls in SECTIONS.items():
        groups[section] = parser.add_argument_group((cls.__doc__ or "").partition(".\n")[0])
        several = "set several keys, such as {root: photos, crop: 65}"
        several = several if section == "data" else argparse.SUPPRESS
        metavar = "{KEY: VALUE, ...}"
        groups[section].add_argument(f"--{section}", action=_Section, metavar=metavar, help=several)
    for key, hint in key_types().items():
        section, _, name = key.rpartition(".")
        value = values[section][name] if section else values[name]
        groups[section].add_argument(
            f"--{key}",
            dest=key,
            action=_Key,
            metavar=_metavar(name, hint),
            help=f"{texts[key]} ({_type_name(hint)}default: {_format_value(value)})".replace(
                "%", "%%"
            ),
        )
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the epilog, and the first column narrow despite lists of choices."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=24)


def _metavar(name: str, hint: Any) -> str:
    """Returns the metavar of an option: its choices, or its name if other values are allowed."""
    words = ["true", "false"] if hint is bool else choices(hint)
    return f"{{{','.join(words)}}}" if words and kinds_of(hint) in ([], [bool]) else name.upper()


def _type_name(hint: Any) -> str:
    kinds = [TYPES.get(kind, kind.__name__) for kind in kinds_of(hint)]
    return f"type: {' or '.join([*choices(hint), *kinds])}, " if kinds else ""


def _format_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value)


def _unknown(key: str, verb: str, options: Sequence[str]) -> str:
    known = [*key_types(), *options]
    return f"unknown key '{key}'" + (_nearest_key(key, known) or f"; see ccfnet-tf {verb} --help")


def _nearest_key(key: str, known: list[str]) -> str:
    """Suggests a key for a misspelled one; initials are recognized, as in `train.lr`.

    A common section makes any two keys similar, so it is compared only if it is itself misspelled.
    """
    section, _, name = key.rpartition(".")
    names = [other.rpartition(".")[2] for other in known if other.startswith(f"{section}.")]
    for other in names:
        if "_" in other and name == "".join(word[:1] for word in other.split("_")):
            return f"; did you mean '{section}.{other}'?"
    return "" if names and not nearest(name, names) else nearest(key, known)
