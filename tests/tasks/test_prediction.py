"""Prediction against probabilities computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmctl.data.tables.encoded import add_special_tokens
from llmctl.data.tables.labelled import Example
from llmctl.errors import InputError
from llmctl.models.bert import Bert, BertConfig
from llmctl.models.heads.classify import Classifier
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.tasks.classify.predict import BATCH, class_probabilities, in_blocks
from llmctl.tasks.masked_lm.predict import fill_masks
from llmctl.tokenizers import Layout
from llmctl.tokenizers.wordpiece import WORDPIECE_SPECIAL, build_wordpiece

WORDS = ["the", "sea", "is", "wide", "ship"]
CONFIG = BertConfig(
    vocab_size=len(WORDPIECE_SPECIAL) + len(WORDS), num_layers=1, hidden_size=16, num_heads=2,
    max_positions=16, initializer_range=0.3,
)  # fmt: skip


@pytest.fixture
def tokenizer():
    return build_wordpiece([*WORDPIECE_SPECIAL, *WORDS], cased=False)


def text(content: str) -> Example:
    return Example(content, None, None, "texts.txt:7")


def test_probabilities_are_those_of_each_text_alone():
    torch.manual_seed(0)
    model = Classifier(Bert(CONFIG), 3).eval()
    generator = np.random.default_rng(0)
    examples = [
        add_special_tokens(
            generator.integers(5, 10, size=generator.integers(1, 12)).tolist(), None,
            Layout(before=(2,), after=(3,)), max_length=16,
        )
        for _ in range(BATCH + 7)
    ]  # fmt: skip
    together = class_probabilities(model, examples, pad=0)
    with torch.no_grad():
        for row, example in enumerate(examples):
            hidden = model.body(torch.from_numpy(example.ids)[None])
            logits = model.output(torch.tanh(model.pooler(hidden[:, 0])))[0].numpy()
            expected = np.exp(logits - logits.max())
            # Padding changes the order of sums in fp32: a few 1e-7.
            np.testing.assert_allclose(together[row], expected / expected.sum(), atol=1e-5)


def test_masks_get_the_likeliest_ordinary_tokens(tokenizer):
    torch.manual_seed(0)
    model = MaskedLM(Bert(CONFIG)).eval()
    filled = fill_masks(model, tokenizer, text("the [MASK] is [MASK]"), max_length=16, top=3)
    ids = torch.tensor([[2, 5, 4, 7, 4, 3]])
    with torch.no_grad():
        logits = model.token_logits(model.body(ids)[0, [2, 4]]).double()
    probabilities = torch.softmax(logits, -1)
    for candidates, row in zip(filled, probabilities, strict=True):
        ordinary = sorted(range(5, 10), key=lambda number: -float(row[number]))[:3]
        assert [c.token for c in candidates] == [WORDS[number - 5] for number in ordinary]
        for candidate, number in zip(candidates, ordinary, strict=True):
            assert candidate.probability == pytest.approx(float(row[number]), abs=1e-6)


def test_a_text_without_a_mask_or_too_long_is_refused(tokenizer):
    model = MaskedLM(Bert(CONFIG))
    with pytest.raises(InputError, match=r"texts\.txt:7 has no \[MASK\]"):
        fill_masks(model, tokenizer, text("the sea"), max_length=16, top=1)
    with pytest.raises(InputError, match=r"texts\.txt:7 has 22 tokens and the model takes 16"):
        fill_masks(model, tokenizer, text("sea " * 19 + "[MASK]"), max_length=16, top=1)


def test_blocks_keep_order_and_begin_small():
    examples = [Example(str(n), None, None, "") for n in range(BATCH * 3 + 1)]
    blocks = list(in_blocks(iter(examples), size=BATCH * 2))
    assert [len(block) for block in blocks] == [BATCH, BATCH * 2, 1]
    assert [example for block in blocks for example in block] == examples


def test_scores_that_are_no_numbers_are_no_answer(tokenizer):
    """Each weight is finite, and their sums are not."""
    classifier, masked = Classifier(Bert(CONFIG), 3), MaskedLM(Bert(CONFIG))
    with torch.no_grad():
        for weight in (*classifier.parameters(), *masked.parameters()):
            weight.fill_(3e38)
    example = add_special_tokens([5, 6], None, Layout(before=(2,), after=(3,)), max_length=16)
    with pytest.raises(InputError, match="not numbers"):
        class_probabilities(classifier, [example], pad=0)
    with pytest.raises(InputError, match="not numbers"):
        fill_masks(masked, tokenizer, text("the [MASK]"), max_length=16, top=2)
