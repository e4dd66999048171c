"""Self-contained HTML pages, which need neither network access nor other files."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.io.atomic_file import write_atomic

GENERATOR = "ccfnet-tf report"
"""Marks a page as written by this module, so that it may be replaced by a newer one."""

_HEAD = 4096
"""Number of bytes of a file that are searched for `GENERATOR`."""


def render(template: str, script: str | None, values: Mapping[str, Any]) -> str:
    """Renders a page.

    Everything in `values` is escaped, unless it is Markup. The page's policy forbids all requests,
    and all scripts except `script`.

    Args:
        template: Name of the template in `templates`.
        script: Name of the page's script in `templates`; None for no script.
        values: Variables of the template.
    """
    code = _text(script) if script else ""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    policy += "form-action 'none'"
    if code:
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
        policy += f"; script-src 'sha256-{digest}'"
    return _environment().get_template(template).render(
        generator=GENERATOR,
        policy=policy,
        style=Markup(_text("style.css")),
        script=Markup(code),
        version=version("ccfnet-tf"),
        today=date.today().isoformat(),
        **values,
    )  # fmt: skip


def refuse_other_file(path: Path) -> None:
    """Refuses to replace a file that this module did not write.

    Raises:
        ConfigError: The path is such a file, or a folder.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder: give a file, such as {path / 'report.html'}")
    if not path.exists():
        return
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if f'content="{GENERATOR}"'.encode() not in head:
        raise ConfigError(
            f"{path}: already exists and was not written by ccfnet-tf: remove it or give another "
            "file"
        )


def write_page(path: Path, page: str) -> None:
    """Writes a page; an existing page of this module is replaced.

    Raises:
        ConfigError: The path is another file.
        ResourceError: The disk is full or the folder cannot be written.
    """
    refuse_other_file(path)
    write_atomic(
        path,
        # File names may contain lone surrogates, which UTF-8 cannot encode.
        lambda file: file.write(page.encode("utf-8", "replace")),
        fix="free space, then run it again",
        otherwise="give a folder that can be written",
        durable=False,
    )


def decimal(value: float | None, digits: int = 3) -> str:
    """Formats a number with `digits` decimals; None is a dash."""
    return "\u2013" if value is None else f"{value:.{digits}f}"


def hundredths(value: float | None, digits: int = 1) -> str:
    """Formats a fraction as percent without the sign; None is a dash."""
    return decimal(None if value is None else 100 * value, digits)


def css_colour(colour: Sequence[int]) -> str:
    """Returns the CSS notation of RGB 0..255."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"decimal": decimal, "hundredths": hundredths, "css": css_colour}
    return environment


def _text(name: str) -> str:
    return files("ccfnet_tf.report").joinpath("templates", name).read_text(encoding="utf-8")
