"""Which processes on which machines train together, and how they find each other.

Schedulers tell it in the environment: TF_CONFIG (Kubeflow's TFJob, Vertex AI) or SLURM's variables
of a job step. Addresses are `host:port`; worker 0 is the chief, who alone writes.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from rich.console import Console

from ccfnet_tf.errors import ConfigError, ResourceError, first_line

TF_CONFIG = "TF_CONFIG"
PATIENCE = 600
"""Seconds that a worker waits for the others at the start."""

_FIRST_PORT = 20_000
_PORTS = 156 * 64  # a range of 64 for a job


@dataclass(frozen=True)
class Cluster:
    """The workers of a run and this process's place among them.

    Attributes:
        addresses: `host:port` of each worker; the first is the chief.
        index: Which one this process is.
    """

    addresses: tuple[str, ...]
    index: int


def find_cluster() -> Cluster | None:
    """Returns the cluster that the environment names; None where it names no more than one worker.

    Raises:
        ConfigError: TF_CONFIG is not understood, or this process has no part in training.
    """
    if os.environ.get(TF_CONFIG):
        cluster = _of_tf_config(os.environ[TF_CONFIG])
    elif "SLURM_STEP_NODELIST" in os.environ and "SLURM_PROCID" in os.environ:
        cluster = _of_slurm()
    else:
        return None
    return cluster if len(cluster.addresses) > 1 else None


def connect(cluster: Cluster, console: Console) -> Any:
    """Starts this worker's server, waits for the others and returns the strategy over all of them.

    TensorFlow must not have been used in this process before.

    Raises:
        ResourceError: The server cannot be started.
    """
    address = cluster.addresses[cluster.index]
    who = f"worker {cluster.index + 1} of {len(cluster.addresses)} ({address})"
    console.print(f"{who}: waiting for the others, at most {PATIENCE} s")
    spec = tf.train.ClusterSpec({"worker": list(cluster.addresses)})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec, task_type="worker", task_id=cluster.index, rpc_layer="grpc"
    )
    # The strategy reads TF_CONFIG by itself too, where a chief has another name.
    os.environ.pop(TF_CONFIG, None)
    try:
        with _at_most(PATIENCE):
            strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except (tf.errors.OpError, RuntimeError) as error:
        raise ResourceError(
            f"{address}: this worker cannot join the others ({first_line(error)}): see "
            "that the port is free, and that every worker was started with the same list"
        ) from error
    console.print(f"{who}: joined")
    return strategy


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Ends the process (SIGALRM, status 142) after `seconds`.

    TensorFlow waits for missing workers inside C++ without end, and deaf to signals that Python
    would have to handle: only the default action of a signal gets through.
    """
    former = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _of_tf_config(text: str) -> Cluster:
    try:
        tree = json.loads(text)
        jobs = {name: tuple(map(str, tree["cluster"][name])) for name in tree.get("cluster", {})}
        task = tree.get("task", {})
        job, index = str(task.get("type", "worker")), int(task.get("index", 0))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{TF_CONFIG}: not understood ({first_line(error)}): it must be JSON such as "
            '{"cluster": {"worker": ["a:1234", "b:1234"]}, "task": {"type": "worker", "index": 0}}'
        ) from error
    trained = [name for name in ("chief", "master", "worker") if name in jobs]
    addresses = [address for name in trained for address in jobs[name]]
    if not jobs:
        return Cluster(("",), 0)
    if job not in trained:
        raise ConfigError(
            f"{TF_CONFIG}: this process is of the job '{job}': only a chief and workers train"
        )
    if not 0 <= index < len(jobs[job]):
        raise ConfigError(
            f"{TF_CONFIG}: this process is {job} {index}, but there are {len(jobs[job])} of them"
        )
    place = sum(len(jobs[name]) for name in trained[: trained.index(job)]) + index
    return Cluster(tuple(addresses), place)


def _of_slurm() -> Cluster:
    """Asks TensorFlow's resolver, and puts hosts into SLURM's order.

    The resolver sorts hosts as text, so that n10 comes before n9 and ranks are looked for on the
    wrong host; and it divides GPUs among tasks, which is SLURM's business (--gpus-per-task).
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            # Two jobs that share a node must not share a port.
            port_base=_FIRST_PORT + 64 * int(os.environ.get("SLURM_JOB_ID", "0")) % _PORTS,
            gpus_per_node=tasks,
            gpus_per_task=1,
            auto_set_gpu=False,
        )
        addresses = resolver.cluster_spec().job_tasks("worker")
        hosts = resolver._resolve_hostlist()
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"SLURM's variables are not understood ({first_line(error)}): start the "
            "workers with srun, or say who they are in TF_CONFIG"
        ) from error
    in_order = sorted(addresses, key=lambda address: hosts.index(address.rsplit(":", 1)[0]))
    return Cluster(tuple(in_order), int(os.environ["SLURM_PROCID"]))
