"""Virtual tokens: those of words are as the words themselves, in packed rows, behind padding, in a
cache and in scoring as in a row of one text. fp32 sums in another order: 1e-5."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmctl.inference.decoder import CausalDecoder, SourceDecoder
from llmctl.inference.scoring import CausalScorer, Query
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.layers.packing import PackedSequences
from llmctl.models.layers.virtual_tokens import VirtualShape, VirtualTokens, recorded

V, POSITIONS = 50, 64
WORDS = [7, 3, 11, 7]
MORE: dict[str, dict[str, Any]] = {"llama": {"num_kv_heads": 1}, "mistral": {"sliding_window": 3},
                                "gemma3": {"sliding_window": 3, "global_every": 2}}  # fmt: skip
DECODERS = ["gpt", "llama", "nanochat", "mistral", "gemma3"]
ENCODERS = ["bert", "modernbert", "electra", "roberta", "distilbert"]


def body_of(name: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    spec = ARCHITECTURES[name]
    shape = {"num_layers": 3, "hidden_size": 32, "num_heads": 2, **MORE.get(name, {}), **fields}
    body = spec.build(spec.config(vocab_size=V, max_positions=POSITIONS, **shape))
    with torch.no_grad():  # fresh norms and zeros would hide mistakes
        for parameter in body.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return body.eval()


def put_words(body: Any, kind: str) -> None:
    """Virtual tokens that are what the words are to the network."""
    if kind == "prompt":
        virtual = VirtualTokens(VirtualShape(len(WORDS), body.embedding().weight.shape[1]))
        virtual.embeddings.data = body.embedding()(torch.tensor(WORDS)).detach()  # type: ignore[union-attr]
    else:
        start = recorded(body, torch.tensor([WORDS]))
        L, _, K, P, H = start.shape
        virtual = VirtualTokens(VirtualShape(P, layers=L, heads=K, head_size=H))
        virtual.keys_values.data = start  # type: ignore[union-attr]
    body.put_before_texts(virtual)


def random_virtual(body: Any, kind: str) -> None:
    put_words(body, kind)
    torch.manual_seed(3)
    for parameter in body.virtual_tokens.parameters():
        parameter.data.normal_(0.0, 0.5)


def texts(*lengths: int) -> list[list[int]]:
    generator = np.random.default_rng(1)
    return [generator.integers(1, V, length).tolist() for length in lengths]


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_virtual_tokens_of_words_are_as_the_words(name: str, kind: str):
    body, (text,) = body_of(name), texts(9)
    expected = body(torch.tensor([WORDS + text]))[:, len(WORDS) :]
    put_words(body, kind)
    torch.testing.assert_close(body(torch.tensor([text])), expected, rtol=1e-5, atol=1e-5)
    assert body.longest_text == POSITIONS - len(WORDS)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_a_soft_prompt_of_words_is_as_the_words_to_a_classifier(name: str):
    model, (text,) = Classifier(body_of(name), 3).eval(), texts(12)
    whole = torch.tensor([WORDS + text])
    expected = model(whole, torch.zeros_like(whole), torch.ones_like(whole, dtype=torch.bool))
    put_words(model.body, "prompt")
    ids = torch.tensor([text])
    found = model(ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def packed_rows(rows: list[list[list[int]]]) -> tuple[Tensor, PackedSequences, Tensor]:
    longest = max(sum(map(len, row)) for row in rows)
    ids, numbers, positions = (np.zeros((len(rows), longest), dtype=np.int64) for _ in range(3))
    for b, row in enumerate(rows):
        t = 0
        for number, text in enumerate(row, 1):
            stop = t + len(text)
            ids[b, t:stop], numbers[b, t:stop] = text, number
            positions[b, t:stop] = np.arange(len(text))
            t = stop
    return torch.from_numpy(ids), PackedSequences.of(numbers), torch.from_numpy(positions)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
@torch.no_grad()
def test_packed_texts_have_their_own_virtual_tokens(name: str, kind: str):
    body = body_of(name, **({"local_attention": 4} if name == "modernbert" else {}))
    random_virtual(body, kind)
    one, two, three, four, five = texts(9, 3, 6, 5, 1)
    rows = [[one, two], [three], [four, five, two]]
    ids, packed, positions = packed_rows(rows)
    before = (packed,) if body.kind == "decoder" else (None, packed)
    found = body(ids, *before, positions)
    for b, row in enumerate(rows):
        t = 0
        for text in row:
            alone = body(torch.tensor([text]))[0]
            torch.testing.assert_close(found[b, t : t + len(text)], alone, rtol=1e-5, atol=1e-5)
            t += len(text)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_padding_changes_nothing(name: str, kind: str):
    body, (text,) = body_of(name), texts(7)
    random_virtual(body, kind)
    padded = torch.tensor([text + [0] * 5])
    mask = torch.arange(12)[None] < 7
    alone = body(torch.tensor([text]))
    torch.testing.assert_close(body(padded, None, mask)[:, :7], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_cached_and_uncached_agree(name: str, kind: str):
    """Prompts of different lengths, rows that are chosen, tokens that are forgotten."""
    model = CausalLM(body_of(name)).eval()
    random_virtual(model.body, kind)
    decoder = CausalDecoder(model)
    assert decoder.max_positions == POSITIONS - len(WORDS)
    rows = texts(9, 4, 6)

    def reread(row: list[int]) -> Tensor:
        return model.logits(model.body(torch.tensor([row])))[0]

    found = decoder.prefill(rows, 8)
    for row, logits in zip(rows, found, strict=True):
        torch.testing.assert_close(logits, reread(row)[-1], rtol=1e-5, atol=1e-5)
    decoder.select(torch.tensor([2, 0, 0]))
    rows = [rows[2], rows[0], rows[0]]
    more = [[5, 6], [7, 8], [9, 10]]
    found = decoder.extend(torch.tensor(more))
    for row, new, logits in zip(rows, more, found, strict=True):
        torch.testing.assert_close(logits, reread(row + new)[-2:], rtol=1e-5, atol=1e-5)
    decoder.prefill(rows[:1], 8)
    decoder.extend(torch.tensor([[5, 6]]))
    decoder.truncate(len(rows[0]) - 1)
    found = decoder.extend(torch.tensor([[3]]))
    expected = reread([*rows[0][:-1], 3])[-1:]
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_an_encoder_decoder_writes_behind_them(name: str, kind: str):
    model = EncoderDecoderLM(body_of(name)).eval()
    random_virtual(model.body, kind)
    decoder = SourceDecoder(model, start=[1])
    sources, targets = texts(8, 5), [[1, 4, 9], [1, 2, 3]]
    decoder.begin(sources)
    decoder.prefill([target[:1] for target in targets], 4)
    found = decoder.extend(torch.tensor([target[1:] for target in targets]))
    for source, target, logits in zip(sources, targets, found, strict=True):
        hidden = model(torch.tensor([source]), None, torch.tensor([target]))
        torch.testing.assert_close(logits, model.logits(hidden)[0, 1:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_soft_prompt_of_words_is_as_the_words_to_an_encoder_decoder():
    body = body_of("bart")
    (source,), target = texts(8), torch.tensor([[1, 4, 9]])
    expected = body(target, body.read(torch.tensor([WORDS + source])))
    put_words(body, "prompt")
    found = body(target, body.read(torch.tensor([source])))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_continuations_that_share_a_context_are_scored_as_alone(kind: str):
    model = CausalLM(body_of("llama")).eval()
    random_virtual(model.body, kind)
    scorer = CausalScorer(model)
    context, one, two = map(np.asarray, texts(5, 3, 4))
    together = next(scorer.score([Query(context, [one, two])])).scores
    for continuation, score in zip((one, two), together, strict=True):
        alone = next(scorer.score([Query(context, [continuation])])).scores[0]
        np.testing.assert_allclose(score.log_probs, alone.log_probs, rtol=1e-5, atol=1e-5)


def test_recording_leaves_the_network_as_it_was():
    body = body_of("gpt")
    body.train()
    recorded(body, torch.tensor([WORDS]))
    assert body.training
    assert body.virtual_tokens is None
    assert not any("virtual" in name for name in body.state_dict())
