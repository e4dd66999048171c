"""Whether a LiteRT file runs wholly on a GPU, and rightly: LiteRT itself does not tell.

It may say `accelerated` of a file whose answer is garbage; so the answer is held against the
CPU's, and its stderr is read. Any GPU with Vulkan will do, and so does SwiftShader, which is a GPU
made of software.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST = 1e-2
"""Largest difference of a probability between GPU and CPU."""

MOST_IN_8_BITS = 2e-2
"""Mean difference, where the CPU computes in 8 bits: the GPU widens them and rounds nothing."""

_NO_GPU = "No adapters found"
"""What LiteRT says where there is no driver, and where there is no Vulkan at all."""

_SAID = re.compile(r"^ERROR: \[[^]]*\] (.+)$", re.M)
_REFUSED = re.compile(
    r"operations are not supported by GPU delegate:\n(.*?)^\d+ operations will run", re.S | re.M
)


@dataclass(frozen=True)
class GPUVerdict:
    """What came of it.

    Attributes:
        runs: Whether the whole file ran there and answered as on the CPU.
        wrong: Whether it ran there and answered otherwise: worse than not running.
        said: In words: the difference, or why not.
    """

    runs: bool
    wrong: bool
    said: str


def try_on_gpu(folder: Path, *, in_8_bits: bool = False) -> GPUVerdict:
    """Runs the LiteRT file of an artifact on GPU and CPU, in a process of its own.

    Args:
        folder: The artifact's.
        in_8_bits: Whether the CPU computes in 8 bits.
    """
    command = [sys.executable, "-P", "-m", "ccfnet_tf.exporters.verify.gpu_process", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return judge(done.stdout, done.stderr, done.returncode, in_8_bits=in_8_bits)


def judge(stdout: str, stderr: str, code: int, *, in_8_bits: bool = False) -> GPUVerdict:
    """Returns the verdict on what that process wrote."""
    lines = stdout.splitlines()
    result = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if refused := _REFUSED.search(stderr):
        named = "; ".join(sorted(line.strip(" :.") for line in set(refused[1].splitlines())))
        return GPUVerdict(False, False, f"no: operators that it cannot run: {named}")
    if "largest" in result:
        return _judge_answer(result, "Validation error" in stderr, in_8_bits)
    if _NO_GPU in stderr:
        return GPUVerdict(False, False, "not tried: no GPU with Vulkan on this machine")
    reasons = [f"it ended with {code}"] if code else _SAID.findall(stderr)[-1:]
    reason = (reasons or [result.get("error", "it said nothing")])[0]
    return GPUVerdict(False, False, f"no: LiteRT cannot run it ({reason})")


def _judge_answer(result: dict[str, Any], kernel_refused: bool, in_8_bits: bool) -> GPUVerdict:
    gap, mean = result["largest"], result["mean"]
    if kernel_refused:
        return GPUVerdict(False, True, "no: a kernel was refused (Validation error), in silence")
    if not result["accelerated"]:
        return GPUVerdict(False, False, "no: a part of it would run on the CPU")
    if in_8_bits and mean <= MOST_IN_8_BITS:
        return GPUVerdict(True, False, f"yes: {mean:.1e} in the mean from the CPU, in 8 bits there")
    if not gap <= MOST:  # NaN is above
        return GPUVerdict(False, True, f"no: it answers wrong there, by {gap:.2g}")
    return GPUVerdict(True, False, f"yes: within {gap:.1e} of the CPU")
