"""Writing from sources: every method, with its caches, as the model read anew says."""

from __future__ import annotations

import pytest
import torch

from llmctl.inference.decoder import CausalDecoder, SourceDecoder
from llmctl.inference.decoding import Completion
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.seq2seq import Seq2Seq, Seq2SeqShape, attach
from tests.small_decoders import ENDS, PROMPTS, TOKENIZER, make_model, write

START = TOKENIZER.special["bos"]


def make(arch: str, **shape: object) -> Seq2Seq:
    model = attach(make_model(arch), Seq2SeqShape(**shape), ARCHITECTURES[arch])
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "cross_attention" in name or name == "start.weight":
                parameter += 0.4 * torch.randn(parameter.shape)
    return model.eval()


def reread(model: Seq2Seq, source: list[int], target: list[int]) -> torch.Tensor:
    """Logits behind a target's beginning, without a cache or a batch."""
    with torch.no_grad():
        read = model.read(torch.tensor([source]), torch.tensor([len(source)]))
        hidden = model.decoder.body(torch.tensor([[START, *target]]), source=read)
        return model.decoder.logits(hidden[0, -1])


def ids(answers: list[list[Completion]]) -> list[list[list[int]]]:
    return [[list(completion.ids) for completion in found] for found in answers]


ARCHES = pytest.mark.parametrize("arch", ["gpt", "llama", "nanochat"])


@ARCHES
@pytest.mark.parametrize("cross_attention", [True, False])
def test_greedy_writes_what_rereading_says(arch: str, cross_attention: bool):
    model = make(arch, cross_attention=cross_attention)
    answers = write(SourceDecoder(model, start=[START]), max_new_tokens=8)
    assert len({tuple(found[0].ids) for found in answers}) > 1
    for source, (completion,) in zip(PROMPTS, answers, strict=True):
        target: list[int] = []
        for token, log_prob in zip(completion.ids, completion.log_probs, strict=True):
            logits = reread(model, source, target)
            assert token == int(logits.argmax())
            assert log_prob == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)
            target.append(token)
        assert len(target) == 8 or target[-1] in ENDS


@ARCHES
@pytest.mark.parametrize(
    "fields",
    [
        {"num_beams": 3, "num_samples": 2, "length_penalty": 1.2},
        {"temperature": 1.0, "num_samples": 3, "seed": 4},
        {"top_p": 0.8, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"penalty_alpha": 0.5, "top_k": 3},
    ],
    ids=str,
)
def test_a_batch_writes_as_each_source_alone(arch: str, fields: dict[str, object]):
    decoder = SourceDecoder(make(arch), start=[START])
    together = ids(write(decoder, max_new_tokens=8, **fields))
    alone = ids(write(decoder, max_new_tokens=8, batch_size=1, **fields))
    assert together == alone


def test_beams_are_the_best_of_all_texts():
    """Width enough for every text of three tokens: the best is that of exhaustive scoring."""
    model = make("gpt")
    decoder = SourceDecoder(model, start=[START])
    (found,) = write(
        decoder, PROMPTS[:1], max_new_tokens=2, num_beams=V_SQUARED, length_penalty=0.0
    )
    best = (-float("inf"), [0])
    first = reread(model, PROMPTS[0], []).log_softmax(-1)
    for token in range(len(first)):
        if token in ENDS:
            best = max(best, (float(first[token]), [token]))
            continue
        second = reread(model, PROMPTS[0], [token]).log_softmax(-1)
        value, place = (first[token] + second).max(-1)
        best = max(best, (float(value), [token, int(place)]))
    assert list(found[0].ids) == best[1]
    assert found[0].score == pytest.approx(best[0], abs=1e-4)


V_SQUARED = TOKENIZER.vocab_size**2


@pytest.mark.parametrize("draft_seed", [0, 5])
def test_speculative_decoding_is_greedy(draft_seed: int):
    model = make("llama")
    plain = ids(write(SourceDecoder(model, start=[START]), max_new_tokens=10))
    drafts = [
        SourceDecoder(make("gpt", decoder_layers=1), start=[START]),
        CausalDecoder(make_model(seed=draft_seed)),
    ]
    for draft in drafts:
        found = write(SourceDecoder(model, start=[START]), draft=draft, max_new_tokens=10)
        assert ids(found) == plain
