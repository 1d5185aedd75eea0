"""Doctor: whether this machine and its Python have what llmctl needs, and how fast they are.

Everything is tried, not looked up: a lock is taken and asked for, files are flushed, matrices
multiplied. Nothing that was there is changed.
"""

from __future__ import annotations

import errno
import locale
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llmctl import __version__
from llmctl.errors import BusyError
from llmctl.reporting.units import size
from llmctl.training import machine
from llmctl.training.precision import CLEARLY_FASTER, matrix_rate
from llmctl.workspace.files import fsync_path, write_atomic
from llmctl.workspace.locks import file_lock, is_held
from llmctl.workspace.manifests import version_of

SCHEMA_VERSION = 1
"""The version of the document; raised when a field changes meaning."""

NEEDED = (
    "torch", "numpy", "typer", "rich", "sentencepiece", "pyarrow", "safetensors", "tokenizers",
    "pydantic", "filelock", "jinja2", "zstandard", "pyyaml",
)  # fmt: skip
OPTIONAL = {
    "scikit-learn": "the baseline TF-IDF of eval",
    "sacrebleu": "BLEU and chrF of eval",
    "rouge-score": "ROUGE of eval",
    "ray": "tokenize --ray",
    "transformers": "the comparisons of tests and benchmarks",
}
"""Distributions that some command takes where they are there, and for what."""
FLAGS = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "AVX-512 bf16",
    "amx_bf16": "AMX bf16", "amx_int8": "AMX int8", "asimd": "NEON", "sve": "SVE", "bf16": "bf16",
}  # fmt: skip
"""What /proc/cpuinfo calls the instructions that matrix products gain by."""

LEAST_DISK, LITTLE_DISK = 200e6, 5e9
LEAST_MEMORY, LITTLE_MEMORY = 500e6, 2e9
LITTLE_SHARED_MEMORY = 32e6
"""Free bytes below which nothing can be done, or not much."""
FLUSHES, FLUSH_SECONDS, SLOW_FLUSH = 20, 1.0, 0.1
"""A file of a few bytes is flushed so often, for so many seconds at most; a checkpoint flushes a
few, and waits for seconds where each takes that long."""
WRITTEN_BYTES, WRITING_SECONDS, SLOW_WRITING = 64 << 20, 2.0, 20e6
"""Written to tell the speed, for so many seconds at most; bytes a second that are slow."""


@dataclass
class Examination:
    """What was found so far."""

    facts: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    """What llmctl can't work with: a sentence each, with what to do."""
    warnings: list[str] = field(default_factory=list)
    """What it works with, but slowly or not in full."""


def examine(workspace: Path) -> dict[str, Any]:
    """What was found as JSON values: figures by subject, and under ``broken`` and ``warnings`` a
    sentence for each thing that is wrong."""
    so_far = Examination()
    for subject, look in {
        "versions": _versions,
        "processor": _processor,
        "threads": _threads,
        "matrix_rates": _rates,
        "gpus": _gpus,
        "memory": _memory,
        "text": _text,
    }.items():
        so_far.facts[subject] = look(so_far)
    so_far.facts["workspace"] = _workspace(workspace, so_far)
    return {
        "schema_version": SCHEMA_VERSION,
        **so_far.facts,
        "broken": so_far.broken,
        "warnings": so_far.warnings,
    }


def _versions(so_far: Examination) -> dict[str, Any]:
    needed = {name: version_of(name) for name in NEEDED}
    for name, version in needed.items():
        if version is None:
            so_far.broken.append(f"the package {name} is not installed: pip install {name}")
    return {
        "llmctl": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "needed": needed,
        "optional": {name: version_of(name) for name in OPTIONAL},
    }


def _processor(so_far: Examination) -> dict[str, Any]:
    entries: dict[str, str] = {}
    for line in machine.read_lines(machine.PROC / "cpuinfo"):
        name, _, value = line.partition(":")
        entries.setdefault(name.strip(), value.strip())
    flags = (entries.get("flags") or entries.get("Features") or "").split()
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        so_far.warnings.append(
            "there is no C++ compiler, so long trainings are not compiled and take up to twice as "
            "long: install g++"
        )
    return {
        "name": entries.get("model name") or platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "instructions": [word for flag, word in FLAGS.items() if flag in flags],
        "cores": machine.cores(),
        "cores_of_machine": os.cpu_count(),
        "compiler": compiler,
    }


def _threads(so_far: Examination) -> dict[str, Any]:
    threads, cores = torch.get_num_threads(), machine.cores()
    others = machine.others_now()
    own = {
        name: os.environ[name]
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        if name in os.environ
    }
    if threads > cores:
        so_far.warnings.append(
            f"{threads} threads compute on {cores} cores and wait for each other: set "
            f"OMP_NUM_THREADS={cores}, or give --threads {cores}"
        )
    elif "OMP_NUM_THREADS" in own and 2 * threads <= cores:
        so_far.warnings.append(
            f"OMP_NUM_THREADS={own['OMP_NUM_THREADS']} leaves {cores - threads} of {cores} cores "
            "without work: unset it, if that isn't meant"
        )
    if own.get("OMP_WAIT_POLICY", "").lower() == "active" and machine.is_busy(others):
        so_far.warnings.append(
            "OMP_WAIT_POLICY=active has threads that wait take the cores from others: unset it"
        )
    if machine.is_busy(others):
        so_far.warnings.append(
            f"other processes use about {others:.1f} of {cores} cores: what is timed here is "
            "slower than on a quiet machine"
        )
    return {
        "compute": threads,
        "others_cores": round(others, 2),
        "environment": own,
        "waiting": _waiting(threads, own),
    }


def _waiting(threads: int, own: dict[str, str]) -> str:
    """How one of the threads that compute waits for the others."""
    if threads == 1:
        return "for no other"
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & own.keys():
        return "as the environment says"
    return "by looking for each other; beside other processes they sleep"


def _rates(so_far: Examination) -> dict[str, Any]:
    cpu = torch.device("cpu")
    rates = {"fp32": matrix_rate(cpu, torch.float32), "bf16": matrix_rate(cpu, torch.bfloat16)}
    faster = rates["bf16"] / rates["fp32"] >= CLEARLY_FASTER
    return {"cpu": rates, "precision": "bf16" if faster else "fp32"}


def _gpus(so_far: Examination) -> list[dict[str, Any]]:
    if torch.backends.mps.is_available():
        return [{"name": "Apple MPS"}]
    if not torch.cuda.is_available():
        if Path("/dev/nvidia0").exists():
            so_far.warnings.append(
                "there is an NVIDIA GPU, but this PyTorch can't use it: install the build of "
                "PyTorch for its driver's CUDA (pytorch.org)"
            )
        return []
    gpus = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        device = torch.device("cuda", number)
        gpus.append(
            {
                "name": torch.cuda.get_device_name(number),
                "memory_bytes": total,
                "free_bytes": free,
                "compute_capability": list(torch.cuda.get_device_capability(number)),
                "bf16": matrix_rate(device, torch.bfloat16, rows=8192, width=8192),
            }
        )
    return gpus


def _memory(so_far: Examination) -> dict[str, Any]:
    free, limit = machine.free_memory(), machine.memory_limit()
    where = "this container has" if limit else "this machine has"
    if free < LEAST_MEMORY:
        so_far.broken.append(f"{where} {size(free)} of memory left: end other programs")
    elif free < LITTLE_MEMORY:
        so_far.warnings.append(
            f"{where} {size(free)} of memory left, enough for the smallest models only"
        )
    shared = Path("/dev/shm")
    shared_free = shutil.disk_usage(shared).free if shared.is_dir() else None
    if shared_free is not None and shared_free < LITTLE_SHARED_MEMORY:
        so_far.warnings.append(
            f"/dev/shm has {size(shared_free)} left, through which processes hand over data: in a "
            "container give it more (docker run --shm-size 1g)"
        )
    return {
        "machine_bytes": machine.total_memory(),
        "limit_bytes": limit,
        "free_bytes": None if free == sys.maxsize else free,
        "shared_free_bytes": shared_free,
    }


def _text(so_far: Examination) -> dict[str, Any]:
    encodings = {
        "terminal": getattr(sys.stdout, "encoding", None),
        "files": locale.getpreferredencoding(False),
        "names": sys.getfilesystemencoding(),
    }
    for what, encoding in encodings.items():
        if (encoding or "utf-8").lower().replace("-", "") != "utf8":
            so_far.warnings.append(
                f"the encoding of {what} is {encoding}, so that some texts can't be shown: set "
                "LC_ALL=C.UTF-8, or PYTHONUTF8=1"
            )
    return {**encodings, "locale": ".".join(filter(None, locale.getlocale())) or "C"}


def _workspace(workspace: Path, so_far: Examination) -> dict[str, Any]:
    """Tried in a folder of its own that goes afterwards; where there is no workspace yet, in the
    folder that it would lie in."""
    nearest = workspace.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    facts: dict[str, Any] = {"folder": str(workspace), "exists": workspace.is_dir()}
    try:
        usage = shutil.disk_usage(nearest)
        facts |= {"free_bytes": usage.free, "disk_bytes": usage.total}
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=nearest) as folder:
            facts["locks"] = _locks(Path(folder), so_far)
            facts |= _speed(Path(folder), so_far)
    except OSError as error:
        remedy = "free some space" if error.errno == errno.ENOSPC else "check its permissions"
        so_far.broken.append(
            f"the workspace {workspace} can't be written ({error.strerror}): {remedy}, or choose "
            "another with --workspace"
        )
        return facts
    if usage.free < LEAST_DISK:
        so_far.broken.append(
            f"the disk of {workspace} has {size(usage.free)} left: free some space, or choose "
            "another --workspace"
        )
    elif usage.free < LITTLE_DISK:
        so_far.warnings.append(
            f"the disk of {workspace} has {size(usage.free)} left; a training keeps two "
            "checkpoints of twelve bytes a parameter"
        )
    return facts


def _locks(folder: Path, so_far: Examination) -> bool:
    """Whether a lock that one holds is seen by others, and let go."""
    path = folder / "lock"
    try:
        with file_lock(path, "the lock can't be taken"):
            held = is_held(path)
        works = held and not is_held(path)
    except (OSError, NotImplementedError, BusyError):
        works = False
    if not works:
        so_far.broken.append(
            "advisory locks don't work on the workspace's file system, so two commands could write "
            "one run at once: choose a --workspace on a local disk, or mount it with locks"
        )
    return works


def _speed(folder: Path, so_far: Examination) -> dict[str, float]:
    """Flushes of small files, and bytes, a second."""
    start_time, flushes = time.perf_counter(), 0
    while flushes < FLUSHES and time.perf_counter() - start_time < FLUSH_SECONDS:
        write_atomic(folder / "small", b"x")
        flushes += 1
    flush = (time.perf_counter() - start_time) / flushes
    block, written = os.urandom(1 << 20), 0
    start_time = time.perf_counter()
    with (folder / "large").open("wb") as stream:
        while written < WRITTEN_BYTES and time.perf_counter() - start_time < WRITING_SECONDS:
            written += stream.write(block)
    fsync_path(folder / "large")
    rate = written / (time.perf_counter() - start_time)
    if flush > SLOW_FLUSH:
        so_far.warnings.append(
            f"to flush a small file to the workspace's disk takes {1000 * flush:.0f} ms, and "
            "checkpoints flush several: a local disk is faster, or set "
            "training.checkpoint_seconds higher"
        )
    if rate < SLOW_WRITING:
        so_far.warnings.append(
            f"the workspace's disk takes {size(rate)} a second: checkpoints of large models hold "
            "training up; choose a --workspace on a faster one"
        )
    return {"flushes_per_second": 1 / flush, "written_bytes_per_second": rate}
