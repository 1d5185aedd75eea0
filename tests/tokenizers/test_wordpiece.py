"""WordPiece: learned the same everywhere, fast and exact, and BERT's to the letter."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

import llmctl
from llmctl.errors import InputError
from llmctl.tokenizers import LEARNERS, count_words, learn
from llmctl.tokenizers.vocabulary_size import AlphabetError, VocabularyError
from llmctl.tokenizers.wordpiece import WORDPIECE_SPECIAL, WordPieceTokenizer, build_wordpiece

ROOT = Path(llmctl.__file__).parents[1]
DATA = Path(__file__).parents[2].parent / "shared" / "data"

CORPUS = [
    "The quick brown foxes jumped over the lazier dogs, and the dogs were not amused.",
    "Jumping over dogs is quicker than walking around them; walkers walk, jumpers jump.",
    "Le café était fermé, l'été dernier: à Québec, où l'on déjeune très tôt.",
    "我爱北京天安门，天安门上太阳升。我们在北京学习中文。",
    "Crème brûlée, naïve façade, Ångström, jalapeño; the masks unmask and remask it.",
]

# What Python and BERT disagree about, and what has gone wrong in other tokenizers.
NASTY = [
    *"\x00\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f \x7f\x85\xa0\xad",
    "\ufffd", "\ufeff", "\u200b", "\u200d", "\u2028", "\u2029", "\u202f", "\u3000", "\u180e",
    "\u0301", "\u0345", "\u1160", "\u20e3", "İ", "ı", "ß", "ﬀ", "Å", "e\u0301",
    "好", "㐀", "𠀀", "豈", "한", "ひ", "👩\u200d🔬", "🇫🇷", "☃", "##", "##s", "[MASK]", "[CLS]",
    "the", "dogs", "jump", "Café", "x" * 40, "y" * 101, ".", "-", "'", "$",
]  # fmt: skip
TEXT = st.one_of(st.text(), st.lists(st.sampled_from(NASTY), max_size=12).map("".join))

LEARN_IN_A_FRESH_PROCESS = """
import sys
from llmctl.tokenizers import learn
for kind, size in (
    ("wordpiece", 160), ("bpe", 300), ("unigram", 360), ("sentencepiece-bpe", 400),
    ("characters", None),
):
    print(learn(kind, sys.argv[1:], size).digest())
"""


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return learned()


def learned(vocab_size: int = 170, *, cased: bool = False) -> WordPieceTokenizer:
    tokenizer = learn("wordpiece", CORPUS * 2, vocab_size, cased=cased)
    assert isinstance(tokenizer, WordPieceTokenizer)
    return tokenizer


def reference_of(tokenizer: WordPieceTokenizer, folder: Path) -> RustTokenizer:
    """The Rust tokenizer of the saved file: no table of words in the way."""
    tokenizer.save(folder)
    rust = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    rust.encode_special_tokens = True
    return rust


@pytest.fixture(scope="module")
def rust(tokenizer: WordPieceTokenizer, tmp_path_factory: pytest.TempPathFactory) -> RustTokenizer:
    return reference_of(tokenizer, tmp_path_factory.mktemp("wordpiece"))


def pieces(tokenizer: WordPieceTokenizer, text: str, *, allow_special: bool = False) -> list[str]:
    ids = tokenizer.encode(text, allow_special=allow_special)
    return [tokenizer.id_to_token(number) for number in ids]


def test_learning_is_the_same_in_every_process() -> None:
    """A hash map's order changes with the process, and the order of work with the threads."""
    found = set()
    for hash_seed, threads in (("0", "1"), ("1", "2"), ("4711", "4")):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": hash_seed,
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "true",
        }
        done = subprocess.run(
            [sys.executable, "-c", LEARN_IN_A_FRESH_PROCESS, *CORPUS * 2],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.add(tuple(done.stdout.split()))
    assert len(found) == 1
    assert len(set(found.pop())) == 5


LEARN_WITH_A_LARGE_ALPHABET = """
from llmctl.tokenizers import learn
texts = ["".join(chr(0x4E00 + n) for n in range(1100))] * 400
rare = [chr(code) for code in range(0x430, 0x450)]
texts += [" ".join([*(f"a{c}b" for c in rare[:20]), *(f"z{c}" for c in rare[20:31])])] * 2
texts += ["abzb abzb zab zab"] * 200
print(learn("wordpiece", texts, 1148).digest())
"""


def test_characters_left_out_of_the_alphabet_make_no_difference_between_processes() -> None:
    """Over SMALL_ALPHABET characters the rare ones are left out; they are in no piece."""
    found = {
        subprocess.run(
            [sys.executable, "-c", LEARN_WITH_A_LARGE_ALPHABET],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for hash_seed in "123"
    }  # fmt: skip
    assert len(found) == 1


def test_rare_characters_of_a_large_alphabet_are_in_no_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmctl.tokenizers.wordpiece.SMALL_ALPHABET", 3)
    monkeypatch.setattr("llmctl.tokenizers.wordpiece.COVERAGE", 0.99)
    tokenizer = learn("wordpiece", ["abc abc abc"] * 100 + ["axb axb ax"], 500, exact=False)
    assert tokenizer.token_to_id("abc") is not None
    assert not any("x" in tokenizer.id_to_token(n) for n in range(tokenizer.vocab_size))


def test_vocabulary_worked_by_hand() -> None:
    """'ab' is seen four times and merged; '##c' follows it once, too seldom for a piece."""
    alphabet = ["a", "b", "c", "##a", "##b", "##c"]
    tokenizer = learn("wordpiece", ["ab ab", "ab abc"], 12)
    vocabulary = [tokenizer.id_to_token(number) for number in range(12)]
    assert vocabulary == [*WORDPIECE_SPECIAL, *alphabet, "ab"]
    assert tokenizer.continuation.tolist() == [False] * 8 + [True] * 3 + [False]
    assert tokenizer.ordinary.tolist() == list(range(5, 12))
    assert tokenizer.encode("abc cab d") == [11, 10, 7, 8, 9, 1]


def test_special_tokens_have_berts_order(tokenizer: WordPieceTokenizer) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [tokenizer.id_to_token(number) for number in range(5)] == names
    assert [tokenizer.token_to_id(name) for name in names] == list(range(5))
    roles = {role: tokenizer.special[role] for role in ("pad", "unk", "cls", "sep", "mask")}
    assert roles == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert tokenizer.special_ids == frozenset(range(5))


@given(texts=st.lists(TEXT, max_size=4))
def test_a_batch_has_the_ids_of_each_whole_text(
    texts: list[str], tokenizer: WordPieceTokenizer, rust: RustTokenizer
) -> None:
    expected = [rust.encode(text, add_special_tokens=False).ids for text in texts]
    for _ in range(2):  # the second time, words come from the table
        ids, lengths = tokenizer.encode_batch(texts)
        assert lengths.tolist() == [len(part) for part in expected]
        assert ids.tolist() == [number for part in expected for number in part]


@pytest.mark.parametrize("character", NASTY)
def test_a_batch_is_exact_around_each_nasty_character(
    character: str, tokenizer: WordPieceTokenizer, rust: RustTokenizer
) -> None:
    texts = [f"{a}{character}{b}" for a in ("", "dog", "dog ") for b in ("", "s", " s", "\u0301s")]
    ids, lengths = tokenizer.encode_batch(texts)
    expected = [rust.encode(text, add_special_tokens=False).ids for text in texts]
    assert ids.tolist() == list(chain.from_iterable(expected))
    assert lengths.tolist() == [len(part) for part in expected]


def test_a_full_table_stays_so_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("llmctl.tokenizers.wordpiece.CACHE_WORDS", 3)
    tokenizer = learned()
    rust = reference_of(tokenizer, tmp_path)
    for _ in range(2):
        for texts in (CORPUS, ["dogs " + "z" * 50 + " dogs", "天安门" * 30, ""]):
            ids, lengths = tokenizer.encode_batch(texts)
            expected = [rust.encode(text, add_special_tokens=False).ids for text in texts]
            assert ids.tolist() == list(chain.from_iterable(expected))
            assert lengths.tolist() == [len(part) for part in expected]
            assert len(tokenizer._ids_of_word) <= 3


def test_only_words_that_come_again_are_remembered(tokenizer: WordPieceTokenizer) -> None:
    """A run of Chinese or of base64 would fill the memory and never be asked for again."""
    words = ["dogs", "天安门" * 3, "我", "zq" * 9, "y" * 101, "jumped,"]
    fresh = WordPieceTokenizer(tokenizer._rust)
    fresh.encode_batch([" ".join(words)])
    assert set(fresh._ids_of_word) == {"dogs", "jumped,"}


def test_many_words_are_encoded_in_groups(
    rust: RustTokenizer, tokenizer: WordPieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmctl.tokenizers.wordpiece.GROUP_WORDS", 3)
    texts = [" ".join(f"dog{n} \x00 \ufffd{n} jump{n}" for n in range(8)), "\x00 \x00"]
    expected = [rust.encode(text, add_special_tokens=False).ids for text in texts]
    ids, lengths = WordPieceTokenizer(tokenizer._rust).encode_batch(texts)
    assert ids.tolist() == list(chain.from_iterable(expected))
    assert lengths.tolist() == [len(part) for part in expected]


def test_no_texts_are_no_ids(tokenizer: WordPieceTokenizer) -> None:
    for texts, lengths in (([], []), (["", " \t\n"], [0, 0])):
        ids, found = tokenizer.encode_batch(texts)
        assert (ids.tolist(), found.tolist()) == ([], lengths)


def test_a_mask_in_a_text_is_text_unless_allowed(tokenizer: WordPieceTokenizer) -> None:
    assert "[MASK]" not in pieces(tokenizer, "the [MASK] dogs")
    assert pieces(tokenizer, "the [MASK] dogs", allow_special=True)[1] == "[MASK]"
    assert "[MASK]" not in pieces(tokenizer, "the [MASK] dogs"), "allowing is for one call"


@given(text=st.lists(st.sampled_from([*WORDPIECE_SPECIAL, *NASTY]), max_size=8).map("".join))
def test_no_text_becomes_a_special_token(text: str, tokenizer: WordPieceTokenizer) -> None:
    unknown = {tokenizer.special["unk"]}
    assert not (tokenizer.special_ids - unknown) & set(tokenizer.encode(text))
    assert not (tokenizer.special_ids - unknown) & set(tokenizer.encode_batch([text])[0].tolist())


def test_case_and_accents_go_unless_cased() -> None:
    uncased, cased = learned(), learned(cased=True)
    assert uncased.encode("CAFÉ été") == uncased.encode("cafe ete")
    assert uncased.decode(uncased.encode("L'ÉTÉ Québec")) == "l ' ete quebec"
    assert cased.decode(cased.encode("été Québec")) == "été Québec"
    assert cased.encode("Le") != cased.encode("le")


def test_each_chinese_character_is_a_word(tokenizer: WordPieceTokenizer) -> None:
    assert pieces(tokenizer, "北京dogs天安门") == ["北", "京", "dogs", "天", "安", "门"]
    assert tokenizer.token_to_id("##京") is None


def test_words_over_100_characters_are_unknown(tokenizer: WordPieceTokenizer) -> None:
    assert "[UNK]" not in pieces(tokenizer, "e" * 100)
    assert pieces(tokenizer, "e" * 101) == ["[UNK]"]


def test_continuations_are_the_pieces_with_hashes(tokenizer: WordPieceTokenizer) -> None:
    flags = tokenizer.continuation
    assert flags.shape == (tokenizer.vocab_size,)
    for number, flag in enumerate(flags.tolist()):
        assert flag == tokenizer.id_to_token(number).startswith("##")
    assert 0 < flags.sum() < len(flags)


def test_a_word_is_one_start_and_its_continuations(tokenizer: WordPieceTokenizer) -> None:
    words = ["walkers", "unmask", "quicker", "jalapeno", "北", ",", "dogs"]
    flags = tokenizer.continuation[tokenizer.encode(" ".join(words))]
    assert (~flags).sum() == len(words)


@pytest.mark.parametrize("cased", [False, True])
def test_the_size_an_error_suggests_is_the_largest(cased: bool) -> None:
    with pytest.raises(VocabularyError, match="distinct pieces; use --vocab-size") as caught:
        learned(100_000, cased=cased)
    available = caught.value.available
    assert str(available) in str(caught.value)
    assert learned(available, cased=cased).vocab_size == available
    with pytest.raises(VocabularyError):
        learned(available + 1, cased=cased)


def test_an_alphabet_that_does_not_fit_tells_the_smallest_size() -> None:
    # 5 special tokens, a b c, ##a ##b ##c
    with pytest.raises(InputError, match=r"--vocab-size 10: .* 11 pieces; use --vocab-size 11"):
        learn("wordpiece", ["ab ab", "ab abc"], 10)
    assert learn("wordpiece", ["ab ab", "ab abc"], 11).vocab_size == 11


@pytest.mark.parametrize(
    ("kind", "small"), [("wordpiece", 30), ("unigram", 30), ("sentencepiece-bpe", 30)]
)
def test_a_size_that_is_not_exact_fits_any_corpus(kind: str, small: int) -> None:
    with pytest.raises(AlphabetError) as too_small:
        learn(kind, CORPUS * 2, small)
    needed = too_small.value.needed
    with pytest.raises(AlphabetError):
        learn(kind, CORPUS * 2, needed - 1)
    assert learn(kind, CORPUS * 2, needed).vocab_size == needed
    grown = learn(kind, CORPUS * 2, small, exact=False).vocab_size
    assert needed <= grown <= -(-3 * needed // 2)
    with pytest.raises(VocabularyError) as too_large:
        learn(kind, CORPUS * 2, 50_000)
    largest = learn(kind, CORPUS * 2, 50_000, exact=False).vocab_size
    assert needed <= largest <= too_large.value.available


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("texts", [[], [""], [" \n\t", "\u3000"]])
def test_a_corpus_without_text_is_refused(kind: str, texts: list[str]) -> None:
    with pytest.raises(InputError, match="no text to learn"):
        learn(kind, texts, 261)


def test_a_corpus_of_control_characters_is_refused() -> None:
    with pytest.raises(InputError, match="no text to learn"):
        learn("wordpiece", ["\x00\x01", "\ufffd"], 300)


def test_a_learned_size_is_the_size_asked_for() -> None:
    sizes = [130, 150, 170]
    tokenizers = [learned(size) for size in sizes]
    assert [tokenizer.vocab_size for tokenizer in tokenizers] == sizes
    for small, large in pairwise(tokenizers):
        shared = range(small.vocab_size)
        assert [small.id_to_token(n) for n in shared] == [large.id_to_token(n) for n in shared]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        (" \n\t ", 0),
        ("one", 1),
        ("two words", 2),
        ("  don't   stop-now. ", 2),
        ("été\u00a0là", 2),
        ("a\u3000b\u2028c", 3),
        ("北京", 2),
        ("我 爱 you", 3),
        ("abc北京def", 4),
        ("北京，好", 4),
        ("㐀𠀀豈", 3),
        ("ひらがな 한국어", 2),
        ("☃ 👩\u200d🔬", 2),
    ],
)
def test_words_counted_by_hand(text: str, words: int) -> None:
    assert count_words(text) == words


def real_texts() -> list[str]:
    """English news and Chinese reviews, and accents of several languages."""
    news, reviews = DATA / "ag_news" / "news.csv", DATA / "chnsenticorp" / "reviews.csv"
    for path in (news, reviews):
        if not path.is_file():
            pytest.skip(f"{path.name} is not beside this checkout")
    with news.open(encoding="utf-8", newline="") as file:
        english = [row[2] for row in csv.reader(file)][:300]
    with reviews.open(encoding="utf-8", newline="") as file:
        chinese = [row["review"] for row in csv.DictReader(file)][:150]
    return [*english, *chinese, *CORPUS, "Straße İstanbul Ünlü Łódź ČESKÝ αβγΣς Ёлка co\u0301mo"]


@pytest.mark.reference
@pytest.mark.parametrize("cased", [False, True])
def test_equals_transformers_on_the_saved_vocabulary(cased: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    texts = real_texts()
    tokenizer = learn("wordpiece", texts[::2], 2500, cased=cased)
    tokenizer.save(tmp_path / "saved")
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "vocab.txt").write_bytes((tmp_path / "saved" / "vocab.txt").read_bytes())
    theirs = transformers.BertTokenizerFast.from_pretrained(alone, do_lower_case=not cased)
    for text in texts:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)


@pytest.mark.reference
@pytest.mark.parametrize("cased", [False, True])
def test_equals_berts_own_python(cased: bool, tmp_path: Path) -> None:
    """The tokenizer published with BERT shares no code with the Rust one."""
    legacy = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
    texts = real_texts()
    tokenizer = learn("wordpiece", texts[::2], 2500, cased=cased)
    tokenizer.save(tmp_path)
    theirs = legacy.BertTokenizerLegacy(str(tmp_path / "vocab.txt"), do_lower_case=not cased)
    ids, lengths = tokenizer.encode_batch(texts)
    expected = [theirs.convert_tokens_to_ids(theirs.tokenize(text)) for text in texts]
    assert ids.tolist() == list(chain.from_iterable(expected))
    assert lengths.tolist() == [len(part) for part in expected]


@pytest.mark.reference
@pytest.mark.parametrize("cased", [False, True])
def test_auto_tokenizer_opens_the_folder(cased: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = learned(cased=cased)
    tokenizer.save(tmp_path, max_length=77)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 77
    for text in [*CORPUS, "CAFÉ Café", "the [MASK] dogs", "y" * 101]:
        inner = tokenizer.encode(text, allow_special=True)
        found = theirs(text)
        assert found["input_ids"] == [2, *inner, 3]
        assert found["token_type_ids"] == [0] * (len(inner) + 2)
    first, second = tokenizer.encode(CORPUS[0]), tokenizer.encode(CORPUS[1])
    pair = theirs(CORPUS[0], CORPUS[1])
    assert pair["input_ids"] == [2, *first, 3, *second, 3]
    assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert (theirs.pad_token_id, theirs.mask_token_id) == (0, 4)


def test_a_vocabulary_without_special_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no \[CLS\] \[MASK\]"):
        build_wordpiece(["[PAD]", "[UNK]", "[SEP]", "a"], cased=False)
