"""Packages that Keras imports only if they are there do not slow down every command."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from ccfnet_tf.io.quiet_tensorflow import _hidden

STARTED = """
import sys
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
start_tensorflow()
import keras
assert not {"sklearn", "matplotlib"} & set(sys.modules), sys.modules.keys()
import matplotlib.figure, sklearn.metrics
from ccfnet_tf.network import model
"""


def test_a_hidden_package_is_as_if_not_installed_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with _hidden("colorsys", "json"), pytest.raises(ImportError):  # noqa: PT012
        importlib.import_module("json.decoder")  # imported before, so it stays
        importlib.import_module("colorsys")
    assert importlib.import_module("colorsys").rgb_to_hsv
    with pytest.raises(ZeroDivisionError), _hidden("never_there"):
        _ = 1 / 0
    assert "never_there" not in sys.modules


@pytest.mark.slow  # imports TensorFlow in a process
def test_tensorflow_starts_without_them_and_they_can_be_imported_later() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTED], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
