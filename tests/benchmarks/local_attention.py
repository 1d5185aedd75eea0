"""What a local layer of a ModernBERT costs beside a global one, by the length of the row.

    python tests/benchmarks/local_attention.py

Forward and backward passes of one attention of eight heads 64 wide in fp32, the window 64 tokens to
each side: in blocks, as the network does it; all pairs under the window's mask; and all pairs, as
a global layer. The least of several, in milliseconds.

    python tests/benchmarks/local_attention.py 1024 8192    # some lengths
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from llmctl.models.layers.attention import additive_mask, attention
from llmctl.models.layers.local_attention import LocalWindow, local_attention

HEADS, HEAD_SIZE, RADIUS = 8, 64, 64
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
CPU = torch.device("cpu")


def milliseconds(run: Callable[[Tensor, Tensor, Tensor], Tensor], T: int) -> float:
    """Of a pass forward and back."""
    qkv = torch.randn(3, 1, T, HEADS, HEAD_SIZE, requires_grad=True)
    times = []
    for _ in range(3 if T > 4096 else 5):
        started = time.perf_counter()
        run(*qkv.unbind(0)).sum().backward()
        times.append(time.perf_counter() - started)
    return 1000 * min(times[1:])


def all_pairs(mask: Tensor | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda *qkv: attention(*(part.transpose(1, 2) for part in qkv), mask=mask)


def main() -> None:
    print("| tokens | in blocks | masked | global | masked / in blocks |")
    print("| --- | --- | --- | --- | --- |")
    for T in map(int, sys.argv[1:] or LENGTHS):
        window = LocalWindow.of(None, (1, T), RADIUS, CPU)
        places = torch.arange(T)
        near = additive_mask(((places[:, None] - places).abs() <= RADIUS)[None, None])
        local = milliseconds(lambda q, k, v, w=window: local_attention(q, k, v, w), T)  # type: ignore[misc]
        masked, everywhere = milliseconds(all_pairs(near), T), milliseconds(all_pairs(None), T)
        cells = f"{local:.1f} | {masked:.1f} | {everywhere:.1f} | {masked / local:.1f}"
        print(f"| {T:,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
