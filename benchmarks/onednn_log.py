"""Instruction sets of the processor, and the implementations that oneDNN selects, from its log.

A process that runs with `ONEDNN_VERBOSE=1` prints a line for every primitive that oneDNN executes:

    onednn_verbose,v1,info,cpu,isa:Intel AVX2
    onednn_verbose,v1,primitive,exec,cpu,convolution,IMPLEMENTATION,backward_weights,...,PROBLEM,MS
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ccfnet_tf.io.machine import CPU_INFO

SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16")
"""Instruction sets, as named in /proc/cpuinfo, that affect oneDNN's choice for a convolution."""

_PREFIX = "onednn_verbose,"
_FIELDS = 13


def instruction_sets() -> list[str]:
    """Returns those of `SETS` that this processor has; empty if the system does not list them."""
    rows = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    flags = next((row.split(":", 1)[1].split() for row in rows if row.startswith("flags")), [])
    return [name for name in SETS if name in flags]


@dataclass
class Log:
    """Contents of the log of oneDNN.

    Attributes:
        version: For example `3.7.3`; empty if there is no log.
        isa: The largest instruction set that oneDNN uses, as it reports it.
        kernels: Problem -> implementation of the gradients of kernels above 1x1. The form of a
            problem is `mb8_ic168oc128_ih61oh61kh3...`.
    """

    version: str = ""
    isa: str = ""
    kernels: dict[str, str] = field(default_factory=dict)

    def read(self, line: str) -> bool:
        """Parses a line printed by a process; returns whether it belongs to the log of oneDNN."""
        if not line.startswith(_PREFIX):
            return False
        cells = line.strip().split(",")
        if len(cells) >= _FIELDS and cells[5] == "convolution":
            implementation, kind, problem = cells[6], cells[7], cells[-2]
            if kind == "backward_weights" and "kh1" not in re.findall(r"kh\d+", problem):
                self.kernels[problem] = implementation
        elif (found := re.search(r"info,oneDNN v([\w.]+)", line)) is not None:
            self.version = found[1]
        elif (found := re.search(r"info,cpu,isa:(.+)", line)) is not None:
            self.isa = found[1].strip()
        return True

    @property
    def implementations(self) -> list[str]:
        """Distinct names of the implementations."""
        return list(dict.fromkeys(self.kernels.values()))
