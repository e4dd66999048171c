"""`ccfnet-tf crossval`: trains and evaluates every fold of a data set."""

from __future__ import annotations

from ccfnet_tf.cli.fit_options import parse_fit
from ccfnet_tf.errors import EXIT_DONE, ConfigError
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow


def main(args: list[str]) -> int:
    """Trains and evaluates every fold; returns the exit code."""
    from ccfnet_tf.io.console import new_console

    options = parse_fit(args, verb="crossval")
    if options.accept_changed_data:
        raise ConfigError(
            "--accept-changed-data applies only to fit: folds of different data have no common "
            "mean; start again in another --out"
        )

    start_tensorflow()
    from ccfnet_tf.training.crossval import crossval

    console = new_console()
    crossval(options.config, options.out, resume=options.resume, console=console)
    return EXIT_DONE
