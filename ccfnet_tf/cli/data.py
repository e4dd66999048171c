"""`ccfnet-tf data`: checks, summarizes, shows, splits and converts data sets; suspect labels."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ccfnet_tf.cli import suspects
from ccfnet_tf.cli.argument_parser import Parser, add_palette_option, option_names, renamed
from ccfnet_tf.cli.fit_options import DEFAULT_WITH_DATA, parse_config
from ccfnet_tf.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_USER_ERROR, ConfigError, nearest
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.new_folder import refuse_unwritable
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

if TYPE_CHECKING:
    from rich.console import Console

    from ccfnet_tf.config import RunConfig
    from ccfnet_tf.datasets.samples import Listing
    from ccfnet_tf.labels import Sample

HELP = """\
usage: ccfnet-tf data COMMAND ...

  check SRC                        read all images and labels and report problems
  stats SRC                        class frequencies, image sizes, class weights, mean and
                                   standard deviation
  show SRC                         draw images, labels and augmented versions in one image;
                                   --palette accessible for colour-vision deficiency
  split SRC --folds 5 --out DIR    write lists of balanced folds for --data.lists; --group-by
                                   keeps the frames of a video in one fold
  convert SRC --out DIR            write a folder of images and masks, or with --shards N
                                   TFRecord files
  scenes --count N --out DIR       write the built-in synthetic scenes as a folder
  suspects RUN                     list labels that are probably wrong, from the predictions of a
                                   run or of crossval for images that they did not train on

SRC, or --data.root SRC, is the folder of a data set. Its layout is detected; --data.format sets it
explicitly. Every key of the data section of the configuration is an option, such as
--data.fold 1, --data.label_map FILE or --data.lists DIR; --config PRESET|FILE.yaml sets the
configuration to start from.
"""


def main(args: list[str]) -> int:
    """Runs a subcommand of `data`; returns the exit code.

    Args:
        args: The arguments after `data`.

    Raises:
        CCFNetError: The arguments or the data are invalid.
    """
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return EXIT_DONE if args else EXIT_USER_ERROR
    if args[0] not in VERBS:
        raise ConfigError(
            f"unknown command 'data {args[0]}': expected {', '.join(VERBS)}"
            + nearest(args[0], VERBS)
        )
    return VERBS[args[0]](args[1:])


def _check_parser() -> Parser:
    parser = _parser("check", "Read every image and label; exit with 1 if anything must be fixed.")
    parser.add_argument(
        "--json", metavar="FILE", help="write all findings to FILE (-: standard output)"
    )
    return parser


def _check(args: list[str]) -> int:
    parser = _check_parser()
    known, config = _parse(parser, args)
    _refuse_lost_json(known.json)
    from ccfnet_tf.datasets.absent_classes import allowed
    from ccfnet_tf.datasets.audit.find_problems import inspect
    from ccfnet_tf.report.data_tables import check_report

    with _listed(config, checking=True) as (listing, advance, console):
        allow_absent, workers = allowed(config.data), config.data.workers
        report = inspect(listing, allow_absent=allow_absent, workers=workers, advance=advance)
    _print_report(known.json, report.to_json(), check_report(report), console)
    return EXIT_DONE if report.ok else EXIT_FINDINGS


def _stats_parser() -> Parser:
    parser = _parser("stats", "Count classes, sizes and colours; suggest class weights.")
    parser.add_argument(
        "--json", metavar="FILE", help="write all statistics to FILE (-: standard output)"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="plot the statistics")
    return parser


def _stats(args: list[str]) -> int:
    parser = _stats_parser()
    known, config = _parse(parser, args)
    _refuse_lost_json(known.json)
    _refuse_image_name("--plot", known.plot)
    from ccfnet_tf.datasets.audit.stats import survey
    from ccfnet_tf.datasets.open_data_set import agreeing, parts_of
    from ccfnet_tf.report.data_plots import stats_figure
    from ccfnet_tf.report.data_tables import stats_table

    with _listed(config) as (listing, advance, console):
        samples = [sample for part in parts_of(listing).values() for sample in part]
        taxonomy, workers = listing.taxonomy, config.data.workers
        stats = survey(samples, agreeing(listing.load), taxonomy, workers=workers, advance=advance)
    _print_report(known.json, stats.to_json(taxonomy), stats_table(stats, taxonomy), console)
    if known.plot:
        stats_figure(stats, taxonomy, expanded(known.plot))
        console.print(f"plot written to {known.plot}")
    return EXIT_DONE


def _show_sheet_parser() -> Parser:
    parser = _parser("show", "Draw images, their labels, and four augmented versions of each.")
    parser.add_argument("--out", metavar="FILE.png", default="sheet.png", help="default: sheet.png")
    parser.add_argument("--count", type=int, default=6, help="number of images (default: 6)")
    add_palette_option(parser)
    return parser


def _show_sheet(args: list[str]) -> int:
    parser = _show_sheet_parser()
    known, config = _parse(parser, args)
    _at_least("--count", known.count, 1)
    _refuse_image_name("--out", known.out)
    start_tensorflow()
    from ccfnet_tf.datasets.audit.check_split import check
    from ccfnet_tf.datasets.open_data_set import read_parts
    from ccfnet_tf.inference.writers import write_png
    from ccfnet_tf.palettes import with_palette
    from ccfnet_tf.report.samples_sheet import contact_sheet
    from ccfnet_tf.training.check_data import rarity

    parts, data = read_parts(config.data, config.seed), config.data
    taxonomy = with_palette(parts.taxonomy, known.palette)
    class_rarity = None
    if data.rare_crop:  # Rare classes are known only after all labels were read.
        audit = check(parts.train, parts.load, len(parts.taxonomy.names), workers=data.workers)
        class_rarity = rarity(data, audit.census)
    sheet = contact_sheet(
        parts.train,
        parts.load,
        taxonomy,
        data,
        config.seed,
        count=known.count,
        rarity=class_rarity,
    )
    write_png(expanded(known.out), sheet)
    count = min(known.count, len(parts.train))
    new_console().print(f"{known.out}: {count} of {len(parts.train)} images")
    return EXIT_DONE


def _split_parser() -> Parser:
    parser = _parser(
        "split", "Split all images into folds with similar class frequencies; write list files."
    )
    parser.add_argument("--folds", type=int, default=5, help="number of folds (default: 5)")
    parser.add_argument("--out", required=True, metavar="DIR", help="output folder of the lists")
    group_by = (
        "keep images of a group, such as the frames of a video, in one fold: a regular expression "
        "searched in the path below SRC, whose (groups) identify the video, or a CSV file with "
        "lines IMAGE,VIDEO"
    )
    parser.add_argument("--group-by", metavar="REGEX|FILE.csv", help=group_by)
    return parser


def _split(args: list[str]) -> int:
    parser = _split_parser()
    known, config = _parse(parser, args)
    refuse_unwritable(expanded(known.out))
    from ccfnet_tf.datasets.audit.make_folds import split
    from ccfnet_tf.datasets.audit.sequences import groups_of, hint
    from ccfnet_tf.datasets.open_data_set import parts_of
    from ccfnet_tf.report.data_tables import split_table

    out = expanded(known.out)

    def group_of(samples: Sequence[Sample]) -> list[str]:
        return groups_of(known.group_by, samples, expanded(known.source))

    with _listed(config) as (listing, advance, console):
        dealt = split(
            listing,
            out,
            folds=known.folds,
            seed=config.seed,
            group_of=group_of if known.group_by else None,
            workers=config.data.workers,
            advance=advance,
        )
    console.print(split_table(dealt, listing.taxonomy))
    if not known.group_by:
        names = hint([sample for part in parts_of(listing).values() for sample in part])
        if names:
            console.print(names, markup=False, highlight=False)
    keys = shlex.join(_keys_of(known, config, out))
    console.print(f"{out}: {known.folds} folds; next, train one fold or all:")
    console.print(f"ccfnet-tf fit {keys} --data.fold 0")
    console.print(f"ccfnet-tf crossval {keys}")
    return EXIT_DONE


def _keys_of(known: argparse.Namespace, config: RunConfig, lists: Path) -> list[str]:
    """Returns the arguments with which `fit` reads the same data with the given lists."""
    plain = _config(known.config, ["--data.root", known.source], _split_parser()).data
    keys = [] if known.config == DEFAULT_WITH_DATA else ["--config", known.config]
    keys += ["--data.root", known.source]
    for key, value in vars(config.data).items():
        if value != getattr(plain, key) and key not in ("root", "lists", "fold"):
            keys += [f"--data.{key}", value if isinstance(value, str) else json.dumps(value)]
    return [*keys, "--data.lists", str(lists)]


def _convert_parser() -> Parser:
    parser = _parser(
        "convert", "Write a data set as a folder of images and masks, or as TFRecord shards."
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--shards", type=int, metavar="N", help="number of TFRecord files per split"
    )
    return parser


def _convert(args: list[str]) -> int:
    known, config = _parse(_convert_parser(), renamed(args, {"--to": "--out"}))
    if known.shards is not None:
        _at_least("--shards", known.shards, 1)
    _convert_to(expanded(known.out), config, known.shards)
    return EXIT_DONE


def _scenes_parser() -> Parser:
    description = "Draw synthetic scenes; write them as a folder of images and masks."
    parser = Parser(prog="ccfnet-tf data scenes", description=description)
    parser.add_argument(
        "--count", type=int, default=100, help="number of training scenes (default: 100)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    return parser


def _scenes(args: list[str]) -> int:
    parser = _scenes_parser()
    known, keys = parser.parse_known_args(args)
    from ccfnet_tf.config import SCENES, check_between

    check_between("--count", known.count, *SCENES)
    keys = ["--data.format", "scenes", "--data.scenes", str(known.count), *keys]
    _convert_to(expanded(known.out), _config("demo", keys, parser), None)
    return EXIT_DONE


def _convert_to(out: Path, config: RunConfig, shards: int | None) -> None:
    refuse_unwritable(out)
    start_tensorflow()
    from ccfnet_tf.datasets.open_data_set import parts_of
    from ccfnet_tf.pipeline.convert_data_set import write_folder, write_shards

    passes = 1 if shards is None else 2  # Shards are read back for verification.
    with _listed(config, passes=passes) as (listing, advance, console):
        workers = config.data.workers
        if shards is None:
            write_folder(listing, out, workers=workers, advance=advance)
        else:
            write_shards(listing, out, shards, workers=workers, advance=advance)
    count = sum(map(len, parts_of(listing).values()))
    verified = "" if shards is None else ", read back and equal"
    console.print(
        f"{out}: {count} images{verified}; next: ccfnet-tf data check {shlex.quote(str(out))}"
    )


PARSERS: dict[str, Callable[[], Parser]] = {
    "check": _check_parser,
    "stats": _stats_parser,
    "show": _show_sheet_parser,
    "split": _split_parser,
    "convert": _convert_parser,
    "scenes": _scenes_parser,
    "suspects": suspects.new_parser,
}
"""Subcommand -> function that creates its argument parser."""

VERBS = {
    "check": _check,
    "stats": _stats,
    "show": _show_sheet,
    "split": _split,
    "convert": _convert,
    "scenes": _scenes,
    "suspects": suspects.main,
}


def _parser(verb: str, description: str) -> Parser:
    parser = Parser(
        prog=f"ccfnet-tf data {verb}",
        description=f"{description} Keys of the configuration, such as --data.fold 1 or --seed 3, "
        "are accepted as in fit.",
    )
    parser.add_argument(
        "source", metavar="SRC", help="folder of the data set, also --data.root SRC"
    )
    parser.add_argument(
        "--config", default=DEFAULT_WITH_DATA, help="preset or YAML file to start from"
    )
    return parser


def _parse(
    parser: argparse.ArgumentParser, args: list[str]
) -> tuple[argparse.Namespace, RunConfig]:
    """Returns the options of the subcommand, and the configuration from the other arguments."""
    args = _source_first(args)
    if args[:1] not in (["-h"], ["--help"]) and args and args[0].startswith("-"):
        raise ConfigError(f"{args[0]}: SRC must come first: {parser.prog} SRC {args[0]} ...")
    known, keys = parser.parse_known_args(args)
    return known, _config(known.config, ["--data.root", known.source, *keys], parser)


def _source_first(args: list[str]) -> list[str]:
    """Moves the value of `--data.root` to the front, in place of SRC."""
    for position, arg in enumerate(args if args and args[0].startswith("-") else []):
        if arg == "--data.root" and position + 1 < len(args):
            return [args[position + 1], *args[:position], *args[position + 2 :]]
        if arg.startswith("--data.root="):
            return [arg.partition("=")[2], *args[:position], *args[position + 1 :]]
    return args


def _config(name: str, keys: list[str], parser: argparse.ArgumentParser) -> RunConfig:
    from ccfnet_tf.config import find_config

    verb = parser.prog.removeprefix("ccfnet-tf ")
    return parse_config(find_config(name), keys, verb, option_names(parser))


@contextmanager
def _listed(
    config: RunConfig, *, passes: int = 1, checking: bool = False
) -> Iterator[tuple[Listing, Callable[[], None], Console]]:
    """Yields the listing, a function that advances the progress bar, and the console.

    With `checking`, the caller reports unpaired files and notes.
    """
    from ccfnet_tf.datasets.open_data_set import list_set, parts_of, refuse_unpaired, with_format

    stderr = new_console(stderr=True)  # With --json -, standard output is only JSON.
    data = with_format(config.data)
    if data.format == "shards":  # TensorFlow parses the records.
        start_tensorflow()
    listing = list_set(data, config.seed)
    count = sum(map(len, parts_of(listing).values()))
    images = f"{count} image{'' if count == 1 else 's'}"
    stderr.print(f"{data.root or 'scenes'}: {data.format}, {images}")
    if not checking:
        for note in listing.notes:
            stderr.print(note, markup=False)
        refuse_unpaired(listing, data)
    with new_progress(stderr) as bar:
        task = bar.add_task("reading", total=count * passes)
        yield listing, lambda: bar.advance(task), new_console()


def _print_report(file: str | None, tree: object, table: object, console: Console) -> None:
    if file == "-":
        print(json.dumps(tree, indent=1))
        return
    console.print(table)
    if file:
        from ccfnet_tf.io.atomic_file import write_atomic

        text = json.dumps(tree, indent=1) + "\n"
        path = expanded(file)
        write_atomic(path, lambda f: f.write(text.encode()), fix="free space or give another file")
        console.print(f"written to {path}")


def _refuse_lost_json(file: str | None) -> None:
    """Checks that the JSON file can be written, before anything is read."""
    if file and file != "-":
        refuse_unwritable(expanded(file).parent, "--json")


def _refuse_image_name(option: str, file: str | None) -> None:
    """Checks that a PNG file can be written, before anything is read."""
    if not file:
        return
    path = expanded(file)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{option} is {file}: the output is a PNG: give a name that ends in .png")
    if path.exists():
        raise ConfigError(f"{file}: already exists; remove it or give another file")
    refuse_unwritable(path.parent, option)


def _at_least(option: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(f"{option} is {value}: it must be {low} or more")
