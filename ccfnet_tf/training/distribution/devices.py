"""Selects the distribution strategy and the compute precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
from rich.console import Console

from ccfnet_tf.config import ComputeType, Precision, TrainConfig
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.training.distribution.cluster import Cluster, connect, find_cluster

CPU_INFO = Path("/proc/cpuinfo")
NATIVE_BFLOAT16_CPU = ("avx512_bf16", "amx_bf16")
NATIVE_BFLOAT16_GPU = (8, 0)  # compute capability, NVIDIA Ampere


def split_cpu(count: int) -> None:
    """Splits the CPU into `count` logical devices, so that replicas can be tried without GPUs.

    Raises:
        ConfigError: TensorFlow was initialised before, and its devices cannot be changed.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration()] * count
    try:
        tf.config.set_logical_device_configuration(cpu, parts)
    except RuntimeError as error:
        raise ConfigError(
            f"train.virtual_cpus is {count}: TensorFlow is already initialised in this process; "
            "set it before the first computation"
        ) from error


def make_strategy(config: TrainConfig, cluster: Cluster | None, console: Console) -> Any:
    """Returns the `tf.distribute` strategy that `train.strategy` names.

    Args:
        config: Strategy, batch size and number of virtual CPUs.
        cluster: The workers, from `cluster_of`; None for a single process.
        console: Where the connection of workers is reported.

    Raises:
        ConfigError: The keys of `train` are not compatible with each other on these devices.
        ResourceError: The workers cannot connect to each other.
    """
    strategy = _over_workers(config, cluster, console) if cluster else _on_this_machine(config)
    replicas = strategy.num_replicas_in_sync
    if config.batch % (replicas * config.accumulate):
        raise ConfigError(
            f"train.batch is {config.batch}: it must be divisible by {_divisor(replicas, config)}; "
            f"try {_next_multiple(config.batch, replicas * config.accumulate)}, or another number "
            "of replicas to resume a run"
        )
    if config.jit_compile and replicas > 1:
        raise ConfigError(
            f"train.jit_compile is true on {replicas} replicas: XLA cannot compile a step that "
            "sums over replicas; omit it, or train on one device with --train.strategy none"
        )
    return strategy


def cluster_of(config: TrainConfig) -> Cluster | None:
    """Returns the workers for `train.strategy`; None if this process trains alone.

    Raises:
        ConfigError: The strategy is `multi_worker`, but the environment names no workers.
    """
    if config.strategy in ("none", "mirrored"):
        return None
    cluster = find_cluster()
    if cluster is None and config.strategy == "multi_worker":
        raise ConfigError(
            "train.strategy is multi_worker, but neither TF_CONFIG nor SLURM's variables name "
            "several workers: start it through the scheduler (docs/scaling.md), or choose "
            "mirrored for the devices of one machine"
        )
    return cluster


def _over_workers(config: TrainConfig, cluster: Cluster, console: Console) -> Any:
    if config.virtual_cpus > 1:
        raise ConfigError(
            f"train.virtual_cpus is {config.virtual_cpus}: workers use the devices of their "
            "machine; omit it, or start more workers"
        )
    return connect(cluster, console)


def _on_this_machine(config: TrainConfig) -> Any:
    if config.virtual_cpus > 1:
        if tf.config.list_physical_devices("GPU"):
            raise ConfigError(
                f"train.virtual_cpus is {config.virtual_cpus}, but there are GPUs, which would be "
                "used instead: hide them with CUDA_VISIBLE_DEVICES=-1"
            )
        split_cpu(config.virtual_cpus)
    gpus = tf.config.list_logical_devices("GPU")
    devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
    mirrored = config.strategy == "mirrored" or (config.strategy == "auto" and len(devices) > 1)
    if not mirrored:
        return tf.distribute.get_strategy()
    if gpus:
        return tf.distribute.MirroredStrategy(devices)
    # The default all-reduce is for GPUs. On CPUs, this one is exact and logs no warnings.
    across = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=across)


def resolve_precision(name: Precision) -> ComputeType:
    """Returns `float32`, `bfloat16` or `float16` for `train.precision`.

    `auto` selects bfloat16 if the hardware supports it natively. Otherwise it would be emulated,
    which can be much slower than float32.
    """
    if name != "auto":
        return name
    return "bfloat16" if _supports_bfloat16() else "float32"


def _supports_bfloat16() -> bool:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return all(d.get("compute_capability", (0, 0)) >= NATIVE_BFLOAT16_GPU for d in details)
    if not CPU_INFO.is_file():
        return False
    flags = CPU_INFO.read_text()
    return any(flag in flags for flag in NATIVE_BFLOAT16_CPU)


def _divisor(replicas: int, config: TrainConfig) -> str:
    parts = f"the {replicas} replicas" if replicas > 1 else ""
    if config.accumulate == 1:
        return parts
    return f"{parts} times {config.accumulate} (train.accumulate)" if parts else "train.accumulate"


def _next_multiple(value: int, step: int) -> int:
    return -(-value // step) * step
