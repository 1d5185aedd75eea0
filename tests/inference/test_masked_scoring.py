"""Pseudo-log-likelihoods against transformers, a token at a time."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from llmctl.errors import InputError
from llmctl.formats.open import open_folder
from llmctl.inference.masked_scoring import MaskedScorer
from llmctl.inference.scoring import Query, encode_query
from llmctl.tokenizers import Layout, Tokenizer
from tests.tasks.test_gpt_bert import START, Pieces
from tests.tasks.test_gpt_bert import model as make_both
from tests.tasks.test_masked_lm import MASK

TEXTS = ["The ship sails over the wide sea.", "hens lay eggs", "People hurry to workstations."]


@pytest.fixture(scope="module")
def folder(tiny_workspace: Path) -> Path:
    return tiny_workspace / "runs/tiny/model"


def theirs_of(folder: Path, ids: list[int], hidden: list[list[int]], mask: int) -> list[float]:
    """The log-probability of each token of a text between its first and last, by transformers.

    hidden: places that are masked for each.
    """
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    found = []
    for place, places in enumerate(hidden, 1):
        row = torch.tensor([ids])
        row[0, places] = mask
        with torch.no_grad():
            logits = model(row).logits[0, place].double()
        found.append(float(logits.log_softmax(-1)[ids[place]]))
    return found


@pytest.mark.reference
@pytest.mark.parametrize("within_word", [False, True])
def test_equals_transformers_token_by_token(folder: Path, within_word: bool):
    opened = open_folder(folder)
    tokenizer = opened.tokenizer
    scorer = MaskedScorer(opened.masked_lm(), tokenizer, within_word=within_word)
    queries = [encode_query(tokenizer, "", [text, text.upper()]) for text in TEXTS]
    answers = list(scorer.score(queries, greedy=True))
    several = 0
    for text, answer in zip(TEXTS, answers, strict=True):
        inner = tokenizer.encode(text)
        ids = [tokenizer.special["cls"], *inner, tokenizer.special["sep"]]
        hidden = []
        for place in range(1, len(ids) - 1):
            last = place
            while within_word and tokenizer.id_to_token(ids[last + 1]).startswith("##"):
                last += 1
            hidden.append(list(range(place, last + 1)))
        several += sum(len(places) > 1 for places in hidden)
        expected = theirs_of(folder, ids, hidden, tokenizer.special["mask"])
        np.testing.assert_allclose(answer.scores[0].log_probs, expected, atol=2e-5)
    assert bool(several) == within_word
    # In lower case they are the same texts to this tokenizer.
    assert all(a.scores[0].total == pytest.approx(a.scores[1].total, abs=1e-4) for a in answers)


def test_a_context_is_seen_and_not_scored(folder: Path):
    opened = open_folder(folder)
    scorer = MaskedScorer(opened.masked_lm(), opened.tokenizer)
    query = encode_query(opened.tokenizer, "The ship sails", [" over the sea", " at dawn"])
    (answer,) = scorer.score([query])
    for continuation, score in zip((" over the sea", " at dawn"), answer.scores, strict=True):
        whole = encode_query(opened.tokenizer, "", ["The ship sails" + continuation])
        (of_whole,) = scorer.score([whole])
        count = len(score.log_probs)
        assert count == len(opened.tokenizer.encode(continuation))
        np.testing.assert_allclose(
            score.log_probs, of_whole.scores[0].log_probs[-count:], atol=2e-5
        )


def test_a_long_context_loses_its_beginning_but_for_cls(folder: Path):
    opened = open_folder(folder)
    special = opened.tokenizer.special
    scorer = MaskedScorer(opened.masked_lm(), opened.tokenizer, longest=8)
    context = np.array([special["cls"], *range(10, 20)])
    (answer,) = scorer.score([Query(context, [np.array([30, 31])])])
    kept = np.array([special["cls"], 16, 17, 18, 19])
    (short,) = scorer.score([Query(kept, [np.array([30, 31])])])
    assert answer.cut == 6
    np.testing.assert_allclose(answer.scores[0].log_probs, short.scores[0].log_probs, atol=1e-6)
    with pytest.raises(InputError, match="9 tokens, and the model reads 8"):
        list(scorer.score([Query(context[:1], [np.arange(9)], "x.jsonl:3")]))


class LaidOut(Pieces):
    layout = Layout(before=(START,))


def test_a_network_that_reads_both_ways_finds_a_token_before_its_mask():
    both, ids, pieces = make_both(), [START, 7, 8, 7, 9], cast("Tokenizer", LaidOut())
    query = Query(np.array(ids[:1]), [np.array(ids[1:])])
    (answer,) = MaskedScorer(both, pieces).score([query])
    for place in range(1, len(ids)):
        row = [MASK if other == place else token for other, token in enumerate(ids)]
        with torch.no_grad():
            hidden_BTD = both.body(torch.tensor([row]), bidirectional=True)
            logits_V = both.logits(hidden_BTD)[0, place - 1].double()
        expected = float(logits_V.log_softmax(-1)[ids[place]])
        assert answer.scores[0].log_probs[place - 1] == pytest.approx(expected, abs=2e-5)


class Watched(MaskedScorer):
    """Keeps what was read."""

    def _logits(self, ids_BT: torch.Tensor, place_B: torch.Tensor) -> torch.Tensor:
        self.read = [*getattr(self, "read", []), *zip(ids_BT.tolist(), place_B.tolist())]  # noqa: B905
        return super()._logits(ids_BT, place_B)


def test_copies_that_are_the_same_are_read_once(folder: Path):
    opened = open_folder(folder)
    model, tokenizer = opened.masked_lm(), opened.tokenizer
    one, other = (np.array([20, 21, last, 23]) for last in (22, 30))
    cls = np.array([tokenizer.special["cls"]])
    scorer = Watched(model, tokenizer)
    together, alone = (
        list(scorer.score([Query(cls, [*texts]) for texts in queries], greedy=True))
        for queries in ([[one, other], [one]], [[one], [other]])
    )
    # Five places of two sentences, of which one is hidden where they differ; then they are alone.
    assert len(scorer.read) == 2 * 7
    expected = [alone[0].scores[0], alone[1].scores[0], alone[0].scores[0]]
    found = [*together[0].scores, *together[1].scores]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine.log_probs, theirs.log_probs, atol=1e-6)
        assert mine.greedy == theirs.greedy


@pytest.mark.parametrize("arch", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_states_at_a_place_are_those_of_the_whole(arch: str):
    from llmctl.models import ARCHITECTURES

    spec = ARCHITECTURES[arch]
    torch.manual_seed(0)
    config = spec.config(vocab_size=60, num_layers=3, hidden_size=32, num_heads=2, max_positions=64)
    body = spec.build(config).eval()
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(5, 60, (6, 9), generator=generator)
    ids_BT[3:] = ids_BT[:3]
    places_B = torch.tensor([0, 3, 8, 1, 3, 7])
    with torch.inference_mode():
        expected_BD = body(ids_BT)[torch.arange(6), places_B]
        torch.testing.assert_close(body.hidden_at(ids_BT, places_B), expected_BD, rtol=0, atol=1e-5)
