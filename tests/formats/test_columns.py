"""What a finetuned model reads of a file: the columns that it was trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.cli.app import app
from llmctl.data.tables.labelled import Columns, read_examples
from llmctl.data.tables.labelled_files import LabelledColumns
from llmctl.data.tables.parallel_text import PairColumns
from llmctl.errors import InputError, LlmctlError, UsageError
from llmctl.formats.columns import Finetuned, labelled_columns, pair_columns
from llmctl.formats.description import COLUMNS
from llmctl.formats.open import open_any_model
from llmctl.stages.generate import open_generation
from llmctl.stages.generate_source import write_from_file
from llmctl.stages.predict import open_predictor, predict
from llmctl.stages.train import finetune
from llmctl.tasks.finetuning import resolve
from llmctl.tasks.generation import GenerateConfig
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.outputs import output_at
from tests.conftest import SUBJECTS
from tests.language_models import Notes, measure

Finetune = Callable[..., str]

WORDS = {name: text.replace(".", "").split() for name, text in SUBJECTS.items()}


def table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    path.write_text("\n".join(",".join(row) for row in (columns, *rows)) + "\n")
    return path


def rows(*parts: str, count: int = 12) -> list[list[str]]:
    """Rows of which ``told`` tells the subject, ``same`` is one text for all, and ``label``."""
    found = []
    for number in range(count):
        subject = list(WORDS)[number % 2]
        words = WORDS[subject]
        told = " ".join(words[(number + n) % len(words)] for n in range(6))
        values = {"told": told, "same": f"a text that is the same {number}", "label": subject}
        found.append([values[part] for part in parts])
    return found


@pytest.fixture(scope="module")
def classifier(models: Workspace) -> Finetune:
    """Finetunes a classifier in two steps, once for each file and columns; returns its name."""

    def made(data: Path, name: str, **options: Any) -> str:
        training = {"max_steps": 2, "precision": "fp32", "batch_size": 4}
        layers = {"training": training, "data": {"validation": 0.0, **options}}
        finetune(models, "gpt", data, resolve("classify", layers), name=name)
        return name

    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("columns")


@pytest.fixture(scope="module")
def both(folder: Path) -> Path:
    return table(folder / "both.csv", ("title", "body", "text", "label"),
                 rows("told", "same", "same", "label"))  # fmt: skip


@pytest.fixture(scope="module")
def on_title(classifier: Finetune, both: Path) -> str:
    return classifier(both, "on-title", text_column="title")


@pytest.fixture(scope="module")
def on_guess(classifier: Finetune, folder: Path) -> str:
    data = table(folder / "guess.csv", ("headline", "label"), rows("told", "label"))
    return classifier(data, "on-guess")


@pytest.fixture(scope="module")
def on_pairs(classifier: Finetune, folder: Path) -> str:
    data = table(folder / "pairs.csv", ("sentence1", "sentence2", "label"),
                 rows("told", "same", "label"))  # fmt: skip
    return classifier(data, "on-pairs")


def finetuned(place: Workspace, name: str) -> Finetuned:
    folder, run = open_any_model(place, name)
    return Finetuned(name, folder, run)


def read(place: Workspace, name: str, path: Path, **given: Any) -> tuple[list[str], list[str]]:
    """The texts that a classifier reads of a file, and what is said of it."""
    notes = Notes()
    examples = open_predictor(place, name).of_file(path, LabelledColumns(**given), notes)
    texts = [f"{e.text}|{e.text_pair}" if e.text_pair is not None else e.text for e in examples]
    return texts, notes.notes


def test_a_run_and_its_folder_keep_the_columns(
    models: Workspace, on_title: str, on_guess: str, on_pairs: str, tmp_path: Path
):
    kept = {name: models.get("run", name).manifest.config[COLUMNS]
            for name in (on_title, on_guess, on_pairs)}  # fmt: skip
    assert kept == {
        on_title: {"text": ["title"], "text_pair": None, "label": "label"},
        on_guess: {"text": ["headline"], "text_pair": None, "label": "label"},
        on_pairs: {"text": ["sentence1"], "text_pair": "sentence2", "label": "label"},
    }
    copy = tmp_path / "copied"
    shutil.copytree(models.path("run", on_title) / "model", copy)
    assert finetuned(models, str(copy)).labelled == Columns(("title",), None, "label")


@pytest.mark.parametrize("name", ["on_title", "on_guess"])
def test_predict_reads_the_column_of_the_training(
    models: Workspace, both: Path, folder: Path, name: str, request: pytest.FixtureRequest
):
    run = request.getfixturevalue(name)
    column = "title" if name == "on_title" else "headline"
    data = table(folder / f"{name}.csv", (column, "text"), rows("told", "same"))
    told = [row[0] for row in rows("told")]
    texts, notes = read(models, run, data)
    assert texts == told
    assert notes[0] == f"{name}.csv: text from {column}, as in training"
    named, notes = read(models, run, data, text_column="text")
    assert named == [row[0] for row in rows("same")]
    assert notes == [f"{name}.csv: text from text"]
    # The answers, too: those of the texts themselves.
    alone = list(predict(models, run, open_predictor(models, run).alone(told)))
    by_file = open_predictor(models, run)
    assert list(by_file.answers(by_file.of_file(data, LabelledColumns()))) == alone


def test_the_command_says_what_it_read(
    models: Workspace, on_title: str, both: Path, capsys: pytest.CaptureFixture[str]
):
    app(["predict", "--from", on_title, "--data", str(both), "--workspace", str(models.root)],
        standalone_mode=False)  # fmt: skip
    printed = capsys.readouterr()
    assert "both.csv: text from title, as in training" in printed.err
    assert "is the very file that on-title was trained on" in printed.err
    assert printed.out.splitlines()[0].split("\t")[2] == rows("told")[0][0]


def test_other_columns_are_taken_with_a_word(models: Workspace, on_title: str, folder: Path):
    data = table(folder / "other.csv", ("text", "label"), rows("same", "label"))
    texts, notes = read(models, on_title, data)
    assert texts == [row[0] for row in rows("same")]
    assert notes == ["other.csv has no column title, which on-title was trained on: text from text"]
    lines = folder / "lines.txt"
    lines.write_text("one text\nanother\n")
    assert read(models, on_title, lines)[0] == ["one text", "another"]


def test_capitals_make_no_other_column(models: Workspace, on_title: str, folder: Path):
    data = table(folder / "capitals.csv", ("Text", "Title"), rows("same", "told"))
    texts, notes = read(models, on_title, data)
    assert texts == [row[0] for row in rows("told")]
    assert notes == ["capitals.csv: text from Title, as in training"]
    # Of two that are alike but for them it can't be told which is meant.
    data = table(folder / "twice.csv", ("Title", "TITLE", "text"), rows("same", "same", "told"))
    texts, notes = read(models, on_title, data)
    assert texts == [row[0] for row in rows("told")]
    assert "has no column title" in notes[0]


def test_joined_columns_and_names_with_commas(
    models: Workspace, classifier: Finetune, folder: Path
):
    joined = table(folder / "joined.csv", ("a", "b", "text", "label"),
                   rows("told", "same", "same", "label"))  # fmt: skip
    run = classifier(joined, "on-joined", text_column="a,b")
    expected = [f"{told} {same}" for told, same in rows("told", "same")]
    assert read(models, run, joined)[0] == expected
    comma = table(folder / "comma.csv", ('"what, then"', "label"), rows("told", "label"))
    run = classifier(comma, "on-comma")
    assert read(models, run, comma)[0] == [row[0] for row in rows("told")]


def test_columns_by_position(models: Workspace, classifier: Finetune, folder: Path):
    data = folder / "nameless.csv"
    long = [[label, told * 4, same] for label, told, same in rows("label", "told", "same")]
    data.write_text("\n".join(",".join(row) for row in long) + "\n")
    run = classifier(data, "on-numbers", text_column="2", label_column="1")
    assert read(models, run, data)[0] == [row[1] for row in long]
    assert read(models, run, data)[1][0] == "nameless.csv: text from 2, as in training"


def test_pairs_and_single_texts_are_kept_apart(
    models: Workspace, on_pairs: str, on_title: str, folder: Path, both: Path
):
    pairs = folder / "pairs.csv"
    assert read(models, on_pairs, pairs)[0] == [f"{a}|{b}" for a, b in rows("told", "same")]
    # The second is the training's where the first is named.
    assert read(models, on_pairs, pairs, text_column="sentence1")[0][0].count("|") == 1
    for options, says in (
        ({}, "on-pairs was trained on pairs of texts .sentence1 with sentence2., and .*both.csv"),
        ({"text_column": "title"}, "gives single ones .text from title."),
    ):
        with pytest.raises(UsageError, match=says):
            read(models, on_pairs, both, **options)
    with pytest.raises(UsageError, match=r"one text alone is none; .*--data FILE"):
        open_predictor(models, on_pairs).alone(["one text"])
    lines = folder / "single.txt"
    lines.write_text("one text\n")
    with pytest.raises(UsageError, match="trained on pairs"):
        read(models, on_pairs, lines)
    with pytest.raises(UsageError, match=r"on single texts .title., and .* choose one with --text"):
        read(models, on_title, pairs)
    with pytest.raises(UsageError, match="leave --text-pair-column body out"):
        read(models, on_title, both, text_pair_column="body")
    with pytest.raises(InputError, match="no such column"):
        read(models, on_title, both, text_column="titel")


def test_eval_reads_the_same_and_refuses_the_same(
    models: Workspace, on_guess: str, on_pairs: str, folder: Path, both: Path
):
    data = table(folder / "later.csv", ("headline", "text", "label"),
                 rows("told", "same", "label"))  # fmt: skip
    alone = table(folder / "alone.csv", ("headline", "label"), rows("told", "label"))
    by_name = measure(models, on_guess, data, baselines=False)
    assert by_name["columns"]["model"] == {"text": ["headline"], "text_pair": None,
                                           "label": "label"}  # fmt: skip
    assert by_name["results"] == measure(models, on_guess, alone, baselines=False)["results"]
    with pytest.raises(UsageError, match="on-pairs was trained on pairs"):
        measure(models, on_pairs, both)


def test_a_comparison_reads_each_models_own_columns(
    models: Workspace, classifier: Finetune, on_title: str, both: Path, folder: Path
):
    on_body = classifier(both, "on-body", text_column="body")
    # A row without one of the texts is left out for both.
    uneven = table(
        folder / "uneven.csv",
        ("title", "body", "label"),
        [*rows("told", "same", "label"), ["", "a text", "sea"], ["a text", "", "sea"]],
    )
    report = measure(models, on_title, uneven, compare=[on_body], reporter=(notes := Notes()))
    assert report["examples"] == 12
    taken = {name: columns["text"] for name, columns in report["columns"].items()}
    assert taken == {"model": ["title"], on_body: ["body"]}
    for name, column in ((on_title, "title"), (on_body, "body")):
        said = f"{name}: uneven.csv: text from {column}, label from label, as in training"
        assert said in notes.notes
    alone = measure(models, on_body, both, baselines=False)["results"]["model"]
    assert report["results"][on_body] == alone
    # An option is for both.
    named = measure(models, on_title, both, compare=[on_body], text_column="body")
    assert named["results"][on_body] == alone
    assert named["columns"]["model"]["text"] == ["body"]


def test_runs_of_earlier_versions_read_what_was_named_or_is_obvious(
    models: Workspace, on_title: str, both: Path
):
    found = finetuned(models, on_title)
    assert found.run is not None
    folder = found.folder
    fields = {k: v for k, v in folder.fields.items() if k != COLUMNS}  # type: ignore[union-attr]
    named = replace(found, folder=replace(folder, fields=fields))  # type: ignore[type-var]
    assert named.labelled == Columns(("title",), None, None)
    notes: list[str] = []
    unknown = replace(named, run=None)
    columns = labelled_columns(unknown, both, LabelledColumns(), need_label=True, note=notes.append)
    assert columns == Columns(("text",), None, "label")
    assert notes == [
        "both.csv: text from text, label from label (on-title does not say which columns it was "
        "trained on)"
    ]
    assert next(read_examples(both, columns)).text == rows("same")[0][0]


@pytest.mark.parametrize("kept", [{"text": "title"}, {"text": [3]}, [], {"text": []}, "title"])
def test_columns_that_a_folder_tells_wrongly_are_not_believed(
    models: Workspace, on_title: str, kept: Any
):
    found = finetuned(models, on_title)
    fields = {**found.folder.fields, COLUMNS: kept}  # type: ignore[union-attr]
    folder = replace(found.folder, fields=fields)  # type: ignore[type-var]
    assert replace(found, folder=folder, run=None).labelled is None


def test_sources_are_found_in_other_capitals(
    models: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Finetuned, "pair", PairColumns("article", "title"))
    data = table(
        folder / "s2s-capitals.csv", ("text", "Article", "TITLE"), rows("same", *["told"] * 2)
    )
    model, notes = Finetuned("s2s", None, None), Notes()  # type: ignore[arg-type]
    assert pair_columns(model, data, note=notes.note) == PairColumns("Article", "TITLE")
    assert notes.notes[0].endswith(", as in training")


def test_sources_are_of_the_column_of_the_training(models: Workspace, folder: Path, tmp_path: Path):
    header = ("article", "text", "title", "summary")
    data = table(folder / "s2s.csv", header, rows("told", "same", "label", "same"))
    training = {"max_steps": 2, "precision": "fp32", "batch_size": 4}
    for name, source in (("s2s", "article"), ("s2s-text", "text")):
        config = resolve(
            "seq2seq",
            {
                "style": "prefix",
                "training": training,
                "data": {"source_column": source, "target_column": "title", "validation": 0.0},
            },
        )
        finetune(models, "gpt", data, config, name=name)
    assert models.get("run", "s2s").manifest.config[COLUMNS] == {
        "source": "article",
        "target": "title",
    }
    notes = Notes()
    written = {}
    for name, column in (("by itself", None), ("named", "article"), ("other", "text")):
        generation = open_generation(models, "s2s", GenerateConfig(max_new_tokens=3))
        output = tmp_path / f"{name}.jsonl"
        write_from_file(generation, data, output_at(output), source_column=column, reporter=notes)
        written[name] = [json.loads(line)["source"] for line in output.read_text().splitlines()]
    assert written["by itself"] == written["named"] == [row[0] for row in rows("told")]
    assert written["other"] == [row[0] for row in rows("same")]
    assert notes.notes[0] == "s2s.csv: source from column article, as in training"
    short: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 3, "baselines": False}
    report = measure(models, "s2s", data, compare=["s2s-text"], resamples=20, **short)
    assert report["columns"] == {
        "model": {"source": "article", "target": "title"},
        "s2s-text": {"source": "text", "target": "title"},
    }
    assert report["training_file"] is True
    alone = measure(models, "s2s-text", data, resamples=20, **short)
    assert alone["results"]["model"] == report["results"]["s2s-text"]
    # Columns that aren't there are others, with a word.
    other = table(folder / "s2s-other.csv", ("text", "summary"), rows("told", "label"))
    said: list[str] = []
    taken = pair_columns(finetuned(models, "s2s"), other, note=said.append)
    assert taken == PairColumns("text", "summary")
    assert "has no column article or title, which s2s was trained on" in said[0]


def test_texts_that_were_trained_on_are_told(models: Workspace, classifier: Finetune, folder: Path):
    data = table(folder / "seen.csv", ("text", "label"), rows("told", "label", count=40))
    run = classifier(data, "seen", validation=0.3)
    held = models.get("run", run).manifest.summary["validation_examples"]
    report = measure(models, run, data, baselines=False)
    assert report["training_file"] is True
    seen = report["seen_in_training"]
    distinct = len({row[0] for row in rows("told", count=40)})
    assert seen["trained"] + seen["held_out"] == 40
    assert 0 < held < 40
    assert seen["held_out"] == held
    assert distinct < 40  # texts that repeat count each time
    assert any("seen was trained on" in note for note in report["notes"])
    # In another file, too.
    half = table(folder / "half.csv", ("label", "text"),
                 [*rows("label", "told", count=4), ["sea", "quite another text"]])  # fmt: skip
    report = measure(models, run, half, baselines=False)
    assert report["training_file"] is False
    assert sum(report["seen_in_training"].values()) == 4
    fresh = table(folder / "fresh.csv", ("text", "label"), [["quite another text", "sea"]])
    report = measure(models, run, fresh, baselines=False)
    assert report["seen_in_training"] == {"trained": 0, "held_out": 0}
    assert not any("trained on" in note for note in report["notes"])


def test_texts_that_are_cut_are_counted(models: Workspace, classifier: Finetune, folder: Path):
    long = [["w" + " word" * 60, "sea"], ["short", "farm"]] * 6
    data = table(folder / "long.csv", ("text", "label"), long)
    notes = Notes()
    config = resolve("classify", {"training": {"max_steps": 1, "precision": "fp32"},
                                  "data": {"validation": 0.0, "max_length": 16}})  # fmt: skip
    finetune(models, "gpt", data, config, name="cut", reporter=notes)
    assert ("6 of 12 texts were longer than the 16 tokens and were cut; --set data.max_length=… "
            "reads more, up to 48") in notes.notes  # fmt: skip
    report = measure(models, "cut", data, baselines=False)
    told = "6 of 12 texts were longer than the 16 tokens of the finetuning and were cut"
    assert any(told in note for note in report["notes"])
    notes = Notes()
    predictor = open_predictor(models, "cut")
    list(predictor.answers(predictor.alone(["short", "w" + " word" * 60]), reporter=notes))
    assert notes.notes[0].startswith("1 of 2 texts were longer than the 16 tokens of the finetun")
    # Those of the pretraining's length say so.
    notes = Notes()
    config = resolve("classify", {"training": {"max_steps": 1, "precision": "fp32"}})
    finetune(models, "gpt", data, config, name="cut-too", reporter=notes)
    assert any("longer than the 48 tokens of the pretraining" in note for note in notes.notes)


def test_one_sentence_each(models: Workspace, on_pairs: str, both: Path):
    with pytest.raises(LlmctlError) as caught:
        read(models, on_pairs, both)
    assert "\n" not in str(caught.value)
