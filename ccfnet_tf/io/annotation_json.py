"""Reads JSON files of annotation tools and validates every value.

`where` is the location with which error messages begin, such as "a.json: shape 3".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ccfnet_tf.errors import DataError
from ccfnet_tf.io.read_images import MAX_PIXELS

Record = dict[str, Any]

_WRITE_AGAIN = "; write it again"


def read_json(path: str | Path) -> Record:
    """Reads a JSON file that contains an object.

    Raises:
        DataError: The file is missing, not JSON, or contains another type of value.
    """
    tree = read_any_json(path)
    if not isinstance(tree, dict):
        raise DataError(f"{path}: {shown(tree)}: expected an object, {{...}}")
    return tree


def read_any_json(path: str | Path) -> Any:
    """Reads a JSON file that contains any value.

    Raises:
        DataError: The file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # Undecodable bytes are a ValueError too.
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: damaged or not JSON ({reason}){_WRITE_AGAIN}") from error


def plain_reason(error: Exception) -> str:
    """Returns the message of an error of `read_json` without its advice, to give another one."""
    return str(error).removesuffix(_WRITE_AGAIN)


def records(owner: Record, key: str, where: str) -> list[Record]:
    """Returns the value of a key that must be a list of objects.

    Raises:
        DataError: The key is missing or has another type of value.
    """
    values = owner.get(key)
    if not isinstance(values, list):
        raise DataError(f"{where}: '{key}' is {shown(values)}: expected a list")
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(f"{where}: '{key}'[{number}] is {shown(value)}: expected an object")
    return values


def whole(owner: Record, key: str, where: str) -> int:
    """Returns the value of a key that must be a 64-bit signed integer.

    Raises:
        DataError: The key is missing or has another type of value.
    """
    value = owner.get(key)
    if type(value) is not int or not -(2**63) <= value < 2**63:  # bool is a subclass of int.
        raise DataError(f"{where}: '{key}' is {shown(value)}: expected an integer")
    return value


def text(owner: Record, key: str, where: str) -> str:
    """Returns the value of a key that must be a non-empty string, with whitespace normalized.

    Raises:
        DataError: The key is missing, blank, or has another type of value.
    """
    value = owner.get(key)
    words = value.split() if isinstance(value, str) else []
    if not words or not _is_unicode("".join(words)):
        raise DataError(f"{where}: '{key}' is {shown(value)}: expected a string")
    return " ".join(words)


def path_text(owner: Record, key: str, where: str) -> str:
    """Returns the path under a key, with the backslashes of Windows replaced by slashes.

    Raises:
        DataError: The key is missing, blank, or has another type of value.
    """
    text(owner, key, where)
    return str(owner[key]).replace("\\", "/")


def picture_size(owner: Record, height: str, width: str, where: str) -> tuple[int, int]:
    """Returns the image size (H, W) stored under two keys.

    Raises:
        DataError: A side is not a positive integer, or the image has more than `MAX_PIXELS` pixels.
    """
    size = whole(owner, height, where), whole(owner, width, where)
    if min(size) < 1:
        raise DataError(f"{where}: {size[1]}x{size[0]} pixels: expected at least 1x1")
    if size[0] * size[1] > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise DataError(
            f"{where}: {size[1]}x{size[0]} pixels: at most {limit} million are supported; "
            "crop or downsample the image"
        )
    return size


def is_there(path: Path) -> bool:
    """Returns whether a path given in a file is an existing file; False for invalid paths."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # The name is too long or has invalid characters.
        return False


def shown(value: Any) -> str:
    """Formats a value for an error message on one short line."""
    if value is None:
        return "missing"
    if isinstance(value, (list, dict)):
        return f"a list of {len(value)}" if isinstance(value, list) else "an object"
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a huge number"  # Python refuses to format very long integers.
    line = repr(value)
    return line if len(line) <= 60 else line[:57] + "..."


def _is_unicode(value: str) -> bool:
    """Returns whether a string can be encoded: JSON may contain unpaired surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
