"""Long texts in parts: the ids are those of the whole, for tokenizers of every kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE

from llmctl import tokenizers
from llmctl.data.shards import encoding
from llmctl.errors import InputError
from llmctl.tokenizers import Tokenizer, base, cuts
from llmctl.tokenizers.cuts import in_parts, rule_of, stretches
from llmctl.tokenizers.fast import FastTokenizer
from llmctl.tokenizers.patterns import GPT2, GPT4, GPT4O, QWEN, by_words, byte_level
from llmctl.tokenizers.wordpiece import build_wordpiece
from llmctl.tokenizers.words import count_words

WORDS = [
    "the", "them", "don't", "'ll", "we'LL", "cafe\u0301", "12345", "٣٤", "文字文", "、", "。", "，",
    "？", " ", "  ", "     ", "\n", "\n\n", "\r", "\t", "\u3000", "\xa0", "\x85", "\u200b", ",",
    ".", "...", "!", "/", "'", "-", "x", "ẞ", "Σ", "が", "か\u3099", "हिन्दी", "ไทย", "😀", "<pad>",
    "<", "pad>", "<|im_end|>", "[MASK]", "<0x41>", "\x1c", "ẞ\u0323",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(WORDS) | st.characters(codec="utf-8"), max_size=30).map("".join)
LEARNED = ("wordpiece", "bpe", "unigram", "sentencepiece-bpe", "characters")


def corpus() -> list[str]:
    return [" ".join(WORDS[n:] + WORDS[:n]) + "".join(WORDS[::n]) for n in range(1, 40)] * 2


@pytest.fixture(scope="module")
def learned() -> dict[str, Tokenizer]:
    made = {
        kind: tokenizers.learn(kind, corpus(), None if kind == "characters" else 420, exact=False)
        for kind in LEARNED
    }
    made["wordpiece, cased"] = build_wordpiece(
        [made["wordpiece"].id_to_token(n) for n in range(made["wordpiece"].vocab_size)], cased=True
    )
    made["bpe, gpt2"] = tokenizers.learn("bpe", corpus(), 400, split_pattern="gpt2", exact=False)
    for name, pattern in (("gpt2", GPT2), ("gpt4", GPT4), ("gpt4o", GPT4O), ("qwen", QWEN)):
        rust = RustTokenizer.from_str(made["bpe"]._rust.to_str())  # type: ignore[attr-defined]
        rust.pre_tokenizer = byte_level(pattern)
        rust.normalizer = normalizers.NFC()
        made[f"NFC, {name}"] = FastTokenizer("bpe", rust)
    return made


KINDS = (
    *LEARNED,
    "wordpiece, cased",
    "bpe, gpt2",
    "NFC, gpt2",
    "NFC, gpt4",
    "NFC, gpt4o",
    "NFC, qwen",
)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXT, stretch=st.integers(1, 12))
def test_parts_have_the_ids_of_the_whole(
    kind: str, text: str, stretch: int, learned: dict[str, Tokenizer]
) -> None:
    tokenizer = learned[kind]
    rule = tokenizer._cut_rule
    assert rule is not None
    parts = list(stretches(text, rule, long=0, stretch=stretch))
    assert [b for _, b in parts] == [a for a, _ in parts[1:]] + [len(text)]
    whole, _ = tokenizer.encode_batch([text])
    ids = [number for a, b in parts for number in tokenizer.encode_batch([text[a:b]])[0].tolist()]
    assert ids == whole.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_common_text_is_cut_often(kind: str, learned: dict[str, Tokenizer]) -> None:
    for text in ("Some words, and more of them. " * 20, "这个电影很好看，我很喜欢。" * 20):
        parts = list(stretches(text, learned[kind]._cut_rule, long=0, stretch=40))
        assert max(b - a for a, b in parts) <= 40


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
def test_long_documents_have_the_tokens_and_sentences_of_short_ones(
    kind: str, texts: list[str], learned: dict[str, Tokenizer]
) -> None:
    expected = encoding.encode_documents(learned[kind], texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "LONG", 1)
        patch.setattr(
            base, "stretches", lambda text, rule: stretches(text, rule, long=0, stretch=5)
        )
        patch.setattr(encoding, "TOGETHER", 10)
        found = encoding.encode_documents(learned[kind], texts)
    for field in ("tokens", "token_counts", "starts", "start_counts", "word_counts"):
        assert getattr(found, field).tolist() == getattr(expected, field).tolist(), field
    assert found.unknown_counts.tolist() == expected.unknown_counts.tolist()


def test_a_text_without_a_place_to_cut_is_refused_when_it_is_too_long(
    learned: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "LONG", 10)
    monkeypatch.setattr(
        base, "stretches", lambda t, rule: stretches(t, rule, long=10, stretch=5, most=100)
    )
    spaces = "word" + " " * 90 + "word"
    assert encoding.encode_text(learned["bpe"], spaces).tolist() == learned["bpe"].encode(spaces)
    with pytest.raises(InputError, match=r"', aaaa.+' in it goes on for 100 characters without"):
        encoding.encode_documents(learned["bpe"], ["Words, " * 40 + "a" * 200])
    assert len(encoding.encode_text(learned["characters"], "a" * 500)) == 500


@pytest.mark.parametrize(
    "change",
    [
        lambda rust: rust.add_tokens([AddedToken("big. deal")]),
        lambda rust: rust.add_tokens([AddedToken("deal", rstrip=True)]),
        lambda rust: setattr(rust, "normalizer", normalizers.Prepend("▁")),
        lambda rust: setattr(rust, "pre_tokenizer", pre_tokenizers.Split(Regex("a+"), "isolated")),
        lambda rust: setattr(
            rust, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)
        ),
        lambda rust: setattr(rust, "pre_tokenizer", None),
    ],
)
def test_unknown_settings_allow_no_cut(
    change: Callable[[RustTokenizer], None], learned: dict[str, Tokenizer]
) -> None:
    rust = RustTokenizer.from_str(learned["bpe"]._rust.to_str())  # type: ignore[attr-defined]
    assert rule_of(rust) is not None
    change(rust)
    assert rule_of(rust) is None


def test_settings_that_decide_no_ids_are_passed_over() -> None:
    """Qwen's and GPT-2's tokenizer.json differ from ours in trimmed offsets."""
    rust = RustTokenizer(BPE())
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    assert rule_of(rust) is cuts.between_words
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    assert rule_of(rust) is cuts.between_words


def test_pieces_across_words_need_bytes_for_what_is_in_none() -> None:
    rust = RustTokenizer(BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>", fuse_unk=True))
    rust.pre_tokenizer = by_words()
    assert rule_of(rust) is None


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_the_same_is_learned_from_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" of ".join(WORDS[n:] + WORDS[:n]) for n in range(20)]
    whole = tokenizers.learn(kind, texts, 420, exact=False).digest()
    monkeypatch.setattr(cuts, "LONG", 0)
    monkeypatch.setattr(cuts, "PART", 30)
    assert len(list(in_parts(texts))) > 100
    assert tokenizers.learn(kind, texts, 420, exact=False).digest() == whole


@given(text=TEXT)
def test_parts_that_are_learned_from_are_the_text(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "LONG", 0)
        patch.setattr(cuts, "PART", 4)
        assert "".join(in_parts([text])) == text


@given(text=st.text(st.sampled_from("ab \n\x1c"), max_size=40))
def test_words_of_a_long_text_are_counted_in_parts(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "LONG", 3)
        assert count_words(text) == len(text.split())


def test_a_panic_of_the_library_is_one_sentence() -> None:
    """A foreign regular expression that takes for ever on some texts is stopped by its engine."""
    rust = RustTokenizer(BPE({"a": 0, "b": 1}, []))
    rust.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    tokenizer = FastTokenizer("bpe", rust)
    hostile = "a" * 40 + "b"
    for call in (
        lambda: tokenizer.encode(hostile),
        lambda: tokenizer.encode_batch([hostile]),
        lambda: tokenizer.encode_offsets(hostile),
    ):
        with pytest.raises(InputError, match="the tokenizer failed on a text"):
            call()
