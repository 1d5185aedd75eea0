"""Sentinels and the tokens of fill-in-the-middle: behind the pieces, and never in a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmctl.errors import UsageError
from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
from llmctl.tokenizers import Tokenizer, learn, load
from llmctl.tokenizers.additional import FIM_ROLES, with_additional
from llmctl.workspace.artefacts import Workspace
from tests.run import llmctl, one_sentence

TEXTS = ["the cat sat on the mat <extra_id_0> and <|fim_prefix|>", "你好世界。 words"] * 20
SIZES = {"bpe": 300, "wordpiece": 90, "unigram": 320, "sentencepiece-bpe": 320, "characters": None}


@pytest.mark.parametrize("kind", SIZES)
def test_they_lie_behind_the_pieces(kind: str, tmp_path: Path):
    plain: Tokenizer = learn(kind, TEXTS, SIZES[kind], exact=False)
    assert plain.token_bytes.shape == (plain.vocab_size,)  # what was computed before is no more
    grown = with_additional(plain, sentinels=3, fim=True)
    first = plain.vocab_size
    assert grown.vocab_size == first + 6
    # T5's order, which transformers' own example of span corruption counts on.
    assert grown.sentinels == (first + 5, first + 4, first + 3)
    assert [grown.id_to_token(number) for number in grown.sentinels] == [
        "<extra_id_0>", "<extra_id_1>", "<extra_id_2>",
    ]  # fmt: skip
    assert {grown.special[role] for role in FIM_ROLES} == {first, first + 1, first + 2}
    assert set(range(first, first + 6)) <= grown.special_ids
    assert not grown.token_bytes[first:].any()
    assert not set(grown.ordinary) & set(range(first, first + 6))
    for text in TEXTS[:2]:
        assert grown.encode(text) == plain.encode(text)
    read = grown.encode("the <extra_id_1> cat", allow_special=True)
    assert grown.sentinels[1] in read
    grown.save(tmp_path)
    again = load(tmp_path)
    assert (again.digest(), again.sentinels) == (grown.digest(), grown.sentinels)
    assert again.layout == plain.layout
    assert np.array_equal(again.token_bytes, grown.token_bytes)


def test_transformers_knows_them(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    grown = with_additional(learn("bpe", TEXTS, 300, exact=False), sentinels=2)
    grown.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs("the <extra_id_0> mat", add_special_tokens=False)["input_ids"]
    assert ids == grown.encode("the <extra_id_0> mat", allow_special=True)
    assert theirs.decode(ids, skip_special_tokens=True) == grown.decode(ids)


def test_what_is_there_stays():
    grown = with_additional(learn("bpe", TEXTS, 300, exact=False), sentinels=2, fim=True)
    assert with_additional(grown, sentinels=2, fim=True) is grown
    more = with_additional(grown, sentinels=4)
    assert more.sentinels[:2] == grown.sentinels
    assert len(more.sentinels) == 4


def test_a_vocabulary_that_is_taken_grows_too(tmp_path: Path, corpus_file: Path):
    place = Workspace(tmp_path / "w")
    first = TokenizeConfig(tokenizer="bpe", vocab_size=300, document="line", workers=1)
    tokenize(place, [str(corpus_file)], first, name="plain")
    taken = TokenizeConfig(tokenizer="plain", sentinels=5, document="line", workers=1)
    shards, _ = tokenize(place, [str(corpus_file)], taken, name="marked")
    grown = load(shards.folder / "tokenizer")
    assert (grown.vocab_size, len(grown.sentinels)) == (305, 5)


def test_somebodys_sentencepiece_model_can_not_grow(tmp_path: Path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 30)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "own"), vocab_size=15,
        minloglevel=2,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"--sentinels: the vocabulary .* can't grow"):
        with_additional(load(tmp_path / "own.model"), sentinels=10)
    failed = llmctl(
        tmp_path / "w", "tokenize", tmp_path / "text.txt", "--tokenizer", tmp_path / "own.model",
        "--fim", code=2,
    )  # fmt: skip
    assert "--fim" in one_sentence(failed)
