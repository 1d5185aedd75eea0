"""Pseudo-perplexity against its definition, one token at a time."""

from __future__ import annotations

import math

import pytest
import torch

from llmctl.evaluation.pseudo_perplexity import pseudo_perplexity
from llmctl.models.bert import Bert, BertConfig
from llmctl.models.heads.masked_lm import MaskedLM

SPECIAL = {"cls": 0, "sep": 1, "mask": 2, "pad": 3}


@pytest.fixture
def model() -> MaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, num_layers=2, hidden_size=16, num_heads=2, max_positions=32,
        initializer_range=0.3,
    )  # fmt: skip
    return MaskedLM(Bert(config))


def test_equals_the_definition(model: MaskedLM):
    texts = [[5, 6, 7], [9, 4, 11, 12, 13]]
    total = 0.0
    model.eval()
    with torch.no_grad():
        for text in texts:
            for place, token in enumerate(text):
                hidden = [0, *text, 1]
                hidden[place + 1] = 2
                logits = model.token_logits(model.body(torch.tensor([hidden]))[0, place + 1])
                total += float(torch.log_softmax(logits, -1)[token])
    value, scored = pseudo_perplexity(model, texts, SPECIAL, max_tokens=100)
    assert scored == 8
    assert value == pytest.approx(math.exp(-total / 8), rel=1e-5)


def test_stops_at_the_limit(model: MaskedLM):
    value, scored = pseudo_perplexity(model, [[5, 6, 7], [8, 9]], SPECIAL, max_tokens=2)
    assert scored == 2
    assert value > 1


def test_processes_divide_the_passes(model: MaskedLM):
    texts = [[5, 6, 7], [9, 4, 11, 12, 13], [8, 9]]
    alone, scored = pseudo_perplexity(model, texts, SPECIAL, max_tokens=9)
    sums: list[float] = []
    for number in range(2):
        pseudo_perplexity(
            model, texts, SPECIAL, max_tokens=9, part=(number, 2),
            summed=lambda own: sums.append(own) or own,  # type: ignore[func-returns-value]
        )  # fmt: skip
    assert min(sums) > 0
    assert math.exp(sum(sums) / scored) == pytest.approx(alone, rel=1e-5)
