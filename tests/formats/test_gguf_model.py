"""Models to GGUF files and back, and as transformers reads the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.gguf.blocks import BLOCK_KINDS
from llmctl.formats.gguf.file import GgufFile, write_gguf
from llmctl.formats.gguf.writing import write_gguf_model
from llmctl.formats.open import open_folder
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.embed import Embedder
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.tokenizers import Tokenizer, learn
from llmctl.tokenizers.gguf_values import READ_BACK_TEXTS, tokenizer_values
from llmctl.tokenizers.gguf_vocabulary import read_tokenizer
from tests.foreign_models import TEXTS, learned

SMALL = {"num_layers": 2, "hidden_size": 64, "num_heads": 4, "max_positions": 64}
KIN = {
    "gpt": {},
    "llama": {"num_kv_heads": 2},
    "mistral": {"num_kv_heads": 2, "tie_embeddings": True},
    "qwen2": {"tie_embeddings": True},
    "llama3": {
        "rope_type": "llama3",
        "rope_factor": 8.0,
        "rope_original_positions": 8192,
        "rope_theta": 500000.0,
    },
    "linear": {"rope_type": "linear", "rope_factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_factor": 4.0, "rope_original_positions": 32},
    "qwen3": {"num_kv_heads": 1, "head_size": 128},
    "smollm3": {"num_layers": 4, "tie_embeddings": True},
    # As wide as published heads: transformers takes 256 for the scale, whatever the file says.
    "gemma3": {"num_layers": 7, "head_size": 256, "num_kv_heads": 1, "sliding_window": 4},
    "gemma3-scaled": {"rope_type": "linear", "rope_factor": 8.0},
}


def body_of(arch: str, tokenizer: Tokenizer, **fields: Any) -> Any:
    spec = ARCHITECTURES.get(arch.partition("-")[0], ARCHITECTURES["llama"])
    torch.manual_seed(0)
    config = {"vocab_size": tokenizer.vocab_size + 3, **SMALL, **fields}
    body = spec.build(spec.config.model_validate(config))
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return body.eval()


def written(path: Path, model: Any, tokenizer: Tokenizer, **extra: Any) -> Pretrained:
    write_gguf_model(path, model, tokenizer, extra)
    return open_folder(path)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.body(ids))


IDS = torch.tensor([[5, 9, 2, 30, 77, 140, 3]])


@pytest.mark.parametrize("arch", KIN)
def test_a_decoder_comes_back_as_it_was(tmp_path: Path, arch: str):
    tokenizer = learned("bpe")
    model = CausalLM(body_of(arch, tokenizer, **KIN[arch])).eval()
    back = written(tmp_path / "m.gguf", model, tokenizer, quantisation="f32")
    assert back.kind == "causal_lm"
    state = back.causal_lm().state_dict()
    for name, tensor in model.state_dict().items():
        if "gemma" in arch and "norm" in name:  # kept as 1 + w
            assert torch.equal(1 + tensor, 1 + state[name]), name
        else:
            assert torch.equal(tensor, state[name]), name
    assert torch.equal(logits(back.causal_lm().eval(), IDS), logits(model, IDS))


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3"])  # what it reads of ours
def test_transformers_reads_the_same_decoder(tmp_path: Path, arch: str):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    tokenizer = learned("bpe")
    model = CausalLM(body_of(arch, tokenizer, **KIN[arch])).eval()
    written(tmp_path / "m.gguf", model, tokenizer, quantisation="f32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        expected = theirs(IDS).logits
    torch.testing.assert_close(logits(model, IDS), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("quantisation", "bound"), [("f16", 0.02), ("q8_0", 0.2), ("q4_0", 1.5)])
def test_fewer_bits_change_little(tmp_path: Path, quantisation: str, bound: float):
    tokenizer = learned("bpe")
    model = CausalLM(body_of("llama", tokenizer)).eval()
    back = written(tmp_path / "m.gguf", model, tokenizer, quantisation=quantisation)
    exact, rounded = logits(model, IDS), logits(back.causal_lm().eval(), IDS)
    difference = float((exact - rounded).abs().max() / exact.std())
    assert 0 < difference < bound


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_embedder_comes_back(tmp_path: Path, pooling: Any):
    tokenizer = learned("wordpiece")
    model = Embedder(body_of("bert", tokenizer, vocab_size=tokenizer.vocab_size), pooling)
    back = written(tmp_path / "m.gguf", model, tokenizer, quantisation="f32", llmctl_max_length=40)
    assert (back.kind, back.max_length) == ("embed", 40)
    again = back.embedder()
    assert again.pooling == pooling
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())


def test_a_classifier_keeps_its_labels(tmp_path: Path):
    tokenizer = learned("wordpiece")
    body = body_of("bert", tokenizer, vocab_size=tokenizer.vocab_size)
    labels = {"0": "sea", "1": "land", "2": "air"}
    back = written(tmp_path / "m.gguf", Classifier(body, 3), tokenizer, id2label=labels)
    assert back.labels == ["sea", "land", "air"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"activation": "relu"}, "activation_function"),
        ({"scale_by_layer": True}, "scale_attn_by_inverse_layer_idx"),
        ({"scale_by_width": False}, "scale_attn_weights"),
        ({"no_rope_every": 3}, "no_rope_layer_interval"),
        ({"global_every": 2}, "sliding_window_pattern"),
        ({"query_scalar": 99.0}, "query_pre_attn_scalar"),
        ({"local_rope_theta": 99.0}, "rope_local_base_freq"),
        ({"logit_cap": 30.0}, "final_logit_softcapping"),
    ],
)
def test_what_a_file_cannot_say_is_refused(tmp_path: Path, fields: Any, field: str):
    kinds = ("gpt", "smollm3", "gemma3")
    arch = next(a for a in kinds if fields.keys() <= ARCHITECTURES[a].config.model_fields.keys())
    model = CausalLM(body_of(arch, learned("bpe"), **fields))
    with pytest.raises(InputError, match=f"^{field} is .*GGUF file of the architecture"):
        written(tmp_path / "m.gguf", model, learned("bpe"))
    assert not (tmp_path / "m.gguf").exists()


def test_models_that_no_file_holds_are_refused(tmp_path: Path):
    wordpiece = learned("wordpiece")
    masked = MaskedLM(body_of("bert", wordpiece, vocab_size=wordpiece.vocab_size))
    with pytest.raises(InputError, match="can't hold a masked language model"):
        written(tmp_path / "m.gguf", masked, wordpiece)
    nanochat = CausalLM(body_of("nanochat", learned("bpe")))
    with pytest.raises(InputError, match="can't hold a nanochat"):
        written(tmp_path / "m.gguf", nanochat, learned("bpe"))


@pytest.mark.parametrize("kind", ["bpe", "gpt2", "sentencepiece-bpe", "wordpiece", "cased"])
def test_a_tokenizer_comes_back_with_its_ids(kind: str):
    if kind == "gpt2":
        tokenizer = learn("bpe", TEXTS * 3, 290, exact=False, split_pattern="gpt2")
    elif kind == "cased":
        tokenizer = learn("wordpiece", TEXTS * 3, 60, exact=False, cased=True)
    elif kind == "sentencepiece-bpe":
        tokenizer = learn(kind, TEXTS * 3, 320, exact=False)
    else:
        tokenizer = learned(kind)
    rows = tokenizer.vocab_size + (0 if tokenizer.kind == "wordpiece" else 5)
    again = read_tokenizer(Path("m.gguf"), tokenizer_values(tokenizer, rows), rows)
    for text in (*READ_BACK_TEXTS, *TEXTS):
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert again.layout == tokenizer.layout
    assert again.special == tokenizer.special
    assert again.chat_template == tokenizer.chat_template


def test_a_llamas_sentencepiece_is_read_as_transformers_has_it():
    """Pieces with scores: transformers makes the same merges of them."""
    transformers = pytest.importorskip("transformers")
    pieces = [*"▁abcd", "ab", "▁a", "cd", "▁ab", "abcd", "▁abcd"]
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [-20.0] * 5 + [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    values = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": np.array(scores, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(pieces)),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    ours = read_tokenizer(Path("m.gguf"), values, len(texts))
    vocabulary = {piece: number for number, piece in enumerate(texts)}
    by_score = sorted(pieces[5:], key=lambda piece: -scores[vocabulary[piece]])
    merges = [
        (piece[:cut], piece[cut:])
        for piece in by_score
        for cut in range(1, len(piece))
        if {piece[:cut], piece[cut:]} <= vocabulary.keys()
    ]
    theirs = transformers.LlamaTokenizer(vocab=vocabulary, merges=merges)
    for text in ("abcd", "ab cd  d", "x abcdabcd\n", "日"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ours.encode(text)) == text
    assert ours.layout.before == (1,)


@pytest.mark.parametrize("kind", ["unigram", "characters"])
def test_a_tokenizer_that_no_file_holds_is_refused(kind: str):
    tokenizer = learn(kind, TEXTS * 3, 300, exact=False)
    with pytest.raises(InputError, match=f"whose kind is {kind}"):
        tokenizer_values(tokenizer, tokenizer.vocab_size)


def changed(path: Path, **values: Any) -> Path:
    """A small Llama's file with other values in its head; None takes one out."""
    tokenizer = learned("bpe")
    model = CausalLM(body_of("llama", tokenizer))
    write_gguf_model(path, model, tokenizer, {"quantisation": "f32"})
    file = GgufFile(path)
    head = {**file.head, **{name.replace("__", "."): v for name, v in values.items()}}
    head = {name: value for name, value in head.items() if value is not None}
    tensors = {name: file[name].clone() for name in file}
    del file
    write_gguf(path, head, tensors, dict.fromkeys(tensors, BLOCK_KINDS["F32"]))
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"general__architecture": "llamas"}, r"'llamas' is not supported \(did you mean 'llama'"),
        ({"general__type": "adapter"}, "general.type is 'adapter'"),
        ({"llama__rope__scaling__type": "yarn"}, "rope_scaling.factor is null"),
        ({"llama__rope__scaling__type": "longrope"}, "'longrope' are not supported"),
        ({"llama__rope__scaling__attn_factor": 0.5}, "llama.rope.scaling.attn_factor is 0.5"),
        ({"llama__attention__scale": 0.5}, "llama.attention.scale is 0.5"),
        ({"llama__novelty": 3}, "llama.novelty is 3, and what it changes"),
        ({"llama__expert_count": 8}, "llama.expert_count is 8"),
        ({"llama__rope__dimension_count": 8}, "llama.rope.dimension_count is 8: only 16"),
        ({"llama__block_count": 3}, "there is no tensor blk.2"),
        ({"llama__block_count": 1}, "has no place in it"),
        ({"llama__embedding_length": None}, "there is no field hidden_size"),
        ({"tokenizer__ggml__pre": "poro-chat"}, "tokenizer.ggml.pre is 'poro-chat'"),
        ({"tokenizer__ggml__pre": None}, "tokenizer.ggml.pre is None"),
        ({"tokenizer__ggml__model": "t5"}, "tokenizer.ggml.model is 't5'"),
        ({"tokenizer__ggml__merges": ["a"]}, "merge 0 is 'a'"),
        ({"tokenizer__ggml__bos_token_id": 9999}, "bos_token_id is 9999"),
    ],
)  # fmt: skip
def test_a_head_that_is_not_understood_is_refused(tmp_path: Path, values: Any, message: str):
    path = changed(tmp_path / "m.gguf", **values)
    with pytest.raises(InputError, match=message):
        open_folder(path)


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_a_value_of_another_type_is_refused_or_changes_nothing_that_is_read(
    tmp_path: Path, arch: str
):
    """Each value of a head in turn; what is left after opening are names that nothing reads."""
    path, tokenizer = tmp_path / "m.gguf", learned("bpe")
    write_gguf_model(path, CausalLM(body_of(arch, tokenizer)), tokenizer, {"quantisation": "f32"})
    file = GgufFile(path)
    head, tensors = dict(file.head), {name: file[name].clone() for name in file}
    kinds, refused = dict.fromkeys(tensors, BLOCK_KINDS["F32"]), set()
    for name in head:
        for value in (1.5, np.array([1, 2, 3], dtype=np.int32)):
            write_gguf(tmp_path / "x.gguf", {**head, name: value}, tensors, kinds)
            try:
                open_folder(tmp_path / "x.gguf")
            except InputError:
                refused.add(name)
    assert {name for name in head if name.startswith(("tokenizer.", f"{arch}."))} <= refused | {
        "tokenizer.chat_template"
    }


def test_fields_of_the_head_reach_the_network(tmp_path: Path):
    path = changed(
        tmp_path / "m.gguf",
        llama__rope__freq_base=5e5,
        llama__attention__layer_norm_rms_epsilon=3e-6,
        llama__context_length=128,
    )
    config = open_folder(path).config
    assert (config.rope_theta, config.norm_epsilon, config.max_positions) == (5e5, 3e-6, 128)
