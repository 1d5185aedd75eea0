"""The bytes that ids stand for: counted exactly, and joined so that a stream only grows."""

from __future__ import annotations

import io
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from llmctl.tokenizers import Tokenizer, learn
from llmctl.tokenizers.fast import FastTokenizer
from llmctl.tokenizers.sentencepiece_model import SentencePieceTokenizer
from llmctl.tokenizers.token_bytes import BYTE_OF, CHARACTER_OF, spelled

CORPUS = [
    *list(topics.values())[:20],
    "Le café était fermé; 我爱北京天安门。 👩\u200d🔬 ▁▂▃ Ġ\x00\t  x\n\n",
]
ALPHABET = sorted(set("".join(CORPUS)))
LOSSLESS = {"bpe": 500, "unigram": 600, "sentencepiece-bpe": 600, "characters": None}
ANY = st.text(st.sampled_from([*ALPHABET, *"☃\U0001f335\u0301\x85"]))
"""All but the characters' tokenizer knows what isn't in the corpus too."""


@pytest.fixture(scope="module", params=LOSSLESS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return learn(request.param, CORPUS, LOSSLESS[request.param])


def known(text: str, tokenizer: Tokenizer) -> str:
    if tokenizer.kind != "characters":
        return text
    return "".join(character for character in text if character in ALPHABET)


@given(text=st.one_of(ANY, st.sampled_from(CORPUS)))
def test_counts_add_up_to_the_bytes_of_the_text(text: str, tokenizer: Tokenizer) -> None:
    text = known(text, tokenizer)
    ids, _ = tokenizer.encode_batch([text])
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert tokenizer.decode_bytes(ids.tolist()) == text.encode()


@given(data=st.data())
def test_bytes_of_any_ids_grow_at_the_end_alone(data: st.DataObject, tokenizer: Tokenizer) -> None:
    """Special tokens stand for nothing, and the text is that of the bytes, where they are text."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    whole = tokenizer.decode_bytes(ids)
    ordinary = [number for number in ids if number not in tokenizer.special_ids]
    assert tokenizer.decode_bytes(ordinary) == whole
    grown = b""
    for end in range(len(ids) + 1):
        now = tokenizer.decode_bytes(ids[:end])
        assert now.startswith(grown)
        grown = now
    assert len(whole) == tokenizer.token_bytes[np.asarray(ordinary, dtype=int)].sum()
    try:
        text = whole.decode()
    except UnicodeDecodeError:
        return
    assert tokenizer.decode(ids) == text


@given(text=st.one_of(ANY, st.sampled_from(CORPUS)))
def test_places_are_where_the_bytes_begin(text: str, tokenizer: Tokenizer) -> None:
    """A token that begins within a character has that character's place."""
    text = known(text, tokenizer)
    ids, begins = tokenizer.encode_offsets(text)
    assert ids.tolist() == tokenizer.encode(text)
    before = 0
    character_of_byte = [n for n, character in enumerate(text) for _ in character.encode()]
    for number, begin in zip(ids.tolist(), begins.tolist(), strict=True):
        assert begin == character_of_byte[before]
        before += int(tokenizer.token_bytes[number])


def test_a_special_token_counts_nothing_and_an_unknown_one_byte(tokenizer: Tokenizer) -> None:
    for role, number in tokenizer.special.items():
        assert tokenizer.token_bytes[number] == (1 if role == "unk" else 0)
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert (tokenizer.token_bytes[tokenizer.ordinary] > 0).all()


def test_wordpieces_count_their_letters_and_the_space_before_a_word() -> None:
    tokenizer = learn("wordpiece", ["the dogs the dog dogs, thé"] * 4, 30, exact=False)
    ids = tokenizer.encode("the dogs, dog")
    counts = tokenizer.token_bytes[ids]
    assert counts.sum() == len(" the dogs , dog")
    assert tokenizer.token_bytes[tokenizer.special["unk"]] == 1
    assert tokenizer.decode_bytes(ids) == b"the dogs, dog"


def test_a_token_of_several_roles_is_not_unknown() -> None:
    """GPT-2's files call <|endoftext|> its unknown token too."""
    tokenizer = learn("bpe", CORPUS, 300)
    tokenizer.special = {**tokenizer.special, "unk": tokenizer.special["eos"]}
    assert tokenizer.token_bytes[tokenizer.special["eos"]] == 0


def test_byte_level_letters_are_the_librarys() -> None:
    assert sorted(BYTE_OF.values()) == list(range(256))
    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "".join(map(chr, range(0x20, 0x800)))
    assert splitter.pre_tokenize_str(text)[0][0] == spelled(text.encode())
    assert all(BYTE_OF[character] == byte for byte, character in CHARACTER_OF.items())


def foreign(**parts: Any) -> FastTokenizer:
    """Llama's kind, T5's kind and others, in ten pieces."""
    pieces = ["<unk>", "<s>", "▁", "a", "▁a", "b", "▁b", *(f"<0x{n:02X}>" for n in range(256)), "é"]
    if parts.pop("model") == "bpe":
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        rust = RustTokenizer(
            models.BPE(vocabulary, [("▁", "a"), ("▁", "b")], unk_token="<unk>", byte_fallback=True)
        )
        kind = "sentencepiece-bpe"
    else:
        rust = RustTokenizer(
            models.Unigram([(piece, -1.0) for piece in pieces], 0, byte_fallback=True)
        )
        kind = "unigram"
    for name, part in parts.items():
        setattr(rust, name, part)
    rust.add_special_tokens([AddedToken("<s>", special=True), AddedToken("<unk>", special=True)])
    rust.add_tokens([AddedToken("▁joined")])
    return FastTokenizer(kind, rust)


LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
FOREIGN = {
    "Llama 2": {
        "model": "bpe",
        "normalizer": normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        ),
        "decoder": decoders.Sequence([*LLAMA, decoders.Strip(" ", 1, 0)]),
    },
    "Gemma": {
        "model": "bpe",
        "normalizer": normalizers.Replace(" ", "▁"),
        "decoder": decoders.Sequence(LLAMA),
    },
    "T5": {
        "model": "unigram",
        "pre_tokenizer": pre_tokenizers.Metaspace(),
        "decoder": decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()]),
    },
}


@pytest.mark.parametrize("name", FOREIGN)
@given(text=st.text(st.sampled_from("ab é☃")).filter(lambda text: "  " not in text))
def test_bytes_are_those_of_the_decoder_of_others(name: str, text: str) -> None:
    tokenizer = foreign(**FOREIGN[name])
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids).decode() == tokenizer.decode(ids)
    added = tokenizer.token_to_id("▁joined")
    assert tokenizer.token_bytes[added] == len("▁joined".encode())


SPM = {
    "as it comes": {"vocab_size": 300},
    "Llama 2": {
        "model_type": "bpe", "byte_fallback": True, "vocab_size": 560,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
    },
    "lossless": {
        "byte_fallback": True, "vocab_size": 560, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "add_dummy_prefix": False,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=SPM)
def model(request: pytest.FixtureRequest) -> SentencePieceTokenizer:
    written = io.BytesIO()
    lines = [line for text in CORPUS for line in text.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, minloglevel=2, **SPM[request.param]
    )
    return SentencePieceTokenizer(written.getvalue())


@given(data=st.data())
def test_bytes_are_those_of_sentencepiece(
    data: st.DataObject, model: SentencePieceTokenizer
) -> None:
    ids = data.draw(
        st.one_of(
            st.lists(st.integers(0, model.vocab_size - 1), max_size=8),
            st.sampled_from(CORPUS).map(model.encode),
        )
    )
    found = model.decode_bytes(ids)
    try:
        assert found.decode() == model.decode(ids)
    except UnicodeDecodeError:
        assert "\ufffd" in model.decode(ids)


def test_a_models_bytes_are_counted(model: SentencePieceTokenizer) -> None:
    text = "the dogs  jump"
    ids = model.encode(text)
    extra = int(model._strips)  # the space before the text
    counted = int(model.token_bytes[ids].sum())
    assert counted == len(model.decode(ids)) + extra
