from __future__ import annotations

import subprocess
import sys

import pytest

from ccfnet_tf.benchmark import memory
from ccfnet_tf.benchmark.machine import CPU_TIMES, Others, others_line

SPIN = """\
import sys, time
end = time.process_time() + 0.5
while time.process_time() < end: pass
print("spun", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not CPU_TIMES.is_file(), reason="Linux counts what processes use")
def test_what_others_take_is_told_from_what_is_ours() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SPIN], stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        mine, theirs = Others(process.pid), Others()
        process.stdout.readline()
        # One of them counts the process among the others: half a second, or a bit more or less,
        # for Python was starting when they began to count.
        apart = _others(theirs) - _others(mine) - (theirs._used or 0.0) + (mine._used or 0.0)
        assert apart > 0.2
        share = theirs.share()
    assert share is not None
    assert 0 < share <= 1


def _others(others: Others) -> float:
    used = others._used_by_others()
    assert used is not None
    return used


def test_a_busy_machine_is_said_to_be_one() -> None:
    assert others_line(0.04) == "other processes used 4% of the processors meanwhile"
    assert others_line(0.6).endswith("measure again on an idle machine")
    assert "not known" in others_line(None)


@pytest.mark.skipif(not CPU_TIMES.is_file(), reason="Linux forgets peaks")
def test_a_peak_is_of_the_time_since_it_was_forgotten() -> None:
    block = bytearray(300_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert memory.peak() > memory.resident() - 1
    high = memory.peak()
    del block
    memory.forget_peak()
    assert memory.peak() < high - 200
