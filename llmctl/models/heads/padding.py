"""Sizes that vary from batch to batch."""

from __future__ import annotations


def rounded_up(size: int, step: int) -> int:
    """The next multiple of ``step``.

    For each new shape of a bf16 product a processor compiles a kernel, which takes longer than
    many products (about 6 ms and 1 MB): sizes that vary from batch to batch are rounded up.
    """
    return -(-size // step) * step
