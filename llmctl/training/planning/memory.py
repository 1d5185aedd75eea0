"""The memory of a training: how much there is, and what fits.

Every step frees what it allocated. By default glibc hands large blocks back to the system at once,
and the next step pays a page fault for each of the same pages: 15 % of a small model's step.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from llmctl.errors import OOM_MESSAGES
from llmctl.training.distributed.processes import to_local
from llmctl.training.machine import free_memory

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""The names of the parameters in mallopt(3)."""
KEPT_BYTES = 1 << 30
LARGEST_BLOCK = 1 << 25
"""The largest value that glibc takes; blocks beyond it are always the system's."""
FRAGMENTS = {"cpu": 0.05}
"""By which share the peak grows, by device, while a training goes on: what is freed comes to lie in
pieces, and glibc fills few of them anew. 0 to 18 % were measured, 5 in the middle."""


def keep_freed_memory() -> None:
    """Let glibc keep up to a gigabyte of freed memory; elsewhere nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)


def resident_bytes() -> int:
    """Memory of this process now; on a GPU, what PyTorch holds of it."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        return torch.cuda.memory_allocated()
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:  # not Linux: the most there has been so far
        return peak_bytes()
    import resource

    return int(pages) * resource.getpagesize()


def peak_bytes() -> int:
    """The most memory that this process has had; on a GPU, that PyTorch has held of it."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    said = any(sign in str(error) for sign in OOM_MESSAGES)
    return said or isinstance(error, torch.OutOfMemoryError)


def largest_part(
    trial: Callable[[int], None], rows: int, device: torch.device, model: nn.Module
) -> int:
    """How many rows, up to ``rows``, a pass forward and back has room for; 0 if not one.

    trial: such a pass over so many rows, with nothing kept. On a GPU they are tried. A processor's
    memory has no such end: the system kills whoever takes too much. There what a row keeps for the
    backward pass is measured, and compared with what is free.
    """
    if device.type != "cuda":
        if _runs_out(lambda: trial(1), device, model):
            return 0
        if rows == 1 or _runs_out(lambda: trial(2), device, model):
            return 1
        # The weights are kept too, once: the second row shows what a row takes.
        per_row = kept_for_backward(lambda: trial(2)) - kept_for_backward(lambda: trial(1))
        state = sum(4 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        fits = int((SHARE_OF_FREE * free_memory() - state) // max(per_row, 1))
        rows = max(1, min(rows, fits))
    low, high = 0, rows
    while low < high:
        middle = high if low == 0 and high == rows else -(-(low + high) // 2)
        if _runs_out(lambda middle=middle: trial(middle), device, model):  # type: ignore[misc]
            high = middle - 1
        else:
            low = middle
    return low


SHARE_OF_FREE = 0.7
"""The share of a machine's free memory that is used; the rest is for what others take meanwhile."""


def _runs_out(attempt: Callable[[], None], device: torch.device, model: nn.Module) -> bool:
    """Whether memory ran out, with the gradients and the optimiser's state beside."""
    gc.collect()
    try:
        beside = (
            [torch.empty(3, *p.shape, device=device) for p in model.parameters() if p.requires_grad]
            if device.type == "cuda"
            else None
        )
        attempt()
        del beside
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return True
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return False


def kept_for_backward(attempt: Callable[[], None]) -> int:
    """Bytes that a forward pass keeps for the backward pass, the weights' too."""
    with saved_bytes() as saved:
        attempt()
    return saved[0]


@contextlib.contextmanager
def saved_bytes(besides: Iterable[Tensor] = ()) -> Iterator[list[int]]:
    """Counts, in its only entry, what is kept inside for the way back: each piece of memory once,
    and nothing of ``besides``."""
    known = {to_local(tensor).untyped_storage().data_ptr() for tensor in besides}
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = to_local(tensor).untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def free_bytes(device: torch.device) -> int:
    """Memory that a training on a device can have."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()
