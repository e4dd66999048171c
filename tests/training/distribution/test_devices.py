from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ccfnet_tf.config import TrainConfig
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.training.distribution import devices


def make(config: TrainConfig) -> Any:
    return devices.make_strategy(config, None, Console(quiet=True))


def test_two_cpus_make_two_replicas() -> None:
    strategy = make(TrainConfig(batch=4, strategy="mirrored"))
    assert strategy.num_replicas_in_sync == 2


def test_auto_uses_the_available_devices() -> None:
    assert make(TrainConfig(batch=4)).num_replicas_in_sync == 2


def test_none_is_one_device() -> None:
    assert make(TrainConfig(batch=3, strategy="none")).num_replicas_in_sync == 1


def test_an_uneven_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch is 5: .* 2 replicas; try 6"):
        make(TrainConfig(batch=5))


def test_a_batch_is_divisible_by_replicas_and_accumulate() -> None:
    with pytest.raises(ConfigError, match=r"2 replicas times 3 \(train\.accumulate\); try 12"):
        make(TrainConfig(batch=9, accumulate=3))
    assert make(TrainConfig(batch=12, accumulate=3)).num_replicas_in_sync == 2


def test_xla_on_several_replicas_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"jit_compile is true on 2 replicas: .*strategy none"):
        make(TrainConfig(batch=4, jit_compile=True))
    make(TrainConfig(batch=4, jit_compile=True, strategy="none"))


def test_multi_worker_without_workers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert devices.cluster_of(TrainConfig()) is None
    with pytest.raises(ConfigError, match="neither TF_CONFIG nor SLURM's variables"):
        devices.cluster_of(TrainConfig(strategy="multi_worker"))


def test_splitting_a_cpu_in_use_is_refused() -> None:
    import tensorflow as tf

    tf.constant(1.0)
    with pytest.raises(ConfigError, match="virtual_cpus is 3"):
        devices.split_cpu(3)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx2 avx512f", "float32"), ("avx512f avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16")],
)
def test_auto_precision_follows_the_hardware(
    flags: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor: 0\nflags: fpu {flags}\n")
    monkeypatch.setattr(devices, "CPU_INFO", info)
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [])
    assert devices.resolve_precision("auto") == expected
    assert devices.resolve_precision("float16") == "float16"
