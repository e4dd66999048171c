"""Discovery of the cluster from environment variables."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.training.distribution.cluster import Cluster, find_cluster


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TF_CONFIG", "SLURM_PROCID", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)


def tf_config(monkeypatch: pytest.MonkeyPatch, cluster: Any, kind: str, index: int) -> None:
    tree = {"cluster": cluster, "task": {"type": kind, "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(tree))


def test_no_variable_is_no_cluster() -> None:
    assert find_cluster() is None


def test_the_chief_of_tf_config_is_worker_0(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = {"worker": ["b:1", "c:1"], "chief": ["a:1"], "ps": ["d:1"], "evaluator": ["e:1"]}
    everyone = ("a:1", "b:1", "c:1")
    for place, (kind, index) in enumerate([("chief", 0), ("worker", 0), ("worker", 1)]):
        tf_config(monkeypatch, cluster, kind, index)
        assert find_cluster() == Cluster(everyone, place)


@pytest.mark.parametrize("cluster", [{"worker": ["a:1"]}, {"chief": ["a:1"]}, {}])
def test_one_worker_trains_alone(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tf_config(monkeypatch, cluster, next(iter(cluster), "worker"), 0)
    assert find_cluster() is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "invalid"),
        ("[]", "invalid"),
        ('{"cluster": {"worker": 3}}', "invalid"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"index": "x"}}', "invalid"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "ps"}}', "task type 'ps'"),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
            "worker 2, but there are 2",
        ),
    ],
)
def test_an_invalid_tf_config_is_refused_in_one_line(
    text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ConfigError, match=f"TF_CONFIG: .*{said}") as caught:
        find_cluster()
    assert "\n" not in str(caught.value)


def slurm(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_slurms_hosts_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(
        monkeypatch,
        PROCID="2",
        STEP_NODELIST="n[8-10]",
        STEP_NUM_TASKS="6",
        STEP_TASKS_PER_NODE="2(x3)",
        JOB_ID="3",
    )
    found = find_cluster()
    assert found is not None
    assert found.index == 2
    assert [address.split(":")[0] for address in found.addresses] == (
        ["n8", "n8", "n9", "n9", "n10", "n10"]
    )
    ports = [int(address.split(":")[1]) for address in found.addresses]
    assert ports == [ports[0], ports[0] + 1] * 3
    slurm(monkeypatch, JOB_ID="4")
    other = find_cluster()
    assert other is not None
    assert not set(other.addresses) & set(found.addresses)


def test_slurms_single_task_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, PROCID="0", STEP_NODELIST="n1", STEP_NUM_TASKS="1", STEP_TASKS_PER_NODE="1")
    assert find_cluster() is None


def test_invalid_slurm_variables_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(
        monkeypatch, PROCID="0", STEP_NODELIST="n[1-", STEP_NUM_TASKS="2", STEP_TASKS_PER_NODE="1"
    )
    with pytest.raises(ConfigError, match="start the workers with srun"):
        find_cluster()


@pytest.mark.slow
def test_a_worker_does_not_wait_forever() -> None:
    script = (
        "from rich.console import Console\n"
        "from ccfnet_tf.training.distribution import cluster\n"
        "cluster.PATIENCE = 3\n"
        "cluster.connect(cluster.Cluster(('127.0.0.1:1', '127.0.0.1:0'), 1), Console())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == -14, done.stderr  # SIGALRM; a shell shows 142
    assert "worker 2 of 2 (127.0.0.1:0): waiting up to 3 s for the other workers" in done.stdout
