"""`ccfnet-tf data VERB`: look at a data set, split it, convert it, before anything is trained."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ccfnet_tf.cli.fit_options import DEFAULT_WITH_DATA, parse_config
from ccfnet_tf.cli.parser import Parser, renamed
from ccfnet_tf.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_USER_ERROR, ConfigError, nearest
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.new_folder import refuse_unwritable
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

if TYPE_CHECKING:
    from rich.console import Console

    from ccfnet_tf.config import RunConfig
    from ccfnet_tf.datasets.base import Listing
    from ccfnet_tf.labels import Sample

HELP = """\
usage: ccfnet-tf data VERB ...

  check SRC                        read everything; say what is wrong
  stats SRC                        class shares, sizes, weights, mean and deviation
  show SRC                         a sheet of images, labels and what augmentation does
  split SRC --folds 5 --out DIR    lists of balanced folds, for --data.lists; --group-by keeps the
                                   frames of a film together
  convert SRC --out DIR            a plain folder of images and masks; --shards N: TFRecord
  scenes --count N --out DIR       the built-in scenes as a folder

SRC, or --data.root SRC, is the folder of a data set. Its layout is told from what is in it;
--data.format says it.
Every key of the configuration's data section can be given: --data.fold 1, --data.label_map FILE,
--data.lists DIR; and --config PRESET|FILE.yaml to start from.
"""


def main(args: list[str]) -> int:
    """Runs `data VERB`, whose arguments follow `data`; returns the exit code.

    Raises:
        CCFNetError: The data, or the arguments, do not allow it.
    """
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return EXIT_DONE if args else EXIT_USER_ERROR
    if args[0] not in VERBS:
        raise ConfigError(
            f"'data {args[0]}' is not a command: expected {', '.join(VERBS)}"
            + nearest(args[0], VERBS)
        )
    return VERBS[args[0]](args[1:])


def _check_parser() -> Parser:
    parser = _parser("check", "Read every image and label; exit 1 when something must be fixed.")
    parser.add_argument("--json", metavar="FILE", help="write all findings there (- prints them)")
    return parser


def _check(args: list[str]) -> int:
    parser = _check_parser()
    known, config = _parse(parser, args)
    _refuse_lost_json(known.json)
    from ccfnet_tf.datasets.absent_classes import allowed
    from ccfnet_tf.datasets.audit.problems import inspect
    from ccfnet_tf.report.data_tables import check_report

    with _listed(config, notes=False) as (listing, advance, console):  # its table has them
        allow_absent, workers = allowed(config.data), config.data.workers
        report = inspect(listing, allow_absent=allow_absent, workers=workers, advance=advance)
    _show(known.json, report.to_json(), check_report(report), console)
    return EXIT_DONE if report.ok else EXIT_FINDINGS


def _stats_parser() -> Parser:
    parser = _parser("stats", "Count classes, sizes and colours; suggest class weights.")
    parser.add_argument("--json", metavar="FILE", help="write all figures there (- prints them)")
    parser.add_argument("--plot", metavar="FILE.png", help="draw them")
    return parser


def _stats(args: list[str]) -> int:
    parser = _stats_parser()
    known, config = _parse(parser, args)
    _refuse_lost_json(known.json)
    _refuse_picture_name("--plot", known.plot)
    from ccfnet_tf.datasets.audit.stats import survey
    from ccfnet_tf.datasets.splits import agreeing, parts_of, refuse_unpaired
    from ccfnet_tf.report.data_plots import stats_figure
    from ccfnet_tf.report.data_tables import stats_table

    with _listed(config) as (listing, advance, console):
        refuse_unpaired(listing)
        samples = [sample for part in parts_of(listing).values() for sample in part]
        taxonomy, workers = listing.taxonomy, config.data.workers
        stats = survey(samples, agreeing(listing.load), taxonomy, workers=workers, advance=advance)
    _show(known.json, stats.to_json(taxonomy), stats_table(stats, taxonomy), console)
    if known.plot:
        stats_figure(stats, taxonomy, Path(known.plot).expanduser())
        console.print(f"drawn to {known.plot}")
    return EXIT_DONE


def _show_sheet_parser() -> Parser:
    parser = _parser("show", "Draw images, labels, and four augmented versions of each.")
    parser.add_argument("--out", metavar="FILE.png", default="sheet.png", help="default: sheet.png")
    parser.add_argument("--count", type=int, default=6, help="images (default: 6)")
    return parser


def _show_sheet(args: list[str]) -> int:
    parser = _show_sheet_parser()
    known, config = _parse(parser, args)
    _at_least("--count", known.count, 1)
    _refuse_picture_name("--out", known.out)
    start_tensorflow()
    from ccfnet_tf.datasets.audit.scan import check
    from ccfnet_tf.datasets.splits import read_parts
    from ccfnet_tf.inference.writers import write_png
    from ccfnet_tf.report.contact_sheet import contact_sheet
    from ccfnet_tf.training.data import rarity

    parts, data = read_parts(config.data, config.seed), config.data
    sought = None
    if data.rare_crop:  # which classes are rare is known when all labels were read
        seen = check(parts.train, parts.load, len(parts.taxonomy.names), workers=data.workers)
        sought = rarity(data, seen.census)
    sheet = contact_sheet(
        parts.train, parts.load, parts.taxonomy, data, config.seed, count=known.count, rarity=sought
    )
    write_png(Path(known.out).expanduser(), sheet)
    shown = min(known.count, len(parts.train))
    new_console().print(f"{known.out}: {shown} of {len(parts.train)} images")
    return EXIT_DONE


def _split_parser() -> Parser:
    parser = _parser("split", "Deal all images to folds of like content; write list files.")
    parser.add_argument("--folds", type=int, default=5, help="default: 5")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the lists")
    group_by = (
        "what stays on one side, such as the frames of a film: a regular expression searched in "
        "the path below SRC, whose (groups) name the film, or a CSV file of image,film"
    )
    parser.add_argument("--group-by", metavar="REGEX|FILE.csv", help=group_by)
    return parser


def _split(args: list[str]) -> int:
    parser = _split_parser()
    known, config = _parse(parser, args)
    refuse_unwritable(Path(known.out).expanduser())
    from ccfnet_tf.datasets.audit.folds import split
    from ccfnet_tf.datasets.audit.sequences import groups_of, hint
    from ccfnet_tf.datasets.splits import parts_of
    from ccfnet_tf.report.data_tables import split_table

    out = Path(known.out).expanduser()

    def group_of(samples: Sequence[Sample]) -> list[str]:
        return groups_of(known.group_by, samples, Path(known.source).expanduser())

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
    console.print(f"{out}: {known.folds} folds; next, one of them or all:")
    console.print(f"ccfnet-tf fit {keys} --data.fold 0")
    console.print(f"ccfnet-tf crossval {keys}")
    return EXIT_DONE


def _keys_of(known: argparse.Namespace, config: RunConfig, lists: Path) -> list[str]:
    """Returns the arguments with which `fit` sees the data as they were seen here, and `lists`."""
    plain = _config(known.config, ["--data.root", known.source]).data
    keys = [] if known.config == DEFAULT_WITH_DATA else ["--config", known.config]
    keys += ["--data.root", known.source]
    for key, value in vars(config.data).items():
        if value != getattr(plain, key) and key not in ("root", "lists", "fold"):
            keys += [f"--data.{key}", value if isinstance(value, str) else json.dumps(value)]
    return [*keys, "--data.lists", str(lists)]


def _convert_parser() -> Parser:
    parser = _parser("convert", "Write a data set as a plain folder, or as TFRecord shards.")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--shards", type=int, metavar="N", help="TFRecord files a part")
    return parser


def _convert(args: list[str]) -> int:
    known, config = _parse(_convert_parser(), renamed(args, {"--to": "--out"}))
    if known.shards is not None:
        _at_least("--shards", known.shards, 1)
    _convert_to(Path(known.out).expanduser(), config, known.shards)
    return EXIT_DONE


def _scenes_parser() -> Parser:
    what = "Draw scenes; write them as a folder."
    parser = Parser(prog="ccfnet-tf data scenes", description=what)
    parser.add_argument("--count", type=int, default=100, help="to train on (default: 100)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    return parser


def _scenes(args: list[str]) -> int:
    parser = _scenes_parser()
    known, keys = parser.parse_known_args(args)
    keys = ["--data.format", "scenes", "--data.scenes", str(known.count), *keys]
    _convert_to(Path(known.out).expanduser(), _config("demo", keys), None)
    return EXIT_DONE


def _convert_to(out: Path, config: RunConfig, shards: int | None) -> None:
    refuse_unwritable(out)
    start_tensorflow()
    from ccfnet_tf.datasets.splits import parts_of
    from ccfnet_tf.pipeline.convert import write_folder, write_shards

    passes = 1 if shards is None else 2  # shards are read back
    with _listed(config, passes=passes) as (listing, advance, console):
        workers = config.data.workers
        if shards is None:
            write_folder(listing, out, workers=workers, advance=advance)
        else:
            write_shards(listing, out, shards, workers=workers, advance=advance)
    count = sum(map(len, parts_of(listing).values()))
    proof = "" if shards is None else ", read back and equal"
    console.print(
        f"{out}: {count} images{proof}; next: ccfnet-tf data check {shlex.quote(str(out))}"
    )


PARSERS: dict[str, Callable[[], Parser]] = {
    "check": _check_parser,
    "stats": _stats_parser,
    "show": _show_sheet_parser,
    "split": _split_parser,
    "convert": _convert_parser,
    "scenes": _scenes_parser,
}
"""Verb -> what makes the parser of its own options."""

VERBS = {
    "check": _check,
    "stats": _stats,
    "show": _show_sheet,
    "split": _split,
    "convert": _convert,
    "scenes": _scenes,
}


def _parser(verb: str, description: str) -> Parser:
    parser = Parser(
        prog=f"ccfnet-tf data {verb}",
        description=f"{description} Keys such as --data.fold 1 or --seed 3 as with fit.",
    )
    parser.add_argument("source", metavar="SRC", help="folder of the data set; or --data.root SRC")
    parser.add_argument(
        "--config", default=DEFAULT_WITH_DATA, help="preset or YAML file to start from"
    )
    return parser


def _parse(
    parser: argparse.ArgumentParser, args: list[str]
) -> tuple[argparse.Namespace, RunConfig]:
    """Returns the verb's own options, and the configuration that the other keys give."""
    args = _source_first(args)
    if args[:1] not in (["-h"], ["--help"]) and args and args[0].startswith("-"):
        raise ConfigError(f"{args[0]}: SRC comes first: {parser.prog} SRC {args[0]} ...")
    known, keys = parser.parse_known_args(args)
    return known, _config(known.config, ["--data.root", known.source, *keys])


def _source_first(args: list[str]) -> list[str]:
    """Returns the arguments with `--data.root ROOT`, as `fit` takes it, in place of SRC."""
    for position, arg in enumerate(args if args and args[0].startswith("-") else []):
        if arg == "--data.root" and position + 1 < len(args):
            return [args[position + 1], *args[:position], *args[position + 2 :]]
        if arg.startswith("--data.root="):
            return [arg.partition("=")[2], *args[:position], *args[position + 1 :]]
    return args


def _config(name: str, keys: list[str]) -> RunConfig:
    from ccfnet_tf.config import find_config

    return parse_config(find_config(name), keys)


@contextmanager
def _listed(
    config: RunConfig, *, passes: int = 1, notes: bool = True
) -> Iterator[tuple[Listing, Callable[[], None], Console]]:
    """Yields the listing, what moves a progress bar of its samples, and the console."""
    from ccfnet_tf.datasets.splits import list_set, parts_of, with_format

    aside = new_console(stderr=True)  # so that --json - prints nothing but JSON
    data = with_format(config.data)
    if data.format == "shards":  # whose records TensorFlow parses
        start_tensorflow()
    listing = list_set(data, config.seed)
    count = sum(map(len, parts_of(listing).values()))
    pictures = f"{count} image{'' if count == 1 else 's'}"
    aside.print(f"{data.root or 'scenes'}: {data.format}, {pictures}")
    for note in listing.notes if notes else ():
        aside.print(note, markup=False)
    with new_progress(aside) as bar:
        task = bar.add_task("reading", total=count * passes)
        yield listing, lambda: bar.advance(task), new_console()


def _show(file: str | None, tree: object, table: object, console: Console) -> None:
    if file == "-":
        print(json.dumps(tree, indent=1))
        return
    console.print(table)
    if file:
        from ccfnet_tf.io.atomic_file import write_atomic

        text = json.dumps(tree, indent=1) + "\n"
        path = Path(file).expanduser()
        write_atomic(path, lambda f: f.write(text.encode()), fix="free space or name another file")
        console.print(f"written to {path}")


def _refuse_lost_json(file: str | None) -> None:
    """Refuses a place where nothing can be written, before anything is read."""
    if file and file != "-":
        refuse_unwritable(Path(file).expanduser().parent, "--json")


def _refuse_picture_name(option: str, file: str | None) -> None:
    """Refuses a name under which no image can be written, before anything is read."""
    if not file:
        return
    path = Path(file).expanduser()
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{option} is {file}: a PNG is written: give a name that ends in .png")
    if path.exists():
        raise ConfigError(f"{file}: already there; remove it or name another file")
    refuse_unwritable(path.parent, option)


def _at_least(option: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(f"{option} is {value}: it must be {low} or more")
