"""JSON and TOML of anybody: a value, or a reason why not."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.config import parse_value, read_tables
from llmctl.errors import InputError
from llmctl.parsing import MAX_DEPTH, Malformed, parse_json, parse_toml, read_json
from llmctl.workspace.metrics import read_metrics

DEEP = "nested more than 100 levels"
LONG = "more than 4,300 digits"

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=VALUES)
def test_json_is_what_the_library_reads(value: object):
    text = json.dumps(value)
    assert parse_json(text) == json.loads(text)
    assert parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("", "Expecting value", 1),
        ('{"a": 1,\n"b"', "Expecting", 2),
        ("{'a': 1}", "property name", 1),
        ("[" * 100_000, DEEP, None),
        ('{"a":' * 100_000, DEEP, None),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), DEEP, None),
        ('{"a":' * 200 + "1" + "}" * 200, DEEP, None),
        ("[" + "1" * 5000 + "]", LONG, None),
        ('{"a": 1, "b": 2, "a": 3}', "'a' comes twice", None),
        (b"\xff\xfe", "byte 0xff at offset 0 is not UTF-8", None),
    ],
)
def test_json_that_cannot_be_read_says_why(text: str | bytes, reason: str, line: int | None):
    with pytest.raises(Malformed, match=reason) as caught:
        parse_json(text)
    assert caught.value.line == line


def test_nesting_up_to_the_limit_is_read():
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(text) == json.loads(text)
    # Many brackets beside one another are no nesting.
    assert parse_json("[" + "[]," * 500 + "[]]") == [[]] * 501


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = ", "Invalid value"),
        ("a = " + "[" * 5000, DEEP),
        ("a = " + "{a=" * 5000, DEEP),
        (".".join("a" * 300) + " = 1", DEEP),
        ("a = " + "1" * 5000, LONG),
        ("#" * 2_000_000, "longer than"),
        (b"a = '\xe9'", "is not UTF-8"),
    ],
)
def test_toml_that_cannot_be_read_says_why(text: str | bytes, reason: str, tmp_path: Path):
    with pytest.raises(Malformed, match=reason):
        parse_toml(text)
    path = tmp_path / "r.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=rf"recipe .*r\.toml is not TOML: .*{reason}"):
        read_tables(path)


def test_toml_is_what_the_library_reads():
    text = "[a]\nb = [1, 2.5, true]\n[[c]]\nd = 'x'\n"
    assert parse_toml(text) == tomllib.loads(text)
    assert parse_toml(b"\xef\xbb\xbf" + text.encode()) == tomllib.loads(text)


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000])
def test_a_value_of_an_option_that_is_no_toml_is_text(text: str):
    assert parse_value(text) == text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "line 1: Expecting value"),
        (b'{"a": 1', "line 1"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 5000, DEEP),
        (rb'{"label": "\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"value\.json is damaged \(.*{reason}.*\); do that"):
        read_json(path, "do that")
    path.unlink()
    with pytest.raises(InputError, match=r"value\.json is missing; make the artefact again"):
        read_json(path)


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path):
    path = tmp_path / "value.json"
    path.write_bytes(rb'{"label": "\ud83d\ude00"}')
    assert read_json(path) == {"label": "\U0001f600"}


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name in ("folder", "pipe", "circle", "n" * 5000):
        with pytest.raises(InputError, match=name):
            read_json(tmp_path / name)


def test_a_log_with_a_record_that_cannot_be_parsed_names_its_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + "[" * 5000 + '\n{"step": 2}\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2 is no JSON object"):
        read_metrics(path)
