"""JSON files that people and tools wrote: every value is looked at before it is trusted.

`where` is the place that a message begins with, such as "a.json: shape 3".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ccfnet_tf.errors import DataError
from ccfnet_tf.io.images import MAX_PIXELS

Record = dict[str, Any]


def read_json(path: str | Path) -> Record:
    """Reads a file that holds one JSON object.

    Raises:
        DataError: Missing, not JSON, or another value than an object.
    """
    tree = read_any_json(path)
    if not isinstance(tree, dict):
        raise DataError(f"{path}: {shown(tree)}: expected an object, {{...}}")
    return tree


def read_any_json(path: str | Path) -> Any:
    """Reads a file that holds one JSON value.

    Raises:
        DataError: Missing, or not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # bytes that are no text are a ValueError too
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: damaged or not JSON ({reason}); write it anew") from error


def records(owner: Record, key: str, where: str) -> list[Record]:
    """Returns a list of objects.

    Raises:
        DataError: The key is missing or holds something else.
    """
    values = owner.get(key)
    if not isinstance(values, list):
        raise DataError(f"{where}: '{key}' is {shown(values)}: expected a list")
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(f"{where}: '{key}'[{number}] is {shown(value)}: expected an object")
    return values


def whole(owner: Record, key: str, where: str) -> int:
    """Returns a whole number of at most 63 bits.

    Raises:
        DataError: The key is missing or holds something else.
    """
    value = owner.get(key)
    if type(value) is not int or not -(2**63) <= value < 2**63:  # true is an int to Python
        raise DataError(f"{where}: '{key}' is {shown(value)}: expected a whole number")
    return value


def text(owner: Record, key: str, where: str) -> str:
    """Returns words on one line, blanks at the ends left out and runs of blanks made one.

    Raises:
        DataError: The key is missing, blank, or holds something else.
    """
    value = owner.get(key)
    words = value.split() if isinstance(value, str) else []
    if not words or not _is_unicode("".join(words)):
        raise DataError(f"{where}: '{key}' is {shown(value)}: expected a text")
    return " ".join(words)


def path_text(owner: Record, key: str, where: str) -> str:
    """Returns a path with forward slashes; files written on Windows have the others.

    Raises:
        DataError: The key is missing, blank, or holds something else.
    """
    text(owner, key, where)
    return str(owner[key]).replace("\\", "/")


def picture_size(owner: Record, height: str, width: str, where: str) -> tuple[int, int]:
    """Returns (H, W) from the keys that state it.

    Raises:
        DataError: A side that is not a positive whole number, or more than `MAX_PIXELS`.
    """
    size = whole(owner, height, where), whole(owner, width, where)
    if min(size) < 1:
        raise DataError(f"{where}: {size[1]}x{size[0]} pixels: expected at least 1x1")
    if size[0] * size[1] > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise DataError(
            f"{where}: {size[1]}x{size[0]} pixels: at most {limit} million are read; cut or "
            "shrink the image"
        )
    return size


def is_there(path: Path) -> bool:
    """Returns whether a path that a file named is a file; names no disk can have are not."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with characters that no name has
        return False


def shown(value: Any) -> str:
    """Returns a value for a message: one line, and short."""
    if value is None:
        return "missing"
    if isinstance(value, (list, dict)):
        return f"a list of {len(value)}" if isinstance(value, list) else "an object"
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a huge number"  # Python refuses to print the longest
    line = repr(value)
    return line if len(line) <= 60 else line[:57] + "..."


def _is_unicode(value: str) -> bool:
    """Returns whether a text can be written to a file: JSON may hold halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
