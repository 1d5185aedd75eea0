"""Words at masks against transformers' logits, with the order of filling worked out beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmctl.errors import InputError
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.inference.cloze import ClozeScorer, encode_cloze, encode_words
from llmctl.inference.templates import MASK_PLACE
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.masked_lm import MaskedLM
from tests.foreign_models import learned

WORDS = ["the", "a", "sea", "cows", "barn", "farmer", "ships tram", "people stops wheat"]


def folder_of(tmp_path: Path, arch: str, kind: str = "wordpiece") -> Any:
    """A masked language model with large random weights."""
    tokenizer, spec = learned(kind), ARCHITECTURES[arch]
    config = spec.config(
        vocab_size=tokenizer.vocab_size, max_positions=64, num_layers=2, hidden_size=32,
        num_heads=2, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MaskedLM(spec.build(config), next_sentence=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    write_model_folder(tmp_path, model.eval(), tokenizer, {})
    return open_folder(tmp_path)


def by_hand(model: Any, before: list[int], word: list[int], after: list[int], mask: int) -> float:
    """The sum of log-probabilities, the surest piece filled in first."""
    ids, left, total = [*before, *[mask] * len(word), *after], list(range(len(word))), 0.0
    while left:
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        scores = [float(logs[len(before) + place, word[place]]) for place in left]
        best = int(np.argmax(scores))
        total += scores[best]
        ids[len(before) + left[best]] = word[left[best]]
        del left[best]
    return total


@pytest.mark.reference
@pytest.mark.parametrize("arch", ["bert", "modernbert"])
def test_scores_are_those_of_transformers(tmp_path: Path, arch: str):
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, arch)
    tokenizer = folder.tokenizer
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    prompts = [
        f"the ship sails {MASK_PLACE} over the wide", f"{MASK_PLACE}: hens lay eggs",
        f"people hurry to {MASK_PLACE}",
    ]  # fmt: skip
    queries = [encode_cloze(tokenizer, prompt, WORDS, max_length=64) for prompt in prompts]
    assert min(map(len, queries[0].words)) == 1
    assert queries[0].longest >= 3
    found = list(ClozeScorer(folder.masked_lm(), tokenizer).score(queries))
    for query, words in zip(queries, found, strict=True):
        for word, scores in zip(query.words, words, strict=True):
            parts = (part.tolist() for part in (query.before, word, query.after))
            expected = by_hand(theirs, *parts, tokenizer.special["mask"])
            assert scores.sum() == pytest.approx(expected, abs=2e-4)
            assert len(scores) == len(word)


def test_a_text_that_is_too_long_loses_what_is_far_from_the_mask():
    tokenizer = learned("wordpiece")
    long = "the ship sails over the wide sea " * 9
    query = encode_cloze(tokenizer, f"{long}It was {MASK_PLACE} .", ["sea"], max_length=12)
    whole = encode_cloze(tokenizer, f"{long}It was {MASK_PLACE} .", ["sea"], max_length=999)
    assert len(query.before) + len(query.after) + query.longest == 12
    assert query.before[1:].tolist() == whole.before[-len(query.before) + 1 :].tolist()
    assert query.after.tolist() == whole.after.tolist()
    assert query.cut == len(whole.before) - len(query.before)
    with pytest.raises(InputError, match="doesn't fit into the 3 tokens"):
        encode_cloze(tokenizer, MASK_PLACE, ["ships tram"], max_length=3)


def test_a_byte_level_word_has_the_space_before_it():
    tokenizer = learned("bpe")
    (spaced,) = encode_words(tokenizer, ["sea"], spaced=True, source="x")
    assert spaced.tolist() == tokenizer.encode(" sea")
    query = encode_cloze(tokenizer, f"the wide {MASK_PLACE} .", ["sea"], max_length=40)
    plain = tokenizer.encode("the wide sea .")
    ids = [*query.before.tolist(), *query.words[0].tolist(), *query.after.tolist()]
    before, after = tokenizer.layout.before, tokenizer.layout.after
    assert ids == [*before, *plain, *after]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sea", "雨"], "'雨' is not in the model's vocabulary"),
        (["sea", "SEA"], "are the same"),
        (["sea", "sun", "sea"], "the word 'sea' stands for two labels"),
    ],
)
def test_words_that_can_not_be_told_are_refused(words: list[str], said: str):
    with pytest.raises(InputError, match=said):
        encode_cloze(learned("wordpiece"), MASK_PLACE, words, max_length=20)
