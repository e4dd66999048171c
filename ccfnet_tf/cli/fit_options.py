"""From the arguments of `fit` to a `RunConfig`: a preset or YAML file, then one key at a time."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccfnet_tf.cli.parser import option_names
from ccfnet_tf.config import SECTIONS, DataConfig, RunConfig, find_config, read_section, read_tree
from ccfnet_tf.errors import CCFNetError, ConfigError, nearest
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
    "--accept-changed-data  with --resume: go on though pictures, labels or class names have "
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
MASK_VALUES = "data.mask_values"
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "tuple": "a list such as [0.75, 1.5]",
}


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
    keys = option_names(_config_parser(find_config(DEFAULT_WITH_DATA)))
    return sorted({*keys, *option_names(_known_options())})


def parse_fit(args: list[str], *, verb: str = "fit") -> FitOptions:
    """Reads the arguments of `fit`, or of `crossval`, whose are the same.

    Raises:
        ConfigError: An unknown key (the nearest is named), a value outside its range, or a key
            that the format of the data has no use for.
        SystemExit: After `--help` or `--print_config`.
    """
    try:
        known, rest = _known_options().parse_known_args(args)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; see ccfnet-tf fit --help") from error
    if known.accept_changed_data and not known.resume:
        raise ConfigError("--accept-changed-data is for a run that goes on: add --resume")
    name = known.config or _default_config(rest)
    ending = "" if verb == "fit" else f"_{verb}"
    out = Path(known.out or f"runs/{Path(name).stem}{ending}").expanduser()
    begun = out / STORED[verb]
    stored = known.resume and known.config is None and begun.is_file()
    base = begun if stored else find_config(name)
    config = parse_config(base, rest, stored=stored, verb=verb)
    given = known.config is not None
    return FitOptions(config, out, known.resume, given, known.accept_changed_data)


def _default_config(keys: list[str]) -> str:
    """Returns the preset to start from where none is named: data that are given must be used."""
    given = _given(_config_parser(find_config(DEFAULT_CONFIG)), keys)
    layout = given.get("data.format")
    of_real_data = any(f"data.{key}" in given for key in OF_REAL_DATA)
    if layout == "scenes" or (layout is None and not of_real_data):
        return DEFAULT_CONFIG
    return DEFAULT_WITH_DATA


def parse_config(
    base: Path, keys: list[str], *, stored: bool = False, verb: str = "fit"
) -> RunConfig:
    """Reads a configuration file and then keys such as `--train.epochs 3`.

    Args:
        base: The file.
        keys: Arguments.
        stored: The file is a run's own. Such a file may name a root beside scenes, since earlier
            versions let that pass.
        verb: Whose help is shown.

    Raises:
        ConfigError: An unknown key (the nearest is named), a value outside its range, or a key
            that the format of the data has no use for.
        SystemExit: After `--help` or `--print_config`.
    """
    parser = _config_parser(base, verb)
    # jsonargparse never sees a file: it would import what a file calls a `class_path`.
    parser.set_defaults(_flat(read_tree(base)))
    keys = _single_keys(keys, parser)
    with _explained(parser):
        whole = parser.instantiate(parser.parse_args(keys))
    config = RunConfig(data=whole.data, model=whole.model, train=whole.train, seed=whole.seed)
    _refuse_unused(config.data, _given(parser, keys), stored)
    return config


@contextmanager
def _explained(parser: Any) -> Iterator[None]:
    """Turns jsonargparse's errors into ours."""
    try:
        yield
    except CCFNetError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_explain(str(error), parser)) from error


def _given(parser: Any, keys: list[str]) -> dict[str, Any]:
    """Returns the keys among the arguments, such as `data.root`, with their values."""
    asked = [key for key in keys if key not in ("-h", "--help") and "--print_config" not in key]
    asked = _single_keys(asked, parser)
    with _explained(parser):
        return _flat(parser.parse_args(asked, defaults=False).as_dict())


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


def _single_keys(args: list[str], parser: Any) -> list[str]:
    """Returns the arguments with `--data {root: x}` as `--data.root=x`; refuses unknown keys.

    Raises:
        ConfigError: A key is unknown, or a section's value is no object.
    """
    known = _known_keys(parser)
    keys: list[str] = []
    rest = iter(args)
    for arg in rest:
        name, given, value = arg.removeprefix("--").partition("=")
        if arg.startswith("--") and name in SECTIONS:
            text = value if given else next(rest, "")
            for key, each in read_section(name, text, source=f"--{name}").items():
                keys.append(f"--{name}.{key}={each if isinstance(each, str) else json.dumps(each)}")
        elif arg.startswith("--") and name == MASK_VALUES:
            # By our own parser, whose rules are those of files.
            text = value if given else next(rest, "")
            section = read_section("data", f"mask_values:\n  {text}", source="arguments")
            keys.append(f"{arg.partition('=')[0]}={json.dumps(section['mask_values'])}")
        elif arg.startswith("--") and name not in known:
            raise ConfigError(_unknown(name, known))
        else:
            keys.append(arg)
    return keys


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns `{"data": {"crop": 65}}` as `{"data.crop": 65}`, without the file's own name."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": each for inner, each in value.items()}
        elif key != "config":
            flat[key] = value
    return flat


def _known_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    parser.add_argument("--out")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--accept-changed-data", action="store_true")
    return parser


def _config_parser(base: Path, verb: str = "fit") -> Any:
    # Imported here: it takes a quarter of a second, which `ccfnet-tf --help` need not wait for.
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Shows the default of every key, and leaves the lines of the epilog alone."""

    parser = ArgumentParser(
        prog=f"ccfnet-tf {verb}",
        usage=USAGE.format(verb=verb),
        description=f"{DESCRIPTION[verb]}; every key of the configuration is an option.\n"
        f"The defaults shown are those of {base.name}.",
        epilog=EPILOG.format(out=OUT[verb], resume=RESUME[verb]),
        formatter_class=Help,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help=argparse.SUPPRESS)
    parser.add_class_arguments(RunConfig, None)
    return parser


def _explain(message: str, parser: Any) -> str:
    """Makes one line of jsonargparse's several, in the words of our own errors."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    known = _known_keys(parser)
    stray = re.search(r"[Uu]nrecognized arguments: ([^-\s]\S*)", line)
    if stray:
        return f"unexpected argument '{stray[1]}': the folder of pictures is given with --data.root"
    unknown = re.search(r"[Uu]nrecognized arguments: -*([\w.]+)", line)
    unknown = unknown or re.search(r'Key "([\w.]+)" is not expected', line)
    unknown = unknown or re.search(r"Group '(\w+)' does not accept option '([\w.]+)'", line)
    if unknown:
        return _unknown(".".join(unknown.groups()), known)
    wrong = re.search(r'key "([\w.]+)": Expected a (.+)\. Got value: (.*)', line)
    if wrong:
        return _wrong(*wrong.groups())
    of_several = re.search(r'key "([\w.]+)": Does not validate .*Given value: (.*)', line)
    if of_several:
        return _wrong_of_several(of_several[1], line, of_several[2])
    return line


def _known_keys(parser: Any) -> list[str]:
    return [option.lstrip("-") for action in parser._actions for option in action.option_strings]


def _wrong_of_several(key: str, rules: str, value: str) -> str:
    """Words the refusal of a value that may be of several types."""
    subtypes = re.search(r"Subtypes: \[(.*)\] Errors", rules)
    text = subtypes[1] if subtypes else ""
    plain = re.findall(r"\b(int|float|bool|str|tuple)\b", re.sub(r"Literal\[[^]]*\]", "", text))
    choices = re.findall(r"'([\w]+)'", text)
    kinds = [KINDS["tuple"]] if "tuple" in plain else [KINDS[name] for name in plain]
    return f"{key} is '{value}': it must be {' or '.join([*choices, *kinds])}" + nearest(
        value, choices
    )


def _unknown(key: str, known: list[str]) -> str:
    if key == "print_shtab":  # jsonargparse's own
        return "unknown option --print_shtab: see ccfnet-tf completion --help"
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


def _wrong(key: str, rule: str, value: str) -> str:
    choices = re.findall(r"'([\w]+)'", rule) if "Literal" in rule else []
    if choices:
        one_of = f"it must be one of {', '.join(choices)}"
        return f"{key} is '{value}': {one_of}" + nearest(value, choices)
    plain = re.search(r"<class '(\w+)'>", rule)
    return f"{key} is '{value}': it must be {KINDS.get(plain[1], rule) if plain else rule}"
