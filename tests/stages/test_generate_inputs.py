"""Prompts from standard input, and how many rows are written at once."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmctl.data.text.files import STDIN
from llmctl.errors import InputError
from llmctl.stages.generate import read_prompts
from llmctl.tasks.generation import GenerateConfig, Prompt, rows_at_once

Stream = Callable[[bytes], list[Prompt]]


@pytest.fixture
def read_stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    def read(content: bytes) -> list[Prompt]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return list(read_prompts(STDIN))

    return read


def lines(*values: Any) -> bytes:
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


def test_objects_are_taken_for_jsonl_and_all_else_for_lines(read_stream: Stream):
    found = read_stream(lines({"prompt": "é\n"}, {"prompt": "", "n": 2}))
    assert [(p.text, p.source) for p in found] == [
        ("é\n", "standard input:1"),
        ("", "standard input:2"),
    ]
    blank = b'{"prompt": "a"}\n\n{"prompt": "b"}'
    assert [p.text for p in read_stream(blank)] == ["a", "b"]
    for text in ('{"text": "a"}', "{x: 1}", "[1]", "a\tb ", ""):
        stream = f'{text}\r\n{{"prompt": "a"}}\n'.encode()
        assert [p.text for p in read_stream(stream)] == [text, '{"prompt": "a"}']


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "standard input has no prompts"),
        (b"a\nb\xff", "standard input: byte 0xff at offset 3 is not UTF-8"),
        (b'{"prompt": "a"}\nb\n', "standard input:2 is not a JSON object"),
        (b'{"prompt": "a"}\n{"text": "b"}\n', "standard input:2 has no text 'prompt'"),
        (b'{"prompt": 1}\n', "standard input:1 has no text 'prompt'"),
    ],
)
def test_what_is_wrong_with_standard_input_is_said(read_stream: Stream, content: bytes, says: str):
    with pytest.raises(InputError, match=says):
        read_stream(content)


def test_standard_input_and_a_file_give_the_same_prompts(read_stream: Stream, tmp_path: Path):
    content = "\ufeffone\rtwo\r\nthree\x0bfour\x85five\u2028six\n\nlast".encode()
    (tmp_path / "p.txt").write_bytes(content)
    found = [prompt.text for prompt in read_stream(content)]
    assert found == ["one\rtwo", "three\x0bfour\x85five\u2028six", "", "last"]
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.txt")] == found
    with pytest.raises(InputError, match="standard input: byte 0x00 at offset 1: it is binary"):
        read_stream(b"a\0b\n")


@pytest.mark.parametrize(
    ("fields", "prompts", "expected"),
    [
        ({}, 1, 1),
        ({}, 3, 3),
        ({}, 20, 8),
        ({}, None, 8),
        ({"num_samples": 3}, 1, 3),
        ({"num_samples": 3}, 9, 6),
        ({"num_beams": 4, "batch_size": 1}, 2, 4),
        ({"penalty_alpha": 0.6}, 5, 4),
        ({"penalty_alpha": 0.6, "top_k": 7}, 5, 7),
    ],
)
def test_rows_at_once(fields: dict[str, Any], prompts: int | None, expected: int):
    config = GenerateConfig(**{"batch_size": 8, **fields})
    assert rows_at_once(config, prompts) == expected
