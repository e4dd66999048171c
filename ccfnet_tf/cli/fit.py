"""`ccfnet-tf fit`: trains a network."""

from __future__ import annotations

from ccfnet_tf.cli.fit_options import parse_fit
from ccfnet_tf.errors import EXIT_DONE
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow


def main(args: list[str]) -> int:
    """Trains a network; returns the exit code."""
    from ccfnet_tf.io.console import new_console

    options = parse_fit(args)

    start_tensorflow()
    from ccfnet_tf.training.fit import fit

    fit(
        options.config,
        options.out,
        resume=options.resume,
        console=new_console(),
        config_given=options.config_given,
        accept_changed_data=options.accept_changed_data,
    )
    return EXIT_DONE
