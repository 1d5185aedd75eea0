"""Tagging against transformers' logits, seqeval's F1, every path, and what users get wrong."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from llmctl.cli.app import app
from llmctl.data.tables.tagged import TaggedColumns, TaggedText, of_words, read_tagged, words_in
from llmctl.data.tables.tags import may_follow
from llmctl.errors import InputError
from llmctl.evaluation import entities, tag_baselines
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.formats.open import open_folder
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.tag import Tagger
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.tag.predict import best_tags, transitions, viterbi
from llmctl.tasks.tag.windows import first_pieces, windows_of
from llmctl.tokenizers import Tokenizer
from tests.foreign_models import learned, save_model

COLUMNS = """-DOCSTART- -X- O

John NNP B-PER
lives VBZ O
in IN O
New NNP B-LOC
York NNP I-LOC
. . O

她 PN O
住 VV O
在 P O
巴 NR B-LOC
黎 NR I-LOC
"""
TAGS = ["O", "B-X", "I-X", "B-Y", "I-Y"]


class Notes(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def read(path: Path, text: str, **columns: Any) -> tuple[list[TaggedText], str, list[str]]:
    path.write_text(text)
    reporter = Notes()
    texts, scheme = read_tagged(path, TaggedColumns(**columns), reporter)
    return texts, scheme, reporter.notes


def test_columns_become_texts_with_places(tmp_path: Path):
    texts, scheme, notes = read(tmp_path / "a.conll", COLUMNS)
    assert (scheme, notes) == ("BIO", [])
    assert [text.text for text in texts] == ["John lives in New York .", "她住在巴黎"]
    assert [texts[0].word(n) for n in range(6)] == ["John", "lives", "in", "New", "York", "."]
    assert texts[0].tags == ("B-PER", "O", "O", "B-LOC", "I-LOC", "O")
    assert texts[0].source.endswith("a.conll:3")
    speech, scheme, _ = read(tmp_path / "a.txt", COLUMNS, label_column="2")
    assert (speech[1].tags, scheme) == (("PN", "VV", "P", "NR", "NR"), "plain")


def test_spans_of_json_are_widened_to_words_and_that_is_told(tmp_path: Path):
    rows = [
        {"text": "Ann met Bob-Lee.", "entities": [{"start": 0, "end": 3, "label": "PER"}]},
        {"text": "Ann met Bob-Lee.", "label": [[8, 11, "PER"]]},
        {"tokens": ["I", "am"], "ner_tags": ["O", "O"]},
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    texts, _, notes = read(tmp_path / "a.jsonl", lines)
    assert texts[0].tags == ("B-PER", "O", "O", "O")
    assert texts[1].tags == ("O", "O", "B-PER", "O")
    assert texts[2].text == "I am"
    assert len(notes) == 1
    assert "1 spans" in notes[0]
    assert "'Bob' to 'Bob-Lee'" in notes[0]


def test_tags_of_another_scheme_are_mended_and_that_is_told(tmp_path: Path):
    texts, scheme, notes = read(tmp_path / "a.conll", "Ann I-PER\nBob B-PER\nran O\n")
    assert (texts[0].tags, scheme) == (("B-PER", "B-PER", "O"), "BIO")
    assert "1 tags" in notes[0]
    assert "'Ann' from I-PER to B-PER" in notes[0]


CONLLU = "# text = Go\n1-2\tGone\t_\t_\n1\tGo\tgo\tVERB\n2\tne\tne\tX\n"


def test_universal_dependencies_give_parts_of_speech(tmp_path: Path):
    texts, scheme, _ = read(tmp_path / "a.conllu", CONLLU)
    assert (texts[0].tags, texts[0].text, scheme) == (("VERB", "X"), "Go ne", "plain")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.conll", "a O\nb\n", r"a\.conll:2 has 1 columns and the lines before it 2"),
        ("a.conll", "a\nb\n", r"a\.conll:1 has 1 column; each line is a word and"),
        ("a.conll", "a B-X\nb NN\n", "'NN' is neither O nor of the scheme of 'B-X'"),
        ("a.conll", "a O\nb O\n", "tags every word O"),
        ("a.conll", "\n\n", "has no words"),
        ("a.csv", "a,b\n", "from JSONL with spans"),
        ("a.jsonl", '{"tokens": ["a"], "ner_tags": [3]}', "has numbers for tags"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', "has 2 words and 1 tags"),
        ("a.jsonl", '{"text": "ab", "spans": [[0, 9, "X"]]}', "lies outside the text"),
        ("a.jsonl", '{"text": "ab", "spans": [[0, "X"]]}', "no start, end and label"),
        ("a.jsonl", '{"text": "ab cd", "spans": [[0, 1, "X"], [1, 2, "Y"]]}', "share a word"),
        ("a.jsonl", '{"tokens": null, "ner_tags": ["O"]}', r"a\.jsonl:1: tokens is null; write"),
        ("a.jsonl", '{"body": "ab"}', "lacks one of the fields tokens, words, text"),
    ],
)
def test_what_is_no_tagged_text_has_its_sentence(
    tmp_path: Path, name: str, content: str, said: str
):
    with pytest.raises(InputError, match=said):
        read(tmp_path / name, content)


@given(st.text(max_size=60))
def test_words_cover_a_text_but_for_its_spaces(text: str):
    places = words_in(text)
    assert all(a < b <= c for (a, b), (c, _) in itertools.pairwise([*places, (len(text), 0)]))
    covered = {n for begin, end in places for n in range(begin, end)}
    assert {n for n, c in enumerate(text) if not c.isspace()} == {
        n for n in covered if not text[n].isspace()
    }
    assert not any(text[begin].isspace() for begin, _ in places)


WORDS = st.lists(
    st.sampled_from(["the", "tram", "stops", "巴", "黎", ".", "sea-side", "é"]), min_size=1
)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@settings(max_examples=30)
@given(words=WORDS, length=st.integers(5, 12))
def test_each_word_is_told_once_at_its_first_piece(kind: str, words: list[str], length: int):
    tokenizer = learned(kind).for_decoder() if kind != "wordpiece" else learned(kind)
    text = of_words(words, None, "here")
    ids_N, first_W = first_pieces(tokenizer, text)
    told: dict[int, int] = {}
    windows = list(windows_of(tokenizer, text, length))
    for window in windows:
        assert len(window.ids) <= length
        for place, word in zip(window.places, window.words, strict=True):
            assert window.ids[place] == ids_N[first_W[word]]
            told[int(word)] = told.get(int(word), 0) + 1
    assert told == dict.fromkeys(np.flatnonzero(first_W >= 0), 1)
    begins = tokenizer.encode_offsets(text.text)[1]
    for word in told:
        begin = begins[first_W[word]]
        assert text.text[begin : text.words[word][0]].strip() == ""


@given(st.lists(st.lists(st.floats(0.01, 1), min_size=5, max_size=5), min_size=1, max_size=4))
def test_the_path_taken_is_the_best_of_all_that_are_allowed(rows: list[list[float]]):
    log_probs = np.log(np.array(rows))
    allowed = transitions(tuple(TAGS), "BIO")
    found = viterbi(log_probs, *allowed)

    def value(path: tuple[int, ...]) -> float:
        tags = [None, *(TAGS[n] for n in path), None]
        fits = all(may_follow(a, b, "BIO") for a, b in itertools.pairwise(tags))
        return sum(log_probs[n, tag] for n, tag in enumerate(path)) if fits else -np.inf

    best = max(value(path) for path in itertools.product(range(5), repeat=len(rows)))
    assert value(tuple(found)) == pytest.approx(best)


def test_a_word_without_a_piece_goes_with_the_one_before():
    rows = np.full((4, 5), np.nan)
    rows[0], rows[2] = [0, 1, 0, 0, 0], [0.1, 0, 0, 0.9, 0]
    assert best_tags(rows, TAGS, "BIO")[0] == ["B-X", "I-X", "B-Y", "I-Y"]


def sentences(size: int = 4) -> st.SearchStrategy[list[list[str]]]:
    tags = st.lists(st.sampled_from(TAGS), min_size=size, max_size=size)
    return st.lists(tags, min_size=3, max_size=3)


@given(sentences(), sentences())
def test_f1_is_seqevals(true: list[list[str]], found: list[list[str]]):
    metrics = pytest.importorskip("seqeval.metrics")
    scheme = pytest.importorskip("seqeval.scheme").IOB2
    row = entities.report(true, found, "BIO", resamples=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert row["f1"] == pytest.approx(metrics.f1_score(true, found))
        assert row["precision"] == pytest.approx(metrics.precision_score(true, found))
        strict = metrics.f1_score(true, found, mode="strict", scheme=scheme)
        assert row["strict_f1"] == pytest.approx(strict)
        assert row["accuracy"] == pytest.approx(metrics.accuracy_score(true, found))


def test_baselines_learn_what_words_and_neighbours_say():
    train = [["to", "Rome", "now"], ["a", "Rome", "x"], ["to", "Bonn", "now"]] * 5
    tags = [["O", "B-L", "O"]] * 15
    frequent = tag_baselines.most_frequent(train, tags, [["Rome", "Oslo"]])
    assert frequent == [["B-L", "O"]]
    assert tag_baselines.linear_on_windows(train, tags, [["to", "Oslo", "now"]]) == [
        ["O", "B-L", "O"]
    ]


@pytest.mark.reference
@pytest.mark.parametrize(
    "arch", ["bert", "modernbert", "gpt", "llama", "mistral", "qwen2", "qwen3"]
)
def test_transformers_opens_it_with_the_same_logits(tmp_path: Path, arch: str):
    transformers = pytest.importorskip("transformers")
    spec = ARCHITECTURES[arch]
    kind = "wordpiece" if spec.kind == "encoder" else "bpe"
    tokenizer = learned(kind)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_heads": 2}
    config = spec.config(vocab_size=tokenizer.vocab_size, max_positions=64, **shape)
    model = Tagger(spec.build(config), 3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    labels = {"id2label": {"0": "O", "1": "B-X", "2": "I-X"}}
    write_model_folder(tmp_path, model, tokenizer, {**labels, "classifier_dropout": 0.1})
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    ids = torch.randint(6, tokenizer.vocab_size, (2, 16))
    again = open_folder(tmp_path)
    assert (again.kind, again.labels) == ("tag", ["O", "B-X", "I-X"])
    with torch.no_grad():
        ours = again.network().eval()(ids, torch.ones_like(ids, dtype=torch.bool))
        torch.testing.assert_close(ours, theirs(ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.reference
def test_a_tagger_of_transformers_opens(tmp_path: Path):
    pytest.importorskip("transformers")
    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    theirs = save_model(tmp_path / "m", "BertForTokenClassification", like="bert", id2label=names)
    result = CliRunner().invoke(app, ["predict", "--from", str(tmp_path / "m"), "--json", "a tram"])
    assert result.exit_code == 0, result.output
    found = open_folder(tmp_path / "m")
    ids = torch.tensor([[2, 7, 8, 3]])
    with torch.no_grad():
        ours = found.network().eval()(ids, torch.ones_like(ids, dtype=torch.bool))
        torch.testing.assert_close(ours, theirs(ids).logits, atol=1e-5, rtol=1e-4)


def run_cli(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def tagged_file(tmp_path: Path) -> Path:
    """Sentences in which capitals say what is a place and what a person."""
    path = tmp_path / "places.conll"
    rows = []
    for n in range(24):
        name, place = ("cow", "ship") if n % 2 else ("farmer", "square")
        more = "and O\ngoes O\n" * (n // 2)
        rows.append(f"the O\n{name} B-PER\ngoes O\n{more}to O\nthe B-LOC\n{place} I-LOC\n\n")
    path.write_text("".join(rows))
    return path


def test_a_tagger_is_finetuned_asked_and_measured(
    own_workspace: Path, tagged_file: Path, tmp_path: Path
):
    where = ("-w", own_workspace)
    options = ("--set", "training.epochs=40", "--set", "training.learning_rate=3e-3")
    words = ("finetune", "--from", "tiny", "--task", "tag", "--data", tagged_file, *options)
    told = run_cli(*words, "--name", "places", *where).output
    assert "tags of the scheme BIO" in told
    assert "the best by entity F1" in told
    text = "the cow goes to the ship"
    answer = json.loads(run_cli("predict", "--from", "places", "--json", text, *where).stdout)
    found = [(e["text"], e["type"], text[e["start"] : e["end"]]) for e in answer["entities"]]
    assert found == [("cow", "PER", "cow"), ("the ship", "LOC", "the ship")]
    shown = run_cli("predict", "--from", "places", text, *where).stdout
    assert "16–24\tLOC" in shown
    files = run_cli("predict", "--from", "places", "--data", tagged_file, "--json", *where).stdout
    assert len(files.splitlines()) == 24
    command = ("eval", "--from", "places", "--data", tagged_file, *where)
    report = json.loads(run_cli(*command, "--json").stdout)
    assert report["results"]["model"]["f1"] == 1.0
    assert {"most frequent tag", "linear on word windows"} <= report["results"].keys()
    assert "by type" in run_cli(*command).stdout
    speech = tmp_path / "speech.conll"
    speech.write_text("the DET\ncow NOUN\n")
    refused = run_cli("eval", "--from", "places", "--data", speech, *where, code=3)
    assert "has tags of the scheme plain" in refused.stderr
    assert (
        "is a tagger"
        in run_cli("generate", "--from", "places", "--prompt", "a", *where, code=3).stderr
    )


def test_the_tokenizers_of_tests_have_offsets():
    tokenizer: Tokenizer = learned("bpe")
    ids, begins = tokenizer.encode_offsets("the tram")
    assert len(ids) == len(begins)
