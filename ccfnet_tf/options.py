"""From the arguments of `fit` to a `RunConfig`: a preset or YAML file, then one key at a time."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ccfnet_tf.config import RunConfig, find_config
from ccfnet_tf.errors import CCFNetError, ConfigError, nearest

DEFAULT_CONFIG = "demo"
STORED = {"fit": "config.yaml", "crossval": "crossval.yaml"}
USAGE = "ccfnet-tf fit [--config PRESET|FILE.yaml] [--out RUN] [--resume] [--KEY VALUE ...]"
EPILOG = """\
--config PRESET|FILE   where the keys below start from (default: demo; see ccfnet-tf presets)
--out RUN              run folder to write (default: runs/NAME-OF-THE-CONFIG)
--resume               go on with the run in --out from its last checkpoint
--debug                show the traceback of an error
"""
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "tuple": "a list such as [0.75, 1.5]",
}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Raises a ConfigError that points to the verb's help."""
        raise ConfigError(f"{message}; see {self.prog} --help")


@dataclass(frozen=True)
class FitOptions:
    """What `fit` was asked to do.

    Attributes:
        config: The run's configuration.
        out: Run folder.
        resume: Go on with the run that is in `out`.
        config_given: `--config` was among the arguments.
    """

    config: RunConfig
    out: Path
    resume: bool
    config_given: bool = False


def parse_fit(args: list[str], *, verb: str = "fit") -> FitOptions:
    """Reads the arguments of `fit`, or of `crossval`, whose are the same.

    Raises:
        ConfigError: An unknown key (the nearest is named) or a value outside its range.
        SystemExit: After `--help` or `--print_config`.
    """
    try:
        known, rest = _known_options().parse_known_args(args)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; see ccfnet-tf fit --help") from error
    name = known.config or DEFAULT_CONFIG
    ending = "" if verb == "fit" else f"_{verb}"
    out = Path(known.out or f"runs/{Path(name).stem}{ending}").expanduser()
    base, begun = find_config(name), out / STORED[verb]
    if known.resume and known.config is None and begun.is_file():
        base = begun
    return FitOptions(parse_config(base, rest), out, known.resume, known.config is not None)


def parse_config(base: Path, keys: list[str]) -> RunConfig:
    """Reads a configuration file and then keys such as `--train.epochs 3`.

    Raises:
        ConfigError: An unknown key (the nearest is named) or a value outside its range.
        SystemExit: After `--help` or `--print_config`.
    """
    _refuse_other_than_yaml(base)
    parser = _config_parser(base)
    try:
        if not {"-h", "--help"}.isdisjoint(keys):  # which shows defaults: those of the file
            parser.set_defaults(_flat(parser.parse_args(["--config", str(base)]).as_dict()))
        whole = parser.instantiate(parser.parse_args(["--config", str(base), *keys]))
    except CCFNetError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_explain(str(error), parser)) from error
    return RunConfig(data=whole.data, model=whole.model, train=whole.train, seed=whole.seed)


def _refuse_other_than_yaml(file: Path) -> None:
    import yaml

    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{file}: line {line} is not YAML ({error.problem})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected the keys data, model, train and seed")
    for section in ("data", "model", "train"):
        if not isinstance(tree.get(section, {}), dict):
            raise ConfigError(f"{file}: '{section}' must hold keys and values")


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
    return parser


def _config_parser(base: Path) -> Any:
    # Imported here: it takes a quarter of a second, which `ccfnet-tf --help` need not wait for.
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Shows the default of every key, and leaves the lines of the epilog alone."""

    parser = ArgumentParser(
        prog="ccfnet-tf fit",
        usage=USAGE,
        description="Train a network; every key of the configuration is an option.\n"
        f"The defaults shown are those of {base.name}.",
        epilog=EPILOG,
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
    known = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
    unknown = re.search(r"[Uu]nrecognized arguments: -*([\w.]+)", line)
    unknown = unknown or re.search(r'Key "([\w.]+)" is not expected', line)
    if unknown:
        return _unknown(unknown[1], known)
    group = re.search(r"Group '(\w+)' does not accept option '([\w.]+)'", line)
    if group:
        return _unknown(f"{group[1]}.{group[2]}", known)
    wrong = re.search(r'key "([\w.]+)": Expected a (.+)\. Got value: (.*)', line)
    if wrong:
        return _wrong(*wrong.groups())
    return line


def _unknown(key: str, known: list[str]) -> str:
    return f"unknown key '{key}'" + (nearest(key, known) or "; see ccfnet-tf fit --help")


def _wrong(key: str, rule: str, value: str) -> str:
    choices = re.findall(r"'([\w]+)'", rule) if "Literal" in rule else []
    if choices:
        one_of = f"it must be one of {', '.join(choices)}"
        return f"{key} is '{value}': {one_of}" + nearest(value, choices)
    plain = re.search(r"<class '(\w+)'>", rule)
    return f"{key} is '{value}': it must be {KINDS.get(plain[1], rule) if plain else rule}"
