"""Every file that holds a tokenizer loads as what it is, or is refused by name."""

from __future__ import annotations

import io
import json
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers

from llmctl.errors import InputError, UsageError
from llmctl.tokenizers import learn, load
from llmctl.tokenizers.sentencepiece_model import SentencePieceTokenizer
from llmctl.tokenizers.wordpiece import WordPieceTokenizer

CORPUS = [
    "The quick brown foxes jumped over the lazy dogs, and the dogs didn't mind it at all.",
    "Jumping over dogs is quicker than walking around them; walkers walk and jumpers jump.",
    "Le café était fermé l'été dernier; 我爱北京天安门。",
    *list(topics.values())[:25],
]
SAMPLES = [*CORPUS[:3], "", " Unseen wörds\x1c[MASK] <mask> ☃ x\u0301"]
SIZES = {
    "wordpiece": 260, "bpe": 500, "unigram": 600, "sentencepiece-bpe": 600, "characters": None,
}  # fmt: skip
VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "Café", "the", "##s", "dog", "北",
]  # fmt: skip


def write_vocabulary(path: Path, end: str = "\n") -> Path:
    path.write_bytes("".join(piece + end for piece in VOCABULARY).encode())
    return path


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("cased", [False, True])
def test_a_saved_tokenizer_loads_the_same(kind: str, cased: bool, tmp_path: Path) -> None:
    saved = learn(kind, CORPUS, SIZES[kind], cased=cased)
    digest = saved.digest()
    saved.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load(path)
        assert loaded.digest() == digest == saved.digest()
        assert (loaded.kind, type(loaded)) == (kind, type(saved))
        assert loaded.vocab_size == saved.vocab_size == (SIZES[kind] or saved.vocab_size)
        assert loaded.special == saved.special
        assert loaded.chat_template == saved.chat_template
        assert loaded.token_bytes.tolist() == saved.token_bytes.tolist()
        for text in SAMPLES:
            for allow in (False, True):
                expected = saved.encode(text, allow_special=allow)
                assert loaded.encode(text, allow_special=allow) == expected
            assert loaded.decode(loaded.encode(text)) == saved.decode(saved.encode(text))


def test_other_tokenizers_have_other_digests() -> None:
    found = {
        learn(kind, CORPUS, size, cased=cased).digest()
        for kind, size, cased in (
            ("wordpiece", 260, False),
            ("wordpiece", 260, True),
            ("wordpiece", 261, False),
            ("bpe", 500, False),
            ("unigram", 600, False),
            ("sentencepiece-bpe", 600, False),
            ("characters", None, False),
        )
    }
    assert len(found) == 7


UNCASED = [piece for piece in VOCABULARY if piece != "Café"]


def config_beside(path: Path, **rules: Any) -> None:
    (path.parent / "tokenizer_config.json").write_text(json.dumps(rules))


def test_capitals_in_a_vocabulary_tell_that_it_is_cased(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "vocab.txt")
    found = load(path)
    assert isinstance(found, WordPieceTokenizer)
    assert found.encode("Café the dogs 北") == [6, 7, 9, 8, 10]
    assert found.encode("Cafe THE") == [1, 1]
    assert load(tmp_path).digest() == load(path, cased=True).digest() == found.digest()
    assert load(path, cased=False).encode("Café the dogs 北") == [5, 7, 9, 8, 10]
    (tmp_path / "u.txt").write_text("\n".join([*UNCASED, "[unusedA]", "[X_SEP]"]))
    assert load(tmp_path / "u.txt").encode("Café THE") == [5, 6]
    assert load(tmp_path / "u.txt", cased=True).encode("THE the") == [1, 6]


def test_the_file_beside_a_vocabulary_tells_its_rules(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "vocab.txt")
    config_beside(path, do_lower_case=True)
    assert load(path).encode("Café") == [5]
    assert load(path, cased=False).digest() == load(path).digest()
    with pytest.raises(UsageError, match=r"--cased: .*tokenizer_config\.json says do_lower_case"):
        load(path, cased=True)
    config_beside(path, do_lower_case=False)
    assert load(path).encode("Café") == [6]
    config_beside(path, do_lower_case=True, strip_accents=False)
    assert load(path).encode("Café Cafe") == [1, 5]
    config_beside(path, do_lower_case=True, tokenize_chinese_chars=False)
    assert load(path).encode("北 北北") == [10, 1]
    config_beside(path, strip_accents=None)
    assert load(path).encode("Café") == [6]
    path.with_name("tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json:1 is not JSON"):
        load(path)


def test_rules_of_a_vocabulary_are_saved_with_it(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "vocab.txt")
    config_beside(path, do_lower_case=True, strip_accents=False, tokenize_chinese_chars=False)
    read = load(path)
    read.save(tmp_path / "copy")
    assert load(tmp_path / "copy" / "vocab.txt").digest() == read.digest()
    assert load(tmp_path / "copy").digest() == read.digest()


@pytest.mark.parametrize("kind", SIZES)
def test_cased_is_for_a_vocabulary_alone(kind: str, tmp_path: Path) -> None:
    learn(kind, CORPUS, SIZES[kind]).save(tmp_path)
    with pytest.raises(UsageError, match=r"--cased is for a vocab\.txt"):
        load(tmp_path, cased=True)


def test_line_ends_of_a_vocabulary_do_not_matter(tmp_path: Path) -> None:
    unix = load(write_vocabulary(tmp_path / "unix.txt"))
    windows = load(write_vocabulary(tmp_path / "windows.txt", "\r\n"))
    unended = tmp_path / "unended.txt"
    unended.write_text("\n".join(VOCABULARY), encoding="utf-8")
    assert unix.digest() == windows.digest() == load(unended).digest()
    assert unix.vocab_size == len(VOCABULARY)


def test_a_saved_vocabulary_gives_the_same_tokenizer(tmp_path: Path) -> None:
    for cased in (False, True):
        saved = learn("wordpiece", CORPUS, 260, cased=cased)
        saved.save(tmp_path)
        assert load(tmp_path / "vocab.txt", cased=cased).digest() == saved.digest()


@given(pieces=st.lists(st.text("ab#é北 \x85\u2028\x0b", max_size=4), max_size=12))
def test_every_id_of_any_vocabulary_is_in_range(
    pieces: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Blank and repeated lines keep their numbers: embeddings are counted in lines."""
    path = tmp_path_factory.mktemp("any") / "vocab.txt"
    lines = [*VOCABULARY, *pieces, "last"]
    path.write_bytes("\n".join(lines).encode())
    tokenizer = load(path)
    assert tokenizer.vocab_size == len(lines)
    assert tokenizer.token_to_id("last") == len(lines) - 1
    assert tokenizer.continuation.shape == (len(lines),)
    ids, _ = tokenizer.encode_batch([" ".join(lines)])
    assert ids.max() < tokenizer.vocab_size


def foreign(model: Any, splitter: Any = None) -> dict[str, Any]:
    rust = RustTokenizer(model)
    if splitter is not None:
        rust.pre_tokenizer = splitter
    return json.loads(rust.to_str())


WORDPIECE = models.WordPiece({"[UNK]": 0, "ab": 1, "##c": 2}, unk_token="[UNK]")
BPE = models.BPE({"▁": 0, "a": 1, "b": 2, "▁a": 3}, [("▁", "a")])


@pytest.mark.parametrize(
    ("value", "kind", "text", "ids", "continues"),
    [
        (
            foreign(WORDPIECE, pre_tokenizers.Whitespace()),
            "wordpiece", "abc ab", [1, 2, 1], [0, 1, 0],
        ),
        (foreign(BPE, pre_tokenizers.Metaspace()), "bpe", "ab a", [3, 2, 3], [0, 1, 0]),
        (
            foreign(models.Unigram([("?", 0.0), ("▁a", -1.0), ("b", -2.0)], 0),
                    pre_tokenizers.Metaspace()),
            "unigram", "ab a", [1, 2, 1], [0, 1, 0],
        ),
    ],
    ids=["wordpiece", "bpe with a space mark", "unigram"],
)  # fmt: skip
@pytest.mark.parametrize("typed", [True, False])
def test_tokenizers_of_others_load(
    value: dict[str, Any],
    kind: str,
    text: str,
    ids: list[int],
    continues: list[int],
    typed: bool,
    tmp_path: Path,
) -> None:
    """Files written before the model's type was in them, such as GPT-2's, load too."""
    model = {key: entry for key, entry in value["model"].items() if typed or key != "type"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**value, "model": model}), encoding="utf-8")
    tokenizer = load(path)
    assert tokenizer.kind == kind
    assert not isinstance(tokenizer, WordPieceTokenizer), "its rules are not BERT's"
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode_batch([text])[0].tolist() == ids
    assert tokenizer.continuation[ids].tolist() == [bool(flag) for flag in continues]


def test_padding_and_truncation_of_a_file_are_ignored(tmp_path: Path) -> None:
    tokenizer = learn("wordpiece", CORPUS, 260)
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    rust = RustTokenizer.from_file(str(path))
    rust.enable_truncation(4)
    rust.enable_padding(length=64)
    rust.save(str(path))
    assert len(rust.encode(CORPUS[0]).ids) == 64
    assert load(path).encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])
    assert load(path).digest() == tokenizer.digest()


@pytest.mark.parametrize(("model_type", "size"), [("unigram", 350), ("bpe", 350)])
def test_a_sentencepiece_model_is_used_as_it_is(model_type: str, size: int, tmp_path: Path) -> None:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=written,
        model_type=model_type,
        vocab_size=size,
        minloglevel=2,
    )
    path = tmp_path / "some.model"
    path.write_bytes(written.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    tokenizer = load(path)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer.vocab_size == size
    assert tokenizer.special == {"unk": 0, "cls": 1, "bos": 1, "sep": 2, "eos": 2}
    ids, lengths = tokenizer.encode_batch(SAMPLES)
    expected = [processor.encode(text) for text in SAMPLES]
    assert [tokenizer.encode(text) for text in SAMPLES] == expected
    assert ids.tolist() == list(chain.from_iterable(expected))
    assert lengths.tolist() == [len(part) for part in expected]
    assert tokenizer.decode([1, *expected[0], 2]) == processor.decode(expected[0]) == SAMPLES[0]
    assert tokenizer.token_to_id("no such piece") is None
    assert 1 not in tokenizer.encode("dogs<s>dogs")
    assert tokenizer.encode("dogs<s>dogs", allow_special=True).count(1) == 1

    folder = tmp_path / "saved"
    tokenizer.save(folder)
    assert load(folder).digest() == tokenizer.digest()
    assert (folder / "spiece.model").read_bytes() == written.getvalue()


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "empty json": ("tokenizer.json", b"", "not a tokenizer.json"),
    "cut json": ("tokenizer.json", b'{"version": "1.0", "model": {"ty', "not a tokenizer.json"),
    "other json": ("tokenizer.json", b'{"hidden_size": 128}', "not a tokenizer.json"),
    "json list": ("tokenizer.json", b"[1, 2]", "not a tokenizer.json"),
    "json with a number for a model": ("tokenizer.json", b'{"model": 3}', "not a tokenizer.json"),
    "binary json": ("tokenizer.json", b"\xff\xfe\x00", "not a tokenizer.json"),
    "a model nobody supports": (
        "tokenizer.json",
        json.dumps(foreign(models.WordLevel({"a": 0}, unk_token="a"))).encode(),
        "WordLevel model; WordPiece, BPE, Unigram and WordLevel of characters",
    ),
    "empty model": ("spiece.model", b"", "empty"),
    "garbage model": ("spiece.model", b"garbage", "not a sentencepiece model"),
    "bad UTF-8": ("vocab.txt", b"[PAD]\n\xff\n", "byte 0xff at offset 6 is not UTF-8"),
    "empty vocabulary": ("vocab.txt", b"", r"no \[PAD\] \[UNK\] \[CLS\] \[SEP\] \[MASK\]"),
    "prose": ("vocab.txt", b"once upon\na time\n", r"no \[PAD\]"),
    "another file": ("weights.bin", b"\x00", "is not a tokenizer: give a tokenizer.json"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_no_tokenizer_is_refused_by_name(case: str, tmp_path: Path) -> None:
    name, content, message = REFUSED[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_every_cut_of_a_tokenizer_file_is_refused(tmp_path: Path) -> None:
    learn("wordpiece", CORPUS, 260).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"tokenizer\.json"):
            load(path)


@pytest.mark.parametrize("name", ["none.json", "none.model", "none.txt", "none", "no/folder"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as caught:
        load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_kind_that_is_not_one_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'wordpiece'"):
        learn("wordpeice", CORPUS, 100)
