"""Converts JSON to arrays and back, in the formats of TensorFlow Serving's REST API.

Row format: the request has `instances`, a list of items, and the response `predictions`. Columnar
format: the request has `inputs` and the response `outputs`. Bytes are `{"b64": ...}`; outputs whose
name ends with `_bytes` are bytes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from ccfnet_tf.errors import first_line
from ccfnet_tf.serving.model import Arrays, RequestError

_B64 = {"b64"}


def read_request(content: bytes) -> dict[str, Any]:
    """Parses a request's JSON object.

    Raises:
        RequestError: The body is not an object with exactly one of `instances` and `inputs`.
    """
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _bad(f"the body is not JSON ({error})") from error
    if not isinstance(tree, dict) or ("instances" in tree) == ("inputs" in tree):
        raise _bad("the body needs an object with either 'instances' or 'inputs'")
    if not isinstance(tree.get("signature_name", ""), str):
        raise _bad("'signature_name' is not a string")
    return tree


def arrays(tree: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of a request by input name.

    Args:
        tree: Result of `read_request`.
        kinds: `TensorInfo` of every input, by name.

    Raises:
        RequestError: Names or values do not match the inputs.
    """
    columns = _columns(tree, list(kinds))
    if columns.keys() != kinds.keys():
        raise _bad(f"inputs {sorted(columns)}: expected {sorted(kinds)}")
    return {name: _array(name, columns[name], info.dtype) for name, info in kinds.items()}


def _columns(tree: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    if "inputs" in tree:
        inputs = tree["inputs"]
        named = isinstance(inputs, dict) and inputs.keys() != _B64
        return dict(inputs) if named else _single_input(names, inputs)
    rows = tree["instances"]
    if not isinstance(rows, list) or not rows:
        raise _bad("'instances' is not a list, or is empty")
    if not all(isinstance(row, dict) and row.keys() != _B64 for row in rows):
        return _single_input(names, rows)
    if any(row.keys() != rows[0].keys() for row in rows):
        raise _bad("the items of 'instances' have different inputs")
    return {name: [row[name] for row in rows] for name in rows[0]}


def _single_input(names: list[str], value: Any) -> dict[str, Any]:
    if len(names) != 1:
        raise _bad(f"values need the names of their inputs: {', '.join(names)}")
    return {names[0]: value}


def _array(name: str, value: Any, dtype: int) -> np.ndarray:
    kind = tf.dtypes.as_dtype(dtype)
    try:
        if kind == tf.string:
            return np.array(_bytes(value), object)
        array = np.array(value)
        expected = np.dtype(kind.as_numpy_dtype)
        if expected.kind in "iu":
            limits = np.iinfo(expected)
            if array.dtype.kind not in "iu":
                raise ValueError("not integers")
            if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
                raise ValueError(f"outside {limits.min}..{limits.max}")
        return array.astype(expected)
    except (ValueError, TypeError, RecursionError) as error:
        raise _bad(f"'{name}' is not an array of {kind.name}: {first_line(error)}") from error


def _bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes(each) for each in value]
    if isinstance(value, dict) and value.keys() == _B64:
        return base64.b64decode(value["b64"], validate=True)
    if isinstance(value, str):
        return value.encode("utf-8")
    raise TypeError(f"{type(value).__name__} is neither a string nor {{'b64': ...}}")


def write_response(outputs: Arrays, *, rows: bool) -> bytes:
    """Returns outputs as JSON, in row or columnar format."""
    columns = {name: _plain(name, value) for name, value in outputs.items()}
    if not rows:
        tree: Any = {"outputs": _unwrap_single(columns)}
    else:
        count = len(next(iter(columns.values())))
        items = [{name: column[i] for name, column in columns.items()} for i in range(count)]
        tree = {"predictions": [_unwrap_single(item) for item in items]}
    return json.dumps(tree, ensure_ascii=False).encode("utf-8")


def _unwrap_single(named: dict[str, Any]) -> Any:
    return next(iter(named.values())) if len(named) == 1 else named


def _plain(name: str, value: np.ndarray) -> Any:
    if value.dtype != object:
        return value.tolist()
    return _strings(value.tolist(), as_bytes=name.endswith("_bytes"))


def _strings(value: Any, *, as_bytes: bool) -> Any:
    if isinstance(value, list):
        return [_strings(each, as_bytes=as_bytes) for each in value]
    if as_bytes:
        return {"b64": base64.b64encode(value).decode()}
    return value.decode("utf-8", "replace")


def _bad(message: str) -> RequestError:
    return RequestError("INVALID_ARGUMENT", message)
