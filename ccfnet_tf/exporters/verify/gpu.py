"""Checks whether a LiteRT file runs completely and correctly on this machine's GPU.

LiteRT may report `accelerated` for a file whose outputs are garbage. Therefore the outputs are
compared with the CPU's, and stderr is parsed. Any GPU with Vulkan works, including SwiftShader, a
GPU in software.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_DIFFERENCE = 1e-2
"""Largest allowed difference of a probability between GPU and CPU."""

MAX_MEAN_DIFFERENCE_8_BITS = 2e-2
"""Largest allowed mean difference if the CPU computes in 8 bits; the GPU computes in float32."""

_NO_GPU = "No adapters found"
"""LiteRT's message if there is no driver or no Vulkan."""

_LITERT_ERROR = re.compile(r"^ERROR: \[[^]]*\] (.+)$", re.M)
_UNSUPPORTED = re.compile(
    r"operations are not supported by GPU delegate:\n(.*?)^\d+ operations will run", re.S | re.M
)


@dataclass(frozen=True)
class GPUVerdict:
    """Result of running a file on the GPU.

    Attributes:
        runs: Whether the complete file ran on the GPU and its outputs equal the CPU's.
        wrong: Whether it ran and its outputs differ, which is worse than not running.
        message: Description: the difference, or the reason for not running.
    """

    runs: bool
    wrong: bool
    message: str


def try_on_gpu(folder: Path, *, in_8_bits: bool = False) -> GPUVerdict:
    """Runs the LiteRT file of an artifact on GPU and CPU, in a separate process.

    Args:
        folder: The artifact's folder.
        in_8_bits: Whether the CPU computes in 8 bits.
    """
    command = [sys.executable, "-P", "-m", "ccfnet_tf.exporters.verify.gpu_process", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return judge(done.stdout, done.stderr, done.returncode, in_8_bits=in_8_bits)


def judge(stdout: str, stderr: str, code: int, *, in_8_bits: bool = False) -> GPUVerdict:
    """Returns the verdict for the output, stderr and exit code of that process."""
    lines = stdout.splitlines()
    result = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if unsupported := _UNSUPPORTED.search(stderr):
        named = "; ".join(sorted(line.strip(" :.") for line in set(unsupported[1].splitlines())))
        return GPUVerdict(False, False, f"no: unsupported operators: {named}")
    if "largest" in result:
        return _judge_outputs(result, "Validation error" in stderr, in_8_bits)
    if _NO_GPU in stderr:
        return GPUVerdict(False, False, "not tested: no GPU with Vulkan on this machine")
    reasons = [f"exit code {code}"] if code else _LITERT_ERROR.findall(stderr)[-1:]
    reason = (reasons or [result.get("error", "no output")])[0]
    return GPUVerdict(False, False, f"no: LiteRT cannot run it ({reason})")


def _judge_outputs(result: dict[str, Any], kernel_refused: bool, in_8_bits: bool) -> GPUVerdict:
    gap, mean = result["largest"], result["mean"]
    if kernel_refused:
        return GPUVerdict(
            False, True, "no: a kernel was rejected without an error (Validation error)"
        )
    if not result["accelerated"]:
        return GPUVerdict(False, False, "no: some operators would run on the CPU")
    if in_8_bits and mean <= MAX_MEAN_DIFFERENCE_8_BITS:
        return GPUVerdict(
            True, False, f"yes: mean difference {mean:.1e} from the CPU, which computes in 8 bits"
        )
    if not gap <= MAX_DIFFERENCE:  # also true for NaN
        return GPUVerdict(False, True, f"no: wrong outputs, by {gap:.2g}")
    return GPUVerdict(True, False, f"yes: within {gap:.1e} of the CPU")
