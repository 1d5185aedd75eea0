"""Characters: numbered as nanoGPT numbers them, lossless on what the corpus has, quick."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from llmctl.tokenizers import Tokenizer, learn, load
from llmctl.tokenizers.characters import CHARACTER_SPECIAL, CharacterTokenizer

CORPUS = [
    "First Citizen:\nBefore we proceed, hear me.\n\n",
    "café 北京 👩\u200d🔬 ▁ Ġ <unk> \x00\t",
]
ALPHABET = sorted(set("".join(CORPUS)))
KNOWN = st.one_of(st.text(st.sampled_from(ALPHABET)), st.sampled_from(CHARACTER_SPECIAL[:-1]))
FOREIGN = "Q~☃\u0301\U0010ffff"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn("characters", CORPUS, None)


def test_ids_are_places_in_sorted_order_and_special_tokens_follow(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == len(ALPHABET) + len(CHARACTER_SPECIAL)
    pieces = [tokenizer.id_to_token(number) for number in range(tokenizer.vocab_size)]
    assert pieces == [*ALPHABET, *CHARACTER_SPECIAL]
    first = len(ALPHABET)
    assert tokenizer.special == {
        "bos": first, "eos": first, "cls": first, "sep": first, "pad": first + 1,
        "mask": first + 2, "turn_start": first + 3, "turn_end": first + 4, "unk": first + 5,
    }  # fmt: skip


@given(text=KNOWN)
def test_decoding_gives_known_text_back(text: str, tokenizer: Tokenizer) -> None:
    known = "".join(character for character in text if character in ALPHABET)
    ids = tokenizer.encode(known)
    assert ids == [ALPHABET.index(character) for character in known]
    assert tokenizer.decode(ids) == known


@given(texts=st.lists(st.text(st.sampled_from([*ALPHABET, *FOREIGN])), max_size=4))
def test_the_table_is_what_the_library_does(texts: list[str], tokenizer: Tokenizer) -> None:
    """For single texts and batches, places too; a character the corpus lacks is <unk>."""
    rust = RustTokenizer.from_str(tokenizer._rust.to_str())  # type: ignore[attr-defined]
    rust.encode_special_tokens = True
    found = [rust.encode(text, add_special_tokens=False) for text in texts]
    assert [tokenizer.encode(text) for text in texts] == [encoding.ids for encoding in found]
    ids, lengths = tokenizer.encode_batch(texts)
    assert ids.tolist() == list(chain.from_iterable(encoding.ids for encoding in found))
    assert lengths.tolist() == [len(encoding.ids) for encoding in found]
    for text, encoding in zip(texts, found, strict=True):
        assert tokenizer.encode_offsets(text)[1].tolist() == [a for a, _ in encoding.offsets]
    unknown = tokenizer.special["unk"]
    assert int((ids == unknown).sum()) == sum(c in FOREIGN for text in texts for c in text)


def test_special_tokens_are_read_when_allowed(tokenizer: Tokenizer) -> None:
    text = "me<|im_end|>\n"
    end = tokenizer.special["turn_end"]
    assert tokenizer.encode(text, allow_special=True)[2:] == [end, ALPHABET.index("\n")]
    assert end not in tokenizer.encode(text)


def test_a_long_text_takes_a_small_part_of_the_librarys_time(tokenizer: Tokenizer) -> None:
    text = CORPUS[0] * 5000
    rust = tokenizer._rust  # type: ignore[attr-defined]

    def seconds(encode: Callable[[list[str]], object]) -> float:
        started = time.perf_counter()
        encode([text])
        return time.perf_counter() - started

    ratios = [seconds(tokenizer.encode_batch) / seconds(rust.encode_batch) for _ in range(3)]
    assert median(ratios) < 0.25
    ids, _ = tokenizer.encode_batch([text])
    assert len(ids) == len(text)


@pytest.mark.reference
def test_auto_tokenizer_opens_the_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path, max_length=99)
    assert isinstance(load(tmp_path), CharacterTokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*CORPUS, "", "hear<|im_end|>", "?☃"]:
        inner = tokenizer.encode(text, allow_special=True)
        assert theirs(text)["input_ids"] == [tokenizer.special["bos"], *inner]
        assert theirs.decode(inner, skip_special_tokens=True) == tokenizer.decode(inner)


def test_a_bert_has_its_tokens_around_a_text(tokenizer: Tokenizer) -> None:
    wrapped = tokenizer.for_encoder()
    assert isinstance(wrapped, CharacterTokenizer)
    assert wrapped.encode(CORPUS[1]) == tokenizer.encode(CORPUS[1])
    assert wrapped._rust.encode("me").ids == [
        tokenizer.special["cls"], *tokenizer.encode("me"), tokenizer.special["sep"],
    ]  # fmt: skip
