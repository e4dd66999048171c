"""Consistency of the project files: version, repository address, locked versions."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from tests.conftest import LONGEST

ROOT = Path(__file__).resolve().parents[1]


def setup(section: str, key: str) -> str:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser[section][key]


def pins(file: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", (ROOT / file).read_text(), re.MULTILINE))


def changelog() -> list[str]:
    return re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_version_is_that_of_the_newest_entry_of_the_changelog_or_after_it() -> None:
    assert changelog()[0] == "Unreleased"
    released, version = (Version(text) for text in (changelog()[1], setup("metadata", "version")))
    assert version == released or (version.is_devrelease and version > released)


def test_the_citation_has_the_newest_release_and_its_date() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == changelog()[1]
    dated = f"## {citation['version']} - {citation['date-released']}\n"
    assert dated in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "file",
    ["CITATION.cff", "SECURITY.md", "mkdocs.yml", ".github/ISSUE_TEMPLATE/config.yml", "setup.cfg"],
)
def test_every_file_names_the_same_repository(file: str) -> None:
    result = re.findall(r"https://github\.com/[\w-]+/[\w-]+", (ROOT / file).read_text())
    assert set(result) == {setup("metadata", "url")}


def test_the_lock_has_the_versions_of_the_constraints_and_their_hashes() -> None:
    assert pins("requirements-ci.txt") == pins("constraints.txt")
    entries = re.split(r"^(?=[\w.-]+==)", (ROOT / "requirements-ci.txt").read_text(), flags=re.M)
    assert all("--hash=sha256:" in entry for entry in entries[1:])


@pytest.mark.parametrize("file", ["requirements-ci.txt", "constraints.txt"])
def test_no_package_index_is_named(file: str) -> None:
    assert not re.search(r"index|find-links|://", (ROOT / file).read_text())


def test_all_dependencies_of_the_extras_are_pinned() -> None:
    needed = [setup("options", "install_requires")]
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    needed += parser["options.extras_require"].values()
    names = re.findall(r"^([A-Za-z][\w.-]*)", "\n".join(needed), re.MULTILINE)
    pinned = {name.lower().replace("_", "-") for name in pins("constraints.txt")}
    assert {name.lower() for name in names} - {"ccfnet-tf"} <= pinned


@pytest.mark.parametrize("name", LONGEST)
def test_files_that_are_tested_first_exist(name: str) -> None:
    assert list((ROOT / "tests").rglob(name))
