"""Unigram: the ids are those that sentencepiece itself gives for normalised text."""

from __future__ import annotations

import csv
import io
import time
import unicodedata
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.errors import InputError
from llmctl.tokenizers import Tokenizer, learn
from llmctl.tokenizers.base import VocabularyError
from llmctl.tokenizers.unigram import LONGEST_LINE, SPECIAL, _short

DATA = Path(__file__).parents[2].parent / "shared" / "data"
CORPUS = [
    "The quick brown foxes jumped over the lazy dogs, and the dogs didn't mind it at all.",
    "Jumping over dogs is quicker than walking around them; walkers walk and jumpers jump.",
    "Le café était fermé l'été dernier; masks unmask, remask the masked: pads, s, unk < 3 > 2.",
    "我爱北京天安门，天安门上太阳升。我们在北京学习中文。",
] * 3
BOOK = [*list(topics.values())[:25], *CORPUS * 4]
"""With some of the language reference that every Python carries: text for some hundred pieces."""
SIZE = 400


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def lines_of(texts: list[str]) -> list[str]:
    lines = (line for text in texts for line in unicodedata.normalize("NFKC", text).splitlines())
    return [normalised(line) for line in lines if normalised(line)]


def assert_same_pieces(
    text: str, ours: Tokenizer, theirs: sentencepiece.SentencePieceProcessor
) -> bool:
    """Whether the ids are the same; where they are not, two cuts of equal score are both right.

    '000' is '0' '00' or '00' '0': one library adds in 32 bits, the other in 64, and so they
    break the tie apart.
    """
    found, expected = ours.encode(text), theirs.encode(normalised(text))
    if found == expected:
        return True
    scores = [sum(map(theirs.get_score, ids)) for ids in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6), text
    spelled = ["".join(map(theirs.id_to_piece, ids)) for ids in (found, expected)]
    assert spelled[0] == spelled[1]
    return False


def train(lines: list[str], vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    """Sentencepiece on its own, with the settings that ours states."""
    written = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        model_type="unigram",
        vocab_size=vocab_size,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        pad_id=0, unk_id=1, bos_id=2, eos_id=3,
        control_symbols=["<mask>"],
        num_threads=1,
        input_sentence_size=2_000_000,
        shuffle_input_sentence=True,
        minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn("unigram", BOOK, SIZE)


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return train(lines_of(BOOK), SIZE)


def test_the_vocabulary_is_sentencepieces(
    tokenizer: Tokenizer, processor: sentencepiece.SentencePieceProcessor
) -> None:
    numbers = range(processor.get_piece_size())
    assert tokenizer.vocab_size == len(numbers)
    assert [tokenizer.id_to_token(n) for n in numbers] == [
        processor.id_to_piece(n) for n in numbers
    ]


NASTY = [
    *"\x00\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f \x85\xa0", "\ufffd", "\u200b", "\u2028", "\u3000",
    "\u0301", "e\u0301", "ﬀ", "ａ", "①", "İ", "北京", "☃", "👩\u200d🔬", "the dogs", "jump",
    "<", ">", "mask>",
]  # fmt: skip
# Text with sentencepiece's own mark for a space, or with a special token's name, is apart: below.
APART = ("▁", *SPECIAL)
TEXT = st.one_of(st.text(), st.lists(st.sampled_from(NASTY), max_size=10).map("".join)).filter(
    lambda text: not any(name in normalised(text) for name in APART)
)


@settings(max_examples=400, deadline=None)
@given(text=TEXT)
def test_equals_sentencepiece_on_normalised_text(
    text: str, tokenizer: Tokenizer, processor: sentencepiece.SentencePieceProcessor
) -> None:
    assert_same_pieces(text, tokenizer, processor)


def test_equals_sentencepiece_on_real_text() -> None:
    news, reviews = DATA / "ag_news" / "news.csv", DATA / "chnsenticorp" / "reviews.csv"
    for path in (news, reviews):
        if not path.is_file():
            pytest.skip(f"{path.name} is not beside this checkout")
    with news.open(encoding="utf-8", newline="") as file:
        texts = [row[2] for row in csv.reader(file)][:1200]
    with reviews.open(encoding="utf-8", newline="") as file:
        texts += [row["review"] for row in csv.DictReader(file)][:400]
    learned_from = texts[::4]
    ours, theirs = learn("unigram", learned_from, 3000), train(lines_of(learned_from), 3000)
    same = [assert_same_pieces(text, ours, theirs) for text in texts]
    assert sum(same) >= 0.99 * len(texts)


@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.sampled_from([*SPECIAL, *NASTY, "<<", "s>", "▁"]), max_size=8).map("".join))
def test_no_text_becomes_a_special_token(text: str, tokenizer: Tokenizer) -> None:
    """The names of the special tokens are pieces too, which the search would prefer to any."""
    unknown = {tokenizer.special["unk"]}
    assert not (tokenizer.special_ids - unknown) & set(tokenizer.encode(text))
    assert not (tokenizer.special_ids - unknown) & set(tokenizer.encode_batch([text])[0].tolist())


@pytest.mark.parametrize("name", SPECIAL)
def test_a_special_tokens_name_is_spelled_as_sentencepiece_spells_it(
    name: str, tokenizer: Tokenizer, processor: sentencepiece.SentencePieceProcessor
) -> None:
    text = f"the {name} dogs"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [piece for piece in processor.encode(text, out_type=str) if piece in SPECIAL] == []
    allowed = tokenizer.encode(text, allow_special=True)
    assert tokenizer.token_to_id(name) in allowed


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.one_of(TEXT, st.sampled_from(CORPUS)), max_size=4))
def test_a_batch_has_the_ids_of_each_text(texts: list[str], tokenizer: Tokenizer) -> None:
    ids, lengths = tokenizer.encode_batch(texts)
    expected = [tokenizer.encode(text) for text in texts]
    assert ids.tolist() == list(chain.from_iterable(expected))
    assert lengths.tolist() == [len(part) for part in expected]


def test_decoding_gives_normalised_text_back(tokenizer: Tokenizer) -> None:
    for text in (*CORPUS, "  the   dogs\x1cjump\u3000over ", "ｔｈｅ dogs"):
        assert tokenizer.decode(tokenizer.encode(text)) == normalised(text)


def test_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(number) for number in range(5)] == list(SPECIAL)
    expected = {"pad": 0, "unk": 1, "cls": 2, "bos": 2, "sep": 3, "eos": 3, "mask": 4}
    assert tokenizer.special == expected


def test_continuations_lack_the_space_mark(tokenizer: Tokenizer) -> None:
    flags = tokenizer.continuation
    assert not flags[:5].any()
    for number in range(5, tokenizer.vocab_size):
        assert flags[number] == (not tokenizer.id_to_token(number).startswith("▁"))
    words = ["the", "dogs", "jumped", "quicker"]
    assert (~flags[tokenizer.encode(" ".join(words))]).sum() == len(words)


def test_lines_too_long_for_sentencepiece_are_cut_not_lost() -> None:
    """It drops lines over 4,192 bytes; here the whole corpus is one."""
    word_line = " ".join(CORPUS * 20)
    chinese = "天安门上太阳升" * 900
    tokenizer = learn("unigram", [word_line, chinese], 100)
    unknown = tokenizer.special["unk"]
    assert unknown not in tokenizer.encode(CORPUS[0])
    assert unknown not in tokenizer.encode("太阳升")


def test_long_lines_are_cut_at_spaces_and_in_linear_time() -> None:
    words = [f"word{n}" for n in range(3000)]
    assert " ".join(_short(" ".join(words))).split() == words
    assert max(len(part) for part in _short(" ".join(words))) <= LONGEST_LINE // 4
    run = "天" * 5000
    assert "".join(_short(run)) == run
    assert max(len(part.encode()) for part in _short(run)) <= LONGEST_LINE
    assert list(_short("")) == []
    started = time.perf_counter()
    parts = sum(1 for _ in _short("a bc " * 2_000_000))
    # Copying the rest at each cut took minutes for ten million characters.
    assert parts > 9000
    assert time.perf_counter() - started < 5


def test_an_error_in_the_texts_is_not_sentencepieces() -> None:
    def texts() -> Iterator[str]:
        yield "some good text"
        raise InputError("x.csv:7 has 3 fields")

    class Corpus:
        """Read twice: the first look, for any text at all, ends before the bad row."""

        def __iter__(self) -> Iterator[str]:
            return texts()

    with pytest.raises(InputError, match=r"^x\.csv:7 has 3 fields$"):
        learn("unigram", Corpus(), 100)  # type: ignore[arg-type]


def refused(size: int) -> InputError:
    with pytest.raises(InputError) as caught:
        learn("unigram", CORPUS, size)
    return caught.value


def test_the_size_an_error_suggests_is_the_largest() -> None:
    error = refused(100_000)
    assert isinstance(error, VocabularyError)
    assert f"use --vocab-size {error.available} or less" in str(error)
    assert learn("unigram", CORPUS, error.available).vocab_size == error.available
    assert isinstance(refused(error.available + 1), VocabularyError)


def test_an_alphabet_that_does_not_fit_tells_the_smallest_size() -> None:
    # 5 special tokens, ▁ and every character.
    smallest = 5 + len(set("".join(map(normalised, CORPUS))) - {" "}) + 1
    assert f"use --vocab-size {smallest} or more" in str(refused(20))
    assert f"use --vocab-size {smallest} or more" in str(refused(smallest - 1))
    assert learn("unigram", CORPUS, smallest).vocab_size == smallest


def test_learning_again_gives_the_same(tokenizer: Tokenizer) -> None:
    assert learn("unigram", tuple(BOOK), SIZE).digest() == tokenizer.digest()
    assert learn("unigram", BOOK, SIZE - 1).digest() != tokenizer.digest()


@pytest.mark.reference
def test_auto_tokenizer_opens_the_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path, max_length=99)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 99
    for text in [*CORPUS, "", "ﬀ ａ\x1c☃  x", "a <mask> b"]:
        inner = tokenizer.encode(text, allow_special=True)
        assert theirs(text)["input_ids"] == [2, *inner, 3]
    assert (theirs.pad_token_id, theirs.mask_token_id) == (0, 4)
