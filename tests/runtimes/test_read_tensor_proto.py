"""Messages whose shape and content disagree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.runtimes.read_tensor_proto import to_array


def proto(kind: Any, *shape: int, **values: Any) -> Any:
    made = tf.make_tensor_proto(np.zeros(0, np.uint8))
    made.dtype = kind.as_datatype_enum
    made.tensor_shape.CopyFrom(tf.TensorShape(None).as_proto())
    made.tensor_shape.unknown_rank = False
    for size in shape:
        made.tensor_shape.dim.add().size = size
    for name, given in values.items():
        if isinstance(given, bytes):
            setattr(made, name, given)
        else:
            getattr(made, name).extend(given)
    return made


@pytest.mark.parametrize(
    "value",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.arange(3, dtype=np.int32),
        np.array([1.5], np.float32),
        np.array(7, np.int64),
        np.zeros((0, 3), np.float32),
        np.array([b"", b"a\0", b"\xff"], object),
        np.array(b"text", object),
    ],
)
def test_what_tensorflow_writes_is_read(value: np.ndarray) -> None:
    found = to_array(tf.make_tensor_proto(value))
    np.testing.assert_array_equal(found, value)
    assert (found.dtype, found.shape) == (value.dtype, value.shape)


def test_values_one_by_one_are_read() -> None:
    np.testing.assert_array_equal(to_array(proto(tf.uint8, 3, int_val=[1, 2, 3])), [1, 2, 3])


UNKNOWN = proto(tf.uint8, 1, int_val=[1])
UNKNOWN.tensor_shape.unknown_rank = True
WRONG: dict[str, Any] = {
    "fills up": proto(tf.uint8, 3, int_val=[1]),
    "fills up text": proto(tf.string, 3, string_val=[b"a"]),
    "fills up with nothing": proto(tf.float32, 3),
    "bomb": proto(tf.uint8, 10**9, 10**9, 3, int_val=[1]),
    "bomb of text": proto(tf.string, 10**9, 10**9, string_val=[b"a"]),
    "overflows": proto(tf.uint8, 2**62, 2**62, 4),
    "overflows to one": proto(tf.uint8, 2**62 + 1, 2**62 + 1, 2**62 + 1, int_val=[1]),
    "too many": proto(tf.uint8, 1, int_val=[1, 2]),
    "unknown size": proto(tf.uint8, -1, int_val=[1]),
    "two unknown sizes": proto(tf.uint8, -1, -1, int_val=[1]),
    "unknown rank": UNKNOWN,
    "cut": proto(tf.int32, 2, tensor_content=b"1234567"),
    "text in one": proto(tf.string, 1, tensor_content=b"12345678"),
    "other values": proto(tf.float32, 1, int_val=[1]),
    "kind": proto(tf.complex64, 1, scomplex_val=[1.0, 2.0]),
    "outside": proto(tf.uint8, 1, int_val=[300]),
    "many sides": proto(tf.uint8, *[1] * 100, int_val=[1]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_shape_that_promises_something_else_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        to_array(WRONG[wrong])
    assert len(str(caught.value).splitlines()) == 1


def test_a_kind_that_is_none_is_refused() -> None:
    made = proto(tf.uint8, 1, int_val=[1])
    made.dtype = 12345
    with pytest.raises(ValueError, match="data type 12345"):
        to_array(made)
