"""Files of llama2.c: written here as its export.py lays them out, read as the same network."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.errors import InputError
from llmctl.formats.open import open_folder
from tests.foreign_models import SHAPE

D, F, L, N, K, T = 16, 24, 2, 2, 1, 32
LETTERS = [" ", "a", "b", "c", "ab", " a", " ab", "abc"]
PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{n:02X}>" for n in range(256)), *LETTERS]
V = len(PIECES)


def interleaved(weight: torch.Tensor, heads: int) -> np.ndarray:
    """Rows of each head as Meta has them: the two that are turned together side by side."""
    rows = weight.numpy().reshape(heads, 2, -1, weight.shape[1])
    return np.stack([rows[:, 0], rows[:, 1]], axis=2).reshape(weight.shape)


def save(path: Path, *, own_output: bool = False, head: Any = None) -> Any:
    """A Llama of transformers' as such a file; returns it."""
    import transformers

    torch.manual_seed(0)
    shape = {**SHAPE, "num_key_value_heads": K, "max_position_embeddings": T, "vocab_size": V}
    config = transformers.LlamaConfig(
        **shape, rms_norm_eps=1e-5, tie_word_embeddings=not own_output
    )
    model = transformers.LlamaForCausalLM(config).eval()
    state = model.state_dict()
    layer = "model.layers.{}."
    parts = [
        ("input_layernorm", None), ("self_attn.q_proj", N), ("self_attn.k_proj", K),
        ("self_attn.v_proj", None), ("self_attn.o_proj", None), ("post_attention_layernorm", None),
        ("mlp.gate_proj", None), ("mlp.down_proj", None), ("mlp.up_proj", None),
    ]  # fmt: skip
    tables = [state["model.embed_tokens.weight"].numpy()]
    for name, heads in parts:
        for number in range(L):
            weight = state[f"{layer.format(number)}{name}.weight"]
            tables.append(weight.numpy() if heads is None else interleaved(weight, heads))
    tables += [state["model.norm.weight"].numpy(), np.zeros((T, D // N))]
    if own_output:
        tables.append(state["lm_head.weight"].numpy())
    numbers = head or (D, F, L, N, K, -V if own_output else V, T)
    data = b"".join(np.asarray(table, dtype="<f4").tobytes() for table in tables)
    path.write_bytes(struct.pack("<7i", *numbers) + data)
    scores = [0.0] * (V - len(LETTERS)) + [-9.0] * 4 + [-1.0, -2.0, -3.0, -4.0]
    pieces = (
        struct.pack("<fi", score, len(piece)) + piece.encode()
        for piece, score in zip(PIECES, scores, strict=True)
    )
    (path.parent / "tokenizer.bin").write_bytes(struct.pack("<i", 7) + b"".join(pieces))
    return model


@pytest.mark.parametrize("own_output", [False, True])
def test_a_file_is_the_network_that_it_was_made_from(tmp_path: Path, own_output: bool):
    theirs = save(tmp_path / "m.bin", own_output=own_output)
    ids = torch.tensor([[1, 260, 265, 262, 5, 263]])
    model = open_folder(tmp_path / "m.bin").causal_lm().eval()
    with torch.no_grad():
        expected, found = theirs(ids).logits, model.logits(model.body(ids))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_pieces_are_merged_by_their_scores_behind_a_space(tmp_path: Path):
    save(tmp_path / "m.bin")
    tokenizer = open_folder(tmp_path / "m.bin").tokenizer
    place = {piece: number for number, piece in enumerate(PIECES)}
    # As run.c: a space first; of "ab" (-1), " a" (-2), " ab" (-3) and "abc" (-4) the best first.
    assert tokenizer.encode("ab") == [place[" ab"]]
    assert tokenizer.encode("abc a") == [place[" ab"], place["c"], place[" a"]]
    assert tokenizer.encode("é") == [place[" "], place["<0xC3>"], place["<0xA9>"]]
    assert tokenizer.decode(tokenizer.encode("abc é a")) == "abc é a"
    assert tokenizer.layout.before == (1,)


def test_a_file_of_another_size_is_not_taken_for_one(tmp_path: Path):
    save(tmp_path / "m.bin", head=(D, F, L + 1, N, K, V, T))
    with pytest.raises(InputError, match="has no config"):
        open_folder(tmp_path / "m.bin")


def test_a_tokenizer_must_be_beside_it(tmp_path: Path):
    save(tmp_path / "m.bin")
    data = (tmp_path / "tokenizer.bin").read_bytes()
    (tmp_path / "tokenizer.bin").write_bytes(data[:-3])
    with pytest.raises(InputError, match="ends within piece 266"):
        open_folder(tmp_path / "m.bin")
    (tmp_path / "tokenizer.bin").write_bytes(data + b"x")
    with pytest.raises(InputError, match="has more than the 267 pieces"):
        open_folder(tmp_path / "m.bin")
    (tmp_path / "tokenizer.bin").unlink()
    with pytest.raises(InputError, match=r"needs its tokenizer beside it.*there is none"):
        open_folder(tmp_path / "m.bin")
