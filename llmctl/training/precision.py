"""Where, in which number format and by which kernels to compute: by measurement, not by habit.

Whether bf16 is faster than fp32 on a CPU depends on the chip: with bf16 instructions twice as
fast, without them half. The measurement takes a fraction of a second.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from statistics import median

import torch

from llmctl.errors import UsageError, did_you_mean
from llmctl.training.planning.memory import keep_freed_memory

CLEARLY_FASTER = 1.3
"""How much faster bf16 products must be before the casts around them pay."""
MIN_SECONDS_TO_COMPILE = 150.0
"""Seconds of training by which kernels of its own pay: they are made in 20 to 50 seconds on two
cores, and save a third to a half of the time of a small model (measured in tests/benchmarks)."""
MATRIX_TRIAL_SECONDS = 0.05
TRIALS = 3


def choose_device(requested: str, option: str = "training.device") -> torch.device:
    """The device for the value of an option. Raises UsageError if it is unknown or not there."""
    # Every stage that computes comes by here first. The vector mathematics library chooses its
    # kernels at its first call, and two threads that make it together may get other bits (6 of 36
    # processes; none of 36 after one thread's call): let one thread make it.
    torch.ones(1).exp()
    keep_freed_memory()
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if requested == "auto":
        return torch.device(next(name for name, present in available.items() if present))
    if requested not in available:
        raise UsageError(
            f"{option} {requested!r} is not known{did_you_mean(requested, available)}; "
            f"choose one of auto, {', '.join(available)}"
        )
    if not available[requested]:
        raise UsageError(
            f"{option} {requested}: this machine has none that PyTorch can use; use cpu or auto"
        )
    return torch.device(requested)


def matrix_rate(
    device: torch.device,
    dtype: torch.dtype,
    rows: int = 2048,
    width: int = 1024,
    trials: int = TRIALS,
) -> float:
    """Floating-point operations a second of a (rows × width) by (width × width) product."""
    left = torch.randn(rows, width, device=device).to(dtype)
    right = torch.randn(width, width, device=device).to(dtype)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    left @ right
    rates = []
    for _ in range(trials):
        wait()
        start, products = time.perf_counter(), 0
        while time.perf_counter() - start < MATRIX_TRIAL_SECONDS:
            left @ right
            wait()
            products += 1
        rates.append(2 * rows * width * width * products / (time.perf_counter() - start))
    return median(rates)


def choose_precision(requested: str, device: torch.device) -> str:
    """``fp32``, ``bf16`` or ``fp8`` for a ``training.precision`` value.

    Raises UsageError for fp8 where no unit computes it.
    """
    if requested == "fp8" and not has_float8(device):
        raise UsageError(
            "training.precision fp8 needs a GPU with eight-bit matrix units (Hopper, Ada or "
            "later); use bf16 or auto"
        )
    if requested != "auto":
        return requested
    # In turns: what else computes on the machine meets both.
    gains = [
        matrix_rate(device, torch.bfloat16, trials=1) / matrix_rate(device, torch.float32, trials=1)
        for _ in range(TRIALS)
    ]
    return "bf16" if median(gains) >= CLEARLY_FASTER else "fp32"


def has_float8(device: torch.device) -> bool:
    """Whether a device multiplies matrices of eight-bit numbers."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def choose_compile(requested: str, device: torch.device, expected_seconds: float | None) -> bool:
    """Whether to compile the model, for a ``training.compile`` value.

    expected_seconds: of the training without; None where shapes change too much to compile for.
    Raises UsageError if it is asked for where no compiler is.
    """
    able = device.type == "cuda" or shutil.which(os.environ.get("CXX", "g++")) is not None
    if requested == "on" and not able:
        raise UsageError(
            "training.compile on: this machine has no C++ compiler; install g++, or set "
            "training.compile=off"
        )
    if requested == "auto":
        return able and expected_seconds is not None and expected_seconds >= MIN_SECONDS_TO_COMPILE
    return requested == "on"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Compute matrix products in bf16 inside the block; weights stay fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
