"""Discovers the workers of a distributed run and connects them.

Schedulers describe the workers in the environment: in TF_CONFIG (Kubeflow's TFJob, Vertex AI) or in
SLURM's variables of a job step. Addresses are `host:port`. Worker 0 is the chief, the only worker
that writes files.
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
"""Seconds that a worker waits for the others at the start of a run."""

_FIRST_PORT = 20_000
_PORTS = 156 * 64  # 64 ports per job


@dataclass(frozen=True)
class Cluster:
    """The workers of a run, and the index of this process.

    Attributes:
        addresses: `host:port` of each worker; the first is the chief.
        index: Index of this process in `addresses`.
    """

    addresses: tuple[str, ...]
    index: int


def find_cluster() -> Cluster | None:
    """Returns the cluster described by the environment; None if it has fewer than two workers.

    Raises:
        ConfigError: TF_CONFIG or SLURM's variables are invalid, or this process is not a worker.
    """
    if os.environ.get(TF_CONFIG):
        cluster = _from_tf_config(os.environ[TF_CONFIG])
    elif "SLURM_STEP_NODELIST" in os.environ and "SLURM_PROCID" in os.environ:
        cluster = _from_slurm()
    else:
        return None
    return cluster if len(cluster.addresses) > 1 else None


def connect(cluster: Cluster, console: Console) -> Any:
    """Starts this worker's server, waits for the other workers and returns the common strategy.

    Must be called before TensorFlow has been initialised in this process.

    Raises:
        ResourceError: The server cannot be started.
    """
    address = cluster.addresses[cluster.index]
    who = f"worker {cluster.index + 1} of {len(cluster.addresses)} ({address})"
    console.print(f"{who}: waiting up to {PATIENCE} s for the other workers")
    spec = tf.train.ClusterSpec({"worker": list(cluster.addresses)})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec, task_type="worker", task_id=cluster.index, rpc_layer="grpc"
    )
    # The strategy would also read TF_CONFIG itself, in which the chief may have another job name.
    os.environ.pop(TF_CONFIG, None)
    try:
        with _timeout(PATIENCE):
            strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except (tf.errors.OpError, RuntimeError) as error:
        raise ResourceError(
            f"{address}: this worker cannot join the others ({first_line(error)}): check that the "
            "port is free, and that all workers were started with the same list of addresses"
        ) from error
    console.print(f"{who}: joined")
    return strategy


@contextmanager
def _timeout(seconds: int) -> Iterator[None]:
    """Ends the process (SIGALRM, exit status 142) if the block takes longer than `seconds`.

    TensorFlow waits for missing workers in C++ without a timeout. Python cannot run signal handlers
    meanwhile, so only the default action of a signal has an effect.
    """
    previous = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _from_tf_config(text: str) -> Cluster:
    try:
        tree = json.loads(text)
        jobs = {name: tuple(map(str, tree["cluster"][name])) for name in tree.get("cluster", {})}
        task = tree.get("task", {})
        job, index = str(task.get("type", "worker")), int(task.get("index", 0))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{TF_CONFIG}: invalid ({first_line(error)}): it must be JSON such as "
            '{"cluster": {"worker": ["a:1234", "b:1234"]}, "task": {"type": "worker", "index": 0}}'
        ) from error
    training_jobs = [name for name in ("chief", "master", "worker") if name in jobs]
    addresses = [address for name in training_jobs for address in jobs[name]]
    if not jobs:
        return Cluster(("",), 0)
    if job not in training_jobs:
        raise ConfigError(
            f"{TF_CONFIG}: this process has the task type '{job}': only a chief and workers train"
        )
    if not 0 <= index < len(jobs[job]):
        raise ConfigError(
            f"{TF_CONFIG}: this process is {job} {index}, but there are {len(jobs[job])} of them"
        )
    position = sum(len(jobs[name]) for name in training_jobs[: training_jobs.index(job)]) + index
    return Cluster(tuple(addresses), position)


def _from_slurm() -> Cluster:
    """Queries TensorFlow's resolver, and puts the hosts into SLURM's order.

    The resolver sorts hosts as strings, so that n10 precedes n9 and ranks are assigned to the wrong
    hosts. It would also divide GPUs among tasks, which SLURM does (--gpus-per-task).
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            # Jobs that share a node must use different ports.
            port_base=_FIRST_PORT + 64 * int(os.environ.get("SLURM_JOB_ID", "0")) % _PORTS,
            gpus_per_node=tasks,
            gpus_per_task=1,
            auto_set_gpu=False,
        )
        addresses = resolver.cluster_spec().job_tasks("worker")
        hosts = resolver._resolve_hostlist()
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"SLURM's variables are invalid ({first_line(error)}): start the workers with srun, or "
            "describe them in TF_CONFIG"
        ) from error
    in_order = sorted(addresses, key=lambda address: hosts.index(address.rsplit(":", 1)[0]))
    return Cluster(tuple(in_order), int(os.environ["SLURM_PROCID"]))
