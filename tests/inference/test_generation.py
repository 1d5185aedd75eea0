"""Writing against recomputing, exhaustive search, the papers' formulas and exact distributions."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count, product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare
from torch import Tensor
from torch.nn import functional as F

from llmctl.errors import ConfigError, InputError, UsageError
from llmctl.inference.decoder import CausalDecoder, TruncatableRunner
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig, generate, strategies
from llmctl.inference.decoding.sampling import draw
from llmctl.inference.decoding.strategies import Text
from llmctl.inference.ngram_decoder import NgramDecoder
from llmctl.inference.weights import WeightType, prepare
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.ngram.counts import TokenBlock
from llmctl.models.ngram.smoothing import NgramConfig, train
from llmctl.tokenizers.characters import learn_characters
from tests.small_decoders import ENDS, PROMPTS, TOKENIZER, V, make_model, reread, write

ARCHS = ["gpt", "llama", "nanochat"]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.2, "top_p": 0.95, "num_samples": 3, "seed": 4},
    "with-rules": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words": ("d",)},
    "sampled-with-rules": {
        "top_k": 10, "frequency_penalty": 0.8, "presence_penalty": 0.2, "min_new_tokens": 3,
    },
}  # fmt: skip


def ids_of(answers: list[list[Any]]) -> list[tuple[int, ...]]:
    return [completion.ids for answer in answers for completion in answer]


# With a cache and in batches


@pytest.mark.parametrize("arch", ARCHS)
def test_greedy_with_a_cache_is_rereading_everything(arch: str):
    finishes = set()
    for seed in (0, 1, 2):
        model = make_model(arch, seed=seed)
        for prompt, (found,) in zip(PROMPTS, write(model, max_new_tokens=16), strict=True):
            ids = list(prompt)
            for _ in range(16):
                ids.append(int(reread(model, ids)[-1].argmax()))
                if ids[-1] in ENDS:
                    break
            assert list(found.ids) == ids[len(prompt) :]
            assert found.text == TOKENIZER.decode(list(found.ids))
            assert found.finish == ("eos" if ids[-1] in ENDS else "length")
            finishes.add(found.finish)
    assert finishes == {"eos", "length"}


@pytest.mark.parametrize("way", [*WAYS, "beams", "contrastive", "speculative"])
def test_log_probs_are_the_models_own(way: str):
    """Those before any strategy, fp32 sums in another order: 1e-5."""
    options = {"beams": {"num_beams": 3, "num_samples": 3, "repetition_penalty": 1.3},
               "contrastive": {"penalty_alpha": 0.6}, "speculative": {"top_k": 5}}  # fmt: skip
    model = make_model("llama")
    draft = make_model("llama", seed=9) if way == "speculative" else None
    answers = write(model, draft=draft, max_new_tokens=12, **options.get(way, WAYS.get(way, {})))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        for found in answer:
            assert len(found.ids) == len(found.log_probs)
            ids = [*prompt, *found.ids]
            table = reread(model, ids[:-1]).log_softmax(-1)[len(prompt) - 1 :]
            expected = table[torch.arange(len(found.ids)), list(found.ids)]
            torch.testing.assert_close(torch.tensor(found.log_probs), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_text_does_not_depend_on_its_batch(arch: str, way: str):
    """Prompts of different lengths, and rows that leave the batch when they are finished."""
    model = make_model(arch)
    options = {"max_new_tokens": 14, **WAYS[way]}
    prompts = PROMPTS * 3  # more than are read ahead one by one
    alone = write(model, prompts, batch_size=1, **options)
    lengths = {len(found.ids) for answer in alone for found in answer}
    assert len(lengths) > 2, "all rows leave together"
    for batch_size in (4, 64):
        together = write(model, prompts, batch_size=batch_size, **options)
        for first, second in zip(alone, together, strict=True):
            assert [f.ids for f in first] == [f.ids for f in second]
            assert [f.text for f in first] == [f.text for f in second]
            for one, other in zip(first, second, strict=True):
                assert (one.prompt, one.sample, one.finish) == (
                    other.prompt,
                    other.sample,
                    other.finish,
                )
                assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
    assert [found.prompt for answer in alone for found in answer] == sorted(
        found.prompt for answer in alone for found in answer
    )


def test_a_seed_gives_a_text_and_another_seed_another():
    model = make_model()
    options = {"temperature": 1.0, "max_new_tokens": 10}
    first, again = (ids_of(write(model, seed=1, **options)) for _ in range(2))
    assert first == again
    assert first != ids_of(write(model, seed=2, **options))
    samples = ids_of(write(model, PROMPTS[:1], seed=1, num_samples=6, **options))
    assert samples[0] == first[0], "the first of several is the one alone"
    assert len(set(samples)) > 3
    same_prompt = ids_of(write(model, [PROMPTS[0]] * 6, seed=1, **options))
    assert len(set(same_prompt)) > 3, "prompts that are alike have texts of their own"


def test_temperature_0_and_one_candidate_are_greedy():
    model = make_model("llama")
    greedy = ids_of(write(model, max_new_tokens=10))
    for options in ({"temperature": 0.0}, {"temperature": 0.0, "top_p": 0.5}, {"top_k": 1},
                    {"top_p": 1e-9}, {"min_p": 1.0}, {"penalty_alpha": 0.0}):  # fmt: skip
        assert ids_of(write(model, max_new_tokens=10, **options)) == greedy, options


def test_answers_come_as_prompts_do():
    """An endless stream of prompts is read some batches ahead."""
    asked = 0

    def endless() -> Iterator[list[int]]:
        nonlocal asked
        for asked in count(1):
            yield PROMPTS[asked % 3]

    rules = CompiledSamplingParams(GenerationConfig(max_new_tokens=2), TOKENIZER)
    answers = generate(CausalDecoder(make_model()), endless(), rules, batch_size=1)
    assert [next(answers)[0].prompt for _ in range(3)] == [0, 1, 2]
    assert asked == 16


def test_a_text_ends_with_the_context():
    model = make_model(max_positions=12)
    for options in ({}, {"num_beams": 2}, {"penalty_alpha": 0.4}, {"top_k": 4}):
        options |= {"min_new_tokens": 30, "max_new_tokens": 30}
        for prompt, (found,) in zip(PROMPTS[:3], write(model, PROMPTS[:3], **options), strict=True):
            assert len(prompt) + len(found.ids) == 12
            assert found.finish == "length"
    drafted = write(model, PROMPTS[:3], draft=make_model(seed=1, max_positions=9), **options)
    assert [len(ids) for ids in ids_of(drafted)] == [12 - len(prompt) for prompt in PROMPTS[:3]]


def test_what_is_told_is_the_text():
    model = make_model()
    for options in ({}, {"top_k": 9}, {"num_beams": 2}, {"penalty_alpha": 0.5}, {"stop": ("a",)}):
        told: list[str] = []
        rules = CompiledSamplingParams(GenerationConfig(max_new_tokens=12, **options), TOKENIZER)
        ((found,),) = generate(CausalDecoder(model), PROMPTS[1:2], rules, on_text=told.append)
        assert "".join(told) == found.text
        assert all(told)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"penalty_alpha": 0.5}, {"top_k": 6}])
def test_a_stop_text_ends_a_text_before_it(options: dict[str, Any]):
    model = make_model(seed=4)
    keys = {"max_new_tokens": 14, "min_new_tokens": 14, **options}
    whole = write(model, **keys)
    cut = kept = 0
    for stop in sorted({found.text[n : n + 2] for (found,) in whole for n in (2, 5)} - {""}):
        for (before,), (after,) in zip(whole, write(model, stop=(stop,), **keys), strict=True):
            assert stop not in after.text
            if after.finish == "stop":
                assert TOKENIZER.decode(list(after.ids)) == after.text + stop
            if "num_beams" in options:  # what ends early may beat what was the best
                cut += after.finish == "stop"
            elif stop in before.text:
                cut += 1
                assert after.finish == "stop"
                assert after.text == before.text[: before.text.index(stop)]
                assert after.ids == before.ids[: len(after.ids)]
            else:
                kept += 1
                assert (after.ids, after.text, after.finish) == (before.ids, before.text, "length")
    assert cut > 2
    assert kept > 2 or "num_beams" in options
    assert ids_of(write(model, stop=("no such text",), **keys)) == ids_of(whole)


# Strategies by their formulas


def test_frequency_and_presence_penalties_by_their_formula():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(5, 9)).astype(np.float32)
    ids = generator.integers(9, size=(5, 12)).tolist()
    texts = [Text(row, start) for row, start in zip(ids, (0, 3, 6, 11, 12), strict=True)]
    counts = np.array([np.bincount(row[start:], minlength=9) for row, start in texts])
    for value in (0.7, -0.3):
        found = strategies.frequency_penalty(torch.from_numpy(logits), texts, value)
        np.testing.assert_allclose(found, logits - value * counts, atol=1e-6)
        found = strategies.presence_penalty(torch.from_numpy(logits), texts, value)
        np.testing.assert_allclose(found, logits - value * (counts > 0), atol=1e-6)


def test_typical_sampling_by_its_formula():
    """The tokens nearest to the entropy, until their probability reaches the share."""
    generator = np.random.default_rng(1)
    for share in (0.2, 0.6, 0.95):
        logits = 2 * generator.normal(size=30).astype(np.float32)
        p = np.exp(logits.astype(np.float64))
        p /= p.sum()
        entropy = -(p * np.log(p)).sum()
        order = np.argsort(np.abs(-np.log(p) - entropy))
        kept = order[: int(np.searchsorted(np.cumsum(p[order]), share)) + 1]
        found = strategies.typical_p(torch.from_numpy(logits)[None], [Text([], 0)], share)[0]
        assert sorted(np.flatnonzero(np.isfinite(found.numpy()))) == sorted(kept)
        torch.testing.assert_close(found[kept], torch.from_numpy(logits)[kept])


def test_a_token_of_no_probability_is_never_drawn():
    probability = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.0]])
    numbers = [0.0, 0.3, 2 / 3 - 1e-9, 2 / 3 + 1e-9, math.nextafter(1.0, 0.0)]
    tokens = draw(probability.expand(5, -1), numbers)
    assert tokens.tolist() == [1, 1, 1, 3, 3]


@pytest.mark.parametrize(
    "options", [{"bad_words": tuple("abcdefghijk ")}, {"no_repeat_ngram_size": 1}]
)
def test_where_no_token_is_left_it_is_said(options: dict[str, Any]):
    model = make_model()
    with torch.no_grad():
        model.output_weight[list(TOKENIZER.special_ids)] = 0
    options |= {"min_new_tokens": 30, "max_new_tokens": 30}
    if "bad_words" in options:
        # The special tokens that are no ends are left.
        write(model, PROMPTS[:1], **options)
        options |= {"no_repeat_ngram_size": 1}
    with pytest.raises(UsageError, match="no token is left"):
        write(model, PROMPTS[:1], **options)


def test_logits_that_are_no_numbers_are_said():
    model = make_model()
    with torch.no_grad():
        model.output_weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="not numbers"):
        write(model, PROMPTS[:1])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "leaves no token"),
        ({"top_p": 1.1}, "at most 1"),
        ({"typical_p": 0.0}, "leaves no token"),
        ({"repetition_penalty": 0.0}, "more than 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens 9"),
        ({"num_beams": 3, "num_samples": 5}, "num_samples 5 is more than num_beams 3"),
        ({"num_beams": 3, "top_p": 0.9}, "top_p 0.9 has no effect"),
        ({"length_penalty": 2.0}, "num_beams 2 or more"),
        ({"num_samples": 2, "temperature": 0.0}, "all be the same"),
        ({"penalty_alpha": 0.6, "temperature": 0.7}, "does not sample"),
        ({"stop": ("",)}, "empty text"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any], says: str):
    from llmctl.config import build

    with pytest.raises(ConfigError, match=says):
        build(GenerationConfig, fields)


# Beam search


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5])
def test_beams_as_many_as_there_are_texts_are_exhaustive_search(length_penalty: float):
    tokenizer = learn_characters(["ab"])
    size, length, prompt = tokenizer.vocab_size, 3, [0, 1, 1]
    ends = {tokenizer.special["eos"], tokenizer.special["turn_end"]}
    model = make_model("llama", seed=1, vocab_size=size, spread=0.15)
    # Every text: of full length, or shorter with an end.
    scores: dict[tuple[int, ...], float] = {}
    every = list(product(range(size), repeat=length))
    with torch.no_grad():
        logits = model.logits(model.body(torch.tensor([[*prompt, *text] for text in every])))
    table = logits[:, len(prompt) - 1 : -1].double().log_softmax(-1).numpy()
    for text, row in zip(every, table, strict=True):
        stop = next((n for n, token in enumerate(text, 1) if token in ends), length)
        total = sum(row[n, token] for n, token in enumerate(text[:stop]))
        scores[text[:stop]] = total / stop**length_penalty
    best = sorted(scores.items(), key=lambda item: -item[1])
    width = (size - len(ends)) ** (length - 1)
    assert width == 36
    found = write(
        model, [prompt], tokenizer=tokenizer, num_beams=width, num_samples=width,
        max_new_tokens=length, length_penalty=length_penalty, early_stopping="never",
    )[0]  # fmt: skip
    # Texts that end count only while among the best beams: the very best always are.
    assert [c.ids for c in found[:12]] == [ids for ids, _ in best[:12]]
    assert [c.score for c in found[:12]] == pytest.approx([s for _, s in best[:12]], abs=1e-5)
    if length_penalty < 2:
        assert len({len(c.ids) for c in found[:12]}) > 1


def test_beam_search_finds_what_greedy_misses():
    model = make_model("llama", seed=1)
    greedy = write(model, max_new_tokens=8, min_new_tokens=8)
    beams = write(model, max_new_tokens=8, min_new_tokens=8, num_beams=6, length_penalty=0.0)
    gains = [sum(b.log_probs) - sum(g.log_probs) for (g,), (b,) in zip(greedy, beams, strict=True)]
    assert max(gains) > 0.5
    assert min(gains) > -0.5


# Speculative decoding


class Counting(CausalDecoder):
    """Counts how often it was asked for more."""

    calls = 0

    def extend(self, ids_BT: Tensor) -> Tensor:
        self.calls += 1
        return super().extend(ids_BT)


def grams() -> NgramDecoder:
    texts = [[ENDS[0], *prompt, ENDS[0]] for prompt in PROMPTS * 3]
    lengths = np.array([len(text) for text in texts])
    block = TokenBlock(np.concatenate(texts), np.cumsum(lengths) - lengths)
    return NgramDecoder(train([block], V, ENDS[0], NgramConfig(order=2)).model)


@pytest.mark.parametrize("way", ["greedy", "with-rules"])
@pytest.mark.parametrize("draft_tokens", [1, 3, 8])
@pytest.mark.parametrize("arch", ["gpt", "llama"])
def test_speculative_greedy_is_greedy(arch: str, draft_tokens: int, way: str):
    model = make_model(arch, seed={"gpt": 1, "llama": 4}[arch])
    options = {"max_new_tokens": 15, **WAYS[way]}
    plain = write(model, **options)
    assert {found.finish for (found,) in plain} == {"eos", "length"}
    like = copy.deepcopy(model)
    assert like.output is not None
    with torch.no_grad():
        like.output.weight += 0.3 * torch.randn(V, 32, generator=torch.manual_seed(0))
    for draft in (model, like, make_model("gpt", seed=7, num_layers=1, max_positions=16), grams()):
        found = write(model, draft=draft, draft_tokens=draft_tokens, **options)
        assert ids_of(found) == ids_of(plain)
        for (one,), (other,) in zip(found, plain, strict=True):
            assert (one.text, one.finish) == (other.text, other.finish)
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


def test_guesses_that_are_right_save_calls_of_the_target():
    model, target = make_model(), Counting(make_model())
    for options in ({}, {"temperature": 1.0}):
        target.calls = 0
        options = {"max_new_tokens": 21, "min_new_tokens": 21, **options}
        write(target, PROMPTS[:1], draft=model, draft_tokens=4, **options)
        assert target.calls == 4  # one token of the prompt's logits, then five at once
        target.calls = 0
        write(target, PROMPTS[:1], **options)
        assert target.calls == 20


class Pairs:
    """A language model that is a table of what follows each token."""

    max_positions: int | None = None

    def __init__(self, logits_VV: Tensor) -> None:
        self.logits_VV, self.vocab_size = logits_VV, len(logits_VV)

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        return self.logits_VV[[prompt[-1] for prompt in prompts]]

    def extend(self, ids_BT: Tensor) -> Tensor:
        return self.logits_VV[ids_BT]

    def select(self, rows_R: Tensor) -> None:
        pass

    def truncate(self, length: int) -> None:
        pass


SAMPLES = 3000


def exact(table_VV: NDArray[np.float64], first: int, ends: set[int]) -> dict[str, NDArray[Any]]:
    """The joint distribution of the first and the second token, and of the second and the third;
    what follows an end is the end again."""
    step = table_VV.copy()
    for end in ends:
        step[end] = np.eye(len(step))[end]
    one = table_VV[first]
    return {"1-2": one[:, None] * step, "2-3": (one @ step)[:, None] * step}


def counted(ids: list[tuple[int, ...]], size: int) -> dict[str, NDArray[Any]]:
    counts = {name: np.zeros((size, size)) for name in ("1-2", "2-3")}
    for text in ids:
        padded = [*text, *[text[-1]] * (3 - len(text))]
        counts["1-2"][padded[0], padded[1]] += 1
        counts["2-3"][padded[1], padded[2]] += 1
    return counts


def p_value(counts: NDArray[Any], probability: NDArray[Any]) -> float:
    """Of Pearson's test; cells where fewer than 5 are expected are one."""
    expected = SAMPLES * probability
    rare = expected < 5
    assert not counts[expected == 0].any()
    cells = [*counts[~rare], counts[rare].sum()], [*expected[~rare], expected[rare].sum()]
    if cells[1][-1] < 5:
        cells = cells[0][:-1], cells[1][:-1]
        cells[1][0] += SAMPLES - sum(cells[1])  # the sums must agree; a few thousandths
        cells[0][0] += SAMPLES - sum(cells[0])
    return float(chisquare(*cells).pvalue)


@pytest.mark.parametrize("draft_tokens", [1, 2, None], ids=["one", "two", "no-draft"])
def test_the_distribution_is_the_targets_whatever_the_draft(draft_tokens: int | None):
    tokenizer = learn_characters(["ab"])
    size, first = tokenizer.vocab_size, 0
    ends = {tokenizer.special["eos"], tokenizer.special["turn_end"]}
    generator = torch.Generator().manual_seed(0)
    target, draft = (torch.randn(size, size, generator=generator) for _ in range(2))
    options = {"temperature": 0.9, "top_k": 6, "max_new_tokens": 3}

    def probabilities(logits: Tensor) -> NDArray[np.float64]:
        warm = logits.double() / 0.9
        least = warm.topk(6).values[:, -1:]
        return warm.masked_fill(warm < least, -torch.inf).softmax(-1).numpy()

    assert isinstance(Pairs(draft), TruncatableRunner)
    answers = write(
        Pairs(target), [[first]], draft=None if draft_tokens is None else Pairs(draft),
        tokenizer=tokenizer, num_samples=SAMPLES, draft_tokens=draft_tokens or 1, **options,
    )  # fmt: skip
    counts = counted(ids_of(answers), size)
    for name, probability in exact(probabilities(target), first, ends).items():
        assert p_value(counts[name], probability) > 0.01, name
    # The test tells the draft's distribution from the target's.
    mixed = 0.9 * probabilities(target) + 0.1 * probabilities(draft)
    for name, probability in exact(mixed, first, ends).items():
        assert p_value(counts[name], probability) < 1e-3, name


# Contrastive search


def contrast(model: CausalLM, prompt: list[int], alpha: float, k: int, length: int) -> list[int]:
    """Su et al. 2022, eq. 5, every hidden state computed anew."""
    ids = list(prompt)
    while len(ids) < len(prompt) + length and (ids == prompt or ids[-1] not in ENDS):
        with torch.no_grad():
            p = model.logits(model.body(torch.tensor([ids])))[0, -1].softmax(-1).numpy()
            candidates = np.argsort(-p)[:k]
            hidden = model.body(torch.tensor([[*ids, v] for v in candidates])).numpy()
        scores = []
        for v, h_TD in zip(candidates, hidden, strict=True):
            *before, last = h_TD / np.linalg.norm(h_TD, axis=-1, keepdims=True)
            scores.append((1 - alpha) * p[v] - alpha * max(last @ h for h in before))
        ids.append(int(candidates[int(np.argmax(scores))]))
    return ids[len(prompt) :]


@pytest.mark.parametrize("arch", ARCHS)
def test_contrastive_search_is_the_papers_formula(arch: str):
    model = make_model(arch)
    greedy = ids_of(write(model, max_new_tokens=10))
    for alpha, k in ((0.3, 3), (0.6, 4), (1.0, 5)):
        options = {"penalty_alpha": alpha, "max_new_tokens": 10}
        found = ids_of(write(model, top_k=k, **options))
        expected = [contrast(model, prompt, alpha, k, 10) for prompt in PROMPTS]
        assert [list(ids) for ids in found] == expected
        assert found != greedy
        if k == 4:
            assert found == ids_of(write(model, **options)), "4 candidates if none are asked for"


def test_methods_that_exclude_each_other_are_refused():
    model = make_model()
    for draft, target, fields, says in (
        (model, model, {"num_beams": 2}, "--draft is not for beam search"),
        (model, model, {"penalty_alpha": 0.5}, "--draft is not for contrastive"),
        (None, grams(), {"penalty_alpha": 0.5}, "an n-gram model has none"),
    ):
        with pytest.raises(UsageError, match=says):
            write(target, PROMPTS[:1], draft=draft, **fields)


# Other forms of the weights

SENTENCE = TOKENIZER.encode("hide a big bee if i feed a jackdaw " * 3)


@pytest.fixture(scope="module")
def trained() -> CausalLM:
    """A model that knows one sentence and is trained no longer than that takes."""
    model = make_model("llama", spread=0.0, hidden_size=48, intermediate_size=80, num_kv_heads=1)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = torch.tensor([SENTENCE[start : start + 41] for start in range(0, 35, 3)])
    for _ in range(60):
        logits = model.logits(model.body(rows[:, :-1]))
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    return model.eval()


ERRORS = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.04, "int4": 0.5}
"""Of the logits, relative to their size: bf16 has 8 bits, int8 7 for the largest of a row, int4 15
steps from the least to the most of a group, which are a tenth of what is spread so evenly."""


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("dtype", get_args(WeightType))
@pytest.mark.parametrize("arch", [*ARCHS, "gpt-tied"])
def test_other_forms_of_the_weights_give_nearly_the_same_logits(
    arch: str, dtype: WeightType, rows: int
):
    model = make_model(arch.removesuffix("-tied"), tie_embeddings=arch == "gpt-tied", spread=0.1)
    other = copy.deepcopy(model)
    head = prepare(other, dtype, rows=rows)
    plain, prepared = CausalDecoder(model), CausalDecoder(other, head=head)
    prompts = [(PROMPTS[1] * 2)[n : n + 6] for n in range(rows)]
    following = torch.tensor([SENTENCE[n : n + 5] for n in range(rows)])
    logits = [
        torch.cat(
            [decoder.prefill(prompts, 8)[:, None], decoder.extend(following[:, :1]),
             decoder.extend(following[:, 1:])], 1
        )
        for decoder in (plain, prepared)
    ]  # fmt: skip
    assert logits[1].dtype == torch.float32
    error = (logits[1] - logits[0]).norm() / logits[0].norm()
    assert error < ERRORS[dtype]
    assert dtype == "fp32" or error > 1e-5, "the weights are what they were"
    if dtype == "fp32":
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    if rows > 1:  # a row does not depend on its batch
        alone = prepared.prefill(prompts[2:3], 8)
        limit = 0.02 if dtype == "bf16" else 1e-4
        assert (alone - logits[1][2, :1]).norm() / alone.norm() < limit


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("dtype", get_args(WeightType))
def test_a_trained_model_writes_the_same_in_other_forms(
    trained: CausalLM, dtype: WeightType, rows: int
):
    prompts = [SENTENCE[n : n + 6] for n in range(0, 32, 4)]
    expected = [SENTENCE[n + 6 : n + 36] for n in range(0, 32, 4)]
    options = {"max_new_tokens": 30, "batch_size": rows}
    plain = ids_of(write(trained, prompts, **options))
    assert sum(list(ids) == text for ids, text in zip(plain, expected, strict=True)) >= 6
    model = copy.deepcopy(trained)
    head = prepare(model, dtype, rows=rows)
    found = ids_of(write(CausalDecoder(model, head=head), prompts, **options))
    same = sum(one == other for one, other in zip(found, plain, strict=True))
    assert same >= (8 if dtype == "fp32" else 6)


def test_how_often_each_token_is_drawn_follows_the_numbers():
    """The inverse of the cumulative distribution at numbers that are evenly spread."""
    probability = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    numbers = ((np.arange(1000) + 0.5) / 1000).tolist()
    tokens = Counter(draw(probability.expand(1000, -1), numbers).tolist())
    assert [tokens[n] for n in range(4)] == [100, 200, 300, 400]
