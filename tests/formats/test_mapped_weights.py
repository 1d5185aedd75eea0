"""Weights that stay where they lie: in the pages of their file."""

from __future__ import annotations

import copy
import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmctl.errors import InputError
from llmctl.formats import filling
from llmctl.formats.open import open_folder
from llmctl.formats.peft.folder import Adapter
from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.weights import OneRowLinear, prepare
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.training.adapters.base import merge
from llmctl.training.adapters.lora import LoraConfig, add_lora, learned
from llmctl.workspace.tensors import MappedTensors, TensorReader, write_tensors
from tests.formats.test_weights import edit, make

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
    elsewhere = {name for name, lies in there.items() if not lies}
    # Behind biases of 24 numbers nothing begins where PyTorch would put it.
    assert elsewhere == copied if arch == "llama" else elsewhere > copied
    assert not elsewhere & {"body.token_embedding.weight", "body.position_embedding.weight"}
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


@settings(max_examples=50, deadline=None)
@given(shapes=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=6),
       dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
       head=st.text(max_size=9))  # fmt: skip
def test_what_is_mapped_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[tuple[int, int]],
    dtype: torch.dtype,
    head: str,
):
    """Whatever lies where: tensors of no numbers, heads of any length, other types between."""
    path = tmp_path_factory.mktemp("any") / "some.safetensors"
    tensors = {f"t{n}": torch.randn(shape).to(dtype) for n, shape in enumerate(shapes)}
    tensors["other"] = torch.randn(3).to(torch.float64 if dtype != torch.float64 else torch.half)
    write_tensors(path, tensors, {"said": head})
    mapped, order = MappedTensors(path), safe_open(path, "pt").offset_keys()
    length = int.from_bytes(path.read_bytes()[:8], "little")
    head = json.loads(path.read_bytes()[8 : 8 + length])
    for name, tensor in tensors.items():
        there = mapped.together([name], tensor.dtype)
        aligned = (8 + length + head[name]["data_offsets"][0]) % 64 == 0
        assert (there is not None) == (aligned and tensor.numel() > 0)
        if there is not None:
            assert torch.equal(there, tensor.flatten())
        assert mapped.together([name], torch.int32) is None
    ours = [name for name in order if name != "other" and tensors[name].numel()]
    for first, second in pairwise(ours):
        beside = order.index(second) == order.index(first) + 1
        both = mapped.together([first, second], dtype)
        expected = torch.cat([tensors[first].flatten(), tensors[second].flatten()])
        if beside and mapped.together([first], dtype) is not None:
            assert both is not None
            assert torch.equal(both, expected)
        assert mapped.together([second, first], dtype) is None


@settings(max_examples=50, deadline=None)
@given(shape=st.tuples(st.integers(0, 3), st.integers(1, 5)),
       kept=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
       wanted=st.sampled_from([torch.float32, torch.bfloat16]),
       turned=st.booleans(), head=st.text(max_size=9))  # fmt: skip
def test_what_is_read_into_a_place_is_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int],
    kept: torch.dtype,
    wanted: torch.dtype,
    turned: bool,
    head: str,
):
    """Of another type, or where numbers don't lie one behind another, too."""
    path = tmp_path_factory.mktemp("any") / "some.safetensors"
    tensors = {"a": torch.randn(shape).to(kept), "b": torch.randn(7, dtype=torch.float64)}
    save_file(tensors, path, {"said": head})
    reader = TensorReader(path)
    for name in ("a", "b", "a"):
        tensor = load_file(path)[name]
        place = torch.full(tensor.shape[::-1] if turned else tensor.shape, 3.0, dtype=wanted)
        place = place.mT if turned and place.dim() > 1 else place
        assert torch.equal(reader.into(name, place), tensor)
        assert torch.equal(place, tensor.to(wanted))
    with pytest.raises(InputError, match="changed while it was read"):
        reader.into("b", torch.empty(8))
    reader.close()


def test_a_file_that_is_cut_off_meanwhile_is_named(tmp_path: Path):
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.randn(1000)}, path)
    reader = TensorReader(path)
    os.truncate(path, 1000)
    with pytest.raises(InputError, match=r"some\.safetensors changed while it was read"):
        reader.into("a", torch.empty(1000))
    reader.close()


@pytest.mark.parametrize("arch", ["gpt", "llama"])
def test_what_several_threads_read_is_what_one_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str
):
    written = make(tmp_path, arch).state_dict()
    monkeypatch.setattr(filling, "THREADED_BYTES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    read = open_folder(tmp_path).owning().causal_lm().state_dict()
    assert read.keys() == written.keys()
    assert all(torch.equal(own, written[name]) for name, own in read.items())
    with torch.inference_mode():  # a matter of each thread
        read = open_folder(tmp_path).owning().causal_lm().state_dict()
    assert all(torch.equal(own, written[name]) for name, own in read.items())
    edit(tmp_path, lambda tensors: next(iter(tensors.values())).fill_(torch.nan))
    with pytest.raises(InputError, match="not finite"):
        open_folder(tmp_path).owning().causal_lm()


@pytest.mark.parametrize("kind", ["pickled", "halves"])
def test_threads_read_what_is_made_of_the_files_tensors_in_inference_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    make(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    if kind == "pickled":
        torch.save(load_file(path), tmp_path / "pytorch_model.bin")
        path.unlink()
    else:
        save_file({name: own.bfloat16() for name, own in load_file(path).items()}, path)
    alone = open_folder(tmp_path).owning().causal_lm().state_dict()
    monkeypatch.setattr(filling, "THREADED_BYTES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with torch.inference_mode():
        read = open_folder(tmp_path).owning().causal_lm().state_dict()
    assert all(torch.equal(own, alone[name]) for name, own in read.items())


def test_a_model_that_owns_its_weights_stays_so(tmp_path: Path):
    make(tmp_path, "llama")
    model = open_folder(tmp_path).owning().anywhere().causal_lm()
    pages = pages_of(tmp_path / "model.safetensors")
    assert not any(lies_in(own, pages) for own in model.parameters())


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("arch", ["gpt", "llama"])
def test_what_is_written_is_the_same_wherever_weights_begin(
    tmp_path: Path, arch: str, rows: int, dtype: Any
):
    make(tmp_path, arch)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path), path, {"format": "pt", "said": "x" * 8})
    folder = open_folder(tmp_path)

    def decoder(model: CausalLM) -> CausalDecoder:
        return CausalDecoder(model, head=prepare(model, dtype, rows=rows))

    model = folder.anywhere().causal_lm()
    pages = pages_of(path)
    assert any(lies_in(own, pages) and own.data_ptr() % 64 for own in model.parameters())
    there, owned = decoder(model), decoder(folder.owning().causal_lm())
    prompts = [[1, 2, 3]] * rows
    assert torch.equal(there.prefill(prompts, 4), owned.prefill(prompts, 4))
    step = torch.tensor([[4]] * rows)
    assert torch.equal(there.extend(step), owned.extend(step))
    for part in model.body.modules():
        weights = [part.weight_OI] if isinstance(part, OneRowLinear) else []
        if not isinstance(part, nn.Embedding):
            weights += part.parameters(recurse=False)
        assert not any(own.data_ptr() % 64 for own in weights), part


@settings(max_examples=50, deadline=None)
@given(said=st.dictionaries(st.text(max_size=5), st.text(max_size=30), max_size=3),
       names=st.sets(st.text(min_size=1, max_size=9), min_size=1, max_size=5))  # fmt: skip
def test_numbers_begin_where_pytorch_would_put_them(
    tmp_path_factory: pytest.TempPathFactory, said: dict[str, str], names: set[str]
):
    path = tmp_path_factory.mktemp("any") / "some.safetensors"
    tensors = {name: torch.randn(16) for name in names - {"__metadata__"}}
    write_tensors(path, tensors, said)
    assert int.from_bytes(path.read_bytes()[:8], "little") % 64 == 64 - 8
    with safe_open(path, "pt") as file:
        assert file.metadata() == (said or {"format": "pt"})
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], own) for name, own in tensors.items())


def test_what_is_written_is_what_the_library_writes_but_for_blanks(tmp_path: Path):
    tensors = {
        "b": torch.randn(3, 5), "a": torch.randn(7, dtype=torch.float64), "n": torch.zeros(0, 4),
        "h": torch.randn(5).bfloat16(), "i": torch.arange(4), "s": torch.tensor(3.0),
        "t": torch.tensor([True, False]), "byte": torch.arange(3, dtype=torch.uint8),
        "one": torch.tensor(5.0).expand(1, 1), "part": torch.arange(9.0)[3:7],
        "nothing": torch.tensor(5.0).expand(0), "turned": torch.randn(2, 3).T,
    }  # fmt: skip
    write_tensors(tmp_path / "ours", tensors)
    whole = {name: own.clone().contiguous() for name, own in tensors.items()}
    save_file(whole, tmp_path / "theirs", {"format": "pt"})
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name, own in theirs.items():
        assert ours[name].dtype == own.dtype
        assert torch.equal(ours[name], own), name


def test_a_network_from_elsewhere_lies_where_its_products_are_the_same(tmp_path: Path):
    """A file of others begins its numbers at any multiple of 8: there they are copied."""
    written = make(tmp_path, "llama").eval()
    path = tmp_path / "model.safetensors"
    save_file(load_file(path), path, {"format": "pt", "said": "x" * 8})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    model = open_folder(tmp_path).causal_lm().eval()
    if (8 + length) % 64:
        assert not any(lies_in(own, pages_of(path)) for own in model.parameters())
    assert all(own.data_ptr() % 64 == 0 for own in model.parameters())
    with torch.no_grad():
        expected = written.logits(written.body(IDS_BT))
        assert torch.equal(model.logits(model.body(IDS_BT)), expected)


def test_a_file_that_was_replaced_meanwhile_is_named(tmp_path: Path):
    make(tmp_path, "llama")
    folder = open_folder(tmp_path)
    write_tensors(tmp_path / "model.safetensors", {"other": torch.zeros(3)})
    with pytest.raises(InputError, match=r"model\.safetensors changed while it was read"):
        folder.causal_lm()


def test_what_is_trained_has_weights_of_its_own(tmp_path: Path):
    make(tmp_path, "llama")
    for network in (
        open_folder(tmp_path).owning().causal_lm(),
        open_folder(tmp_path).causal_lm(dropout=0.0),
    ):
        pages = pages_of(tmp_path / "model.safetensors")
        assert not any(lies_in(own, pages) for own in network.parameters())


def test_gates_in_two_files(tmp_path: Path):
    written = make(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    index: dict[str, str] = {}
    for number, kept in enumerate((".gate_proj.", "")):
        file = f"model-{number}.safetensors"
        part = {name: own for name, own in tensors.items() if kept in name and name not in index}
        save_file(part, tmp_path / file)
        index |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    read = open_folder(tmp_path).causal_lm()
    for name, own in read.state_dict().items():
        assert torch.equal(own, written.state_dict()[name]), name


def test_an_adapters_tensors_are_changed_and_the_others_lie_in_the_base(tmp_path: Path):
    make(tmp_path / "base", "llama")
    folder, options = open_folder(tmp_path / "base"), LoraConfig(rank=2)
    model = folder.owning().causal_lm()
    add_lora(model, options, new=())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    Adapter(learned(model, options, folder), folder, {}, "CAUSAL_LM").write(tmp_path / "adapter")
    merge(model)
    read = open_folder(tmp_path / "adapter").causal_lm()
    pages = pages_of(tmp_path / "base" / "model.safetensors")
    lies = {name for name, own in read.state_dict().items() if lies_in(own, pages)}
    base = folder.causal_lm().state_dict()
    for name, own in model.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name], own, rtol=1e-6, atol=1e-6)
        if not torch.equal(own, base[name]):
            assert name not in lies
    assert "body.norm.weight" in lies


def test_a_mapped_network_can_be_copied_and_moved(tmp_path: Path):
    make(tmp_path, "llama")
    model: nn.Module = open_folder(tmp_path).causal_lm()
    again = copy.deepcopy(model)
    pages = pages_of(tmp_path / "model.safetensors")
    assert not any(lies_in(own, pages) for own in again.parameters())
    assert {own.dtype for own in model.bfloat16().parameters()} == {torch.bfloat16}


def test_a_part_that_is_copied_is_not_the_whole_file(tmp_path: Path):
    make(tmp_path, "llama")
    norm = open_folder(tmp_path).causal_lm().state_dict()["body.norm.weight"]
    assert norm.untyped_storage().nbytes() == norm.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted by /proc")
def test_no_file_stays_open(tmp_path: Path):
    make(tmp_path, "llama")
    before = len(os.listdir("/proc/self/fd"))
    model = open_folder(tmp_path).causal_lm()
    assert lies_in(model.body.norm.weight, pages_of(tmp_path / "model.safetensors"))
    assert len(os.listdir("/proc/self/fd")) == before
