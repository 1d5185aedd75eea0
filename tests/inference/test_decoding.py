"""Strategies worked by hand, and what writing many texts costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmctl import tokenizers
from llmctl.config import build
from llmctl.errors import ConfigError, InputError, UsageError
from llmctl.inference.decoder import CausalDecoder
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig
from llmctl.inference.decoding.config import SAMPLING
from llmctl.inference.decoding.rows import apply, check
from llmctl.inference.decoding.strategies import (
    LOGITS_PROCESSORS,
    LOGITS_WARPERS,
    NUCLEUS,
    MinNewTokens,
    Text,
    bad_words,
    min_new_tokens,
    min_p,
    no_repeat_ngram_size,
    repetition_penalty,
    temperature,
    top_k,
    top_p,
    typical_p,
)
from llmctl.inference.decoding.writer import StreamingDetokenizer
from tests.small_decoders import PROMPTS, TOKENIZER, V, make_model, write

NONE = [Text([], 0)]


def rules(**fields: Any) -> CompiledSamplingParams:
    return CompiledSamplingParams(GenerationConfig(**fields), TOKENIZER)


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


def kept(logits_1V: Tensor) -> list[int]:
    return torch.isfinite(logits_1V[0]).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("strategy", "value", "expected"),
    [
        (top_k, 1, [1]),
        (top_k, 2, [1, 3]),
        (top_k, 99, [0, 1, 2, 3]),
        # Sorted: 0.5, 0.3, 0.15, 0.05.
        (top_p, 0.4, [1]),
        (top_p, 0.5001, [1, 3]),
        (top_p, 0.8001, [0, 1, 3]),
        (top_p, 1.0, [0, 1, 2, 3]),
        (min_p, 0.31, [1, 3]),
        (min_p, 0.29, [0, 1, 3]),
        (min_p, 1.0, [1]),
        # Surprises 1.90, 0.69, 3.00, 1.20 and an entropy of 1.14: nearest are 3, 1, 0, 2.
        (typical_p, 0.2, [3]),
        (typical_p, 0.31, [1, 3]),
        (typical_p, 0.81, [0, 1, 3]),
    ],
)
def test_what_a_filter_keeps(strategy: Any, value: float, expected: list[int]):
    logits = logits_of(0.15, 0.5, 0.05, 0.3)
    result = strategy(logits, NONE, value)
    assert kept(result) == expected
    assert torch.equal(result[:, expected], logits[:, expected])


def test_tokens_as_likely_as_the_last_are_kept_too():
    logits = logits_of(0.25, 0.3, 0.25, 0.2)
    assert kept(top_k(logits, NONE, 2)) == kept(top_p(logits, NONE, 0.4)) == [0, 1, 2]


@pytest.mark.parametrize("strategy", [top_p, typical_p])
@pytest.mark.parametrize("share", [0.3, 0.999])
def test_a_share_is_found_in_a_large_vocabulary(strategy: Any, share: float):
    """Among the few that are looked at first and beyond them; by sorting all in NumPy."""
    logits = torch.randn(3, 10 * NUCLEUS, generator=torch.manual_seed(0)).double()
    result = strategy(logits, [*NONE] * 3, share)
    for row, filtered in zip(logits.numpy(), result.numpy(), strict=True):
        log = row - np.log(np.exp(row).sum())
        oddness = -log if strategy is top_p else abs(-log + (np.exp(log) * log).sum())
        order = np.argsort(oddness)
        before = np.concatenate(([0], np.exp(log[order]).cumsum()[:-1]))
        assert set(np.flatnonzero(np.isfinite(filtered))) == set(order[before < share])


def test_temperature_divides():
    found = temperature(logits_of(0.2, 0.8), NONE, 0.5).softmax(-1)
    torch.testing.assert_close(found, torch.tensor([[1 / 17, 16 / 17]]))


def test_a_repetition_is_made_less_likely_whatever_the_sign():
    """Keskar et al. 2019 divide; a negative logit is multiplied, or it would become likelier."""
    logits = torch.tensor([[2.0, -2.0, 3.0, -3.0]] * 2)
    texts = [Text([0, 1, 1], 1), Text([3], 0)]
    expected = torch.tensor([[1.0, -4.0, 3.0, -3.0], [2.0, -2.0, 3.0, -6.0]])
    assert torch.equal(repetition_penalty(logits, texts, 2.0), expected)


@pytest.mark.parametrize(
    ("ids", "size", "barred"),
    [
        ([0, 1, 2, 0, 1], 3, {2}),
        ([0, 1, 2, 0, 1, 3, 0, 1], 3, {2, 3}),
        ([0, 1, 2, 0, 1], 2, {2}),
        ([0, 1, 2, 0, 1], 1, {0, 1, 2}),
        ([0, 1], 3, set()),
        ([0], 3, set()),
        ([1, 1, 1], 3, {1}),
    ],
)
def test_no_ngram_comes_twice(ids: list[int], size: int, barred: set[int]):
    result = no_repeat_ngram_size(torch.zeros(1, 5), [Text(ids, 1)], size)
    assert set(range(5)) - set(kept(result)) == barred


def test_the_last_token_of_a_bad_word_is_barred():
    words = [[4], [0, 1], [2, 0, 3], [1, 1, 1, 1, 1, 1]]
    logits = torch.zeros(3, 5)
    texts = [Text([2, 0], 1), Text([0], 0), Text([1], 1)]
    result = bad_words(logits, texts, words)
    assert [kept(row[None]) for row in result] == [[0, 2], [0, 2, 3], [0, 1, 2, 3]]
    assert not logits.any()


def test_a_bad_word_is_spelt_at_a_start_and_behind_a_space():
    a, b, space = (TOKENIZER.encode(letter)[0] for letter in "ab ")
    texts = [Text([a], 1), Text([space, a], 1), Text([b], 1)]
    result = apply(rules(bad_words=("ab",)).processors, torch.zeros(3, V), texts)
    assert [torch.isfinite(row[b]).item() for row in result] == [False, False, True]


def test_a_text_may_not_end_before_its_least_length():
    texts = [Text([0, 0, 0], 1), Text([0, 0], 1)]
    result = min_new_tokens(torch.zeros(2, 4), texts, MinNewTokens(2, {1, 3}))
    assert [kept(row[None]) for row in result] == [[0, 1, 2, 3], [0, 2]]


def test_every_strategy_has_a_field_and_every_sampling_field_a_filter():
    assert set(LOGITS_PROCESSORS) | set(LOGITS_WARPERS) <= set(GenerationConfig.model_fields)
    assert set(LOGITS_WARPERS) == set(SAMPLING)


def test_what_is_unset_is_left_out():
    assert rules().processors == rules().warpers == []
    some = rules(top_p=0.9, temperature=0.5, min_new_tokens=3)
    assert (len(some.processors), len(some.warpers)) == (1, 2)
    # Greedy: the likeliest token is the same.
    assert rules(top_p=0.9, temperature=0).warpers == []


def test_when_texts_are_sampled():
    greedy = [{}, {"temperature": 0}, {"temperature": 0, "top_p": 0.5}, {"num_beams": 3},
              {"num_beams": 3, "num_samples": 2}, {"penalty_alpha": 0.6, "top_k": 4},
              {"num_beams": 2, "temperature": 0}, {"seed": 3}]  # fmt: skip
    assert not any(GenerationConfig(**given).samples for given in greedy)
    drawn = [{"temperature": 1}, {"top_p": 1.0}, {"top_k": 5}, {"min_p": 0.1}, {"typical_p": 0.9},
             {"num_samples": 2}]  # fmt: skip
    assert all(GenerationConfig(**given).samples for given in drawn)


def test_words_of_a_command_line_are_understood():
    for word, value in (("true", True), ("False", False), ("never", "never")):
        given = {"early_stopping": word, "num_beams": 2}
        assert build(GenerationConfig, given).early_stopping is value or value == "never"
    assert build(GenerationConfig, {"stop": "x"}).stop == ("x",)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"temperature": -1}, r"temperature: must be 0 .* or more, and -1 was given"),
        ({"top_p": 0}, r"top_p: must be more than 0 \(which leaves no token\)"),
        ({"early_stopping": "soon", "num_beams": 2}, "true, false or never"),
        ({"early_stopping": "true"}, "early_stopping True has no effect: .* num_beams"),
        ({"num_beams": 2, "penalty_alpha": 0.6}, "penalty_alpha 0.6 has no effect"),
        ({"penalty_alpha": 0.6, "num_samples": 2}, "num_samples 2"),
        ({"penalty_alpha": 1.5}, "penalty_alpha: must be from 0"),
        ({"num_beams": 10**8}, "num_beams: Input should be less than or equal to 4096"),
        ({"num_samples": 10**8}, "num_samples: Input should be less than or equal to 4096"),
        ({"topp": 0.5}, "did you mean 'top_p'"),
    ],
)
def test_what_can_not_be_is_one_sentence(given: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says) as error:
        build(GenerationConfig, given)
    assert "\n" not in str(error.value)


class Counting(CausalDecoder):
    """Keeps count of what it reads."""

    prompts = 0

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        self.prompts += len(prompts)
        self.rows: list[int] = []
        return super().prefill(prompts, room)

    def extend(self, ids_BT: Tensor) -> Tensor:
        self.rows.append(len(ids_BT))
        return super().extend(ids_BT)


def test_a_prompt_is_read_once_and_finished_texts_cost_nothing():
    counting = Counting(make_model(seed=2))
    answers = write(counting, PROMPTS[:3], temperature=1.2, num_samples=5, max_new_tokens=20,
                    batch_size=15)  # fmt: skip
    lengths = [len(completion.ids) for answer in answers for completion in answer]
    assert min(lengths) < max(lengths)
    assert counting.prompts == 3
    # The last token of a text is not read.
    steps = range(1, max(lengths))
    assert counting.rows == [sum(length > step for length in lengths) for step in steps]


def test_the_cache_is_allocated_once():
    """For beams, which change places at every step, and for rows that leave."""
    decoder = CausalDecoder(make_model(seed=2))
    tables = set()

    class Watching(Counting):
        def extend(self, ids_BT: Tensor) -> Tensor:
            result = super().extend(ids_BT)
            tables.add(self.cache.keys_LFKSEH.data_ptr())
            return result

    watching = Watching(decoder.model)
    write(watching, PROMPTS, temperature=1.2, max_new_tokens=20)
    assert len(tables) == 1
    assert len(set(watching.rows)) > 1
    tables.clear()
    write(watching, PROMPTS[:1], num_beams=4, max_new_tokens=20)
    assert len(tables) == 1


def test_wordpiece_is_written_as_it_is_decoded(corpus_file: Path):
    """Its decoder joins words, where others join bytes."""
    lines = corpus_file.read_text().splitlines()[:100]
    tokenizer = tokenizers.learn("wordpiece", lines, 120, exact=False)
    ids = tokenizer.encode(lines[3])
    assert len(ids) > 12
    for cut in (0, 1, 5, len(ids) - 1):
        writer = StreamingDetokenizer(tokenizer, ids[:cut])
        told = "".join(writer.push(number) for number in ids[cut:]) + writer.close()
        assert tokenizer.decode(ids[:cut]) + told == tokenizer.decode(ids), cut


SMALL = make_model()
EXTREME = st.one_of(
    st.floats(0, 1),
    st.floats(-40, 40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([5e-324, 1e-300, 1e-45, 1e-38, 1e-9, 1e9, 1e38, 1e39, 1e308]),
)
HUGE = st.integers(1, 40) | st.sampled_from([2**31, 2**63, 10**30])
SHARES = ("temperature", "top_p", "min_p", "typical_p", "penalty_alpha")
PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty", "length_penalty")
WHOLE = ("top_k", "no_repeat_ngram_size", "seed")
NUMBERS = {**dict.fromkeys(SHARES + PENALTIES, EXTREME), **dict.fromkeys(WHOLE, HUGE)}


@given(st.fixed_dictionaries({}, optional=NUMBERS), st.sampled_from([1, 3]))
def test_any_finite_value_writes_or_is_refused_by_name(fields: dict[str, Any], beams: int):
    try:
        config = build(GenerationConfig, {**fields, "num_beams": beams, "max_new_tokens": 4})
    except ConfigError as error:
        assert any(name in str(error) for name in (*fields, "num_beams"))  # noqa: PT017
        return
    answers = write(SMALL, PROMPTS[:2], **config.model_dump())
    for completion in (one for many in answers for one in many):
        assert all(0 <= token < V for token in completion.ids)
        assert np.isfinite(completion.log_probs).all()


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5e-324, [0, 1, 0]), (1e-38, [0, 1, 0]), (1e-7, [0, 1, 0]), (1e39, [0.5, 0.5, 0])],
)
def test_temperatures_out_of_range(value: float, expected: list[float]):
    logits = torch.tensor([[1.0, 1.5, -math.inf]])
    assert temperature(logits, NONE, value).softmax(-1)[0].tolist() == expected


@pytest.mark.parametrize("strategy", [top_p, typical_p])
def test_the_smallest_share_keeps_one(strategy: Any):
    assert kept(strategy(logits_of(0.15, 0.5, 0.05, 0.3), NONE, 5e-324)) in ([1], [3])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_told(bad: float):
    with pytest.raises(InputError, match="not numbers, or infinite"):
        check(torch.tensor([[0.0, 1.0], [bad, 0.0]]))
    with pytest.raises(UsageError, match="no token is left"):
        check(torch.tensor([[0.0, 1.0], [-math.inf, -math.inf]]))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("repetition_penalty", 1e-40, "from 1e-9 to 1e9"),
        ("frequency_penalty", 1e39, "must be from -1e9 to 1e9"),
        ("presence_penalty", -1e308, "must be from -1e9 to 1e9"),
        ("length_penalty", 1e308, "must be from -40 to 40"),
        ("draft_tokens", 10**9, "draft_tokens"),
    ],
)
def test_penalties_are_bounded(field: str, value: float, says: str):
    with pytest.raises(ConfigError, match=f"{field}.*{says}|{says}"):
        build(GenerationConfig, {field: value, "num_beams": 2})
