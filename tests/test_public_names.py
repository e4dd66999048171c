from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import ccfnet_tf

API = Path(__file__).resolve().parents[1] / "docs" / "api.md"


def test_every_public_name_exists() -> None:
    assert sorted(ccfnet_tf.__all__) == [
        "CCFNet",
        "CCFNetError",
        "DataConfig",
        "Evaluation",
        "Predictor",
        "ServedNetwork",
        "build_ccfnet",
        "evaluate",
        "load_run",
        "read_parts",
    ]
    for name in ccfnet_tf.__all__:
        assert getattr(ccfnet_tf, name).__name__ == name
        assert name in dir(ccfnet_tf)


def test_every_public_name_is_in_the_reference() -> None:
    documented = {line.split(".")[-1] for line in API.read_text().splitlines() if line[:3] == ":::"}
    # The exceptions are documented as a module.
    assert {*ccfnet_tf.__all__} - documented == {"CCFNetError"}
    assert "errors" in documented


def test_the_version_is_that_of_the_installed_package() -> None:
    assert ccfnet_tf.__version__ == version("ccfnet-tf")
    assert "__version__" in dir(ccfnet_tf)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(ccfnet_tf, "no_such_name")


def test_the_package_imports_without_tensorflow() -> None:
    code = (
        "import sys, ccfnet_tf, ccfnet_tf.cli.main, ccfnet_tf.cli.fit_options;"
        "import ccfnet_tf.cli.benchmark, ccfnet_tf.datasets.open_data_set;"
        "sys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
