"""Parses untrusted YAML and JSON: plain values only, with a limited size."""

from __future__ import annotations

import json
from typing import Any

from ccfnet_tf.errors import first_line

LONGEST_YAML = 1 << 18
"""Longest YAML text in characters; configurations and label maps are far shorter."""

MOST_NODES = 100_000
"""Largest number of values in a YAML text after expansion of its aliases."""

_PARSER_ERRORS = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""Exceptions of PyYAML and json for invalid text, in addition to their own error classes."""


def parse_yaml(text: str) -> Any:
    """Parses YAML into plain values; tags cannot construct other objects.

    Raises:
        ValueError: The text is not YAML, is too long, has a duplicate key, or has aliases that
            expand to too many values. The message is one line, with the line number if known.
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
            _check_nodes(node)
            value = loader.construct_document(node)
        finally:
            loader.dispose()
        _check_values(value)
    except _RefusedError:
        raise
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"line {line} is not YAML ({error.problem})") from error
    except RecursionError as error:
        raise ValueError("not YAML (nested too deep)") from error
    except (yaml.YAMLError, *_PARSER_ERRORS) as error:
        raise ValueError(f"not YAML ({first_line(error)})") from error
    return value


def parse_json(text: str | bytes) -> Any:
    """Parses JSON.

    Raises:
        ValueError: The text is not JSON; the message is one line.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("not JSON (nested too deep)") from error
    except ValueError as error:  # Undecodable bytes are a ValueError too.
        raise ValueError(f"not JSON ({first_line(error)})") from error


def mapping(tree: Any) -> dict[str, Any]:
    """Returns a parsed JSON object.

    Raises:
        TypeError: It is another value; the message is one line.
    """
    if not isinstance(tree, dict):
        raise TypeError(f"expected an object with keys, not {type(tree).__name__}")
    return tree


class _RefusedError(ValueError):
    """The text is valid YAML, but its content is refused."""


def _check_nodes(root: Any) -> None:
    """Counts the values after alias expansion, without expanding; refuses duplicate keys."""
    sizes: dict[int, int | None] = {}  # None: being counted, so that an alias to it is a cycle.

    def size(node: Any) -> int:
        known = sizes.get(id(node), 0)
        if known is None:
            raise _RefusedError("not supported: an alias that contains itself")
        if known:
            return known
        sizes[id(node)] = None
        _refuse_duplicate_keys(node)
        children = node.value if isinstance(node.value, list) else []
        total = 1
        for child in children:
            total += sum(map(size, child)) if isinstance(child, tuple) else size(child)
        sizes[id(node)] = total
        return total

    if size(root) > MOST_NODES:
        raise _RefusedError(
            f"its aliases expand to more than {MOST_NODES} values: use fewer aliases"
        )


def _refuse_duplicate_keys(node: Any) -> None:
    """Refuses a mapping with duplicate keys, of which PyYAML silently keeps the last value."""
    keys: set[tuple[str, str]] = set()
    for key in (pair[0] for pair in node.value if isinstance(pair, tuple)):
        if isinstance(key.value, str):
            if (key.tag, key.value) in keys:
                line = key.start_mark.line + 1
                raise _RefusedError(
                    f"line {line}: key '{key.value[:60]}' occurs twice: remove one of them"
                )
            keys.add((key.tag, key.value))


def _check_values(value: Any) -> None:
    """Refuses strings and integers that can be neither used as a path nor printed."""
    if isinstance(value, dict):
        for pair in value.items():
            for each in pair:
                _check_values(each)
    elif isinstance(value, list | tuple | set):
        for each in value:
            _check_values(each)
    elif isinstance(value, str):
        if "\0" in value:
            raise _RefusedError("has a string with a NUL character")
        value.encode()  # Refuses unpaired surrogates.
    elif isinstance(value, int) and abs(value) >= 2**64:
        raise _RefusedError("has an integer of more than 64 bits")
