"""Byte-level BPE: lossless on any text, learned the same each time, merges worked by hand."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.errors import InputError
from llmctl.tokenizers import Tokenizer, learn
from llmctl.tokenizers.base import VocabularyError
from llmctl.tokenizers.bpe import SPECIAL

CORPUS = [
    "The quick brown foxes jumped over the lazy dogs, and the dogs didn't mind.\n",
    "def jump(dogs):\n    return [dog.jump() for dog in dogs if dog]\n\n",
    "Le café était fermé; 我爱北京天安门。 Jumping, jumped, jumper: 2024-01-31.",
]
SPELLED = st.lists(
    st.sampled_from([*SPECIAL, " ", "  ", "\n", "jump", "Ġ", "é", "e\u0301", "👩\u200d🔬", "\x00"]),
    max_size=10,
).map("".join)
TEXT = st.one_of(st.text(), SPELLED)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn("bpe", CORPUS * 3, 320)


@settings(max_examples=500, deadline=None)
@given(text=TEXT)
def test_decoding_gives_the_text_back(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_no_text_becomes_a_special_token(text: str, tokenizer: Tokenizer) -> None:
    assert not tokenizer.special_ids & set(tokenizer.encode(text))


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXT, max_size=4))
def test_a_batch_has_the_ids_of_each_text(texts: list[str], tokenizer: Tokenizer) -> None:
    ids, lengths = tokenizer.encode_batch(texts)
    expected = [tokenizer.encode(text) for text in texts]
    assert ids.tolist() == list(chain.from_iterable(expected))
    assert lengths.tolist() == [len(part) for part in expected]


def test_merges_worked_by_hand() -> None:
    """'ab' is seen four times, then ' ab' three times, and ' abc' once: too seldom."""
    tokenizer = learn("bpe", ["ab ab ab abc"], 263)
    assert [tokenizer.id_to_token(number) for number in range(5)] == list(SPECIAL)
    assert [tokenizer.id_to_token(number) for number in (261, 262)] == ["ab", "Ġab"]
    names = [tokenizer.id_to_token(number) for number in tokenizer.encode("ab abc b\n")]
    assert names == ["ab", "Ġab", "c", "Ġ", "b", "Ċ"]
    flags = tokenizer.continuation[tokenizer.encode("ab abc b\n")]
    assert flags.tolist() == [True, False, True, False, True, False]


def test_roles_are_robertas(tokenizer: Tokenizer) -> None:
    expected = {"cls": 0, "bos": 0, "pad": 1, "sep": 2, "eos": 2, "unk": 3, "mask": 4}
    assert tokenizer.special == expected
    assert not tokenizer.continuation[:5].any()


def test_a_mask_is_read_when_allowed(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("the<mask>", allow_special=True)[-1] == 4
    assert tokenizer.decode(tokenizer.encode("the<mask>", allow_special=True)) == "the"


class Again:
    """An iterable without a length, as a corpus on disk is."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)


def test_learning_again_gives_the_same(tokenizer: Tokenizer) -> None:
    assert learn("bpe", Again(CORPUS * 3), 320).digest() == tokenizer.digest()
    assert learn("bpe", CORPUS * 3, 319).digest() != tokenizer.digest()


def test_the_size_an_error_suggests_is_the_largest() -> None:
    with pytest.raises(VocabularyError, match="distinct pieces; use --vocab-size") as caught:
        learn("bpe", CORPUS, 100_000)
    available = caught.value.available
    assert learn("bpe", CORPUS, available).vocab_size == available
    with pytest.raises(VocabularyError):
        learn("bpe", CORPUS, available + 1)


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(InputError, match=r"--vocab-size 260: .* need 261"):
        learn("bpe", CORPUS, 260)
    assert learn("bpe", CORPUS, 261).vocab_size == 261


@pytest.mark.reference
def test_auto_tokenizer_opens_the_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path, max_length=99)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 99
    for text in [*CORPUS, "", " é\u0301\x00\ufffd", "a <mask> b"]:
        inner = tokenizer.encode(text, allow_special=True)
        assert theirs(text)["input_ids"] == [0, *inner, 2]
    assert (theirs.pad_token_id, theirs.mask_token_id) == (1, 4)
