"""The engine: a text is what it is alone, whatever else is written, and loses nothing to others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from llmctl.errors import ConfigError, UsageError
from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.decoding import CompiledSamplingParams, Completion, GenerationConfig
from llmctl.inference.engine import Engine, EngineConfig, EngineRequest, Token, scheduler
from llmctl.inference.weights import WeightType, prepare
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.layers.sequences import KV_BLOCK
from llmctl.models.layers.virtual_tokens import VirtualShape, VirtualTokens
from tests.small_decoders import PROMPTS, TOKENIZER, Letters, V, make_model, reread, write

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("gpt", {}),
    ("llama", {"num_kv_heads": 1}),
    ("mistral", {"sliding_window": 5}),
    ("gemma3", {"sliding_window": 5, "global_every": 2}),
    ("smollm3", {"no_rope_every": 2}),
    ("qwen3", {"head_size": 16}),
    ("nanochat", {}),
]
LONG = [[(7 * n + start) % V for n in range(length)] for start, length in enumerate((40, 75, 130))]
"""Prompts of several blocks."""


def rules(**fields: Any) -> CompiledSamplingParams:
    return CompiledSamplingParams(GenerationConfig(**{"max_new_tokens": 20, **fields}), TOKENIZER)


def engine(model: CausalLM, dtype: WeightType | None = None, **fields: Any) -> Engine:
    """With weights as they are written from, or with training's for ``None``."""
    head = None if dtype is None else prepare(model, dtype, rows=16)
    return Engine(CausalDecoder(model, head=head), EngineConfig(**fields))


def finish(engine: Engine) -> dict[tuple[int, int], list[Token]]:
    """What becomes of all that was asked, by request and sample."""
    told: dict[tuple[int, int], list[Token]] = {}
    while not engine.idle:
        for token in engine.step():
            told.setdefault((token.request, token.sample), []).append(token)
    assert engine.scheduler.kv_used == engine.scheduler.prefixes.tokens
    return told


def ids(tokens: Sequence[Token]) -> list[int]:
    return [token.scored.token for token in tokens if token.scored]


def log_probs(tokens: Sequence[Token]) -> list[float]:
    return [token.scored.log_prob or 0.0 for token in tokens if token.scored]


@pytest.mark.parametrize(("arch", "shape"), KINDS)
@pytest.mark.parametrize("fields", [{}, {"temperature": 0.9, "top_p": 0.95, "seed": 3},
                                    {"temperature": 1.0, "num_samples": 3},
                                    {"repetition_penalty": 1.3, "bad_words": ["a"]}])  # fmt: skip
def test_texts_are_those_of_generate(arch: str, shape: dict[str, Any], fields: dict[str, Any]):
    """Token by token; in another order of sums, so the log-probabilities to 1e-4."""
    model = make_model(arch, max_positions=200, **shape)
    prompts = [*PROMPTS, *LONG]
    expected = write(model, prompts, max_new_tokens=20, **fields)
    found = list(engine(model).run(prompts, rules(**fields)))
    for theirs, ours in zip(expected, found, strict=True):
        assert [plain(one) for one in ours] == [plain(one) for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def plain(completion: Completion) -> tuple[Any, ...]:
    return completion.prompt, completion.sample, completion.ids, completion.text, completion.finish


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize(("arch", "shape"), KINDS)
def test_a_text_has_the_same_bits_in_any_company(
    arch: str, shape: dict[str, Any], dtype: WeightType
):
    """Alone, and among others that come while it is written, read in chunks of another size."""
    asked = {"temperature": 0.9, "seed": 5}
    prompts = [PROMPTS[1], LONG[1]]
    alone = []
    for prompt in prompts:
        lonely = engine(make_model(arch, max_positions=200, **shape), dtype)
        lonely.submit(EngineRequest(prompt=prompt, rules=rules(**asked)))
        alone.append(finish(lonely)[0, 0])
    crowded = engine(make_model(arch, max_positions=200, **shape), dtype, step_seconds=1e-9)
    told: dict[int, list[Token]] = {}
    for number, prompt in enumerate([LONG[2], prompts[0], *PROMPTS, prompts[1], LONG[0]]):
        crowded.submit(EngineRequest(prompt=prompt, rules=rules(**asked)))
        for token in crowded.step() if number % 2 else ():
            told.setdefault(token.request, []).append(token)
    for (request, _), tokens in finish(crowded).items():
        told.setdefault(request, []).extend(tokens)
    for request, expected in zip((1, 8), alone, strict=True):
        assert ids(told[request]) == ids(expected)
        assert log_probs(told[request]) == log_probs(expected)


def test_a_beginning_that_was_read_is_not_read_again():
    model = make_model("llama", max_positions=200)
    warm = engine(model, "fp32")
    long = LONG[2]
    warm.submit(EngineRequest(prompt=long, rules=rules()))
    cold = finish(warm)[0, 0]
    for prompt, kept in ((long, 128), (long[:70], 64), ([*long[:64], *long[:20]], 64),
                         (long[:64], 32), (PROMPTS[2], 0)):  # fmt: skip
        request = warm.submit(EngineRequest(prompt=prompt, rules=rules()))
        told = finish(warm)[request, 0]
        assert told[0].cached_tokens == kept
        if prompt is long:
            assert ids(told) == ids(cold)
            assert log_probs(told) == log_probs(cold)
    salted = warm.submit(EngineRequest(prompt=long, rules=rules(), salt="another"))
    assert finish(warm)[salted, 0][0].cached_tokens == 0
    answered = [*long, *ids(cold), *PROMPTS[1]]
    request = warm.submit(EngineRequest(prompt=answered, rules=rules()))
    told = finish(warm)[request, 0]
    assert told[0].cached_tokens == (len(long) + len(ids(cold)) - 1) // KV_BLOCK * KV_BLOCK
    assert ids(told) == list(write(model, [answered], max_new_tokens=20)[0][0].ids)
    off = engine(make_model("llama", max_positions=200), "fp32", prefix_cache=0)
    for _ in range(2):
        request = off.submit(EngineRequest(prompt=long, rules=rules()))
        assert finish(off)[request, 0][0].cached_tokens == 0
    assert off.scheduler.kv_used == 0


def test_what_is_kept_has_a_bound_in_bytes_and_changes_no_answer():
    """With room for no block, for three and a half, and for all; by the tensors that are there."""
    model = make_model("llama", max_positions=200)
    asked = [LONG[2], LONG[1], [*LONG[2][:70], 3], LONG[0], LONG[2], LONG[1][:50]]
    block = 2 * 2 * 32 * KV_BLOCK * 4  # keys and values, layers, width, fp32
    expected: list[list[int]] = []
    for room, hits in ((0, 0), (7 * block // 2, 32 + 64), (100 * block, 64 + 128 + 32)):
        one = engine(model, "fp32", prefix_cache=room)
        prefixes = one.scheduler.prefixes
        answers, kept = [], []
        for prompt in asked:
            number = one.submit(EngineRequest(prompt=prompt, rules=rules()))
            answers.append(ids(finish(one)[number, 0]))
            kept.append(held_bytes(prefixes))
            assert prefixes.bytes == kept[-1] <= room
        expected = expected or answers
        assert answers == expected
        assert one.scheduler.prefix_hits == hits
        assert max(kept) == room // block * block or room == 100 * block
        assert bool(prefixes.evictions) == (room == 7 * block // 2)


def held_bytes(prefixes: Any) -> int:
    tables = [t for b in prefixes._blocks.values() for t in (b.keys_LKSH, b.values_LKSH)]
    return sum(table.untyped_storage().nbytes() for table in tables)


def test_what_was_used_longest_ago_goes_first():
    """Room for two blocks: a third prompt's takes the place of the one not asked for since."""
    model = make_model("llama", max_positions=200)
    small = engine(model, prefix_cache=2 * (2 * 2 * 32 * KV_BLOCK * 4))
    first, second, third = ([start, *LONG[0][:KV_BLOCK]] for start in range(3))
    told = []
    for prompt in (first, second, first, third, first, second):
        number = small.submit(EngineRequest(prompt=prompt, rules=rules(max_new_tokens=1)))
        told.append(finish(small)[number, 0][0].cached_tokens)
    assert told == [0, 0, KV_BLOCK, 0, KV_BLOCK, 0]


def test_where_room_runs_out_the_youngest_waits_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
):
    """Six texts of up to 90 tokens where there is room for 160 tokens' keys and values."""
    monkeypatch.setattr(scheduler, "FIRST_ROWS", KV_BLOCK)
    model = make_model("llama", max_positions=200)
    prompts = [prompt[:20] for prompt in LONG] * 2
    fields = {"max_new_tokens": 70, "min_new_tokens": 70, "temperature": 1.0}
    expected = write(model, prompts, **fields)
    small = engine(model, kv_tokens=160)
    found = list(small.run(prompts, rules(**fields)))
    assert small.scheduler.preemptions
    assert [plain(one[0]) for one in found] == [plain(one[0]) for one in expected]
    with pytest.raises(UsageError, match="keys and values of 160 are kept at most"):
        small.submit(EngineRequest(prompt=LONG[2], rules=rules(max_new_tokens=60)))
    assert small.scheduler.kv_used <= 160


def test_running_texts_go_on_while_a_prompt_is_read():
    model = make_model("llama", max_positions=600)
    busy = engine(model, "fp32", step_seconds=1e-9)
    busy.submit(EngineRequest(prompt=PROMPTS[0], rules=rules(max_new_tokens=30, ignore_eos=True)))
    busy.step()
    late = busy.submit(EngineRequest(prompt=(LONG[2] * 4)[:400], rules=rules()))
    counts = []
    for _ in range(12):
        tokens = busy.step()
        counts.append([token.request for token in tokens])
    assert counts == [[0]] * 12  # a token of the first in each step, 32 read of the second
    assert busy.scheduler.running[1].number == late
    assert busy.scheduler.running[1].cache is not None
    assert busy.scheduler.running[1].cache.length == 12 * KV_BLOCK


def test_clients_take_turns():
    one = engine(make_model("gpt"), max_sequences=1)
    for client in "aaab":
        one.submit(EngineRequest(prompt=PROMPTS[0], rules=rules(max_new_tokens=1), client=client))
    assert [request for request, _ in finish(one)] == [0, 3, 1, 2]


def test_what_is_cancelled_leaves_its_place():
    model = make_model("gpt", max_positions=200)
    some = engine(model, max_sequences=2)
    for prompt in PROMPTS[:4]:
        some.submit(EngineRequest(prompt=prompt, rules=rules(ignore_eos=True)))
    some.step()
    for number in (0, 3):
        some.cancel(number)
    told = finish(some)
    assert {request for request, _ in told} == {1, 2}
    assert ids(told[2, 0]) == list(
        write(model, [PROMPTS[2]], max_new_tokens=20, ignore_eos=True)[0][0].ids
    )


def test_the_prompts_tokens_have_log_probabilities_too():
    model = make_model("gpt", max_positions=200)
    prompt = LONG[1]
    reader = engine(model, step_seconds=1e-9)
    for top in (None, 2):
        request = reader.submit(EngineRequest(prompt=prompt, rules=rules(), prompt_top=top, top=3))
        told = finish(reader)[request, 0]
    expected = reread(model, prompt).log_softmax(-1)
    first, *others = told[0].prompt
    assert (first.token, first.log_prob) == (prompt[0], None)
    assert [one.token for one in others] == prompt[1:]
    for place, one in enumerate(others):
        assert one.log_prob == pytest.approx(float(expected[place, prompt[place + 1]]), abs=1e-4)
        best = expected[place].topk(2)
        assert [token for token, _ in one.ranked] == best.indices.tolist()
    assert told[0].scored is not None
    assert len(told[0].scored.ranked) == 3
    assert told[0].scored.ranked[0][0] == told[0].scored.token


def test_a_constraint_is_kept_beside_texts_without():
    model = make_model("gpt", max_positions=200)
    some = engine(model)
    for made in (None, lambda: Letters("abab"), None):
        some.submit(EngineRequest(prompt=PROMPTS[1], rules=rules(), constraint=made))
    told = finish(some)
    assert "".join(token.text for token in told[1, 0]) == "abab"
    assert told[1, 0][-1].finish == "stop"
    assert ids(told[0, 0]) == ids(told[2, 0])


class Unable(Letters):
    """Can't be followed beyond its first token."""

    def accept(self, token: int) -> bool:
        raise UsageError("too complex")


def test_one_whose_constraint_fails_ends_alone():
    some = engine(make_model("gpt"))
    for made in (None, lambda: Unable("ab"), None):
        some.submit(EngineRequest(prompt=PROMPTS[1], rules=rules(), constraint=made))
    told = finish(some)
    assert str(told[1, 0][-1].error) == "too complex"
    assert ids(told[0, 0]) == ids(told[2, 0])


def test_one_whose_tokens_are_all_barred_ends_alone():
    some = engine(make_model("gpt"))
    barred = {
        "allowed_token_ids": [3],
        "logit_bias": {3: -5.0},
        "bad_words": [TOKENIZER.decode([3])],
    }
    assert TOKENIZER.decode([3]).strip()
    for fields in ({}, barred, {}):
        some.submit(EngineRequest(prompt=PROMPTS[1], rules=rules(**fields)))
    told = finish(some)
    assert isinstance(told[1, 0][-1].error, UsageError)
    assert ids(told[0, 0]) == ids(told[2, 0])


def test_biases_and_ends_of_ones_own():
    model = make_model("gpt", max_positions=200)
    letter = TOKENIZER.encode("c")[0]
    found = write(model, [PROMPTS[1]], max_new_tokens=8, logit_bias={letter: 100.0})[0][0]
    assert found.text == "c" * 8
    found = write(model, [PROMPTS[1]], max_new_tokens=8, allowed_token_ids=[letter])[0][0]
    assert found.text == "c" * 8
    ends = {"logit_bias": {letter: 100.0}, "stop_token_ids": [letter]}
    found = write(model, [PROMPTS[1]], max_new_tokens=8, **ends)[0][0]
    assert (found.ids, found.finish) == ((letter,), "eos")
    with pytest.raises(ConfigError, match="stop_token_ids: there is no token 99"):
        rules(stop_token_ids=[99])


@pytest.mark.parametrize("prompt", [[], [1] * 64])
def test_prompts_that_can_not_be_served(prompt: list[int]):
    with pytest.raises(UsageError, match="prompt"):
        engine(make_model("gpt", max_positions=64)).submit(
            EngineRequest(prompt=prompt, rules=rules())
        )


@pytest.mark.parametrize("arch", ["llama", "gpt"])
@pytest.mark.parametrize("is_prompt", [True, False])
def test_virtual_tokens_stand_before_every_text(arch: str, is_prompt: bool):
    """A soft prompt, or keys and values of every layer, against a network that reads them anew
    with each text; for texts that are read in pieces, and for one alone, without padding."""
    model = make_model(arch, max_positions=200)
    body = model.body
    heads, head_size = body.config.kv_shape()
    shape = (
        VirtualShape(5, body.config.hidden_size)
        if is_prompt
        else VirtualShape(5, layers=body.config.num_layers, heads=heads, head_size=head_size)
    )
    torch.manual_seed(1)
    virtual = VirtualTokens(shape)
    with torch.no_grad():
        virtual.learned().normal_()
    body.put_before_texts(virtual)
    prompts = [*PROMPTS, *LONG]
    expected = [plain(one) for (one,) in write(model, prompts, max_new_tokens=20)]
    for at_once in (1, 8):
        found = engine(model, max_sequences=at_once).run(prompts, rules())
        assert [plain(one) for (one,) in found] == expected
    body.put_before_texts(None)
    assert [plain(one) for (one,) in write(model, prompts, max_new_tokens=20)] != expected
