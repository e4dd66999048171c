"""From the arguments of `fit` to a `RunConfig`: a preset or YAML file, then one key at a time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccfnet_tf.cli.parser import Parser, option_names
from ccfnet_tf.config import (
    SECTIONS,
    DataConfig,
    RunConfig,
    choices,
    explained,
    find_config,
    from_tree,
    key_types,
    kinds_of,
    read_section,
    read_tree,
    read_value,
    tree_to_yaml,
    with_defaults,
)
from ccfnet_tf.errors import EXIT_DONE, ConfigError, nearest
from ccfnet_tf.runs.run_folder import CONFIG, CROSSVAL_CONFIG

DEFAULT_CONFIG = "demo"
DEFAULT_WITH_DATA = "folder"
OF_REAL_DATA = (
    "root",
    "lists",
    "label_map",
    "fold",
    "void_value",
    "mask_values",
    "absent_classes",
    "damaged_records",
)
"""Keys of `data` that mean nothing to drawn scenes."""
OF_ONE_FORMAT = {
    "scenes": ("scenes", "scene_size"),
    "folder": ("void_value",),
    "shards": ("damaged_records",),
}
TYPES: dict[type, str] = {tuple: "list", dict: "mapping", str: "text"}
"""What the help calls types that YAML calls otherwise than Python."""
STORED = {"fit": CONFIG, "crossval": CROSSVAL_CONFIG}
USAGE = "ccfnet-tf {verb} [--config PRESET|FILE.yaml] [--out RUN] [--resume] [--KEY VALUE ...]"
DESCRIPTION = {
    "fit": "Train a network",
    "crossval": "Train and evaluate a network for every fold of a data set, fold after fold",
}
OUT = {
    "fit": "--out RUN              run folder to write (default: runs/NAME-OF-THE-CONFIG)",
    "crossval": "--out DIR              folder of the folds' runs and of crossval.json (default:\n"
    "                       runs/NAME-OF-THE-CONFIG_crossval)",
}
RESUME = {
    "fit": "--resume               go on with the run in --out from its last sound checkpoint\n"
    "--accept-changed-data  with --resume: go on though images, labels or class names have "
    "changed",
    "crossval": "--resume               go on with the folds in --out; finished ones stay",
}
EPILOG = """\
--config PRESET|FILE   where the keys below start from (see ccfnet-tf presets; default: folder
                       where data.root or another key of real data is given, else demo)
{out}
{resume}
--quiet                no progress; warnings and errors alone
--debug                show the traceback of an error
"""


@dataclass(frozen=True)
class FitOptions:
    """What `fit` was asked to do.

    Attributes:
        config: The run's configuration.
        out: Run folder.
        resume: Go on with the run that is in `out`.
        config_given: `--config` was among the arguments.
        accept_changed_data: Go on though the data have changed.
    """

    config: RunConfig
    out: Path
    resume: bool
    config_given: bool = False
    accept_changed_data: bool = False


def fit_options() -> list[str]:
    """Returns the options of `fit` and `crossval`."""
    return option_names(_new_parser("fit"))


def parse_fit(args: list[str], *, verb: str = "fit") -> FitOptions:
    """Reads the arguments of `fit`, or of `crossval`, whose are the same.

    Raises:
        ConfigError: An unknown key (the nearest is named), a value outside its range, or a key
            that the format of the data has no use for.
        SystemExit: After `--help` or `--print_config`.
    """
    known = _parsed(args, verb)
    if known.accept_changed_data and not known.resume:
        raise ConfigError("--accept-changed-data is for a run that goes on: add --resume")
    name = known.config or _default_config(known.given)
    ending = "" if verb == "fit" else f"_{verb}"
    out = Path(known.out or f"runs/{Path(name).stem}{ending}").expanduser()
    begun = out / STORED[verb]
    stored = known.resume and known.config is None and begun.is_file()
    config = _configured(begun if stored else find_config(name), known, stored=stored, verb=verb)
    given = known.config is not None
    return FitOptions(config, out, known.resume, given, known.accept_changed_data)


def parse_config(base: Path, keys: list[str]) -> RunConfig:
    """Reads a configuration file and then keys such as `--train.epochs 3`.

    Args:
        base: The file.
        keys: Arguments.

    Raises:
        ConfigError: An unknown key (the nearest is named), a value outside its range, or a key
            that the format of the data has no use for.
        SystemExit: After `--help` or `--print_config`.
    """
    known = _parsed(keys, "fit")
    for option in ("config", "out", "resume", "accept_changed_data"):
        if getattr(known, option):  # of `fit` alone: here they would be ignored
            raise ConfigError(_unknown(option.replace("_", "-")))
    return _configured(base, known, stored=False, verb="fit")


def _configured(base: Path, known: argparse.Namespace, *, stored: bool, verb: str) -> RunConfig:
    """Returns the configuration of a file and the keys that were given.

    A file that is a run's own may name a root beside scenes, since earlier versions let that pass.
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
    """Returns the preset to start from where none is named: data that are given must be used."""
    layout = given.get("data.format")
    of_real_data = any(f"data.{key}" in given for key in OF_REAL_DATA)
    if layout == "scenes" or (layout is None and not of_real_data):
        return DEFAULT_CONFIG
    return DEFAULT_WITH_DATA


def _refuse_unused(data: DataConfig, given: Mapping[str, Any], stored: bool) -> None:
    """Refuses keys that would be ignored in silence."""
    if data.format == "scenes" and data.root and ("data.root" in given or not stored):
        raise ConfigError(
            f"data.root is {data.root}: the format is 'scenes', which are drawn and read from no "
            "folder: add --data.format auto, or another --config, to use the folder; else leave "
            "data.root out"
        )
    for layout, keys in OF_ONE_FORMAT.items():
        others = data.format != layout and (layout == "scenes" or data.format != "auto")
        for key in keys:
            if others and f"data.{key}" in given:
                raise ConfigError(
                    f"data.{key} is for format '{layout}' alone, and the format is "
                    f"'{data.format}': leave it out"
                )


def _parsed(args: list[str], verb: str) -> argparse.Namespace:
    """Returns the options; those of the configuration, by key, are in `given`.

    Raises:
        ConfigError: An option that is not known, or a value of another type.
    """
    known, others = _new_parser(verb).parse_known_args(args, argparse.Namespace(given={}))
    if others and others[0].startswith("-"):
        raise ConfigError(_unknown(others[0].lstrip("-").partition("=")[0] or others[0]))
    if others:
        raise ConfigError(
            f"unexpected argument '{others[0]}': the folder of images is given with --data.root"
        )
    return known


class _Key(argparse.Action):
    """`--data.crop 65`: one key of the configuration."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option: object = None
    ) -> None:
        """Adds the value."""
        namespace.given[self.dest] = read_value(self.dest, values)


class _Section(argparse.Action):
    """`--data {root: x, crop: 65}`: several keys of a section."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option: object = None
    ) -> None:
        """Adds the values."""
        for key, value in read_section(self.dest, values, source=f"--{self.dest}").items():
            namespace.given[f"{self.dest}.{key}"] = value


def _new_parser(verb: str, tree: Mapping[str, Any] | None = None, source: str = "") -> Parser:
    """Returns the parser of `fit` or `crossval`.

    Args:
        verb: Whose.
        tree: The configuration whose values the help shows; see `read_tree`.
        source: Where they come from.
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
    printed = "print the configuration that results, as a YAML file, and exit"
    parser.add_argument("--print_config", action="store_true", help=printed)
    values, texts = with_defaults(tree or {}), explained()
    places: dict[str, Any] = {"": parser}
    for section, cls in SECTIONS.items():
        places[section] = parser.add_argument_group((cls.__doc__ or "").partition(".\n")[0])
        several = "several keys at once, such as {root: photos, crop: 65}"
        several = several if section == "data" else argparse.SUPPRESS
        metavar = "{KEY: VALUE, ...}"
        places[section].add_argument(f"--{section}", action=_Section, metavar=metavar, help=several)
    for key, hint in key_types().items():
        section, _, name = key.rpartition(".")
        value = values[section][name] if section else values[name]
        places[section].add_argument(
            f"--{key}",
            dest=key,
            action=_Key,
            metavar=_metavar(name, hint),
            help=f"{texts[key]} ({_type(hint)}default: {_shown(value)})".replace("%", "%%"),
        )
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """Leaves the lines of the epilog alone; a list of choices does not widen the first column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=24)


def _metavar(name: str, hint: Any) -> str:
    """Returns what stands behind the option: the choices where there is nothing else."""
    words = ["true", "false"] if hint is bool else choices(hint)
    return f"{{{','.join(words)}}}" if words and kinds_of(hint) in ([], [bool]) else name.upper()


def _type(hint: Any) -> str:
    kinds = [TYPES.get(kind, kind.__name__) for kind in kinds_of(hint)]
    return f"type: {' or '.join([*choices(hint), *kinds])}, " if kinds else ""


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value)


def _unknown(key: str) -> str:
    known = [*key_types(), *option_names(_new_parser("fit"))]
    return f"unknown key '{key}'" + (_nearest_key(key, known) or "; see ccfnet-tf fit --help")


def _nearest_key(key: str, known: list[str]) -> str:
    """Returns the hint at the key that was meant; initials count, as in `train.lr`.

    The section makes any two of its keys alike, so it counts only where it is itself misspelled.
    """
    section, _, name = key.rpartition(".")
    names = [other.rpartition(".")[2] for other in known if other.startswith(f"{section}.")]
    for other in names:
        if "_" in other and name == "".join(word[:1] for word in other.split("_")):
            return f"; did you mean '{section}.{other}'?"
    return "" if names and not nearest(name, names) else nearest(key, known)
