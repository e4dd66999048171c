from __future__ import annotations

import errno
import time

import pytest

from ccfnet_tf.errors import LONGEST, DataError, nearest, unreadable, without_secrets


def test_nearest() -> None:
    assert nearest("lerning_rate", ["momentum", "learning_rate"]) == (
        "; did you mean 'learning_rate'?"
    )
    assert nearest("xyz", ["momentum", "learning_rate"]) == ""
    assert nearest("x", []) == ""


def test_a_file_without_permission_is_told_from_one_in_another_encoding() -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "classes.txt")
    assert unreadable(denied) == "cannot be read (Permission denied): make it readable"
    absent = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert unreadable(absent) == "no such file: check the path"
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff".decode()
    assert unreadable(caught.value).startswith("not a UTF-8 text file ('utf-8' codec can't decode")


def test_the_nearest_of_very_many_names_is_found_quickly() -> None:
    names = [f"train/city_{i % 90}/city_{i:06d}_000019_leftImg8bit" for i in range(30_000)]
    name = names[24_321]
    start = time.process_time()
    for typo in (name.replace("left", "lfet"), name.removeprefix("train/"), f"./{name}.png"):
        assert nearest(typo, names) == f"; did you mean '{name}'?"
    assert time.process_time() - start < 3.0


def test_a_long_name_keeps_the_location_and_the_fix() -> None:
    output = str(DataError(f"a.txt: line 1: '{'x' * 1_000_000}': take it out"))
    assert len(output) < LONGEST + 10
    assert output.startswith("a.txt: line 1: 'xx")
    assert output.endswith("xx': take it out")
    assert str(DataError("short")) == "short"


def test_a_name_of_a_million_characters_is_fast() -> None:
    # Each character could start a URL: the search for logins must not scan to the end every time.
    for name in ("a." * 500_000 + ":/x", "a:/" * 300_000, ";" * 1_000_000):
        assert len(str(DataError(f"classes.txt: {name}"))) <= 2 * LONGEST
    for name in ("a." * 8_000, "a:/" * 6_000):
        assert without_secrets(f"{name} http://me:word@host/x") == f"{name} http://***@host/x"
