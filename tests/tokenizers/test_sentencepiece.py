"""Unigram and BPE by sentencepiece: nothing is lost, and the ids are those that sentencepiece
itself gives."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import InputError
from llmctl.tokenizers import Tokenizer, learn, load
from llmctl.tokenizers.sentencepiece_training import (
    BYTES,
    LONGEST_PART,
    SENTENCEPIECE_SPECIAL,
    parts_of,
)
from llmctl.tokenizers.vocabulary_size import VocabularyError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
KINDS = {"unigram": "unigram", "sentencepiece-bpe": "bpe"}
"""Our names and sentencepiece's."""
CORPUS = [
    "The quick brown foxes jumped over the lazy dogs, and the dogs didn't mind it at all.",
    "Jumping over dogs is quicker than walking around them; walkers walk and jumpers jump.",
    "Le café était fermé l'été dernier; masks unmask, remask the masked: pads, s, unk < 3 > 2.",
    "我爱北京天安门，天安门上太阳升。我们在北京学习中文。",
    "def jump(dogs):\n    for dog in dogs:\n        dog.jump()\n\n    return dogs\n",
] * 3
BOOK = [*list(topics.values())[:25], *CORPUS * 4]
"""With some of the language reference that every Python carries: text for some hundred pieces."""
SIZE = 620
SMALLEST = len(SENTENCEPIECE_SPECIAL) + BYTES + len(set("".join(CORPUS)))
"""The special tokens, the bytes and every character."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(kind: str) -> Tokenizer:
    return learn(kind, BOOK, SIZE)


def train(texts: list[str], kind: str, vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    """Sentencepiece on its own, with the settings that ours states."""
    written = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=chain.from_iterable(map(parts_of, texts)),
        model_writer=written,
        model_type=KINDS[kind],
        vocab_size=vocab_size,
        character_coverage=0.9995,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        pad_id=0, unk_id=1, bos_id=2, eos_id=3,
        control_symbols=["<mask>", "<|im_start|>", "<|im_end|>"],
        num_threads=1,
        input_sentence_size=2_000_000,
        shuffle_input_sentence=True,
        minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


@pytest.fixture(scope="module")
def processor(kind: str) -> sentencepiece.SentencePieceProcessor:
    return train(BOOK, kind, SIZE)


def assert_same_pieces(
    text: str, ours: Tokenizer, theirs: sentencepiece.SentencePieceProcessor
) -> bool:
    """Whether the ids are the same; where unigram's are not, both cuts have the same score.

    '000' is '0' '00' or '00' '0': one library adds in 32 bits, the other in 64, and so they
    break the tie apart.
    """
    found, expected = ours.encode(text), theirs.encode(text)
    if found == expected:
        return True
    assert ours.kind == "unigram", text
    scores = [sum(map(theirs.get_score, ids)) for ids in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6), text
    assert theirs.decode(found) == theirs.decode(expected)
    return False


def test_the_vocabulary_is_sentencepieces_with_spaces_for_its_mark(
    tokenizer: Tokenizer, processor: sentencepiece.SentencePieceProcessor
) -> None:
    numbers = range(processor.get_piece_size())
    assert tokenizer.vocab_size == len(numbers)
    assert [tokenizer.id_to_token(n) for n in numbers] == [
        processor.id_to_piece(n).replace("▁", " ") for n in numbers
    ]


def test_spaces_and_line_ends_are_in_pieces(tokenizer: Tokenizer) -> None:
    """Indented code would take half as many tokens again."""
    pieces = [tokenizer.id_to_token(number) for number in range(tokenizer.vocab_size)]
    assert any("  " in piece for piece in pieces)
    assert any("\n" in piece and len(piece) > 1 for piece in pieces)


NASTY = [
    *"\x00\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f \x85\xa0", "\ufffd", "\u200b", "\u2028", "\u3000",
    "\u0301", "e\u0301", "ﬀ", "ａ", "①", "İ", "北京", "☃", "👩\u200d🔬", "the dogs", "jump",
    "  ", "    ", "<", ">", "mask>", "▁", "▁▁", "▂", "<0x0A>", "<0xE2>", "0x0A>",
    *SENTENCEPIECE_SPECIAL,
]  # fmt: skip
TEXT = st.one_of(st.text(), st.lists(st.sampled_from(NASTY), max_size=10).map("".join))
# What sentencepiece itself loses or takes for a piece of its own is apart.
APART = ("▁", "<0x", *SENTENCEPIECE_SPECIAL)


@given(text=TEXT)
def test_decoding_gives_the_text_back(text: str, tokenizer: Tokenizer) -> None:
    """Sentencepiece's own mark, bytes and special tokens in writing included."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special=False) == text


@given(text=TEXT.filter(lambda text: not any(name in text for name in APART)))
def test_equals_sentencepiece(
    text: str, tokenizer: Tokenizer, processor: sentencepiece.SentencePieceProcessor
) -> None:
    assert_same_pieces(text, tokenizer, processor)


def test_equals_sentencepiece_on_runs(
    tokenizer: Tokenizer, processor: sentencepiece.SentencePieceProcessor
) -> None:
    """Where neighbours overlap, a BPE merges the first."""
    for character in ["a", " ", "\n", "=", "0", "dog", "天"]:
        for count in range(1, 70):
            assert_same_pieces(character * count, tokenizer, processor)


def test_equals_sentencepiece_on_real_text(kind: str) -> None:
    news, reviews = DATA / "ag_news" / "news.csv", DATA / "chnsenticorp" / "reviews.csv"
    for path in (news, reviews):
        if not path.is_file():
            pytest.skip(f"{path.name} is not beside this checkout")
    with news.open(encoding="utf-8", newline="") as file:
        texts = [row[2] for row in csv.reader(file)][:1200]
    with reviews.open(encoding="utf-8", newline="") as file:
        texts += [row["review"] for row in csv.DictReader(file)][:400]
    learned_from = texts[::4]
    ours, theirs = learn(kind, learned_from, 3000), train(learned_from, kind, 3000)
    same = [assert_same_pieces(text, ours, theirs) for text in texts if "▁" not in text]
    assert sum(same) >= 0.98 * len(same)


@given(text=st.lists(st.sampled_from([*NASTY, "<<", "s>", "|im_end|>"]), max_size=8).map("".join))
def test_no_text_becomes_a_special_token(text: str, tokenizer: Tokenizer) -> None:
    """Nor the unknown one, as every byte is known."""
    assert not tokenizer.special_ids & set(tokenizer.encode(text))
    assert not tokenizer.special_ids & set(tokenizer.encode_batch([text])[0].tolist())


@pytest.mark.parametrize("name", SENTENCEPIECE_SPECIAL)
def test_a_special_token_is_read_when_allowed(name: str, tokenizer: Tokenizer) -> None:
    text = f"the {name} dogs"
    allowed = tokenizer.encode(text, allow_special=True)
    assert tokenizer.token_to_id(name) in allowed
    assert tokenizer.decode(allowed) == "the  dogs"


@given(texts=st.lists(st.one_of(TEXT, st.sampled_from(CORPUS)), max_size=4))
def test_a_batch_has_the_ids_of_each_text(texts: list[str], tokenizer: Tokenizer) -> None:
    ids, lengths = tokenizer.encode_batch(texts)
    expected = [tokenizer.encode(text) for text in texts]
    assert ids.tolist() == list(chain.from_iterable(expected))
    assert lengths.tolist() == [len(part) for part in expected]


def test_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(number) for number in range(7)] == list(SENTENCEPIECE_SPECIAL)
    assert tokenizer.special == {
        "pad": 0, "unk": 1, "cls": 2, "bos": 2, "sep": 3, "eos": 3, "mask": 4,
        "turn_start": 5, "turn_end": 6,
    }  # fmt: skip


def test_continuations_lack_the_space(tokenizer: Tokenizer) -> None:
    flags = tokenizer.continuation
    assert not flags[: len(SENTENCEPIECE_SPECIAL)].any()
    for number in range(len(SENTENCEPIECE_SPECIAL), tokenizer.vocab_size):
        assert flags[number] == (not tokenizer.id_to_token(number).startswith(" "))
    words = ["the", "dogs", "jumped", "quicker"]
    assert (~flags[tokenizer.encode(" " + " ".join(words))]).sum() == len(words)


def test_texts_too_long_for_sentencepiece_are_cut_not_lost(kind: str) -> None:
    """It drops sentences over 4,192 bytes; here the whole corpus is one."""
    word_line = " ".join(CORPUS * 20).replace("\n", " ")
    chinese = "天安门上太阳升" * 900
    tokenizer = learn(kind, [word_line, chinese], 380)
    pieces = {tokenizer.id_to_token(number) for number in range(tokenizer.vocab_size)}
    assert {*"太阳升", *"quick"} <= pieces


@given(
    text=st.lists(st.sampled_from(["a" * 700, "天" * 500, " ", "\n", "bc ", "\n\n"])).map("".join)
)
def test_parts_are_the_text_and_short(text: str) -> None:
    parts = list(parts_of(text))
    assert "".join(parts) == text
    assert all(part and len(part.encode()) <= LONGEST_PART for part in parts)


def test_texts_are_cut_behind_lines_or_before_spaces_in_linear_time() -> None:
    words = " ".join(f"word{n}" for n in range(3000))
    assert all(part.startswith(" word") for part in list(parts_of(words))[1:])
    lines = "\n".join(f"word {n}" for n in range(3000))
    assert all(part.endswith("\n") for part in list(parts_of(lines))[:-1])
    assert list(parts_of("")) == []

    def seconds(words: int) -> float:
        started = time.perf_counter()
        assert sum(1 for _ in parts_of("a bc " * words)) > words // 250
        return time.perf_counter() - started

    # Copying the rest at each cut takes 64 times as long, not 8 times.
    assert median(seconds(800_000) / seconds(100_000) for _ in range(3)) < 24


def test_an_error_in_the_texts_is_not_sentencepieces(kind: str) -> None:
    def texts() -> Iterator[str]:
        yield "some good text"
        raise InputError("x.csv:7 has 3 fields")

    class Corpus:
        """Read twice: the first look, for any text at all, ends before the bad row."""

        def __iter__(self) -> Iterator[str]:
            return texts()

    with pytest.raises(InputError, match=r"^x\.csv:7 has 3 fields$"):
        learn(kind, Corpus(), 400)  # type: ignore[arg-type]


def refused(kind: str, size: int) -> InputError:
    with pytest.raises(InputError) as caught:
        learn(kind, CORPUS, size)
    return caught.value


def test_the_size_an_error_suggests_is_the_largest(kind: str) -> None:
    error = refused(kind, 100_000)
    assert isinstance(error, VocabularyError)
    assert f"use --vocab-size {error.available} or less" in str(error)
    assert learn(kind, CORPUS, error.available).vocab_size == error.available
    assert isinstance(refused(kind, error.available + 1), VocabularyError)


def test_an_alphabet_that_does_not_fit_tells_the_smallest_size(kind: str) -> None:
    assert f"use --vocab-size {SMALLEST} or more" in str(refused(kind, 20))
    assert f"use --vocab-size {SMALLEST} or more" in str(refused(kind, SMALLEST - 1))
    assert learn(kind, CORPUS, SMALLEST).vocab_size == SMALLEST
    assert learn(kind, CORPUS, 20, exact=False).vocab_size > SMALLEST


def test_a_corpus_that_sentencepiece_will_not_have_is_told_so(kind: str) -> None:
    """It skips sentences with a character of its own."""
    with pytest.raises(InputError, match=r"sentencepiece can't learn 400 pieces .* give more text"):
        learn(kind, ["\u2585 x"], 400)


def test_learning_again_gives_the_same(kind: str, tokenizer: Tokenizer) -> None:
    assert learn(kind, tuple(BOOK), SIZE).digest() == tokenizer.digest()
    assert learn(kind, BOOK, SIZE - 1).digest() != tokenizer.digest()


@pytest.mark.reference
def test_auto_tokenizer_opens_the_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path, max_length=99)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 99
    for text in [*CORPUS, "", "ﬀ ａ\x1c☃  x▁", "a <mask> b<|im_end|>"]:
        inner = tokenizer.encode(text, allow_special=True)
        assert theirs(text)["input_ids"] == [2, *inner]
        assert theirs.decode(inner, skip_special_tokens=True) == tokenizer.decode(inner)
    assert (theirs.pad_token_id, theirs.mask_token_id, theirs.eos_token_id) == (0, 4, 3)


@pytest.mark.reference
def test_a_t5_s_model_has_its_sentinels_behind_its_pieces(tmp_path: Path):
    """The ids of transformers for a folder without a tokenizer.json, as T5 1.1's is; and back."""
    transformers = pytest.importorskip("transformers")
    text = tmp_path / "text.txt"
    text.write_text("the ship sails over the wide sea\nwaves rise and fall\n" * 20)
    folder = tmp_path / "theirs"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=40, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    fields = {"tokenizer_class": "T5Tokenizer", "extra_ids": 10, "eos_token": "</s>",
              "pad_token": "<pad>", "unk_token": "<unk>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    tokenizer = load(folder)
    tokenizer.save(tmp_path / "again")
    (tmp_path / "again" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    for opened in (folder, tmp_path / "again"):
        theirs = transformers.AutoTokenizer.from_pretrained(opened)
        assert len(theirs) == tokenizer.vocab_size
        for said in ("the ship <extra_id_0> the sea", "<extra_id_9> waves", "fall <extra_id_10>"):
            ids = tokenizer.encode(said, allow_special=True)
            assert [*ids, tokenizer.text_end] == theirs(said).input_ids
            if "10" not in said:  # whose characters the model lacks
                assert tokenizer.decode(ids, skip_special=False).split() == said.split()
        assert [tokenizer.id_to_token(n) for n in tokenizer.sentinels] == [
            f"<extra_id_{n}>" for n in range(10)
        ]
        assert list(tokenizer.sentinels) == theirs.convert_tokens_to_ids(
            [f"<extra_id_{n}>" for n in range(10)]
        )
    assert load(tmp_path / "again").digest() == tokenizer.digest()
    plain = tokenizer.encode("the <extra_id_0> ship")
    assert not set(plain) & set(tokenizer.sentinels)
    assert not tokenizer.token_bytes[list(tokenizer.sentinels)].any()
    assert tokenizer.decode([tokenizer.sentinels[0], *tokenizer.encode("waves")]) == "waves"
    fields["extra_ids"] = -1
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match="extra_ids is -1, not a number of sentinels"):
        load(folder)
