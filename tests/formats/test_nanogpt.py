"""Checkpoints of nanoGPT: made here as its train.py lays them out, and computed here by its
published equations."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmctl.errors import InputError, UsageError
from llmctl.formats.nanogpt import NanoGpt
from llmctl.formats.open import open_folder, open_model
from llmctl.stages.import_model import import_model
from llmctl.workspace.artefacts import Workspace
from tests.foreign_models import learned

LETTERS = "\n !abcdefgh"
L, N, D, T = 2, 2, 16, 32
ARGUMENTS: dict[str, Any] = {
    "n_layer": L, "n_head": N, "n_embd": D, "block_size": T, "bias": True,
    "vocab_size": len(LETTERS), "dropout": 0.1,
}  # fmt: skip


def weights(*, bias: bool = True, vocab_size: int = len(LETTERS), tied: bool = True) -> Any:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    state = {"transformer.wte.weight": draw(vocab_size, D), "transformer.wpe.weight": draw(T, D)}
    for layer in range(L):
        for module, shape in {
            "ln_1": (D,), "attn.c_attn": (3 * D, D), "attn.c_proj": (D, D),
            "ln_2": (D,), "mlp.c_fc": (4 * D, D), "mlp.c_proj": (D, 4 * D),
        }.items():  # fmt: skip
            state[f"transformer.h.{layer}.{module}.weight"] = draw(*shape)
            if bias:
                state[f"transformer.h.{layer}.{module}.bias"] = draw(shape[0])
    state["transformer.ln_f.weight"] = draw(D)
    if bias:
        state["transformer.ln_f.bias"] = draw(D)
    embedding = state["transformer.wte.weight"]
    state["lm_head.weight"] = embedding if tied else draw(vocab_size, D)
    return state


def logits_of(state: dict[str, Tensor], ids_T: Tensor, *, exact: bool = True) -> Tensor:
    """nanoGPT's forward pass for one text, from its model.py's equations."""

    def part(x: Tensor, name: str) -> Tensor:
        y = x @ state[f"{name}.weight"].T
        return y + state.get(f"{name}.bias", torch.zeros(1))

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state.get(f"{name}.bias", torch.zeros(1))

    def gelu(x: Tensor) -> Tensor:
        if exact:
            return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x = state["transformer.wte.weight"][ids_T] + state["transformer.wpe.weight"][: len(ids_T)]
    later = torch.ones(len(ids_T), len(ids_T)).triu(1).bool()
    for layer in range(L):
        h = f"transformer.h.{layer}"
        qkv = part(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").split(D, -1)
        q, k, v = (each.view(len(ids_T), N, D // N).transpose(0, 1) for each in qkv)
        scores = (q @ k.mT / math.sqrt(D // N)).masked_fill(later, -math.inf).softmax(-1)
        x = x + part((scores @ v).transpose(0, 1).reshape(len(ids_T), D), f"{h}.attn.c_proj")
        x = x + part(gelu(part(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")), f"{h}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ state["lm_head.weight"].T


def save(folder: Path, state: Any = None, *, meta: bool = True, **arguments: Any) -> Path:
    """A checkpoint, with an optimizer's state beside it, and its characters."""
    folder.mkdir(exist_ok=True)
    state = weights() if state is None else state
    path = folder / "ckpt.pt"
    checkpoint = {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}},
                      "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "fused": True}]},
        "model_args": {**ARGUMENTS, **arguments},
        "iter_num": 250, "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "out_dir": "out", "compile": True},
    }  # fmt: skip
    torch.save(checkpoint, path)
    if meta:
        numbers = {letter: number for number, letter in enumerate(LETTERS)}
        told = {"vocab_size": len(LETTERS), "itos": dict(enumerate(LETTERS)), "stoi": numbers}
        (folder / "meta.pkl").write_bytes(pickle.dumps(told))
    return path


def ours(path: Path, ids: Tensor) -> Tensor:
    model = open_folder(path).causal_lm().eval()
    with torch.no_grad():
        found: Tensor = model.logits(model.body(ids[None]))[0]
    return found


IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 10, 0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_checkpoint_is_the_network_that_it_was_made_from(
    tmp_path: Path, bias: bool, tied: bool, prefix: str
):
    state = weights(bias=bias, tied=tied)
    path = save(tmp_path, {prefix + name: tensor for name, tensor in state.items()}, bias=bias)
    torch.testing.assert_close(ours(path, IDS), logits_of(state, IDS), atol=1e-5, rtol=1e-5)
    assert open_folder(tmp_path).config.tie_embeddings == tied


def test_one_of_before_biases_could_be_left_out_has_gpt2s_gelu(tmp_path: Path):
    state = weights()
    path = save(tmp_path)
    value = torch.load(path)
    del value["model_args"]["bias"]
    value["model"]["transformer.h.0.attn.bias"] = torch.ones(1, 1, T, T).tril()
    torch.save(value, path)
    expected = logits_of(state, IDS, exact=False)
    torch.testing.assert_close(ours(path, IDS), expected, atol=1e-5, rtol=1e-5)
    assert (expected - logits_of(state, IDS)).abs().max() > 1e-4


def test_transformers_computes_the_same_from_what_is_imported(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    state = weights(bias=False)
    path = save(tmp_path / "out", state, bias=False)
    place = Workspace(tmp_path / "workspace")
    run, _ = import_model(place, str(path), name="poet")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run.folder / "model").eval()
    ids = IDS[:4]
    for _ in range(8):  # greedily, by the equations above
        ids = torch.cat([ids, logits_of(state, ids)[-1].argmax()[None]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids[None]).logits[0], logits_of(state, ids), atol=1e-5,
                                   rtol=1e-5)  # fmt: skip
        written = theirs.generate(ids[None, :4], max_new_tokens=8, do_sample=False)
    assert written[0].tolist() == ids.tolist()
    model, _ = open_model(place, "poet")
    assert model.tokenizer.encode("abba!") == [3, 4, 4, 3, 2]
    assert model.tokenizer.decode([3, 4, 4, 3, 2]) == "abba!"
    with pytest.raises(InputError, match="no piece for the character 'z'"):
        model.tokenizer.encode("abz")


def test_gpt2s_tokenizer_beside_it_is_taken_and_rows_may_be_more(tmp_path: Path):
    tokenizer = learned("bpe")
    tokenizer.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(settings["model"]["vocab"]))
    merges = (" ".join(merge) for merge in settings["model"]["merges"])
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    for file in tmp_path.glob("*token*"):
        file.unlink()
    path = save(tmp_path, weights(vocab_size=320), meta=False, vocab_size=320)
    text = "the ship sails"
    assert open_folder(path).tokenizer.encode(text) == tokenizer.encode(text)
    assert open_folder(path).config.vocab_size == 320


def test_a_tokenizer_is_named_where_none_is_beside(tmp_path: Path):
    path = save(tmp_path / "out")
    (path.parent / "meta.pkl").rename(tmp_path / "meta.pkl")
    with pytest.raises(InputError, match=r"no tokenizer \(its data set was 'shakespeare_char'\)"):
        open_folder(path)
    place = Workspace(tmp_path / "workspace")
    run, _ = import_model(place, str(path.parent), tokenizer=str(tmp_path / "meta.pkl"))
    assert run.manifest.name == "out"
    assert open_model(place, "out")[0].tokenizer.encode("ha") == [10, 3]
    with pytest.raises(InputError, match="neither a tokenizer of the workspace nor a file"):
        import_model(place, str(path), tokenizer="nowhere")
    with pytest.raises(UsageError, match="--revision v1 is of a repository on the Hub"):
        import_model(place, str(path), revision="v1")
    with pytest.raises(UsageError, match="has its own; leave it out"):
        import_model(place, str(run.folder / "model"), tokenizer=str(tmp_path / "meta.pkl"))


class Program:
    """What a pickle may hold that isn't plain."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Program(), r"does more than hold a table \(STACK_GLOBAL\)|\(GLOBAL\)"),
        ({"stoi": {"a": Program()}}, "does more than hold a table"),
        ([1, 2], "no table stoi"),
        ({"stoi": {"a": 0, "b": 2}}, "its numbers are not 0, 1"),
        ({"stoi": {"ab": 0}}, "its pieces are not characters"),
        ({"stoi": {"\ud800": 0}}, "its pieces are not characters"),
        ({"stoi": [5]}, "no table stoi"),
        ({"stoi": 5}, "no table stoi"),
        ({"stoi": {letter: number for number, letter in enumerate("abc")}}, "has 3 pieces, and"),
        (b"", "it is damaged"),
        (pickle.dumps({"stoi": {"a": 0}})[:-4], "holds no characters' numbers"),
    ],
)
def test_a_meta_file_is_read_as_a_table_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, says: str
):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(value if isinstance(value, bytes) else pickle.dumps(value))
    with pytest.raises(InputError, match=says):
        open_folder(path)
    assert not Path("ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_whatever_protocol_a_meta_file_has(tmp_path: Path, protocol: int):
    path = save(tmp_path)
    meta = pickle.loads((tmp_path / "meta.pkl").read_bytes())
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
    assert open_folder(path).tokenizer.encode("\nhe") == [0, 10, 7]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n_kv_head": 1}, "model_args has 'n_kv_head', and what it changes"),
        ({"n_layer": None}, "no whole number for n_layer"),
        ({"n_layer": 3}, r"there is no tensor transformer\.h\.2"),
        ({"n_layer": 1}, r"the tensor transformer\.h\.1\S+ has no place"),
        ({"n_head": 3}, "not divisible"),
        ({"block_size": 33}, "wpe.weight is 32 × 16, not 33 × 16"),
        ({"block_size": 10**7}, "max_positions 10,000,000, and the largest side"),
        ({"bias": "yes"}, "bias is neither true nor false"),
        ({"bias": False}, "bias is false, and there is a tensor transformer.h.0.ln_1.bias"),
    ],
)
def test_arguments_that_are_not_the_models(tmp_path: Path, arguments: Any, says: str):
    path = save(tmp_path, **arguments)
    with pytest.raises(InputError, match=says):
        open_folder(path)


def test_a_file_that_is_damaged_or_holds_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"ckpt\.pt (can't be read as|is damaged)"):
        open_folder(path)
    for value, says in (
        ({"model": weights(), "model_args": ARGUMENTS, "x": Program()}, "holds more than tensors"),
        (weights(), "is no checkpoint of nanoGPT"),
        ({"model": {"a": 3}, "model_args": ARGUMENTS}, "holds something at 'a' that is no tensor"),
        ({"model": [], "model_args": ARGUMENTS}, "holds no tensors by name"),
        ({"model": {"a": torch.ones(2, device="meta")}, "model_args": ARGUMENTS}, "no numbers"),
        ({"model": {"a": torch.ones(2), "_orig_mod.a": torch.ones(2)}, "model_args": ARGUMENTS},
         "tensors twice, before and after torch.compile"),
        ({"model": {}, "model_args": []}, "model_args is no table"),
    ):  # fmt: skip
        torch.save(value, path)
        with pytest.raises(InputError, match=says):
            open_folder(path)
    assert not Path("ran").exists()
    state = weights()
    state["transformer.ln_f.weight"][3] = float("nan")
    with pytest.raises(InputError, match=r"ln_f\.weight has numbers that are not finite"):
        open_folder(save(tmp_path, state)).causal_lm()
    with pytest.raises(InputError, match="not written as nanoGPT's"):
        NanoGpt().save(tmp_path, None, learned("bpe"), {})
