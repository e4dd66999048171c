"""`ccfnet-tf compare`: runs side by side."""

from __future__ import annotations

from ccfnet_tf.cli.argument_parser import Parser, add_palette_option
from ccfnet_tf.errors import EXIT_DONE
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.palettes import with_palette


def new_parser() -> Parser:
    """Returns the parser of this verb."""
    parser = Parser(
        prog="ccfnet-tf compare",
        description="Show runs side by side, with 95 % intervals over images of accuracy and mean "
        "IoU and of their differences to the first run. The runs must have been evaluated on the "
        "same images (`ccfnet-tf evaluate`).",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, two or more")
    parser.add_argument(
        "--html", metavar="FILE", help="write the same with curves as an HTML page, too"
    )
    add_palette_option(parser)
    return parser


def main(args: list[str]) -> int:
    """Compares runs; returns the exit code."""
    options = new_parser().parse_args(args)
    from ccfnet_tf.io.console import new_console
    from ccfnet_tf.io.new_folder import refuse_unwritable
    from ccfnet_tf.report.comparison import (
        compare,
        comparison_page,
        comparison_tables,
        read_compared,
    )
    from ccfnet_tf.report.html_pages import refuse_other_file, write_page
    from ccfnet_tf.runs.run_folder import read_run

    html = expanded(options.html) if options.html else None
    if html is not None:
        refuse_other_file(html)
        refuse_unwritable(html.parent, "--html")
    paths = [expanded(each) for each in options.runs]
    infos = [read_run(path) for path in paths]  # refuses what is not a run
    runs = read_compared(paths)
    drawn = compare(runs)
    console = new_console()
    palette = with_palette(infos[0].taxonomy, options.palette)
    page = None if html is None else comparison_page(runs, drawn, palette)
    console.print(comparison_tables(runs, drawn))
    if html is not None and page is not None:
        write_page(html, page)
        console.print(f"written to {html}")
    return EXIT_DONE
