"""Prompts: templates against texts written by hand, examples drawn as promised."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import InputError, UsageError
from llmctl.inference import prompts
from llmctl.inference.prompts import Shots, find_columns, read_rows, write_prompts
from llmctl.inference.templates import PromptRow, PromptTemplate, TemplateFile, read_template

REVIEWS = r"""
input = "Review: {{ text }}\nSentiment:"
target = " {{ label }}"

[verbalizer]
0 = "negative"
1 = "positive"
"""


def make(**keys: Any) -> PromptTemplate:
    return PromptTemplate(TemplateFile(**keys), Path("t.toml"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def rows_of(tmp_path: Path, name: str, text: str, template: PromptTemplate, **options: Any):
    path = write(tmp_path / name, text)
    columns = find_columns(path, template, **{"need_label": True, **options})
    return list(read_rows(path, template, columns))


@pytest.fixture
def reviews(tmp_path: Path) -> PromptTemplate:
    return read_template(write(tmp_path / "reviews.toml", REVIEWS))


def test_a_prompt_by_hand(tmp_path: Path, reviews: PromptTemplate):
    good, bad = rows_of(tmp_path, "x.csv", "label,text\n1,I liked it\n0,too long\n", reviews)
    shot = reviews.question(good) + reviews.answer(good, good.label)
    assert reviews.prompt([shot], reviews.question(bad)) == (
        "Review: I liked it\nSentiment: positive\n\nReview: too long\nSentiment:"
    )
    assert [reviews.answer(bad, label) for label in ("0", "1")] == [" negative", " positive"]
    assert reviews.prior == "Sentiment:"
    told = make(input="{{ text }}", instruction="Say which.", separator=" | ", prior="x")
    assert told.prompt(["a b"], "c") == "Say which. | a b | c"
    assert told.prior == "x"
    assert make(input="{{ a }} It was").prior == "It was"
    assert make(input="{{ a }}").prior == ""
    # Without a verbalizer a label is written as it is.
    assert told.answer(bad, "0") == " 0"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "sentiment,review\n1,I liked it\n"),
        ("x.csv", "1,I liked it very much\n0,this was too long\n1,and once more\n"),  # no header
        ("x.tsv", "I liked it\t1\nthis was too long\t0\nand once more for all\t1\n"),
        ("x.jsonl", '{"content": "I liked it", "label": 1}\n'),
        ("x.jsonl", '{"content": "I liked it", "label": 1.0}\n'),
    ],
)
def test_text_and_label_are_found_under_any_name(
    tmp_path: Path, reviews: PromptTemplate, name: str, text: str
):
    row = rows_of(tmp_path, name, text, reviews)[0]
    assert reviews.question(row).startswith("Review: I liked it")
    assert reviews.answer(row, row.label) == " positive"


def test_columns_are_asked_for_by_their_names(tmp_path: Path):
    template = make(input="{{ premise }} → {{ hypothesis | upper }}?", target=" {{ label }}")
    text = "premise,hypothesis,label\na b,c d,yes\n"
    (row,) = rows_of(tmp_path, "x.csv", text, template)
    assert template.question(row) + template.answer(row, row.label) == "a b → C D? yes"
    # Columns that could not be told apart as texts don't matter where they are named.
    other = make(input="{{ x }} {{ y }}", target="{{ z }}")
    (row,) = rows_of(tmp_path, "y.csv", "x,y,z\n1,2,3\n", other, need_label=False)
    assert other.question(row) + other.answer(row, None) == "1 23"
    pair = make(input="{{ text }} / {{ text_pair }}")
    (row,) = rows_of(tmp_path, "z.csv", "premise,hypothesis,label\na,b,0\n", pair)
    assert pair.question(row) == "a / b"
    (row,) = rows_of(
        tmp_path, "w.csv", "title,body,label\na,b,0\n", pair,
        text_column="body", text_pair_column="title",
    )  # fmt: skip
    assert pair.question(row) == "b / a"
    text = "text,body,label\na,b,0\n"
    (row,) = rows_of(tmp_path, "v.csv", text, make(input="{{ text }}"), text_column="body")
    assert row.values["text"] == "b"


def test_lines_of_a_text_are_rows(tmp_path: Path):
    template = make(input="Say: {{ text }}")
    rows = rows_of(tmp_path, "x.txt", "one\ntwo\n", template, need_label=False)
    assert [template.question(row) for row in rows] == ["Say: one", "Say: two"]
    with pytest.raises(InputError, match="no labels"):
        rows_of(tmp_path, "x.txt", "one\ntwo\n", template)


def test_a_cell_without_a_value_is_empty(tmp_path: Path):
    template = make(input="<{{ text }}> <{{ note }}>")
    text = '{"text": null, "note": null, "label": "a"}\n'
    (row,) = rows_of(tmp_path, "x.jsonl", text, template)
    assert template.question(row) == "<> <>"


def test_logic_in_a_template(tmp_path: Path):
    template = make(
        input="{% for choice in choices %}{{ loop.index }}) {{ choice }}\n{% endfor %}"
        "{% if hint is defined %}{{ hint }}{% endif %}Answer:"
    )
    text = '{"choices": ["a", "b"], "label": 1}\n'
    (row,) = rows_of(tmp_path, "x.jsonl", text, template)
    assert template.question(row) == "1) a\n2) b\nAnswer:"
    assert template.prior == "Answer:"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("input = 3", "input: .*string.*3"),
        ('target = "x"', "input"),
        ('input = ""', "input"),
        ('input = "a"\ninptu = "b"', "did you mean 'input'"),
        ("input: a", "not TOML"),
        ('input = "{{ text"', "input, line 1, is not Jinja2"),
        ('input = "a"\ntarget = "{{ label | shout }}"', "target, line 1.*shout"),
        ('input = "a"\n[verbalizer]\na = 1', "verbalizer.a"),
    ],
)
def test_a_malformed_template_is_one_sentence(tmp_path: Path, text: str, says: str):
    path = write(tmp_path / "t.toml", text)
    with pytest.raises(InputError, match=says) as caught:
        read_template(path)
    assert str(caught.value).startswith(f"--template {path}")
    assert "\n" not in str(caught.value)


def test_a_template_that_is_not_there(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        read_template(tmp_path / "t.toml")


def test_a_missing_field_names_template_field_and_columns(tmp_path: Path):
    template = make(input="{{ reveiw }}")
    (row,) = rows_of(tmp_path, "x.csv", "label,review\n1,good\n", template)
    with pytest.raises(InputError) as caught:
        template.question(row)
    for part in ("x.csv:2", "t.toml", "asks for reveiw", "did you mean 'review'?", "label, review"):
        assert part in str(caught.value)
    nested = make(input="{{ review.words }}")
    with pytest.raises(InputError, match=r"x.csv:2.*words"):
        nested.question(row)
    failing = make(input="{{ review + 1 }}")
    with pytest.raises(InputError, match=r"x.csv:2: --template t.toml fails: "):
        failing.question(row)


def test_a_label_that_the_verbalizer_lacks(tmp_path: Path, reviews: PromptTemplate):
    (row,) = rows_of(tmp_path, "x.csv", "label,text\n2,so so\n", reviews)
    with pytest.raises(InputError, match=r"x.csv:2: the verbalizer .* no label '2'.*has 0, 1"):
        reviews.answer(row, row.label)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ text.__init__.__globals__ }}",
        "{% set _ = values.append(1) %}{{ values }}",
        "{{ range(10000000) | list | length }}",
    ],
)
def test_a_template_stays_in_its_sandbox(tmp_path: Path, attack: str):
    template = make(input=attack)
    row = PromptRow({"text": "a", "values": [0]}, None, "x:1")
    with pytest.raises(InputError, match=r"x:1: --template t.toml"):
        template.question(row)
    assert row.values["values"] == [0]


def numbered(count: int, distinct: int | None = None) -> list[PromptRow]:
    return [
        PromptRow({"text": f"t{i % (distinct or count)}"}, str(i), f"x:{i}") for i in range(count)
    ]


ARROW = make(input="{{ text }}", target="→{{ label }}")


@given(st.integers(1, 40), st.integers(0, 50), st.integers(0, 5))
def test_shots_are_distinct_repeatable_and_never_the_question(count: int, seed: int, wanted: int):
    rows = numbered(count)
    shots = Shots(ARROW, rows, seed)
    question = "t0"
    if wanted > count - 1:
        with pytest.raises(UsageError, match=f"--shots {wanted}: there are only {count - 1}"):
            shots.draw(3, question, wanted)
        return
    drawn = shots.draw(3, question, wanted)
    assert len(set(drawn)) == wanted
    assert "t0→0" not in drawn
    assert drawn == Shots(ARROW, rows, seed).draw(3, question, wanted)
    for fewer in range(wanted):
        assert shots.draw(3, question, fewer) == drawn[:fewer]


def test_each_question_and_seed_has_shots_of_its_own():
    shots = Shots(ARROW, numbered(100), 0)
    draws = {tuple(shots.draw(number, "x", 3)) for number in range(20)}
    assert len(draws) > 15
    assert shots.draw(0, "x", 3) != Shots(ARROW, numbered(100), 1).draw(0, "x", 3)
    # Over many questions every example comes about as often: 300 draws of 10, 30 ± 5 · √27.
    counts = dict.fromkeys((f"t{i}→{i}" for i in range(10)), 0)
    few = Shots(ARROW, numbered(10), 0)
    for number in range(300):
        counts[few.draw(number, "x", 1)[0]] += 1
    assert all(abs(count - 30) < 26 for count in counts.values())


def test_many_texts_that_are_alike_are_looked_at_in_few_draws(monkeypatch: pytest.MonkeyPatch):
    shots = Shots(ARROW, numbered(20_000, distinct=1), 0)
    looks = []
    real = prompts.permute
    monkeypatch.setattr(prompts, "permute", lambda *a: looks.append(len(a[2])) or real(*a))
    with pytest.raises(UsageError, match="only 1 "):
        shots.draw(0, "x", 2)
    assert sum(looks) == 20_000
    assert len(looks) < 20


def test_texts_that_are_alike_count_once():
    shots = Shots(ARROW, numbered(30, distinct=3), 0)
    drawn = shots.draw(0, "t1", 2)
    assert sorted(shot[:2] for shot in drawn) == ["t0", "t2"]
    with pytest.raises(UsageError, match="only 2 examples"):
        shots.draw(0, "t1", 3)


def test_the_first_examples_are_dropped_where_all_do_not_fit():
    template = make(input="{{ text }}", instruction="I", separator=" ")
    rows = [PromptRow({"text": text}, "", f"x:{text}") for text in ("q", "aa", "bb", "cc")]
    shots = Shots(template, rows, 0)
    first, second, third = shots.draw(0, "q", 3)

    def written(count: int, longest: int) -> tuple[str, int]:
        (prompt,) = write_prompts(
            template, rows[:1], shots, count, lambda row, text: len(text) <= longest
        )
        assert prompt.row is rows[0]
        return prompt.text, prompt.dropped

    assert written(3, 100) == (f"I {first} {second} {third} q", 0)
    assert written(3, 12) == (f"I {second} {third} q", 1)
    assert written(3, 1) == ("I q", 3)
    assert written(0, 1) == ("I q", 0)


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.text(), min_size=2))
def test_any_text_comes_through_unchanged(values: dict[str, str]):
    """Braces, percent signs and quotes in the data are data."""
    template = make(input="<{{ a }}|{{ b }}>")
    row = PromptRow(values, None, "x:1")
    assert template.question(row) == f"<{values['a']}|{values['b']}>"


@given(st.text(string.printable, min_size=1))
def test_any_template_is_read_or_refused_in_one_line(source: str):
    refused = []
    try:
        make(input=source).question(PromptRow({"text": "a"}, None, "x:1"))
    except InputError as error:
        refused.append(str(error))
    assert all("t.toml" in message for message in refused)
