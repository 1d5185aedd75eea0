"""An n-gram model read token by token gives what it gives whole texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmctl.inference.decoder import DecoderRunner
from llmctl.inference.ngram_decoder import NgramDecoder, NgramScorer
from llmctl.inference.scoring import Query, Scorer
from llmctl.models.ngram.counts import TokenBlock
from llmctl.models.ngram.model import NgramModel
from llmctl.models.ngram.smoothing import NgramConfig, train

BOS, EOS, WORDS, VOCAB = 20, 21, 20, 22


def rows(count: int, seed: int) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    # Each word is likely to be one or two further than the last.
    return [
        (np.cumsum(generator.choice([1, 1, 2, 7], size=generator.integers(1, 20))) % WORDS).tolist()
        for _ in range(count)
    ]


def block_of(texts: list[list[int]]) -> TokenBlock:
    lengths = np.array([len(text) for text in texts])
    return TokenBlock(np.concatenate(texts), np.cumsum(lengths) - lengths)


@pytest.fixture(params=["kneser-ney-1", "kneser-ney-2", "kneser-ney-4", "katz-3", "add-k-3"])
def model(request: pytest.FixtureRequest) -> NgramModel:
    smoothing, _, order = request.param.rpartition("-")
    texts = [[BOS, *row, EOS] for row in rows(200, 0)]
    config = NgramConfig(order=int(order), smoothing=smoothing)
    return train([block_of(texts)], VOCAB, BOS, config).model


def log_probs(model: NgramModel, text: list[int]) -> np.ndarray:
    return model.log_probabilities(block_of([text]))


def test_reading_token_by_token_is_scoring(model: NgramModel):
    decoder: DecoderRunner = NgramDecoder(model)
    prompts = [[BOS], [BOS, 3], [BOS, 3, 4, 5, 7, 8], [3, 4], [9, 9, 9, 9, 9, 9]]
    going_on = [[1, 2, EOS], [4, 11, 12], [9, 9, 9], [5, 6, 7], [BOS, 0, 1]]
    logits = [decoder.prefill(prompts, room=3)[:, None]]
    logits += [
        decoder.extend(torch.tensor(going_on)[:, :1]),
        decoder.extend(torch.tensor(going_on)[:, 1:]),
    ]
    logits_BTV = torch.cat(logits, dim=1)
    assert logits_BTV.shape == (5, 4, VOCAB)
    assert logits_BTV.dtype == torch.float32
    assert logits_BTV.logsumexp(-1).abs().max() < 1e-6
    for row, (prompt, rest) in enumerate(zip(prompts, going_on, strict=True)):
        expected = log_probs(model, [*prompt, *rest])[len(prompt) :]
        found = logits_BTV[row, torch.arange(3), torch.tensor(rest)].numpy()
        assert found == pytest.approx(expected, rel=1e-6)


def test_rows_are_kept_moved_and_repeated(model: NgramModel):
    decoder = NgramDecoder(model)
    prompts = [[BOS, 1, 2], [BOS, 5], [BOS, 7, 9]]
    decoder.prefill(prompts, room=1)
    decoder.select(torch.tensor([2, 0, 0]))
    found = decoder.extend(torch.tensor([[10], [3], [4]]))[:, 0]
    again = NgramDecoder(model).prefill([[BOS, 7, 9, 10], [BOS, 1, 2, 3], [BOS, 1, 2, 4]], room=0)
    assert torch.equal(found, again)


def test_an_empty_prompt_has_no_context(model: NgramModel):
    found = NgramDecoder(model).prefill([[], [BOS]], room=1)
    assert found[0].numpy() == pytest.approx(np.log(model.unigram), rel=1e-6)


@pytest.mark.parametrize("greedy", [False, True])
def test_scores_of_continuations(model: NgramModel, greedy: bool):
    scorer: Scorer = NgramScorer(model)
    generator = np.random.default_rng(5)
    queries = [
        Query(np.array([BOS, *row]), [np.array(c) for c in rows(int(generator.integers(1, 4)), n)])
        for n, row in enumerate(rows(600, 1))
    ]
    answers = list(scorer.score(queries, greedy=greedy))
    assert len(answers) == len(queries)
    verdicts = set()
    for query, answer in zip(
        queries[:40] + queries[-40:], answers[:40] + answers[-40:], strict=True
    ):
        assert answer.cut == 0
        assert len(answer.scores) == len(query.continuations)
        for continuation, score in zip(query.continuations, answer.scores, strict=True):
            text = [*query.context.tolist(), *continuation.tolist()]
            expected = log_probs(model, text)[len(query.context) :]
            assert score.log_probs == pytest.approx(expected, rel=1e-12)
            assert score.greedy is (is_greedy(model, text, len(continuation)) if greedy else None)
            verdicts.add(score.greedy)
    assert len(verdicts) == (2 if greedy and model.order > 1 else 1)


def is_greedy(model: NgramModel, text: list[int], last: int) -> bool:
    decoder = NgramDecoder(model)
    best = decoder.prefill([text[: len(text) - last]], room=last).argmax(-1).tolist()
    for token in text[len(text) - last : -1]:
        best += decoder.extend(torch.tensor([[token]]))[0].argmax(-1).tolist()
    return best == text[len(text) - last :]
