"""`ccfnet-tf reproduce`: runs the experiments behind docs/results.md."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ccfnet_tf.cli.argument_parser import Parser, option_names
from ccfnet_tf.cli.fit_options import parse_config
from ccfnet_tf.config import RunConfig, find_config
from ccfnet_tf.errors import EXIT_DONE, ConfigError
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.new_folder import refuse_file, refuse_unwritable
from ccfnet_tf.reproduce.recipes import CASCADE, CLAIM, DATA_SETS, Recipe, find_ablations

SEEDS = 3
"""Runs of each recipe of the claim; with fewer nothing is shown."""

_SET = {
    "seed": "--seeds sets it for each run",
    "data.fold": "--folds sets it for each run",
    "train.best_by": "each recipe sets it",
}
"""Keys that differ between runs of a study, and what sets them."""

EPILOG = """\
--KEY VALUE            any key of fit, for all recipes, such as --data.root ROOT (required) or
                       --model.backbone mobilenet_v2
--quiet                no progress, only results, warnings and errors
--debug                show the traceback of an error

Without --ablations and --folds, trains the cascade and what it must surpass. The same command
continues after an interruption; finished runs are kept. A failed run does not stop the others.

ablations: {ablations}
"""


def new_parser() -> Parser:
    """Returns the parser of this verb."""
    parser = Parser(
        prog="ccfnet-tf reproduce",
        usage="ccfnet-tf reproduce {stanford_background,sift_flow} --data.root ROOT --out FOLDER "
        "[--ablations [NAME ...] | --folds [K ...]] [--budget MINUTES] [--seeds N] [--again] "
        "[--results DIR] [--KEY VALUE ...]",
        description="Train and evaluate the recipes that docs/results.md compares, each for as "
        "many epochs, and write its tables from the run folders (docs/reproduce.md).",
        epilog=EPILOG.format(ablations=_names(find_ablations([])[1:])),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("data_set", choices=list(DATA_SETS), help="preset and data set")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where runs are written")
    study = parser.add_mutually_exclusive_group()
    study.add_argument(
        "--ablations",
        nargs="*",
        metavar="NAME",
        help="train these changes of the cascade (default: all), evaluated on the validation split",
    )
    study.add_argument(
        "--folds",
        nargs="*",
        type=int,
        metavar="K",
        help="train the cascade with these folds as test split (default: 0)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="training time of a run of the cascade on this machine, from which the epochs of all "
        "recipes follow (default: the epochs of the preset, or --train.epochs)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help=f"runs of each recipe (default: {SEEDS}; with --ablations and --folds 1)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="score a recipe on the test split that was scored there before it was changed, and "
        "replace results of more finished runs",
    )
    parser.add_argument(
        "--results",
        metavar="DIR",
        help="folder of the JSON files; tables are written to the file of its name with .md "
        "(default: docs/results in a checkout, else FOLDER/results)",
    )
    return parser


def _names(recipes: Sequence[Recipe]) -> str:
    """Returns the names of recipes in lines of the width of the help."""
    words = ", ".join(recipe.name for recipe in recipes)
    return textwrap.fill(words, 84, initial_indent=" " * 11, subsequent_indent=" " * 11).strip()


def main(args: list[str]) -> int:
    """Carries out a study; returns the exit code."""
    parser = new_parser()
    options, keys = parser.parse_known_args(args)
    from ccfnet_tf.io.console import new_console
    from ccfnet_tf.reproduce.study import Request, reproduce

    _refuse_numbers(options)
    config = _config(options.data_set, keys, options.budget, option_names(parser))
    request = Request(
        options.data_set, "claim", CLAIM, config, options.seeds or SEEDS, (0,), options.budget,
        options.again,
    )  # fmt: skip
    if options.ablations is not None:
        chosen = find_ablations(options.ablations)
        request = replace(request, study="ablations", recipes=chosen, seeds=options.seeds or 1)
    elif options.folds is not None:
        folds = tuple(dict.fromkeys(options.folds or [0]))
        request = replace(request, study="folds", recipes=(CASCADE,), seeds=1, folds=folds)
    out = expanded(options.out)
    results = expanded(options.results) if options.results else _default_results(out)
    results = results.resolve()
    if not results.name:
        raise ConfigError(f"--results {options.results}: give a folder with a name")
    for folder, option in ((out, "--out"), (results, "--results")):
        refuse_file(folder, option)
        refuse_unwritable(folder, option)
    reproduce(request, out, results, new_console())
    return EXIT_DONE


def _refuse_numbers(options: argparse.Namespace) -> None:
    if options.budget is not None and not 0 < options.budget <= 100_000:
        raise ConfigError(f"--budget {options.budget:g}: give minutes, above 0 and up to 100000")
    if options.seeds is not None and not 1 <= options.seeds <= 100:
        raise ConfigError(f"--seeds {options.seeds}: give a number from 1 to 100")
    if options.folds is not None and options.seeds is not None:
        raise ConfigError("--seeds has no effect with --folds, which trains seed 0: remove it")


def _config(
    data_set: str, keys: list[str], budget: float | None, options: Sequence[str]
) -> RunConfig:
    """Returns the configuration of the cascade: the preset of the data set with some keys.

    Raises:
        ConfigError: A key is unknown or invalid, or is one that recipes, seeds and folds set.
    """
    refused = dict(_SET) if budget is None else {**_SET, "train.epochs": "--budget sets it"}
    return parse_config(find_config(data_set), keys, "reproduce", options, refused)


def _default_results(out: Path) -> Path:
    docs = Path("docs")
    in_checkout = (docs / "results.md").is_file() and Path("ccfnet_tf").is_dir()
    return docs / "results" if in_checkout else out / "results"
