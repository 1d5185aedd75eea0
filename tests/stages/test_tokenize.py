"""Tokenize as a stage: sizes that fit, both splits filled, the tail cut at its character, options
that don't apply refused."""

from __future__ import annotations

import base64
import gzip
import random
from pathlib import Path
from typing import Any

import pytest

from llmctl.data.shards.files import ShardReader
from llmctl.data.text.documents import Corpus
from llmctl.data.text.hashing import text_hash
from llmctl.errors import InputError, UsageError
from llmctl.reporting.reporter import Reporter
from llmctl.stages.tokenize import stage
from llmctl.stages.tokenize.stage import TokenizeConfig, tokenize
from llmctl.tokenizers import load
from llmctl.tokenizers.characters import CHARACTER_SPECIAL as CHARACTERS_SPECIAL
from llmctl.tokenizers.wordpiece import WORDPIECE_SPECIAL
from llmctl.workspace.artefacts import Workspace


def make(root: Path, *sources: Path | str, name: str | None = None, **fields: Any) -> dict:
    """The summary of the shards made."""
    config = TokenizeConfig.model_validate(fields)
    artefact, _ = tokenize(Workspace(root), [str(s) for s in sources], config, name=name)
    return artefact.manifest.summary


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


WORDS = ["ship", "sails", "over", "wide", "sea", "while", "waves", "rise", "near", "grey", "stones"]


def sentences(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=6)) + f" {n}." for n in range(count)]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "sentencepiece-bpe"])
def test_a_default_size_grows_with_the_alphabet(kind: str, tmp_path: Path):
    """Chinese has more characters than a small corpus's vocabulary has pieces."""
    generator = random.Random(0)
    characters = [chr(0x4E00 + n) for n in range(4500)]
    lines = ["".join(characters[n : n + 50]) for n in range(0, 4500, 50)] * 3
    lines += ["".join(generator.choices(characters, k=12)) for _ in range(50)]
    path = write_lines(tmp_path / "zh.txt", lines)
    summary = make(tmp_path / "w", path, tokenizer=kind, document="line")
    assert summary["vocab_size"] > 4500
    assert summary["unknown_share"] < 0.001
    with pytest.raises(InputError, match=r"--vocab-size 4000: .* alphabet alone needs 4\d\d\d"):
        make(tmp_path / "v", path, tokenizer=kind, vocab_size=4000)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "sentencepiece-bpe"])
def test_a_default_size_shrinks_with_the_corpus_and_is_learned_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    learned = []
    learn = stage.tokenizers.learn
    monkeypatch.setattr(
        stage.tokenizers, "learn", lambda *a, **k: learned.append(a) or learn(*a, **k)
    )
    path = write_lines(tmp_path / "a.txt", sentences(100))
    assert 20 < make(tmp_path / "w", path, tokenizer=kind)["vocab_size"] < 1000
    assert len(learned) == 1
    with pytest.raises(InputError, match=r"--vocab-size 4000: the corpus has only"):
        make(tmp_path / "w", path, tokenizer=kind, vocab_size=4000)


def held_out(text: str, share: float) -> bool:
    return text_hash(text) < share * 2**64


def test_one_document_is_for_training(tmp_path: Path):
    lines = sentences(400)
    for number, line in enumerate((next(line for line in lines if held_out(line, 0.02)), "Else.")):
        path = write_lines(tmp_path / f"one{number}.txt", [line])
        summary = make(tmp_path / "w", path)
        assert (summary["train_documents"], summary["validation_documents"]) == (1, 0)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_small_corpus_fills_both_splits(wanted: bool, tmp_path: Path):
    """Whether its hashes hold out every document or none."""
    lines = [line for line in sentences(400) if held_out(line, 0.3) is wanted][:5]
    path = write_lines(tmp_path / "few.txt", ["\x01", *lines])
    config = {"document": "line", "validation": 0.3}
    summary = make(tmp_path / "w", path, **config)
    assert summary["documents"] == 5
    assert summary["validation_documents"] == (4 if wanted else 1)
    assert summary["train_documents"] == (1 if wanted else 4)
    assert make(tmp_path / "n", path, document="line", validation=0)["validation_documents"] == 0


def test_a_sample_to_learn_from_is_not_the_validation_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lines = sentences(4000)
    corpus = Corpus([str(write_lines(tmp_path / "many.txt", lines))], unit="line")
    monkeypatch.setattr(stage, "LEARN_BYTES", corpus.total_bytes // 10)
    sample = list(stage._LearningTexts(corpus, Reporter()))
    assert 300 < len(sample) < 500
    share = sum(held_out(text, 0.1) for text in sample) / len(sample)
    assert share < 0.2  # five standard deviations above 0.1 is 0.175


def test_speed_is_in_bytes_of_text(tmp_path: Path):
    text = "\n".join(sentences(20000)).encode()
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(text))
    summary = make(tmp_path / "w", path, document="line")
    read = summary["megabytes_per_second"] * summary["seconds"] * 1e6
    assert read == pytest.approx(len(text) - 20000, rel=0.02)  # seconds are rounded


def texts_of(root: Path, name: str, split: str) -> list[str]:
    """The documents of a split, decoded by the tokenizer that they carry."""
    folder = root / "shards" / name
    tokenizer, reader = load(folder / "tokenizer"), ShardReader(folder, split)
    return [tokenizer.decode(reader.tokens(number).tolist()) for number in range(len(reader))]


PLAY = "\n First:\nSpeak, speak.\n\nAll:\nSpeak, speak.\n\nSpeak, speak.\n\n\tÉnd 北京  \n" * 40


@pytest.mark.parametrize("kind", ["characters", "bpe", "unigram", "sentencepiece-bpe"])
@pytest.mark.parametrize("share", [0.1, 0.023])
def test_the_tail_is_cut_at_its_character(kind: str, share: float, tmp_path: Path):
    """nanoGPT's split, to the character, with white space at the file's ends."""
    path = tmp_path / "play.txt"
    path.write_text(PLAY, encoding="utf-8")
    summary = make(
        tmp_path / "w", path, name="s", tokenizer=kind, document="file", split="tail",
        validation=share,
    )  # fmt: skip
    cut = int(len(PLAY) * (1 - share))
    assert texts_of(tmp_path / "w", "s", "train") == [PLAY[:cut]]
    assert texts_of(tmp_path / "w", "s", "validation") == [PLAY[cut:]]
    assert (summary["characters"], summary["duplicates"]) == (len(PLAY), 0)
    if kind == "characters":
        assert summary["tokens"] == len(PLAY)
        assert summary["vocab_size"] == len(set(PLAY)) + len(CHARACTERS_SPECIAL)


@pytest.mark.parametrize("document", ["auto", "line", "paragraph", "file"])
@pytest.mark.parametrize("validation", [0.0, 0.001, 0.3, 0.9])
def test_the_tail_is_the_end_of_all_documents(document: str, validation: float, tmp_path: Path):
    """In their order, the same ones included, one at most cut in two, over several files."""
    paths = [
        write_lines(tmp_path / f"{number}.txt", [*sentences(30, seed=number), "same", "", "same"])
        for number in range(3)
    ]
    fields = {"document": document, "split": "tail", "validation": validation}
    summary = make(tmp_path / "w", *paths, name="s", tokenizer="characters", **fields)
    whole = list(Corpus([str(path) for path in paths], unit=document, keep_ends=True))
    text = "".join(document.text for document in whole)
    cut = int(len(text) * (1 - validation))
    train = texts_of(tmp_path / "w", "s", "train")
    held = texts_of(tmp_path / "w", "s", "validation")
    assert "".join(train) == text[:cut]
    assert "".join(held) == text[cut:]
    assert len(whole) <= len(train) + len(held) <= len(whole) + 1
    assert summary["duplicates"] == 0


def test_one_tail_of_one_document_leaves_something_to_train_on(tmp_path: Path):
    path = write_lines(tmp_path / "a.txt", ["ab"])
    summary = make(
        tmp_path / "w", path, tokenizer="characters", split="tail", validation=0.9, name="s"
    )
    assert (summary["train_tokens"], summary["validation_tokens"]) == (3, 0)


def test_tinyshakespeare_is_split_as_nanogpt_splits_it(tmp_path: Path):
    path = Path(__file__).parents[2].parent / "shared" / "data" / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        pytest.skip("tinyshakespeare is not beside this checkout")
    summary = make(
        tmp_path / "w", path, tokenizer="characters", document="file", split="tail",
        validation=0.1, name="s",
    )  # fmt: skip
    # As its data/shakespeare_char/prepare.py prints.
    assert (summary["train_tokens"], summary["validation_tokens"]) == (1_003_854, 111_540)
    assert summary["vocab_size"] == 65 + len(CHARACTERS_SPECIAL)
    reader = ShardReader(tmp_path / "w" / "shards" / "s", "train")
    text = path.read_text(encoding="utf-8")
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    assert reader.tokens(0, 0, 1000).tolist() == [numbers[c] for c in text[:1000]]


def test_a_hash_split_keeps_a_file_whole_without_its_ends(tmp_path: Path):
    path = tmp_path / "play.txt"
    path.write_text(PLAY, encoding="utf-8")
    make(tmp_path / "w", path, name="s", tokenizer="bpe", document="file")
    assert texts_of(tmp_path / "w", "s", "train") == [PLAY.strip()]


PIECES = [*WORDPIECE_SPECIAL, *"abcdefghijklmnopqrstuvwxyz", "The", "the"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "a.txt", ["The a. the b.", "A the c."])


def test_a_size_is_refused_where_the_tokenizer_has_one(tmp_path: Path, corpus: Path):
    path = write_lines(tmp_path / "vocab.txt", PIECES)
    make(tmp_path / "w", corpus, tokenizer=str(path))
    with pytest.raises(UsageError, match="--vocab-size is for a tokenizer to learn"):
        make(tmp_path / "w", corpus, tokenizer=str(path), vocab_size=100)


def test_cased_is_refused_where_it_does_not_apply(tmp_path: Path, corpus: Path):
    root = tmp_path / "w"
    make(root, corpus, name="mine")
    for kind in ("bpe", "unigram", "sentencepiece-bpe", "characters"):
        with pytest.raises(UsageError, match=f"--cased is for wordpiece: {kind}"):
            make(root, corpus, tokenizer=kind, cased=True)
    for given in ("mine", str(root / "tokenizers" / "mine" / "tokenizer.json")):
        with pytest.raises(UsageError, match=r"--cased is for a vocab\.txt"):
            make(root, corpus, tokenizer=given, cased=True)


def test_what_is_for_other_kinds_is_refused(tmp_path: Path, corpus: Path):
    with pytest.raises(UsageError, match=r"--vocab-size is .*: characters are as many as the"):
        make(tmp_path / "w", corpus, tokenizer="characters", vocab_size=40)
    for kind in ("wordpiece", "unigram", "characters", "mine"):
        with pytest.raises(
            UsageError, match=f"split_pattern is for a bpe to learn, not for {kind}"
        ):
            make(tmp_path / "w", corpus, tokenizer=kind, split_pattern="gpt2")


def test_a_split_pattern_makes_another_tokenizer(tmp_path: Path, corpus: Path):
    digests = [
        make(tmp_path / "w", corpus, tokenizer="bpe", name=f"n{number}", **fields)[
            "tokenizer_digest"
        ]
        for number, fields in enumerate(({}, {"split_pattern": "gpt4"}, {"split_pattern": "gpt2"}))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_what_was_assumed_of_a_tokenizer_is_noted(tmp_path: Path, corpus: Path):
    lines = (f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256))
    ranks = write_lines(tmp_path / "mine.tiktoken", list(lines))
    notes: list[str] = []
    reporter = Reporter()
    reporter.note = notes.append  # type: ignore[method-assign]
    config = TokenizeConfig(tokenizer=str(ranks))
    tokenize(Workspace(tmp_path / "w"), [str(corpus)], config, reporter=reporter)
    assert any("cl100k_base's pattern was taken" in note for note in notes)


def test_a_cased_vocabulary_is_used_as_one(tmp_path: Path, corpus: Path):
    path = write_lines(tmp_path / "vocab.txt", PIECES)
    found = make(tmp_path / "w", corpus, tokenizer=str(path), name="found")
    told = make(tmp_path / "w", corpus, tokenizer=str(path), cased=True, name="told")
    assert found["tokenizer_digest"] == told["tokenizer_digest"]
    assert found["unknown_share"] > 0  # "A" and "." are not in it


def test_a_tokenizer_that_is_no_name_is_refused_by_name(tmp_path: Path, corpus: Path):
    for given in ("wordpeice", "x" * 5000, "a\0b"):
        with pytest.raises(InputError, match="is neither a kind nor a tokenizer"):
            make(tmp_path / "w", corpus, tokenizer=given)


class Notes(Reporter):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def notes_of(root: Path, *sources: Path, **fields: Any) -> str:
    reporter = Notes()
    config = TokenizeConfig.model_validate({"tokenizer": "characters", **fields})
    tokenize(Workspace(root), [str(s) for s in sources], config, reporter=reporter)
    return "\n".join(reporter.told)


def test_what_was_left_out_and_what_a_document_is_are_told(tmp_path: Path):
    (tmp_path / "in").mkdir()
    write_lines(tmp_path / "in" / "x.txt", ["a line\n"] * 40)
    (tmp_path / "in" / "README").write_text("not read")
    told = notes_of(tmp_path / "w", tmp_path / "in")
    assert "1 file of another kind was not read (no suffix 1): name it to read it" in told
    assert (
        "the whole file is a document (1 in all): with --document paragraph each of its 40" in told
    )
    assert "no document is held out to validate on" in told
    told = notes_of(tmp_path / "w", tmp_path / "in" / "x.txt", document="paragraph")
    assert "is a document" not in told
    assert "no document is held out" in told  # all are one text
    lines = write_lines(tmp_path / "lines.txt", sentences(200))
    assert "held out" not in notes_of(tmp_path / "w", lines, document="line", validation=0.2)
    assert "held out" not in notes_of(tmp_path / "w", lines, split="tail")


def test_marks_that_a_vocabulary_takes_away_are_told(tmp_path: Path):
    path = write_lines(tmp_path / "ja.txt", ["がくせい です。 パン"] * 3)
    assert "lose marks that are no accents" in notes_of(tmp_path / "w", path, tokenizer="wordpiece")
    told = notes_of(tmp_path / "w", path, tokenizer="wordpiece", cased=True)
    assert "lose marks" not in told


def test_a_vocabulary_of_any_size_is_refused_by_its_field(tmp_path: Path):
    with pytest.raises(ValueError, match="vocab_size"):
        TokenizeConfig.model_validate({"vocab_size": 10**20})
