"""Freed memory is kept, so that a step does not fault its pages in anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from llmctl.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    return [torch.ones(1 << 21) for _ in range(8)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_steps_fault_seldom_once_memory_is_kept():
    assert faults("keep") < 0.1 * faults("default")
