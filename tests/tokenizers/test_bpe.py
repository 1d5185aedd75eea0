"""Byte-level BPE: lossless on any text, cut as GPT-2 and GPT-4 cut it, learned the same each
time, merges worked by hand."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import InputError
from llmctl.tokenizers import LEARNERS, Tokenizer, learn
from llmctl.tokenizers.bpe import BPE_SPECIAL
from llmctl.tokenizers.patterns import GPT2, GPT4, GPT4O, LEARNABLE, QWEN, byte_level
from llmctl.tokenizers.vocabulary_size import VocabularyError

CORPUS = [
    "The quick brown foxes jumped over the lazy dogs, and the dogs didn't mind.\n",
    "def jump(dogs):\n    return [dog.jump() for dog in dogs if dog]\n\n",
    "Le café était fermé; 我爱北京天安门。 Jumping, jumped, jumper: 2024-01-31.",
]
SPELLED = st.lists(
    st.sampled_from(
        [*BPE_SPECIAL, " ", "  ", "\n", "jump", "Ġ", "é", "e\u0301", "👩\u200d🔬", "\x00"]
    ),
    max_size=10,
).map("".join)


WEIRD = st.text(st.sampled_from("\t\n\r\x0b\x0c\x1c\x85\xa0\u2028\u3000\u200b\ufeff a'sS1²½٣-_"))
TEXT = st.one_of(st.text(), WEIRD, SPELLED)


@pytest.fixture(scope="module", params=LEARNABLE)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return learn("bpe", CORPUS * 3, 320, split_pattern=request.param)


@given(text=TEXT)
def test_decoding_gives_the_text_back(text: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


@given(text=TEXT)
def test_no_text_becomes_a_special_token(text: str, tokenizer: Tokenizer) -> None:
    assert not tokenizer.special_ids & set(tokenizer.encode(text))


@given(texts=st.lists(TEXT, max_size=4))
def test_a_batch_has_the_ids_of_each_text(texts: list[str], tokenizer: Tokenizer) -> None:
    ids, lengths = tokenizer.encode_batch(texts)
    expected = [tokenizer.encode(text) for text in texts]
    assert ids.tolist() == list(chain.from_iterable(expected))
    assert lengths.tolist() == [len(part) for part in expected]


@pytest.mark.reference
@pytest.mark.parametrize("pattern", [GPT2, GPT4, QWEN, GPT4O])
@given(
    text=st.one_of(
        # The two know different versions of Unicode.
        st.text(st.characters(exclude_categories=["Cn", "Cs"])),
        WEIRD,
        SPELLED,
        st.sampled_from(CORPUS),
    )
)
def test_text_is_cut_as_the_pattern_says(pattern: str, text: str) -> None:
    """By another engine for regular expressions, which knows Unicode's classes too."""
    regex = pytest.importorskip("regex")
    cuts = [match.span() for match in regex.finditer(pattern, text)]
    found = [span for _, span in byte_level(pattern).pre_tokenize_str(text)]
    assert found == cuts


def test_the_patterns_differ_where_they_say() -> None:
    def cut(pattern: str, text: str) -> list[str]:
        return [text[a:b] for _, (a, b) in byte_level(pattern).pre_tokenize_str(text)]

    text = "In 12345 DON'T():\n\n    x"
    assert cut(GPT2, text) == ["In", " 12345", " DON", "'", "T", "():", "\n\n   ", " x"]
    assert cut(GPT4, text) == [
        "In", " ", "123", "45", " DON", "'T", "():\n\n", "   ", " x",
    ]  # fmt: skip
    assert cut(QWEN, "123") == ["1", "2", "3"]
    assert cut(GPT4O, "aFoo's") == ["a", "Foo's"]


def test_merges_worked_by_hand() -> None:
    """'ab' is seen four times, then ' ab' three times, and ' abc' once: too seldom."""
    tokenizer = learn("bpe", ["ab ab ab abc"], 263)
    assert [tokenizer.id_to_token(number) for number in range(5)] == list(BPE_SPECIAL)
    assert [tokenizer.id_to_token(number) for number in (261, 262)] == ["ab", "Ġab"]
    names = [tokenizer.id_to_token(number) for number in tokenizer.encode("ab abc b\n")]
    assert names == ["ab", "Ġab", "c", "Ġ", "b", "Ċ"]
    flags = tokenizer.continuation[tokenizer.encode("ab abc b\n")]
    assert flags.tolist() == [True, False, True, False, True, False]


def test_one_token_is_between_documents_and_turns_have_theirs(tokenizer: Tokenizer) -> None:
    """Not RoBERTa's five any more: GPT's documents begin and end with one token, as GPT-2's do,
    a chat has turns, and a BERT can still be trained, with that token as cls and sep."""
    assert tokenizer.special == {
        "bos": 0, "eos": 0, "cls": 0, "sep": 0, "pad": 1, "mask": 2, "turn_start": 3, "turn_end": 4,
    }  # fmt: skip
    assert [tokenizer.id_to_token(number) for number in range(5)] == [
        "<|endoftext|>", "<|pad|>", "<|mask|>", "<|im_start|>", "<|im_end|>",
    ]  # fmt: skip
    assert not tokenizer.continuation[:5].any()


def test_a_mask_is_read_when_allowed(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("the<|mask|>", allow_special=True)[-1] == 2
    assert tokenizer.decode(tokenizer.encode("the<|mask|>", allow_special=True)) == "the"


class Again:
    """An iterable without a length, as a corpus on disk is."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)


def test_learning_again_gives_the_same() -> None:
    first = learn("bpe", CORPUS * 3, 320).digest()
    assert learn("bpe", Again(CORPUS * 3), 320).digest() == first
    assert learn("bpe", CORPUS * 3, 320, split_pattern="gpt4").digest() == first, "the default"
    assert learn("bpe", CORPUS * 3, 320, split_pattern="gpt2").digest() != first
    assert learn("bpe", CORPUS * 3, 319).digest() != first


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
    """And begins a text as a document begins; a BERT's folder has cls and sep around it."""
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path / "gpt", max_length=99)
    tokenizer.for_encoder().save(tmp_path / "bert", max_length=99)
    gpt, bert = (
        transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("gpt", "bert")
    )
    assert gpt.model_max_length == 99
    for text in [*CORPUS, "", " é\u0301\x00\ufffd", "a <|mask|> b<|im_end|>"]:
        inner = tokenizer.encode(text, allow_special=True)
        assert gpt(text)["input_ids"] == [0, *inner]
        assert bert(text)["input_ids"] == [0, *inner, 0]
        pair = bert(text, "x")
        x = tokenizer.encode("x")
        assert pair["input_ids"] == [0, *inner, 0, *x, 0]
        assert gpt.decode(inner, skip_special_tokens=True) == tokenizer.decode(inner)
    assert (gpt.bos_token_id, gpt.eos_token_id, gpt.pad_token_id) == (0, 0, 1)
    assert (bert.cls_token_id, bert.sep_token_id, bert.mask_token_id) == (0, 0, 2)


def test_a_tokenizer_that_surrounds_texts_is_an_encoders_already() -> None:
    bert = learn("wordpiece", CORPUS, 120, exact=False)
    assert bert.for_encoder() is bert
    once = learn("bpe", CORPUS * 3, 320).for_encoder()
    assert once.for_encoder() is once
    assert once.encode("the dogs") == learn("bpe", CORPUS * 3, 320).encode("the dogs")


def test_every_kind_can_be_learned_by_name() -> None:
    assert list(LEARNERS) == ["wordpiece", "bpe", "unigram", "sentencepiece-bpe", "characters"]
