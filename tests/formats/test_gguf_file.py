"""GGUF files: ours read by the gguf package, the package's by us, and damaged ones refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from llmctl.errors import InputError
from llmctl.formats.gguf.blocks import BLOCK_KINDS
from llmctl.formats.gguf.file import GgufFile, write_gguf

gguf = pytest.importorskip("gguf")
HEAD = {
    "general.architecture": "llama", "a.number": 7, "a.share": 0.5, "is.so": True,
    "names": ["a", "", "日本"], "types": np.arange(5, dtype=np.int32),
    "scores": np.linspace(-1, 0, 4, dtype=np.float32),
}  # fmt: skip


def write(path: Path) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "wide": torch.randn(3, 64, generator=draw),
        "norm": torch.randn(5, generator=draw),
        "half": torch.randn(2, 7, generator=draw).half().float(),
    }
    kinds = {"wide": BLOCK_KINDS["Q8_0"], "norm": BLOCK_KINDS["F32"], "half": BLOCK_KINDS["F16"]}
    write_gguf(path, HEAD, tensors, kinds)
    return tensors


def test_the_package_reads_what_is_written(tmp_path: Path):
    tensors = write(tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    for name, value in HEAD.items():
        read = reader.fields[name].contents()
        assert (
            list(read) == list(value)
            if not isinstance(value, int | float | str)
            else (read == value)
        )
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        bound = 0.02 if tensor.name == "wide" else 0
        np.testing.assert_allclose(values, tensors[tensor.name].numpy(), atol=bound)


def test_what_the_package_writes_is_read(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    writer.add_block_count(3)
    writer.add_token_list(["a", "b"])
    writer.add_array("flags", [True, False])
    values = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    for name in ("F32", "BF16", "Q5_1"):
        kind = getattr(gguf.GGMLQuantizationType, name)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "m.gguf")
    assert file.head["qwen2.block_count"] == 3
    assert file.head["tokenizer.ggml.tokens"] == ["a", "b"]
    assert list(file.head["flags"]) == [True, False]
    assert file.shapes == dict.fromkeys(("F32", "BF16", "Q5_1"), (4, 256))
    for name, bound in (("F32", 0), ("BF16", 0.02), ("Q5_1", 0.2)):
        np.testing.assert_allclose(file[name].numpy(), values, atol=bound)


def test_every_file_cut_short_is_refused(tmp_path: Path):
    path = tmp_path / "m.gguf"
    write(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 32, 13):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"m\.gguf"):
            GgufFile(path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, b"GGML", "no GGUF file"),
        (4, struct.pack("<I", 1), "version 1"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, struct.pack("<Q", 1 << 60), "within its head"),
        (16, struct.pack("<Q", 1 << 60), "within its head"),
        (24, struct.pack("<Q", 1 << 62), "within its head"),
    ],
)
def test_a_head_that_cannot_be_is_refused(tmp_path: Path, place: int, value: bytes, message: str):
    path = tmp_path / "m.gguf"
    write(path)
    data = bytearray(path.read_bytes())
    data[place : place + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        GgufFile(path)


def test_a_kind_that_is_not_read_is_named(tmp_path: Path):
    path = tmp_path / "m.gguf"
    write(path)
    data = path.read_bytes()
    at = data.index(b"wide") + 4 + 4 + 16  # its name, its number of sides, its sides
    path.write_bytes(data[:at] + struct.pack("<I", 23) + data[at + 4 :])
    with pytest.raises(InputError, match="the tensor wide is of type IQ4_XS, which is not read"):
        GgufFile(path)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path):
    tensors = {"t": torch.tensor([[1.0, torch.inf]])}
    write_gguf(tmp_path / "m.gguf", {}, tensors, {"t": BLOCK_KINDS["F32"]})
    file = GgufFile(tmp_path / "m.gguf")
    with pytest.raises(InputError, match="the tensor t has numbers that are not finite"):
        file["t"]


def test_tensors_that_lie_one_upon_the_other_are_refused(tmp_path: Path):
    path = tmp_path / "m.gguf"
    tensors = {name: torch.zeros(1, 32) for name in ("first", "second")}
    write_gguf(path, {}, tensors, dict.fromkeys(tensors, BLOCK_KINDS["F32"]))
    data = path.read_bytes()
    at = data.index(b"second") + 6 + 4 + 16 + 4  # name, number of sides, sides, type
    path.write_bytes(data[:at] + struct.pack("<Q", 64) + data[at + 8 :])
    with pytest.raises(InputError, match="first and second lie one upon the other"):
        GgufFile(path)
