"""The toy run of the tests of the commands."""

from tests.cli.conftest import run

__all__ = ["run"]
