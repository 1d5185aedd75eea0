"""Tasks: rows of the published layouts as questions, and what is right by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import InputError
from llmctl.evaluation.benchmarks import BENCHMARKS, read_questions, recognise
from llmctl.evaluation.benchmarks.base import accuracy, chance
from llmctl.evaluation.benchmarks.multiple_choice import _cleaned
from llmctl.evaluation.choices import ChoiceScores, Question
from llmctl.evaluation.wilson import wilson_interval

BLIMP = Path(__file__).parents[3] / "shared/data/blimp"

HELLASWAG = {
    "ind": 24, "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he",
    "endings": ["is using wrap.", "is ripping level tiles off.", "holds a cube.", "starts up."],
    "label": "3",
}  # fmt: skip
PIQA = {"goal": "Open a jar.", "sol1": "Hit it.", "sol2": "Turn the lid.", "label": 1}
ARC_LABELS = {"text": ["dry palms", "wet palms", "oil"], "label": ["A", "B", "C"]}
ARC = {"id": "x", "question": "Which warms?", "choices": ARC_LABELS, "answerKey": "B"}
ARC_AS_PUBLISHED = {
    "id": "x", "answerKey": "2",
    "question": {"stem": "Which warms?", "choices": [
        {"text": "dry palms", "label": "1"}, {"text": "wet palms", "label": "2"},
        {"text": "oil", "label": "3"},
    ]},
}  # fmt: skip
PLAIN = {"query": "2 + 2 =", "choices": ["3", "4"], "gold": 1}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(tmp_path: Path, task: str, *rows: object) -> list[Question]:
    return read_questions(BENCHMARKS[task], write(tmp_path / "x.jsonl", *rows))


@pytest.mark.parametrize(
    ("row", "task"),
    [
        (HELLASWAG, "multiple-choice"),
        (PIQA, "multiple-choice"),
        (ARC, "multiple-choice"),
        (ARC_AS_PUBLISHED, "multiple-choice"),
        (PLAIN, "multiple-choice"),
        ({"sentence_good": "a", "sentence_bad": "b", "UID": "x"}, "blimp"),
        ({"text": "any text"}, None),
        ({"question": "what?", "label": 1}, None),
    ],
)
def test_layouts_are_known_by_their_columns(row: dict, task: str | None):
    found = recognise(list(row))
    assert (found.name if found else None) == task


def test_hellaswag_is_asked_as_the_harness_does(tmp_path: Path):
    (question,) = read(tmp_path, "multiple-choice", HELLASWAG)
    assert question.context == "Roof shingle removal: A man is sitting on a roof. He"
    assert question.choices[1] == " is ripping level tiles off."
    assert (question.gold, question.prior, len(question.choices)) == (3, "", 4)
    marked = {
        "ctx": "[header] How to peel [title] Take one. [step] Begin  now",
        "endings": ["[substeps] Use a knife.", "Stop [title] here"],
        "label": 0,
    }
    (question,) = read(tmp_path, "multiple-choice", marked)
    assert question.context == "How to peel. Take one. Begin now"
    assert question.choices == (" Use a knife.", " Stop. here")


@pytest.mark.parametrize("row", [ARC, ARC_AS_PUBLISHED])
def test_arc_has_two_layouts(tmp_path: Path, row: dict):
    (question,) = read(tmp_path, "multiple-choice", row)
    assert question.context == "Question: Which warms?\nAnswer:"
    assert question.choices == (" dry palms", " wet palms", " oil")
    assert (question.gold, question.prior) == (1, "Answer:")


def test_piqa_and_the_plain_layout(tmp_path: Path):
    (question,) = read(tmp_path, "multiple-choice", PIQA)
    assert question.context == "Question: Open a jar.\nAnswer:"
    assert question.choices == (" Hit it.", " Turn the lid.")
    assert question.gold == 1
    (question,) = read(tmp_path, "multiple-choice", {**PLAIN, "choices": ["3", "\n4"]})
    assert (question.context, question.choices) == ("2 + 2 =", (" 3", "\n4"))


def test_tables_of_other_formats_are_read_too(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([ARC, {**ARC, "answerKey": "C"}]), tmp_path / "x.parquet")
    questions = read_questions(BENCHMARKS["multiple-choice"], tmp_path / "x.parquet")
    assert [question.gold for question in questions] == [1, 2]
    (tmp_path / "x.csv").write_text("goal,sol1,sol2,label\nOpen it.,Hit it.,Turn it.,0\n")
    (question,) = read_questions(BENCHMARKS["multiple-choice"], tmp_path / "x.csv")
    assert (question.gold, question.choices) == (0, (" Hit it.", " Turn it."))


def test_the_last_word_is_cut_off(tmp_path: Path):
    (question,) = read(tmp_path, "lambada", {"text": " He called for\nhis  mother \n"})
    assert (question.context, question.choices) == ("He called for\nhis", ("  mother",))


@pytest.mark.parametrize(
    ("task", "row", "says"),
    [
        ("multiple-choice", {**PIQA, "label": 2}, "label is 2.*none of the 2"),
        ("multiple-choice", {**PIQA, "label": -1}, "label is -1"),
        ("multiple-choice", {**HELLASWAG, "label": ""}, "label is ''.*public"),
        ("multiple-choice", {**HELLASWAG, "endings": ["one"]}, "endings is no list"),
        ("multiple-choice", {**PLAIN, "choices": "ab"}, "choices is no list"),
        ("multiple-choice", {**PLAIN, "gold": True}, "gold is True"),
        ("multiple-choice", {**ARC, "answerKey": "E"}, "'E'.*A, B, C"),
        ("multiple-choice", {**ARC, "choices": ["a", "b"]}, "no question with choices"),
        ("multiple-choice", {"a": 1}, "columns a.*choices, gold, query"),
        ("lambada", {"text": "word"}, "one word"),
        ("lambada", {"text": 3}, "text is 3"),
        ("lambada", {"passage": "a b"}, "columns passage.*needs text"),
        ("blimp", {"sentence_good": "a", "sentence_bad": " "}, "sentence_bad"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path: Path, task: str, row: dict, says: str):
    with pytest.raises(InputError, match=says) as caught:
        read(tmp_path, task, row)
    assert "x.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "key"),
    [(row, key) for row in (PLAIN, HELLASWAG, PIQA, ARC) for key in row],
)
def test_a_later_row_may_lack_what_the_first_has(tmp_path: Path, row: dict, key: str):
    """It is read without, or named."""
    lacking = {name: value for name, value in row.items() if name != key}
    told = "x.jsonl:2"
    try:
        questions = read(tmp_path, "multiple-choice", row, lacking)
    except InputError as error:
        told = str(error)
    else:
        assert len(questions) == 2
    assert "x.jsonl:2" in told


def test_a_file_without_rows(tmp_path: Path):
    with pytest.raises(InputError, match="no rows"):
        read(tmp_path, "blimp")


def outcome(*log_probs: float, tokens: tuple[int, ...] = (1, 1), greedy: bool | None = None):
    return ChoiceScores(
        np.array(log_probs), np.array(tokens), np.array([2, 4]), np.array([-1.0, -3.0]), greedy
    )


def test_what_is_right_by_hand():
    questions = [Question("q", (" a", " b"), gold, "", "x") for gold in (0, 1, 1)]
    outcomes = [outcome(-2, -3), outcome(-4, -5, tokens=(1, 2)), outcome(-1, -1)]
    correct = BENCHMARKS["multiple-choice"].correct(questions, outcomes)
    assert {name: values.tolist() for name, values in correct.items()} == {
        "plain": [True, False, False],
        "tokens": [True, True, False],  # -3 against -2.5 in the second
        "bytes": [False, True, True],  # two bytes against four
        "pmi": [False, True, True],  # priors of -1 and -3
    }
    assert list(BENCHMARKS["blimp"].correct(questions, outcomes)) == ["plain"]
    words = [Question("q", (" a",), 0, None, "x")] * 3
    answers = [outcome(-1, -1, greedy=value) for value in (True, False, True)]
    assert BENCHMARKS["lambada"].correct(words, answers)["greedy"].tolist() == [True, False, True]
    assert chance(words) is None
    assert chance(questions) == 0.5
    assert chance([*questions, Question("q", ("a", "b", "c", "d"), 0, "", "x")]) == 0.4375
    assert accuracy(np.array([True, False, True])) == {
        "accuracy": 2 / 3,
        "interval": list(wilson_interval(2, 3)),
    }


@pytest.mark.skipif(not BLIMP.is_dir(), reason="BLiMP is not there (../shared/data/blimp)")
def test_blimp_is_read_whole():
    for path in BLIMP.glob("*.jsonl"):
        questions = read_questions(BENCHMARKS["blimp"], path)
        assert len(questions) == 1000
        assert all(question.context == "" and question.gold == 0 for question in questions)


def test_rows_without_end_take_no_longer(tmp_path: Path):
    """In proportion to their length: 100,000 characters took a minute and more."""
    spaces = "one" + " " * 100_000 + "two" + " " * 100_000 + "three"
    (question,) = read(tmp_path, "lambada", {"text": spaces})
    assert question.context == spaces[:100_006]
    assert question.choices == (spaces[100_006:],)
    open_brackets = {"ctx": "[" * 100_000, "endings": ["a]", "b"], "label": 0}
    (question,) = read(tmp_path, "multiple-choice", open_brackets)
    assert question.context == "[" * 100_000


@given(st.text("[]a\n ", max_size=30))
def test_brackets_go_as_by_a_regular_expression(text: str):
    expected = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    assert _cleaned(text) == expected.replace("  ", " ").strip()
