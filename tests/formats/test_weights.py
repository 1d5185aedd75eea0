"""Weights that can't be right, and the files that hold them."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmctl.errors import InputError
from llmctl.formats.huggingface.weights import is_finite
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.tokenizers import learn

NORM = {"gpt": "transformer.h.1.ln_2.weight", "llama": "model.layers.1.input_layernorm.weight"}


def make(folder: Path, arch: str = "gpt") -> CausalLM:
    """A tiny decoder's folder, as if others had made it."""
    tokenizer = learn("characters", ["abcdefghij"], None)
    architecture = ARCHITECTURES[arch]
    shape: dict[str, Any] = {
        "num_layers": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24,
        "max_positions": 32,
    }  # fmt: skip
    torch.manual_seed(0)
    model = CausalLM(
        architecture.build(architecture.config(vocab_size=tokenizer.vocab_size, **shape))
    )
    write_model_folder(folder, model, tokenizer, {})
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    theirs = {name: value for name, value in fields.items() if not name.startswith("llmctl_")}
    path.write_text(json.dumps(theirs))
    return model


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (float("nan"), torch.float32),
        (float("inf"), torch.float16),
        (-float("inf"), torch.bfloat16),
    ],
)
def test_a_number_that_is_not_finite_is_refused_with_its_tensor(
    tmp_path: Path, value: float, dtype: torch.dtype
):
    make(tmp_path)

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[NORM["gpt"]] = tensors[NORM["gpt"]].to(dtype)
        tensors[NORM["gpt"]][3] = value

    edit(tmp_path, spoil)
    with pytest.raises(InputError, match=rf"{NORM['gpt']} has numbers that are not finite"):
        open_folder(tmp_path).causal_lm()


def test_numbers_whose_sum_overflows_are_finite():
    assert is_finite(torch.full((4,), 3e38))
    assert not is_finite(torch.tensor([3e38, 3e38, float("inf")]))
    assert is_finite(torch.full((4,), 60000.0, dtype=torch.float16))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_of_another_type_are_refused(tmp_path: Path, dtype: torch.dtype):
    make(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({NORM["gpt"]: torch.ones(16).to(dtype)}))
    with pytest.raises(InputError, match=rf"{NORM['gpt']} is of type \w+, and weights are"):
        open_folder(tmp_path)


@pytest.mark.parametrize("arch", NORM)
def test_buffers_are_passed_over_and_other_surplus_is_named(tmp_path: Path, arch: str):
    model = make(tmp_path, arch)
    buffers = {
        "gpt": {"h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
                "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)},
        "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    }  # fmt: skip
    edit(tmp_path, lambda tensors: tensors.update(buffers[arch]))
    found = open_folder(tmp_path).causal_lm().state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    for name in ("lm_head.bias", "score.weight", NORM[arch].replace("weight", "scale")):
        edit(tmp_path, lambda tensors, name=name: tensors.update({name: torch.ones(3)}))
        with pytest.raises(InputError, match=f"the tensor {name} has no place in it"):
            open_folder(tmp_path)
        edit(tmp_path, lambda tensors, name=name: tensors.pop(name))
    edit(tmp_path, lambda tensors: tensors.pop(NORM[arch]))
    with pytest.raises(InputError, match=f"there is no tensor {NORM[arch]}"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("arch", "field", "value", "says"),
    [
        ("gpt", "n_layer", 9_999, "9,999 blocks, and"),
        ("gpt", "n_layer", 100_000, "n_layer: .*10000"),
        ("gpt", "n_layer", 3, "there is no tensor transformer.h.2"),
        ("gpt", "n_embd", 10**7, "hidden_size 10,000,000, and the largest side"),
        ("gpt", "n_inner", 10**7, "intermediate_size 10,000,000"),
        ("gpt", "n_inner", 25, "c_fc.weight is 16 × 24, not 16 × 25"),
        ("gpt", "n_positions", 10**7, "max_positions 10,000,000"),
        ("gpt", "vocab_size", 10**7, "vocab_size 10,000,000"),
        ("llama", "num_hidden_layers", 10**9, "num_hidden_layers: .*10000"),
        ("llama", "head_dim", 10**7, "num_heads times head_size"),
        ("llama", "max_position_embeddings", 10**8, "100,000,000 positions, whose rotary angles"),
    ],
)
def test_sizes_are_compared_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, field: str, value: int, says: str
):
    make(tmp_path, arch)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))

    new = torch.nn.Parameter.__new__

    def without_storage(cls: type, data: Tensor, *given: Any, **options: Any) -> Any:
        assert data.is_meta, "weights were made"
        return new(cls, data, *given, **options)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", without_storage)
    with pytest.raises(InputError, match=says):
        open_folder(tmp_path)


class Program:
    """What a pickle may hold that isn't a tensor."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_pickled_weights_are_read_as_tensors_alone(
    tmp_path: Path, sharded: bool, old: bool, monkeypatch: pytest.MonkeyPatch
):
    model = make(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"pytorch_model.bin": names}
    if sharded:
        parts = {f"pytorch_model-0000{n}-of-00002.bin": names[n::2] for n in (0, 1)}
        weight_map = {name: file for file, held in parts.items() for name in held}
        index = {"weight_map": weight_map}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for file, held in parts.items():
        value = {name: tensors[name] for name in held}
        torch.save(value, tmp_path / file, _use_new_zipfile_serialization=not old)
    found = open_folder(tmp_path).causal_lm().state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    monkeypatch.chdir(tmp_path)
    path = tmp_path / next(iter(parts))
    for content, says in [
        ({"x": Program()}, "or holds more than tensors, which is not read"),
        ({"x": 3}, "holds something at 'x' that is no tensor"),
        ([1], "holds no tensors by name"),
        ({"x": torch.ones(2).to_sparse()}, "that is no tensor"),
    ]:
        torch.save(content, path, _use_new_zipfile_serialization=not old)
        with pytest.raises(InputError, match=says):
            open_folder(tmp_path)
    for damaged in (b"", b"PK\x03\x04", pickle.dumps(Program()), path.read_bytes()[:-40]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=str(path)):
            open_folder(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes by name")
def test_a_pipe_in_the_place_of_weights_is_not_waited_for(tmp_path: Path):
    make(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors is a folder or a device"):
        open_folder(tmp_path)


def test_a_folder_without_weights(tmp_path: Path):
    make(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        open_folder(tmp_path)
