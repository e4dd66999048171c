from __future__ import annotations

import time

from ccfnet_tf.errors import LONGEST, DataError, nearest, without_secrets


def test_nearest() -> None:
    assert nearest("lerning_rate", ["momentum", "learning_rate"]) == (
        "; did you mean 'learning_rate'?"
    )
    assert nearest("xyz", ["momentum", "learning_rate"]) == ""
    assert nearest("x", []) == ""


def test_the_nearest_of_very_many_is_found_soon() -> None:
    names = [f"train/city_{i % 90}/city_{i:06d}_000019_leftImg8bit" for i in range(30_000)]
    name = names[24_321]
    start = time.process_time()
    for typo in (name.replace("left", "lfet"), name.removeprefix("train/"), f"./{name}.png"):
        assert nearest(typo, names) == f"; did you mean '{name}'?"
    assert time.process_time() - start < 3.0


def test_a_long_name_leaves_the_place_and_the_way_out() -> None:
    said = str(DataError(f"a.txt: line 1: '{'x' * 1_000_000}': take it out"))
    assert len(said) < LONGEST + 10
    assert said.startswith("a.txt: line 1: 'xx")
    assert said.endswith("xx': take it out")
    assert str(DataError("short")) == "short"


def test_a_name_of_a_million_letters_takes_no_time() -> None:
    # Each letter could begin an address: what looks for logins must not read on to the end.
    for name in ("a." * 500_000 + ":/x", "a:/" * 300_000, ";" * 1_000_000):
        assert len(str(DataError(f"classes.txt: {name}"))) <= 2 * LONGEST
    for name in ("a." * 8_000, "a:/" * 6_000):
        assert without_secrets(f"{name} http://me:word@host/x") == f"{name} http://***@host/x"
