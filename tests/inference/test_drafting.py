"""Tokens that are guessed ahead in an engine: the texts are those that come without."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from llmctl.errors import UsageError
from llmctl.inference.decoder import CausalDecoder, DecoderRunner
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig
from llmctl.inference.engine import Engine, EngineConfig, EngineRequest, Token, scheduler
from llmctl.inference.engine.drafting import repeated
from llmctl.inference.weights import WeightType, prepare
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.layers.sequences import KV_BLOCK
from tests.small_decoders import PROMPTS, TOKENIZER, Letters, V, make_model, write

LONG = [[(7 * n + start) % V for n in range(length)] for start, length in enumerate((40, 75, 130))]
REPEATING = [TOKENIZER.encode(text) for text in ("abc abc abc ab", "a big cab a big cab a b")]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalties": {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.3},
    "bans": {"bad_words": ["a", "b c"], "no_repeat_ngram_size": 3, "min_new_tokens": 6},
    "bias": {"logit_bias": {5: 1.5, 7: -2.0}, "stop": ["ab", "e"], "stop_token_ids": [9]},
}


def engine(model: CausalLM, draft: CausalLM | DecoderRunner | None = None, **fields: Any) -> Engine:
    smaller = CausalDecoder(draft) if isinstance(draft, CausalLM) else draft
    return Engine(CausalDecoder(model), EngineConfig(**fields), draft=smaller)


def rules(**fields: Any) -> CompiledSamplingParams:
    return CompiledSamplingParams(GenerationConfig(**{"max_new_tokens": 24, **fields}), TOKENIZER)


def plain(found: Sequence[Sequence[Any]]) -> list[Any]:
    return [(one.prompt, one.sample, one.ids, one.text, one.finish) for row in found for one in row]


def like(model: CausalLM, spread: float = 0.3) -> CausalLM:
    """A model that is often right about another's next token."""
    import copy

    other = copy.deepcopy(model)
    assert other.output is not None
    with torch.no_grad():
        noise = torch.randn(V, 32, generator=torch.Generator().manual_seed(0))
        other.output.weight += spread * noise
    return other


@given(st.lists(st.integers(0, 3), min_size=1, max_size=24), st.integers(1, 4), st.integers(0, 5))
def test_what_is_looked_up_is_what_a_search_finds(ids: list[int], longest: int, count: int):
    expected: list[int] = []
    for size in range(longest, min(longest, 2) - 1, -1):
        places = [n for n in range(len(ids) - size) if ids[n : n + size] == ids[len(ids) - size :]]
        if places and size < len(ids):
            text = list(ids)
            while len(text) < len(ids) + count:
                text.append(text[places[-1] + size + len(text) - len(ids)])
            expected = text[len(ids) :]
            break
    assert repeated(array("i", ids), longest, count) == expected


@pytest.mark.parametrize(
    ("arch", "shape", "way"),
    [
        *(("llama", {}, way) for way in WAYS),
        ("mistral", {"sliding_window": 5}, "greedy"),
        ("gpt", {}, "bans"),
    ],
)
def test_texts_are_those_without_guesses(arch: str, shape: dict[str, Any], way: str):
    model = make_model(arch, max_positions=200, **shape)
    prompts = [*PROMPTS[:2], *REPEATING, LONG[1]]
    fields = {"max_new_tokens": 24, **WAYS[way]}
    expected = write(model, prompts, **fields)
    kept = 0
    for draft, looked_up in ((None, 3), (like(model), None), (make_model(seed=9), None)):
        guessing = engine(model, draft, prompt_lookup=looked_up, draft_tokens=3)
        found = list(guessing.run(prompts, rules(**fields)))
        assert plain(found) == plain(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours[0].log_probs == pytest.approx(theirs[0].log_probs, abs=1e-4)
        kept += sum(guessing.accepted)
        assert sum(one.accepted for (one,) in found) == sum(guessing.accepted)
        assert sum(one.drafted for (one,) in found) == guessing.drafted >= guessing.drafts
    assert kept


def test_what_is_drawn_with_lookups_is_what_is_drawn_without():
    """A guess without a chance of its own is kept where the same number draws it."""
    model = make_model("llama", max_positions=200)
    fields = {"temperature": 0.8, "top_p": 0.95, "num_samples": 4, "seed": 11}
    prompts = [*REPEATING, *PROMPTS]
    guessing = engine(model, prompt_lookup=3)
    found = list(guessing.run(prompts, rules(**fields)))
    assert plain(found) == plain(write(model, prompts, max_new_tokens=24, **fields))
    assert sum(guessing.accepted) > 10


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_drawn_with_a_draft_is_that_of_one_row(seed: int):
    """Whose distribution is tested (test_generation); alone and among others alike."""
    model = make_model("llama", max_positions=200)
    draft = like(model)
    fields = {"temperature": 1.0, "top_k": 8, "seed": seed, "max_new_tokens": 24}
    prompts = [*PROMPTS[:4], LONG[2]]
    expected = write(model, prompts, draft=draft, draft_tokens=3, **fields)
    guessing = engine(model, draft, draft_tokens=3)
    found = list(guessing.run(prompts, rules(**fields)))
    assert plain(found) == plain(expected)
    assert [one.drafted for (one,) in found] == [one.drafted for (one,) in expected]
    assert [one.accepted for (one,) in found] == [one.accepted for (one,) in expected]
    assert plain(found) != plain(write(model, prompts, **fields))


def test_the_distribution_is_the_models_whatever_the_draft():
    """The second and third token of 1,000 texts, by Pearson's test against the model's own
    probabilities, worked out token by token."""
    model, draft = make_model("gpt", spread=0.4), make_model("gpt", seed=5, spread=0.4)
    samples, prompt = 1000, PROMPTS[1]
    guessing = engine(model, draft, draft_tokens=2, max_sequences=500)
    fields = {"temperature": 1.0, "top_k": 4, "max_new_tokens": 3, "ignore_eos": True}
    (found,) = guessing.run([prompt], rules(**fields, num_samples=samples))

    def law(ids: Sequence[int]) -> dict[int, float]:
        with torch.no_grad():
            logits = model.logits(model.body(torch.tensor([ids])))[0, -1]
        best = logits.topk(4)
        return dict(zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True))

    expected: dict[tuple[int, int], float] = {}
    for first, chance in law(prompt).items():
        for second, then in law([*prompt, first]).items():
            for third, last in law([*prompt, first, second]).items():
                pair = second, third
                expected[pair] = expected.get(pair, 0.0) + samples * chance * then * last
    counts = dict.fromkeys(expected, 0)
    for one in found:
        counts[one.ids[1], one.ids[2]] += 1
    often = [pair for pair, value in expected.items() if value >= 5]
    sums = np.array([[table[pair] for pair in often] for table in (counts, expected)], dtype=float)
    rest = samples - sums.sum(1)
    observed, wanted = (np.append(row, left) for row, left in zip(sums, rest, strict=True))
    assert chisquare(observed, wanted).pvalue > 0.01
    assert 0 < sum(guessing.accepted) < guessing.drafted


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_guesses_change_no_bit(dtype: WeightType):
    """Of what is written with weights as they are written from, by twos."""
    asked = [*REPEATING, LONG[1]]
    told = []
    for looked_up in (None, 3):
        model = make_model("llama", max_positions=200)
        decoder = CausalDecoder(model, head=prepare(model, dtype, rows=16))
        some = Engine(decoder, EngineConfig(max_sequences=2, prompt_lookup=looked_up))
        told.append([one for (one,) in some.run(asked, rules(max_new_tokens=40))])
    assert sum(some.accepted) > 10
    for without, guessed in zip(*told, strict=True):
        assert (guessed.ids, guessed.log_probs) == (without.ids, without.log_probs)


def test_guesses_that_are_right_save_steps():
    model = make_model("llama", max_positions=200)
    guessing = engine(model, model, draft_tokens=4)
    asked = {"max_new_tokens": 21, "min_new_tokens": 21}
    guessing.submit(EngineRequest(prompt=PROMPTS[0], rules=rules(**asked)))
    counts = [len(guessing.step()) for _ in range(5)]
    assert counts == [1, 5, 5, 5, 5]
    assert guessing.idle
    assert guessing.accepted == [4, 4, 4, 4]


def test_company_and_lost_places_change_nothing(monkeypatch: pytest.MonkeyPatch):
    """Drawn texts with a draft: alone, and where there isn't room for all."""
    monkeypatch.setattr(scheduler, "FIRST_ROWS", KV_BLOCK)
    model = make_model("llama", max_positions=200)
    draft = like(model)
    prompts = [prompt[:20] for prompt in LONG]
    # With this seed a round that doesn't begin where it did draws another text.
    fields = {"max_new_tokens": 70, "min_new_tokens": 70, "temperature": 1.0, "seed": 1}
    alone = []
    for number, prompt in enumerate(prompts):
        (found,) = engine(model, draft).run([prompt], rules(**fields), first=number)
        alone += plain([found])
    small = engine(model, draft, kv_tokens=160)
    assert plain(list(small.run(prompts, rules(**fields)))) == alone
    assert small.scheduler.preemptions
    assert small.scheduler.kv_used <= 160


def test_a_prompt_that_the_draft_has_not_read_holds_up_nobody():
    """What is kept of a prompt is not read again, but by the draft: in pieces, beside others."""
    model = make_model("llama", max_positions=600)
    busy = engine(model, like(model), step_seconds=1e-9, draft_tokens=2)
    long = (LONG[2] * 4)[:400]
    busy.submit(EngineRequest(prompt=long, rules=rules(max_new_tokens=1)))
    while not busy.idle:
        busy.step()
    endless = rules(max_new_tokens=60, ignore_eos=True)
    busy.submit(EngineRequest(prompt=PROMPTS[0], rules=endless))
    busy.step()
    late = busy.submit(EngineRequest(prompt=long, rules=rules(ignore_eos=True)))
    told: list[Token] = []
    for _ in range(12):
        tokens = busy.step()
        assert any(token.request != late for token in tokens)
        told += [token for token in tokens if token.request == late]
    assert told[0].cached_tokens >= 384
    expected = write(model, [long], max_new_tokens=24, ignore_eos=True)[0][0].ids
    while not busy.idle:
        told += [token for token in busy.step() if token.request == late]
    assert [token.scored.token for token in told if token.scored] == list(expected)


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0}])
def test_a_form_is_kept_to(fields: dict[str, Any]):
    model = make_model("gpt", max_positions=200)
    for draft, looked_up in ((like(model), None), (None, 2)):
        some = engine(model, draft, prompt_lookup=looked_up)
        for made in (lambda: Letters("ababab"), None):
            prompt = TOKENIZER.encode("abab")
            some.submit(EngineRequest(prompt=prompt, rules=rules(**fields), constraint=made))
        told: dict[int, list[Token]] = {0: [], 1: []}
        while not some.idle:
            for token in some.step():
                told[token.request].append(token)
        assert "".join(token.text for token in told[0]) == "ababab"
        assert told[0][-1].finish == "stop"
        assert looked_up is None or sum(some.accepted)


def test_what_is_kept_of_a_text_with_guesses_is_right():
    """The beginning of a later prompt, which ends within the guesses of the earlier text."""
    model = make_model("llama", max_positions=200)
    some = engine(model, model, draft_tokens=7)
    fields = {"max_new_tokens": 40, "min_new_tokens": 40}
    (first,) = some.run([LONG[0]], rules(**fields))
    longer = [*LONG[0], *first[0].ids, 3]
    (found,) = some.run([longer], rules())
    assert plain([found]) == plain(write(model, [longer], max_new_tokens=24))
    assert some.scheduler.prefix_hits >= 64


def test_one_way_of_guessing_alone():
    model = make_model("gpt")
    with pytest.raises(UsageError, match="--draft and --prompt-lookup"):
        engine(model, model, prompt_lookup=2)
