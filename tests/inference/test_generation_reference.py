"""Writing against transformers' generate and its logits processors, on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmctl.formats.huggingface.tensors import export_model
from llmctl.inference.decoding import CompiledSamplingParams, GenerationConfig
from llmctl.inference.decoding import strategies as ours
from llmctl.inference.decoding.rows import apply
from llmctl.inference.decoding.strategies import Text
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.causal_lm import CausalLM
from tests.small_decoders import ENDS, PROMPTS, TOKENIZER, V, make_model, write

pytestmark = pytest.mark.reference

LONGEST = 14
PAD = TOKENIZER.special["pad"]


def opened(model: CausalLM, arch: str) -> Any:
    """The model as transformers has it."""
    import transformers

    architecture = ARCHITECTURES[arch]
    fields = architecture.to_hugging_face(model.body.config)
    config = transformers.AutoConfig.for_model(**fields, bos_token_id=ENDS[0], eos_token_id=ENDS[0])
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    missing, unexpected = theirs.load_state_dict(
        export_model(model.state_dict(), "causal_lm", architecture, model.body.config),
        strict=False,
    )
    assert not missing
    assert not unexpected
    return theirs


def theirs_of(theirs: Any, prompt: list[int], **options: Any) -> Any:
    """What transformers writes behind a prompt, with scores."""
    ids = torch.tensor([prompt])
    return theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=LONGEST, eos_token_id=ENDS,
        pad_token_id=PAD, return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip


def written(sequences: Tensor, prompt: list[int]) -> list[tuple[int, ...]]:
    """The new tokens, up to the end's."""
    found = []
    for ids in sequences[:, len(prompt) :].tolist():
        ends = [place for place, token in enumerate(ids) if token in ENDS]
        found.append(tuple(ids[: ends[0] + 1] if ends else ids))
    return found


def words_of(options: dict[str, Any]) -> dict[str, Any]:
    """Our options as transformers': a bad word at the text's start and behind a space."""
    words = [text for word in options.get("bad_words", ()) for text in (word, f" {word}")]
    further = {"bad_words_ids": [TOKENIZER.encode(word) for word in words]} if words else {}
    return {name: value for name, value in options.items() if name != "bad_words"} | further


RULES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.8},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"bad_words": ("a", "be", "gkd")},
    {"min_new_tokens": 9},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words": ("d",),
     "min_new_tokens": 5},
]  # fmt: skip


@pytest.mark.parametrize("arch", ["gpt", "llama", "nanochat"])
def test_greedy_is_that_of_transformers(arch: str):
    finishes, changed = set(), set()
    for seed in (0, 1):
        model = make_model(arch, seed=seed)
        theirs = opened(model, arch)
        plain = write(model, max_new_tokens=LONGEST)
        for number, options in enumerate(RULES if seed == 0 else RULES[:1]):
            found = write(model, max_new_tokens=LONGEST, **options)
            for prompt, (completion,) in zip(PROMPTS, found, strict=True):
                expected = theirs_of(theirs, prompt, do_sample=False, **words_of(options))
                assert [completion.ids] == written(expected.sequences, prompt), options
                finishes.add(completion.finish)
            if [c.ids for (c,) in found] != [c.ids for (c,) in plain]:
                changed.add(number)
    assert finishes == {"eos", "length"}
    assert len(changed) >= len(RULES) - 2, "options that change nothing test nothing"


@pytest.fixture(scope="module", params=[0, 4])
def searched(request: pytest.FixtureRequest) -> tuple[CausalLM, Any]:
    """Seeds whose texts end early, late and not at all."""
    model = make_model("gpt", seed=request.param)
    return model, opened(model, "gpt")


def assert_same_beams(
    searched: tuple[CausalLM, Any], prompt: list[int], **options: Any
) -> set[int]:
    """Compares all beams; returns the lengths that they have."""
    model, theirs = searched
    num_beams = options["num_beams"]
    (found,) = write(model, [prompt], max_new_tokens=LONGEST, num_samples=num_beams, **options)
    expected = theirs_of(
        theirs, prompt, do_sample=False, num_return_sequences=num_beams, **words_of(options)
    )
    assert [completion.ids for completion in found] == written(expected.sequences, prompt), options
    scores = torch.tensor([completion.score for completion in found])
    torch.testing.assert_close(scores, expected.sequences_scores, rtol=1e-5, atol=1e-5)
    return {len(completion.ids) for completion in found}


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("num_beams", [2, 4])
def test_beam_search_is_that_of_transformers(
    searched: tuple[CausalLM, Any],
    num_beams: int,
    length_penalty: float,
    early_stopping: bool | str,
):
    lengths: set[int] = set()
    for prompt in PROMPTS[:4]:
        lengths |= assert_same_beams(
            searched, prompt, num_beams=num_beams, length_penalty=length_penalty,
            early_stopping=early_stopping,
        )  # fmt: skip
    if length_penalty < 2:
        assert min(lengths) < LONGEST, "no text ended by itself"


@pytest.mark.parametrize("options", RULES[1:], ids=lambda options: "-".join(options))
def test_beam_search_with_rules_is_that_of_transformers(
    searched: tuple[CausalLM, Any], options: dict[str, Any]
):
    for prompt in PROMPTS[:3]:
        assert_same_beams(searched, prompt, num_beams=3, **options)


def test_beams_of_several_prompts_together_are_those_of_each(searched: tuple[CausalLM, Any]):
    model, _ = searched
    options = {"num_beams": 3, "num_samples": 3, "max_new_tokens": LONGEST}
    together = write(model, batch_size=12, **options)
    for prompt, found in zip(PROMPTS, together, strict=True):
        (alone,) = write(model, [prompt], **options)
        assert [c.ids for c in found] == [c.ids for c in alone]
        assert [c.score for c in found] == pytest.approx([c.score for c in alone], abs=1e-5)


def assert_same_distribution(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize("size", [3, 50, 3000], ids=["tiny", "small", "above-the-nucleus"])
def test_each_filter_leaves_the_distribution_of_transformers(size: int, spread: float):
    from transformers.generation import logits_process as theirs

    generator = torch.Generator().manual_seed(size)
    # In double precision, so that no share is reached a token earlier or later by rounding.
    logits = spread * torch.randn(16, size, generator=generator).double()
    logits[3, ::2] = -torch.inf  # barred by what came before
    logits[4] = logits[4].round()  # ties
    none: list[Text] = [Text([], 0)] * len(logits)
    for value in (0.3, 1.0, 1.7):
        assert_same_distribution(
            ours.temperature(logits, none, value),
            theirs.TemperatureLogitsWarper(value)(None, logits),
        )
    for count in (1, 2, 40, 5000):
        assert_same_distribution(
            ours.top_k(logits, none, count), theirs.TopKLogitsWarper(count)(None, logits)
        )
    untied = logits[torch.arange(16) != 4]  # which of equals are kept is chance in transformers'
    for share in (1e-4, 0.1, 0.5, 0.9, 0.999):
        assert_same_distribution(
            ours.top_p(untied, none, share), theirs.TopPLogitsWarper(share)(None, untied)
        )
        assert_same_distribution(
            ours.min_p(logits, none, share), theirs.MinPLogitsWarper(share)(None, logits)
        )
        assert_same_distribution(
            ours.typical_p(untied, none, share), theirs.TypicalLogitsWarper(share)(None, untied)
        )


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float):
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 40, generator=generator)
    ids = torch.randint(40, (6, 15), generator=generator)
    texts = [Text(row, 4) for row in ids.tolist()]
    assert_same_distribution(
        ours.repetition_penalty(logits, texts, penalty),
        RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone()),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.03, "typical_p": 0.9},
        {"temperature": 1.8, "top_p": 0.8, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"top_k": 12, "typical_p": 0.7, "bad_words": ("c", "ab"), "min_new_tokens": 11},
    ],
)  # fmt: skip
def test_all_together_are_applied_in_the_order_of_transformers(options: dict[str, Any]):
    theirs = opened(make_model("gpt", seed=5), "gpt")
    rules = CompiledSamplingParams(GenerationConfig(max_new_tokens=LONGEST, **options), TOKENIZER)
    # transformers samples among 50 tokens unless it is told otherwise, more than there are.
    assert V < 50
    for seed, prompt in enumerate(PROMPTS):
        torch.manual_seed(seed)
        drawn = theirs_of(theirs, prompt, do_sample=True, output_logits=True, **words_of(options))
        for step, (logits, expected) in enumerate(zip(drawn.logits, drawn.scores, strict=True)):
            text = Text(drawn.sequences[0, : len(prompt) + step].tolist(), len(prompt))
            found = apply([*rules.processors, *rules.warpers], logits.float(), [text])
            assert_same_distribution(found, expected)
