"""The record of what was scored on the test split."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.reproduce import results_file
from ccfnet_tf.reproduce.plan import Plan
from ccfnet_tf.reproduce.recipes import with_keys
from ccfnet_tf.reproduce.results_file import ResultsFile
from tests.reproduce.conftest import base_config, plan_of


@pytest.fixture
def file(tmp_path: Path) -> ResultsFile:
    return ResultsFile(tmp_path / "results" / "stanford_background.json", "stanford_background")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(base_config(tmp_path))[0]


@pytest.fixture
def changed(tmp_path: Path) -> Plan:
    return plan_of(with_keys(base_config(tmp_path), {"data.crop": 185}))[0]


def test_a_changed_recipe_is_not_scored_a_second_time(
    file: ResultsFile, plan: Plan, changed: Plan
) -> None:
    file.refuse_second_scoring(plan)
    for _ in range(2):  # a continued run is recorded once
        file.record(plan, plan.recipe("fine_alone"))
    assert len(file.read()["scored"]) == 1
    file.refuse_second_scoring(plan)
    with pytest.raises(
        ConfigError, match="recipe 'fine_alone' was scored on the test split before"
    ):
        file.refuse_second_scoring(changed)
    file.record(changed, changed.recipe("fine_alone"))  # with --again
    file.refuse_second_scoring(changed)
    assert len(file.scorings("claim", "fine_alone")) == 2


def test_scorings_by_other_code_are_recorded(
    file: ResultsFile, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for commit in ("one", "one", "two+"):
        monkeypatch.setattr(results_file, "commit", lambda commit=commit: commit)
        file.record(plan, plan.recipe("cascade"))
    monkeypatch.setattr(results_file, "commit", lambda: "three")
    file.record_once(plan, plan.recipe("cascade"))  # of a finished run, by whichever code
    assert len(file.scorings("claim", "cascade")) == 1
    assert file.scoring_commits("claim", "cascade") == ["one", "two+"]


def test_a_process_waits_for_the_changes_of_another(file: ResultsFile, plan: Plan) -> None:
    def record() -> None:
        with file.locked():
            file.record(plan, plan.recipe("cascade"))

    thread = threading.Thread(target=record)
    with file.locked():
        thread.start()
        tree = file.read()
        thread.join(0.3)
        assert thread.is_alive()
        file._write(tree | {"folds": {"runs": []}})
    thread.join()
    assert [*file.read()] == ["data_set", "scored", "folds"]
    assert len(file.read()["scored"]) == 1


def test_other_studies_are_apart(file: ResultsFile, plan: Plan, changed: Plan) -> None:
    file.record(plan, plan.recipe("cascade"))
    file.refuse_second_scoring(replace(changed, study="folds"))
    file.refuse_second_scoring(replace(changed, study="ablations"))  # never on the test split


def test_results_are_replaced_and_scorings_kept(file: ResultsFile, plan: Plan) -> None:
    file.record(plan, plan.recipe("cascade"))
    file.replace("claim", {"runs": [1]})
    file.replace("folds", {"runs": []})
    tree = file.replace("claim", {"runs": (2,)})  # a tuple becomes a list in the file
    assert tree == file.read()
    assert tree["claim"] == {"runs": [2]}
    assert tree == json.loads(file.path.read_text())
    assert [*tree] == ["data_set", "scored", "claim", "folds"]
    assert len(tree["scored"]) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scored": [1]}', '{"scored": [{}]}'])
def test_a_damaged_file_is_refused_and_not_begun_anew(
    file: ResultsFile, plan: Plan, text: str
) -> None:
    file.path.parent.mkdir()
    file.path.write_text(text)
    for use in (
        file.read,
        lambda: file.replace("claim", {}),
        lambda: file.refuse_second_scoring(plan),
    ):
        with pytest.raises(DataError, match=r"stanford_background\.json"):
            use()
    assert file.path.read_text() == text
