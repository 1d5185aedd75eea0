"""Kinds of blocks beside the gguf package's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from llmctl.formats.gguf.blocks import BLOCK_KINDS, dequantise, quantise

gguf = pytest.importorskip("gguf")
BLOCKED = [name for name, kind in BLOCK_KINDS.items() if kind.size > 1]


def theirs(name: str) -> object:
    return getattr(gguf.GGMLQuantizationType, name)


@pytest.mark.parametrize("name", BLOCKED)
def test_any_block_is_read_as_the_package_reads_it(name: str):
    kind, draw = BLOCK_KINDS[name], np.random.default_rng(0)
    raw = draw.integers(0, 256, (200, kind.layout.itemsize), dtype=np.uint8)
    records = raw.view(kind.layout)
    for scale in {"d", "m"} & set(kind.layout.names or ()):
        records[scale] = draw.normal(size=records[scale].shape).astype(np.float16)
    expected = gguf.quants.dequantize(raw, theirs(name))
    np.testing.assert_array_equal(dequantise(raw.reshape(-1), kind), expected.reshape(-1))


@pytest.mark.parametrize("name", ["F32", "F16", "Q8_0", "Q4_0"])
def test_numbers_are_written_as_the_package_writes_them(name: str):
    values = np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32)
    values[3] = 0.0
    values[4, 0] = -values[4].max() * 2  # Q4_0's scale has the sign of the largest
    expected = gguf.quants.quantize(values, theirs(name)).view(np.uint8).reshape(-1)
    np.testing.assert_array_equal(quantise(values, BLOCK_KINDS[name]), expected)


def test_half_of_32_bits_is_read_as_such():
    values = np.array([1.0, -2.5, 3e-39, 1e38], dtype=np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    read = dequantise(halves.view(np.uint8), BLOCK_KINDS["BF16"])
    np.testing.assert_array_equal(read.view(np.uint32) >> 16, halves)
    assert read[:2].tolist() == [1.0, -2.5]
