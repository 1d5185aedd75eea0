"""Evaluation as a user does it: tables, plans, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.cli.app import app
from llmctl.errors import InputError, LlmctlError, UsageError
from llmctl.formats.huggingface.weights import Weights
from llmctl.reporting.report import render_report
from llmctl.stages.evaluate import Evaluation, prepare_evaluation
from llmctl.tasks.evaluation import EvaluateConfig, Files
from llmctl.tasks.kept_reports import parts_of
from llmctl.workspace.artefacts import Workspace
from tests.language_models import PAIRS, TEMPLATE, WINDOW, measure, split, write


@pytest.mark.parametrize(
    ("start", "options", "kind", "says"),
    [
        ("gpt", {"stride": WINDOW + 1}, UsageError, "--stride 49.*48 or less"),
        ("gpt", {"task": "blimp"}, UsageError, "--task blimp.*--data"),
        ("gpt", {"template": "t"}, UsageError, "--data FILE"),
        ("gpt", {"data": "labelled", "template": "t", "task": "blimp"}, UsageError, "two ways"),
        ("gpt", {"data": "labelled", "shots": 2}, UsageError, "--template FILE"),
        ("gpt", {"data": "labelled", "template": "t", "shots": 2}, UsageError, "--examples FILE"),
        ("gpt", {"data": "labelled", "template": "none"}, InputError, "--template none: no such"),
        ("gpt", {"data": "none"}, InputError, "--data none: no such file"),
        ("gpt", {"data": "folder"}, InputError, "has no files"),
        ("gpt", {"data": "labelled", "task": "blimp"}, InputError, "label, text.*sentence_good"),
        ("gpt", {"compare": ["subjects"]}, UsageError, "--compare subjects.*--template"),
        ("gpt", {"data": "labelled", "template": "t", "label_column": "lable"}, InputError,
         "did you mean 'label'"),
        ("subjects", {"data": "labelled", "template": "t"}, UsageError, "--template is for lang"),
        ("subjects", {"data": "labelled", "compare": ["gpt"]}, UsageError, "--compare gpt"),
        ("gpt", {"dtype": "int3"}, UsageError, "dtype.*'int8'"),
        ("grams", {"dtype": "int8"}, UsageError, "grams is an n-gram model"),
        ("subjects", {"data": "labelled", "dtype": "int8"}, UsageError, "--dtype is for models"),
        ("grans", {}, InputError, "did you mean 'grams'"),
        ("model", {}, UsageError, "its shards are not known.*--data"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_sentence(
    models: Workspace,
    labelled_file: Path,
    template: Path,
    tmp_path: Path,
    start: str,
    options: dict[str, Any],
    kind: type[LlmctlError],
    says: str,
):
    (tmp_path / "folder").mkdir()
    paths = {"labelled": labelled_file, "t": template, "folder": tmp_path / "folder"}
    for key in ("data", "template"):
        if key in options:
            options = {**options, key: paths.get(options[key], Path(options[key]))}
    start = str(models.path("run", "gpt") / "model") if start == "model" else start
    with pytest.raises(kind, match=says) as caught:
        measure(models, start, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("input", '"{{ reveiw }}"', "asks for reveiw, and the row has label, text"),
        ("input", '"{{ text }} {{ label }}"', "the input asks for label"),
        ("target", '" it."', "writes two labels alike"),
        ("verbalizer", '{ sea = "a", farm = "b" }', "no label 'city'"),
    ],
)
def test_a_template_that_does_not_fit_the_data(
    models: Workspace, labelled_file: Path, tmp_path: Path, key: str, value: str, says: str
):
    path = tmp_path / "t.toml"
    lines = {"input": '"{{ text }}"', "target": '" {{ label }}"', key: value}
    path.write_text("".join(f"{name} = {text}\n" for name, text in lines.items()))
    with pytest.raises(LlmctlError, match=says) as caught:
        measure(models, "gpt", labelled_file, template=path)
    assert str(path) in str(caught.value)


def test_a_question_longer_than_the_model_is_named(models: Workspace, tmp_path: Path):
    rows = [{"sentence_good": "a " * 99, "sentence_bad": "b"}]
    data = write(tmp_path / "long.jsonl", rows)
    with pytest.raises(InputError, match=r"long.jsonl:1: .* tokens, and the model reads 48"):
        measure(models, "gpt", data)


def test_the_plan_and_a_second_time(
    models: Workspace, labelled_file: Path, template: Path, tmp_path: Path
):
    asked, solved = split(labelled_file, tmp_path)
    files, config = Files(asked, template, solved), EvaluateConfig(shots=(1,))

    def prepared() -> Evaluation:
        return prepare_evaluation(models, "gpt", files, config, compare=["grams"])

    before = prepared().plan()["plan"]
    assert not before["up_to_date"]
    assert before["inputs"].keys() == {"model", "data", "template", "examples"}
    assert before["compare"] == ["run/grams"]
    report, artefact, up_to_date = prepared().run()
    assert not up_to_date
    again, same, up_to_date = prepared().run()
    assert up_to_date
    assert (again, same.folder) == (report, artefact.folder)
    template.write_text(TEMPLATE.replace("wide sea", "sea"))
    assert not prepared().plan()["plan"]["up_to_date"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], ["gpt on the validation part of shards/stories", "window 48, stride 24",
              "blocks of 48 as in training", "grams, 4-gram", "bits per byte over grams",
              "perplexity: its exponential"]),
        (["--data", "{pairs}", "--compare", "grams"], ["blimp on 3 questions", "chance", "50.0%"]),
        (["--data", "{asked}", "--template", "{template}", "--examples", "{solved}", "--shots",
          "0,1", "--compare", "subjects"],
         ["gpt, 0 shots", "gpt, 1 shot", "subjects", "by byte", "majority class", "chance 33.3%",
          "ECE: how far",
          "accuracy of gpt, 1 shot over subjects"]),
    ],
)  # fmt: skip
def test_the_command_prints_a_table(
    models: Workspace,
    labelled_file: Path,
    template: Path,
    tmp_path: Path,
    words: list[str],
    says: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("COLUMNS", "200")
    asked, solved = split(labelled_file, tmp_path)
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in PAIRS]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    filled = [
        word.format(pairs=pairs, asked=asked, solved=solved, template=template) for word in words
    ]
    command = ["eval", "--from", "gpt", "--workspace", str(models.root), *filled]
    app(command, standalone_mode=False)
    printed = capsys.readouterr()
    for part in says:
        assert part in printed.out, printed.out
    assert "report " in printed.err
    app([*command, "--json", "--quiet"], standalone_mode=False)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["model"] == "gpt"
    assert printed.err == ""


def test_a_folder_of_questions_is_printed_with_its_mean(
    models: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from llmctl.cli.console import out

    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in PAIRS]
    for name in ("agreement", "islands"):
        write(folder / f"{name}.jsonl", rows)
    config = EvaluateConfig()
    report, artefact, _ = prepare_evaluation(
        models, "gpt", Files(folder), config, compare=["grams"], force=True
    ).run()
    out().print(render_report(parts_of(report, artefact.folder)))
    printed = capsys.readouterr().out
    for part in ("agreement", "islands", "mean", "chance", "gpt", "grams"):
        assert part in printed


def test_weights_are_read_when_something_is_computed(
    models: Workspace, labelled_file: Path, monkeypatch: pytest.MonkeyPatch
):
    """A plan with several models reads their descriptions alone."""
    read: list[Path] = []

    def counted(plain: Any) -> Any:
        def reading(weights: Weights, *given: Any) -> Any:
            read.extend(weights.files)
            return plain(weights, *given)

        return reading

    for way in ("__getitem__", "into", "mapped"):
        monkeypatch.setattr(Weights, way, counted(getattr(Weights, way)))
    for start, data, others in (
        ("gpt", None, ["llama", "other"]),
        ("subjects", labelled_file, ["subjects"]),
    ):
        evaluation = prepare_evaluation(
            models, start, Files(data), EvaluateConfig(baselines=False, max_tokens=50),
            compare=others, force=True,
        )  # fmt: skip
        assert not evaluation.plan()["plan"]["up_to_date"]
        assert read == []
        evaluation.run()
        assert {path.parents[1].name for path in read} == {start, *others} - {"other"}
        read.clear()
