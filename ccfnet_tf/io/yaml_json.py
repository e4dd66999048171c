"""YAML and JSON of anyone's: plain values, of a size that is known before they are made."""

from __future__ import annotations

import json
from typing import Any

from ccfnet_tf.errors import first_line

LONGEST_YAML = 1 << 18
"""Characters of a YAML file: more than a configuration or a label map takes."""

MOST_NODES = 100_000
"""Values of a YAML file where every alias counts as what it stands for."""

_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""What PyYAML and json raise of text that is none of theirs, besides errors of their own."""


def parse_yaml(text: str) -> Any:
    """Returns the plain values of a YAML text; no tag makes another object.

    Raises:
        ValueError: It is no YAML, too long, has a key twice, or its aliases stand for too much. The
            message is one line and names the line of the text where that is known.
    """
    import yaml

    if len(text) > LONGEST_YAML:
        raise ValueError(f"has {len(text)} characters: expected at most {LONGEST_YAML}")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _refuse_odd_nodes(node)
            value = loader.construct_document(node)
        finally:
            loader.dispose()
        _refuse_odd_values(value)
    except _RefusedError:
        raise
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"line {line} is not YAML ({error.problem})") from error
    except RecursionError as error:
        raise ValueError("not YAML (nested too deep)") from error
    except (yaml.YAMLError, *_DAMAGE) as error:
        raise ValueError(f"not YAML ({first_line(error)})") from error
    return value


def parse_json(text: str | bytes) -> Any:
    """Returns the values of a JSON text.

    Raises:
        ValueError: It is no JSON; the message is one line.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("not JSON (nested too deep)") from error
    except ValueError as error:  # bytes that are no text are a ValueError too
        raise ValueError(f"not JSON ({first_line(error)})") from error


class _RefusedError(ValueError):
    """What a text stands for is refused, though it is YAML."""


def _refuse_odd_nodes(root: Any) -> None:
    """Counts values with aliases replaced, without replacing them; refuses keys twice."""
    sizes: dict[int, int | None] = {}  # None: being counted, so an alias to it has no end

    def size(node: Any) -> int:
        known = sizes.get(id(node), 0)
        if known is None:
            raise _RefusedError("not YAML of ours (an alias that holds itself)")
        if known:
            return known
        sizes[id(node)] = None
        _refuse_key_twice(node)
        children = node.value if isinstance(node.value, list) else []
        total = 1
        for child in children:
            total += sum(map(size, child)) if isinstance(child, tuple) else size(child)
        sizes[id(node)] = total
        return total

    if size(root) > MOST_NODES:
        raise _RefusedError(f"its aliases stand for more than {MOST_NODES} values: write it plain")


def _refuse_key_twice(node: Any) -> None:
    """Refuses a mapping of which YAML would keep the last value of a key in silence."""
    seen: set[tuple[str, str]] = set()
    for key in (pair[0] for pair in node.value if isinstance(pair, tuple)):
        if isinstance(key.value, str):
            if (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise _RefusedError(
                    f"line {line}: key '{key.value[:60]}' is there twice: once each"
                )
            seen.add((key.tag, key.value))


def _refuse_odd_values(value: Any) -> None:
    """Refuses texts and numbers that can be neither a path nor printed."""
    if isinstance(value, dict):
        for pair in value.items():
            for each in pair:
                _refuse_odd_values(each)
    elif isinstance(value, list | tuple | set):
        for each in value:
            _refuse_odd_values(each)
    elif isinstance(value, str):
        if "\0" in value:
            raise _RefusedError("a text holds a character of code 0")
        value.encode()  # refuses halves of characters
    elif isinstance(value, int) and abs(value) >= 2**64:
        raise _RefusedError("holds a number of more than 64 bits")
