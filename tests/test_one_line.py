"""Errors are one line, whatever they quote."""

from __future__ import annotations

import pytest

from llmctl.errors import MAX_ERROR_LENGTH, one_line


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a\nb\tc\x1b[31m\x00", r"a\nb\tc\x1b[31m\x00"),
        ("\u2028\u202e\ud800\x9b", r"\u2028\u202e\ud800\x9b"),
        ("Ünïcode 东京 \U0001f642 e\u0301 क्\u200dष", "Ünïcode 东京 \U0001f642 e\u0301 क्\u200dष"),
        ("", ""),
    ],
)
def test_nothing_breaks_a_line_or_moves_a_cursor(message: str, shown: str):
    assert one_line(message) == shown


def test_of_a_long_one_both_ends_are_shown():
    shown = one_line("begin " + "x" * 100_000 + " end")
    assert len(shown) < MAX_ERROR_LENGTH + 10
    assert shown.startswith("begin ")
    assert shown.endswith(" end")
