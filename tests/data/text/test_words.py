"""Words: marks belong to them, in any script."""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest

from llmctl.data.text.words import is_unspaced, marks, word_pattern

WORD = re.compile(word_pattern())


def test_all_marks_are_known_and_nothing_else() -> None:
    of_class = re.compile(f"[{marks()}]")
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        expected = unicodedata.category(character)[0] == "M" or character in "\u200c\u200d"
        if expected != bool(of_class.match(character)):
            pytest.fail(f"U+{code:04X}")


@pytest.mark.parametrize(
    "text",
    [
        "राम का घर",
        "हिन्दी में लिखा",
        "বাংলা ভাষা",
        "தமிழ் மொழி",
        "ภาษาไทย ที่นี่",
        "שָׁלוֹם עֲלֵיכֶם",
        "مُحَمَّد رَسُول",
        "می\u200cروم خانه",
        unicodedata.normalize("NFD", "café naïve Überfluß"),
    ],
)
def test_words_between_spaces_stay_whole(text: str) -> None:
    assert WORD.findall(text) == text.split()


def test_what_is_no_letter_begins_no_word() -> None:
    assert WORD.findall("\u2764\ufe0f e\u0301 \u0301 ..., 1\ufe0f\u20e3") == [
        "e\u0301",
        "1\ufe0f\u20e3",
    ]
    assert WORD.findall("snake_case, GPT-2") == ["snake_case", "GPT", "2"]
    assert re.findall(word_pattern(without="_a"), "a_bac") == ["b", "c"]


def test_scripts_without_spaces() -> None:
    assert is_unspaced(["ภาษาไทย"])
    assert is_unspaced(["今天天气"])
    assert not is_unspaced(["हिन्दी में लिखा"])
    assert not is_unspaced([""])
