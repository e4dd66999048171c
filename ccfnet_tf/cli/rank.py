"""`ccfnet-tf rank`: which unlabelled images to label next."""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ccfnet_tf.cli.argument_parser import Parser, add_palette_option
from ccfnet_tf.errors import EXIT_DONE, EXIT_FINDINGS, ConfigError
from ccfnet_tf.io.console import errors_beside, new_console
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.new_folder import refuse_existing, refuse_unwritable
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.palettes import with_palette
from ccfnet_tf.runs.run_folder import read_run

if TYPE_CHECKING:
    from ccfnet_tf.report.rank_images import Ranking

LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio serves files of its own machine."""

RESULTS = """\
Images are chosen by the expected number of wrong pixels (the sum of risk), spread over the
predicted classes and over the features of the backbone; see docs/ranking.md. Near-duplicates
of a chosen image, and images that the run was trained or validated on, are left out.

what is written to --out:
  ranking.csv         rank, path, score, expected wrong pixels, share of pixels at risk, classes
  contact_sheet.png   image, prediction and risk map of the first 100
  label_studio.json   tasks to import into Label Studio, with the prediction as pre-annotation
  label_studio.xml    the labelling configuration for these tasks
contact_sheet.png and label_studio.xml have the colours of --palette.

Exit code 1: an image was left out because it cannot be read, which a line says.
"""


def new_parser() -> Parser:
    """Returns the argument parser of the command."""
    parser = Parser(
        prog="ccfnet-tf rank",
        description="List the images of a folder that are most useful to label next.",
        epilog=RESULTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    folder = "folder with unlabelled images; searched to the bottom"
    parser.add_argument("folder", metavar="FOLDER", help=folder)
    top = "number of images to choose (default: %(default)s)"
    parser.add_argument("--top", type=int, default=50, metavar="N", help=top)
    out = "new folder for the results (default: %(default)s)"
    parser.add_argument("--out", default="ranking", help=out)
    url = (
        "what the URLs of images in label_studio.json begin with, instead of "
        f"{LOCAL_FILES}NAME/ with the name of FOLDER"
    )
    parser.add_argument("--image-url", metavar="PREFIX", help=url)
    add_palette_option(parser)
    return parser


def main(args: list[str]) -> int:
    """Ranks the images of a folder; returns the exit code."""
    options = new_parser().parse_args(args)
    if options.top < 1:
        raise ConfigError(f"--top is {options.top}: it must be 1 or more")
    folder, out = expanded(options.folder), expanded(options.out)
    if not folder.is_dir():
        why = "is a file" if folder.exists() else "no such folder"
        raise ConfigError(f"{folder}: {why}: give a folder with images")
    refuse_existing(out)
    refuse_unwritable(out)
    run = read_run(options.run)
    run.checkpoint()
    taxonomy = with_palette(run.taxonomy, options.palette)
    console = new_console()
    errors = errors_beside(console)
    start_tensorflow()
    from ccfnet_tf.inference.feature_network import FeatureNetwork
    from ccfnet_tf.report.rank_images import rank_folder, write_ranking
    from ccfnet_tf.training.data_digest import FILE, read_samples, read_seen

    known = {row.image for row in (*read_samples(run.path).values(), *read_seen(run.path))}
    if not known:
        errors.print(
            f"warning: {run.path}: no readable {FILE}: images that the run was trained on are not "
            "recognised and may be chosen"
        )
    network = cache(lambda: FeatureNetwork(run.path))
    ranking = rank_folder(
        folder,
        network,
        taxonomy,
        top=options.top,
        known=known,
        out=out,
        console=console,
        errors=errors,
    )
    write_ranking(
        ranking,
        network(),
        taxonomy,
        out,
        model=f"ccfnet-tf {run.path.resolve().name}",
        # Label Studio serves only folders below its document root: here the parent of FOLDER.
        prefix=options.image_url or f"{LOCAL_FILES}{quote(folder.resolve().name)}/",
        console=console,
    )
    for line in _summary(ranking, out):
        console.print(line)
    return EXIT_FINDINGS if ranking.failures else EXIT_DONE


def _summary(ranking: Ranking, out: Path) -> list[str]:
    lines = []
    if ranking.labelled:
        images = "1 image" if ranking.labelled == 1 else f"{ranking.labelled} images"
        lines.append(f"skipped {images} that the run was trained or validated on")
    dropped = sum(len(each.near_duplicates) for each in ranking.chosen)
    failed = f"; {len(ranking.failures)} failed, see above" if ranking.failures else ""
    lines.append(
        f"{out}: {len(ranking.chosen)} of {ranking.images} images chosen, {dropped} dropped as "
        f"near-duplicates of these{failed}"
    )
    return lines
