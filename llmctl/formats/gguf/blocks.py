"""The kinds of numbers in a GGUF file: plain floats, and blocks of few bits with a scale.

A block of Q4_0 is 32 numbers of 4 bits and the fp16 scale d: x = d · (q - 8). Q4_1 has a least
value m beside it: x = d · q + m. The K kinds are blocks of 256 in parts of 16 or 32, whose own
scales (and least values) are whole numbers of 4 to 8 bits times one fp16 number of the block. The
layouts are those of ggml-common.h of llama.cpp; each is a record here, as it lies in the file.

N blocks, B numbers of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RawBytes = NDArray[np.uint8]
F32Numbers = NDArray[np.float32]
Records = np.ndarray
"""(N,): records of a block's layout."""


@dataclass(frozen=True)
class BlockKind:
    """How numbers lie in a file."""

    name: str
    number: int
    """Its number in files."""
    size: int
    """F32Numbers of a block."""
    layout: np.dtype
    """That of a block."""
    read: Callable[[Records], F32Numbers]
    """(N,) blocks to (N, B) numbers."""


def _layout(*fields: tuple[str, str, int]) -> np.dtype:
    return np.dtype([(name, kind, (count,) if count > 1 else ()) for name, kind, count in fields])


def _f32(half: np.ndarray) -> F32Numbers:
    return half.astype(np.float32)


def _nibbles(q_NB: RawBytes) -> RawBytes:
    """The low halves of some bytes, then the high ones: (N, B) to (N, 2 B)."""
    return np.concatenate([q_NB & 15, q_NB >> 4], axis=-1)


def _bits(mask_N4: RawBytes) -> RawBytes:
    """The 32 bits of four bytes, lowest first: (N, 4) to (N, 32)."""
    return np.unpackbits(np.ascontiguousarray(mask_N4), axis=-1, bitorder="little")


def _q8_0(blocks: Records) -> F32Numbers:
    return _f32(blocks["d"])[:, None] * blocks["q"]


def _q4_0(blocks: Records) -> F32Numbers:
    return _f32(blocks["d"])[:, None] * (_nibbles(blocks["q"]).astype(np.float32) - 8)


def _q4_1(blocks: Records) -> F32Numbers:
    return _f32(blocks["d"])[:, None] * _nibbles(blocks["q"]) + _f32(blocks["m"])[:, None]


def _q5_0(blocks: Records) -> F32Numbers:
    q = (_nibbles(blocks["q"]) | _bits(blocks["high"]) << 4).astype(np.float32) - 16
    return _f32(blocks["d"])[:, None] * q


def _q5_1(blocks: Records) -> F32Numbers:
    q = _nibbles(blocks["q"]) | _bits(blocks["high"]) << 4
    return _f32(blocks["d"])[:, None] * q + _f32(blocks["m"])[:, None]


def _shifted(q_NB: RawBytes, width: int, shifts: tuple[int, ...], mask: int) -> RawBytes:
    """Parts of bytes, group by group: of each run of ``width`` bytes the bits from each shift on.
    (N, B) to (N, B · shifts)."""
    runs = q_NB.reshape(len(q_NB), -1, 1, width)
    parts = (runs >> np.array(shifts, dtype=np.uint8)[:, None]) & np.uint8(mask)
    return parts.reshape(len(q_NB), -1)


def _times(scales_NS: F32Numbers, q_NB: np.ndarray) -> F32Numbers:
    """Each part's numbers times the part's scale."""
    parts = q_NB.reshape(*scales_NS.shape, -1).astype(np.float32)
    return (scales_NS[..., None] * parts).reshape(len(q_NB), -1)


def _less(scaled_NB: F32Numbers, least_NS: F32Numbers) -> F32Numbers:
    parts = scaled_NB.reshape(*least_NS.shape, -1) - least_NS[..., None]
    return parts.reshape(len(scaled_NB), -1)


def _q2_k(blocks: Records) -> F32Numbers:
    scales, d = blocks["scales"], _f32(blocks["d"])[:, None]
    q = _shifted(blocks["q"], 32, (0, 2, 4, 6), 3)
    return _less(_times(d * (scales & 15), q), _f32(blocks["m"])[:, None] * (scales >> 4))


def _q3_k(blocks: Records) -> F32Numbers:
    packed = blocks["scales"]
    low, high = _nibbles(packed[:, :8]), _shifted(packed[:, 8:], 4, (0, 2, 4, 6), 3)
    scales = (low | high << 4).astype(np.float32) - 32
    # The third bit is set where nothing is taken away.
    third = _shifted(blocks["high"], 32, tuple(range(8)), 1)
    q = _shifted(blocks["q"], 32, (0, 2, 4, 6), 3).astype(np.float32) - 4.0 * (third ^ 1)
    return _times(_f32(blocks["d"])[:, None] * scales, q)


def _six_bits(packed_N12: RawBytes) -> tuple[RawBytes, RawBytes]:
    """The eight scales and eight least values of 6 bits each in 12 bytes, as Q4_K and Q5_K have
    them: of the first four the low six bits of bytes 0 to 7, of the others the halves of bytes 8
    to 11 and the two bits left over above."""
    first, second, rest = packed_N12[:, :4], packed_N12[:, 4:8], packed_N12[:, 8:]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6 << 4)], axis=-1)
    least = np.concatenate([second & 63, (rest >> 4) | (second >> 6 << 4)], axis=-1)
    return scales, least


def _q4_k(blocks: Records) -> F32Numbers:
    scales, least = _six_bits(blocks["scales"])
    q = _shifted(blocks["q"], 32, (0, 4), 15)
    return _less(_times(_f32(blocks["d"])[:, None] * scales, q), _f32(blocks["m"])[:, None] * least)


def _q5_k(blocks: Records) -> F32Numbers:
    scales, least = _six_bits(blocks["scales"])
    fifth = _shifted(blocks["high"], 32, tuple(range(8)), 1)
    q = _shifted(blocks["q"], 32, (0, 4), 15) | fifth << 4
    return _less(_times(_f32(blocks["d"])[:, None] * scales, q), _f32(blocks["m"])[:, None] * least)


def _q6_k(blocks: Records) -> F32Numbers:
    low = _shifted(blocks["q"], 64, (0, 4), 15)
    high = _shifted(blocks["high"], 32, (0, 2, 4, 6), 3)
    q = (low | high << 4).astype(np.float32) - 32
    return _times(_f32(blocks["d"])[:, None] * blocks["scales"], q)


def _bf16(blocks: Records) -> F32Numbers:
    wide = blocks["q"].astype(np.uint32) << 16
    return wide.view(np.float32)[:, None]


def _plain(blocks: Records) -> F32Numbers:
    return blocks["q"].astype(np.float32)[:, None]


_D, _M = ("d", "<f2", 1), ("m", "<f2", 1)
_BLOCK_KINDS = (
    BlockKind("F32", 0, 1, _layout(("q", "<f4", 1)), _plain),
    BlockKind("F16", 1, 1, _layout(("q", "<f2", 1)), _plain),
    BlockKind("Q4_0", 2, 32, _layout(_D, ("q", "u1", 16)), _q4_0),
    BlockKind("Q4_1", 3, 32, _layout(_D, _M, ("q", "u1", 16)), _q4_1),
    BlockKind("Q5_0", 6, 32, _layout(_D, ("high", "u1", 4), ("q", "u1", 16)), _q5_0),
    BlockKind("Q5_1", 7, 32, _layout(_D, _M, ("high", "u1", 4), ("q", "u1", 16)), _q5_1),
    BlockKind("Q8_0", 8, 32, _layout(_D, ("q", "i1", 32)), _q8_0),
    BlockKind("Q2_K", 10, 256, _layout(("scales", "u1", 16), ("q", "u1", 64), _D, _M), _q2_k),
    BlockKind(
        "Q3_K", 11, 256,
        _layout(("high", "u1", 32), ("q", "u1", 64), ("scales", "u1", 12), _D), _q3_k,
    ),
    BlockKind("Q4_K", 12, 256, _layout(_D, _M, ("scales", "u1", 12), ("q", "u1", 128)), _q4_k),
    BlockKind(
        "Q5_K", 13, 256,
        _layout(_D, _M, ("scales", "u1", 12), ("high", "u1", 32), ("q", "u1", 128)), _q5_k,
    ),
    BlockKind(
        "Q6_K", 14, 256,
        _layout(("q", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), _D), _q6_k,
    ),
    BlockKind("BF16", 30, 1, _layout(("q", "<u2", 1)), _bf16),
)  # fmt: skip
BLOCK_KINDS = {kind.name: kind for kind in _BLOCK_KINDS}
BY_NUMBER = {kind.number: kind for kind in _BLOCK_KINDS}

UNREAD_KINDS = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Kinds that are not read, for messages."""


def dequantise(data: RawBytes, kind: BlockKind) -> F32Numbers:
    """The numbers of some blocks, in the order of the file, as fp32."""
    return kind.read(data.view(kind.layout)).reshape(-1)


def quantise(values: F32Numbers, kind: BlockKind) -> RawBytes:
    """F32Numbers as a file has them: F32, F16, Q8_0 and Q4_0, whose count must be whole blocks.

    Q8_0's scale is the largest number over 127. Q4_0's is the largest, with its sign, over -8, so
    that it is met exactly; the others are rounded to one of 16 steps.
    """
    if kind.size == 1:
        records = np.empty(values.size, dtype=kind.layout)
        records["q"] = values.reshape(-1)
        return records.view(np.uint8)
    blocks_NB = values.reshape(-1, kind.size)
    largest_N1 = np.take_along_axis(
        blocks_NB, np.abs(blocks_NB).argmax(axis=1, keepdims=True), axis=1
    )
    records = np.empty(len(blocks_NB), dtype=kind.layout)
    scale_N1 = np.abs(largest_N1) / np.float32(127) if kind.name == "Q8_0" else largest_N1 / -8
    records["d"] = scale_N1[:, 0]
    inverse_N1 = np.divide(1, scale_N1, out=np.zeros_like(scale_N1), where=scale_N1 != 0)
    q_NB = blocks_NB * inverse_N1
    if kind.name == "Q8_0":
        # Halves go away from 0, as C rounds them.
        records["q"] = np.trunc(q_NB + np.copysign(np.float32(0.5), q_NB))
        return records.view(np.uint8)
    steps_NB = np.clip(np.trunc(q_NB + np.float32(8.5)), 0, 15).astype(np.uint8)
    records["q"] = steps_NB[:, :16] | steps_NB[:, 16:] << 4
    return records.view(np.uint8)
