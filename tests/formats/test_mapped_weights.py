"""Weights that stay where they lie: in the pages of their file."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmctl.errors import InputError
from llmctl.formats.open import open_folder
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.workspace.tensors import map_numbers, tensor_places, write_tensors
from tests.formats.test_weights import make

IDS_BT = torch.tensor([[1, 2, 3, 4]])


def pages_of(path: Path) -> list[range]:
    """The addresses at which this process has a file mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ends = [line.split()[0].split("-") for line in lines if line.endswith(str(path.resolve()))]
    return [range(int(start, 16), int(end, 16)) for start, end in ends]


def lies_in(tensor: Tensor, pages: list[range]) -> bool:
    first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes - 1
    return any(first in each and last in each for each in pages)


@pytest.mark.parametrize("arch", ["gpt", "llama"])
def test_a_network_lies_in_its_file_and_answers_as_copied_weights_do(tmp_path: Path, arch: str):
    written = make(tmp_path, arch)
    model = open_folder(tmp_path).causal_lm().eval()
    pages = pages_of(tmp_path / "model.safetensors")
    there = {name: lies_in(own, pages) for name, own in model.state_dict().items()}
    # A Llama's gate and up lie one behind the other there, queries, keys and values don't; the
    # matrices of GPT-2's layers lie the other way round.
    copied = {
        name
        for name in there
        if "query_key_value" in name
        or (arch == "gpt" and name.startswith("body.blocks") and "norm" not in name)
    }
    assert copied
    assert {name for name, lies in there.items() if not lies} == copied
    with torch.no_grad():
        assert torch.equal(
            model.logits(model.body(IDS_BT)), written.eval().logits(written.body(IDS_BT))
        )


def test_networks_of_one_file_are_apart_and_leave_it_as_it_is(tmp_path: Path):
    make(tmp_path, "llama")
    before = (tmp_path / "model.safetensors").read_bytes()
    folder = open_folder(tmp_path)
    first, second = folder.causal_lm(), folder.causal_lm()
    expected = second.state_dict()["body.norm.weight"].clone()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(7.0)
    assert torch.equal(second.state_dict()["body.norm.weight"], expected)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    loss = second.logits(second.body(IDS_BT)).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(second.parameters(), lr=1.0).step()
    assert not torch.equal(second.state_dict()["body.norm.weight"], expected)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_other_types_are_copied(tmp_path: Path):
    model = make(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    save_file({name: own.bfloat16() for name, own in load_file(path).items()}, path)
    read = open_folder(tmp_path).causal_lm()
    for (name, own), value in zip(
        read.state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(own, value.bfloat16().float()), name
    assert not any(lies_in(own, pages_of(path)) for own in read.state_dict().values())


def test_a_file_that_is_written_anew_stays_whole_for_who_reads_it(tmp_path: Path):
    make(tmp_path, "llama")
    model: CausalLM = open_folder(tmp_path).causal_lm()
    before = {name: own.clone() for name, own in model.state_dict().items()}
    write_tensors(tmp_path / "model.safetensors", {"other": torch.zeros(3)})
    for name, own in model.state_dict().items():
        assert torch.equal(own, before[name]), name


def test_places_are_those_of_the_numbers(tmp_path: Path):
    path = tmp_path / "some.safetensors"
    tensors = {
        "b": torch.randn(3, 5), "a": torch.randn(7, dtype=torch.float64), "none": torch.zeros(0, 4),
        "half": torch.randn(5).bfloat16(),
    }  # fmt: skip
    write_tensors(path, tensors)
    data = path.read_bytes()
    for name, (start, end) in tensor_places(path).items():
        tensor = tensors[name]
        numbers = torch.frombuffer(bytearray(data[start:end] or b"\0"), dtype=torch.uint8)
        assert torch.equal(numbers[: end - start], tensor.reshape(-1).view(torch.uint8)), name
        if tensor.numel():
            mapped = map_numbers(path, start, end, tensor.dtype)
            assert torch.equal(mapped.view(tensor.shape), tensor), name


def test_a_file_that_became_shorter_is_named(tmp_path: Path):
    path = tmp_path / "some.safetensors"
    write_tensors(path, {"a": torch.randn(70_000)})
    start, end = tensor_places(path)["a"]
    os.truncate(path, 100)
    with pytest.raises(InputError, match=r"some.safetensors changed while it was read"):
        map_numbers(path, start, end, torch.float32)


def test_a_mapped_network_can_be_copied_and_moved(tmp_path: Path):
    make(tmp_path, "llama")
    model: nn.Module = open_folder(tmp_path).causal_lm()
    again = copy.deepcopy(model)
    pages = pages_of(tmp_path / "model.safetensors")
    assert not any(lies_in(own, pages) for own in again.parameters())
    assert {own.dtype for own in model.bfloat16().parameters()} == {torch.bfloat16}
