"""Marks that uncased rules take away, and who is told."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from llmctl.tokenizers.marks import marks_taken, takes_marks
from llmctl.tokenizers.wordpiece import WORDPIECE_SPECIAL, build_wordpiece

UNCASED = build_wordpiece([*WORDPIECE_SPECIAL, "a"], cased=False)
CASED = build_wordpiece([*WORDPIECE_SPECIAL, "a"], cased=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("がくせい です", r"33\.3% .*\((が becomes か|で becomes て)\)"),
        ("か\u3099", r"50\.0% .*COMBINING KATAKANA-HIRAGANA VOICED SOUND MARK goes"),
        ("हिन्दी", r"16\.7% .*DEVANAGARI SIGN VIRAMA goes"),
        ("ที่นี่", r"SARA|MAI EK"),
        ("مُحَمَّد", r"ARABIC"),
        ("שָׁלוֹם", r"HEBREW"),
    ],
)
def test_marks_that_are_no_accents_are_told(text: str, says: str) -> None:
    assert takes_marks(UNCASED)
    note = marks_taken(UNCASED, Counter(text))
    assert note.endswith("a cased one keeps them (--cased)")
    assert re.search(says, note), note


@pytest.mark.parametrize(
    "text",
    [
        "déjà vu e\u0301",
        "Tiếng Việt",
        "Ελληνικά",
        "ещё й",
        "中文，文字",
        "한국어",
        "",
        "x" * 5000 + "が",
    ],
)
def test_accents_and_letters_without_marks_are_not(text: str) -> None:
    assert marks_taken(UNCASED, Counter(text)) == ""


def test_cased_rules_take_no_marks() -> None:
    assert not takes_marks(CASED)
    assert marks_taken(CASED, Counter("がくせい")) == ""
