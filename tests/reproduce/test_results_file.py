"""The record of what was scored on the test split."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.reproduce import results_file
from ccfnet_tf.reproduce.plan import Plan, PlannedRun
from ccfnet_tf.reproduce.recipes import with_keys
from ccfnet_tf.reproduce.results_file import ResultsFile, distinct
from tests.reproduce.conftest import base_config, plan_of

RUN = PlannedRun.of("fine_alone", 0, 0)


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
    before, after = ({each.recipe("fine_alone").digest} for each in (plan, changed))
    file.refuse_second_scoring("fine_alone", [0], before)
    for _ in range(2):  # a continued run is recorded once
        file.record(plan, RUN)
    assert len(file.read()["scored"]) == 1
    file.refuse_second_scoring("fine_alone", [0], before)
    file.refuse_second_scoring("fine_alone", [0], before | after)  # if the epochs are those
    with pytest.raises(
        ConfigError, match="recipe 'fine_alone' was scored on the test split before"
    ):
        file.refuse_second_scoring("fine_alone", [0], after)
    file.record(changed, RUN)  # with --again
    file.refuse_second_scoring("fine_alone", [0], after)
    assert len(file.scorings("fine_alone", 0)) == 2


def test_scorings_by_other_code_are_recorded(
    file: ResultsFile, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for commit in ("one", "one", "two+"):
        monkeypatch.setattr(results_file, "commit", lambda commit=commit: commit)
        file.record(plan, RUN)
    monkeypatch.setattr(results_file, "commit", lambda: "three")
    file.record_once(plan, RUN)  # of a finished run, by whichever code
    assert len(file.scorings("fine_alone", 0)) == 1
    assert distinct(file.read()["scored"], "commit", "fine_alone", 0) == ["one", "two+"]


def test_a_process_waits_for_the_changes_of_another(file: ResultsFile, plan: Plan) -> None:
    def record() -> None:
        with file.locked():
            file.record(plan, RUN)

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


def test_a_test_split_is_the_same_in_all_studies(
    file: ResultsFile, plan: Plan, changed: Plan
) -> None:
    file.record(replace(plan, study="folds"), replace(RUN, fold=1))
    after = {changed.recipe("fine_alone").digest}
    file.refuse_second_scoring("fine_alone", [0, 2], after)  # other images
    file.refuse_second_scoring("cascade", [1], after)
    with pytest.raises(ConfigError, match="scored on the test split of fold 1 before"):
        file.refuse_second_scoring("fine_alone", [0, 1], after)


def test_results_are_replaced_and_scorings_kept(file: ResultsFile, plan: Plan) -> None:
    file.record(plan, RUN)
    file.replace("claim", {"runs": [{"fold": 1}]})
    file.replace("folds", {"runs": []})
    tree = file.replace("claim", {"runs": ({"fold": 2},)})  # a tuple becomes a list in the file
    assert tree == file.read()
    assert tree["claim"] == {"runs": [{"fold": 2}]}
    assert tree == json.loads(file.path.read_text())
    assert [*tree] == ["data_set", "scored", "claim", "folds"]
    assert len(tree["scored"]) == 1


SET = '"data_set": "stanford_background"'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "damaged or not JSON"),
        ("[]", "expected an object"),
        ("{}", "'data_set' is missing"),
        (f'{{{SET}, "scored": [1]}}', "'scored'"),
        (f'{{{SET}, "scored": [{{}}]}}', "'study' is missing"),
        (f'{{{SET}, "scored": [], "claim": 4}}', "'claim': 'runs' is missing"),
        (f'{{{SET}, "scored": [], "folds": {{"runs": 4}}}}', "'runs' is 4"),
        (f'{{{SET}, "scored": [], "folds": {{"runs": [{{"a": NaN}}]}}}}', "Out of range float"),
        ('{"data_set": "sift_flow", "scored": []}', "is of sift_flow, not of stanford_background"),
    ],
)
def test_a_damaged_file_is_refused_and_not_begun_anew(
    file: ResultsFile, text: str, fault: str
) -> None:
    file.path.parent.mkdir()
    file.path.write_text(text)
    for use in (
        file.read,
        lambda: file.replace("claim", {}),
        lambda: file.refuse_second_scoring("cascade", [0], {"1"}),
        lambda: file.refuse_fewer_runs("claim", 0),
    ):
        with pytest.raises(DataError, match=r"stanford_background\.json: .*restore the file") as it:
            use()
        assert fault in str(it.value)
        assert str(it.value).count("stanford_background.json") == 1
        assert "write it again" not in str(it.value)
    assert file.path.read_text() == text
