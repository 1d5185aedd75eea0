"""Prompts from standard input, and how many rows are written at once."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from llmctl.errors import InputError
from llmctl.stages.generate import GenerateConfig, read_stream, rows_at_once


def lines(*values: Any) -> io.BytesIO:
    return io.BytesIO("".join(f"{json.dumps(value)}\n" for value in values).encode())


def test_objects_are_taken_for_jsonl_and_all_else_for_lines():
    found = list(read_stream(lines({"prompt": "é\n"}, {"prompt": "", "n": 2})))
    assert [(p.text, p.source) for p in found] == [
        ("é\n", "standard input:1"),
        ("", "standard input:2"),
    ]
    blank = io.BytesIO(b'{"prompt": "a"}\n\n{"prompt": "b"}')
    assert [p.text for p in read_stream(blank)] == ["a", "b"]
    for text in ('{"text": "a"}', "{x: 1}", "[1]", "a\tb ", ""):
        stream = io.BytesIO(f'{text}\r\n{{"prompt": "a"}}\n'.encode())
        assert [p.text for p in read_stream(stream)] == [text, '{"prompt": "a"}']


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "standard input has no prompts"),
        (b"a\nb\xff", "standard input:2: byte 0xff is not UTF-8"),
        (b'{"prompt": "a"}\nb\n', "standard input:2 is not a JSON object"),
        (b'{"prompt": "a"}\n{"text": "b"}\n', "standard input:2 has no text 'prompt'"),
        (b'{"prompt": 1}\n', "standard input:1 has no text 'prompt'"),
    ],
)
def test_what_is_wrong_with_standard_input_is_said(content: bytes, says: str):
    with pytest.raises(InputError, match=says):
        list(read_stream(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("fields", "prompts", "drafted", "expected"),
    [
        ({}, 1, False, 1),
        ({}, 3, False, 3),
        ({}, 20, False, 8),
        ({}, None, False, 8),
        ({"num_samples": 3}, 1, False, 3),
        ({"num_samples": 3}, 9, False, 6),
        ({"num_beams": 4, "batch_size": 1}, 2, False, 4),
        ({"penalty_alpha": 0.6}, 5, False, 4),
        ({"penalty_alpha": 0.6, "top_k": 7}, 5, False, 7),
        ({"draft_tokens": 3}, 5, True, 4),
    ],
)
def test_rows_at_once(fields: dict[str, Any], prompts: int | None, drafted: bool, expected: int):
    config = GenerateConfig(**{"batch_size": 8, **fields})
    assert rows_at_once(config, prompts, drafted=drafted) == expected
