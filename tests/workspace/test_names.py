"""Names that folders can have, in any script."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.workspace.files import hidden_sibling, replaced_sibling
from llmctl.workspace.locks import lock_path
from llmctl.workspace.names import LONGEST_NAME_BYTES, is_name, slug

GOOD = [
    "a", "A-1.b_c", "0", "x" * 100, "a..b", "情感", "отзывы", "평가", "ひらがな",
    "हिन्दी", "ภาษาไทย", "é",
]  # fmt: skip
BAD = [
    "", ".", "..", "../x", "a/b", "a\n", "-a", ".a", "_a", "a b", "x" * 101, "e\u0301", "\u0301a",
    "a\u200d", "a\u202e", "😀", "。", "a\0", "\ud800", "字" * 67,
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("name", BAD)
def test_bad_names(name: str) -> None:
    assert not is_name(name)


@given(st.text(max_size=200))
def test_a_slug_is_a_name(text: str) -> None:
    name = slug(text, "data")
    assert is_name(f"{name}-12345678")
    assert slug(name, "data") == name


@given(st.text(st.characters(categories=["L", "M", "N"]), min_size=1, max_size=12))
def test_letters_of_other_scripts_stay(text: str) -> None:
    text = unicodedata.normalize("NFC", "文" + text)
    kept = set(slug(text, "data"))
    latin = {c for c in text if unicodedata.normalize("NFKD", c).encode("ascii", "ignore")}
    marks = {c for c in text if unicodedata.category(c) in ("Mn", "Me")}
    assert kept >= set(text) - latin - marks


@pytest.mark.parametrize(
    ("text", "name"),
    [("reviews", "reviews"), ("café", "cafe"), ("my data (1)", "my-data-1"), ("评论", "评论"),
     ("..", "data"), ("-x-", "x"), ("a" * 200, "a" * 90), ("评论（一）.v2", "评论-一-.v2"),
     ("が", "が"), ("字" * 90, "字" * 60), ("😀", "data")],
)  # fmt: skip
def test_slugs(text: str, name: str) -> None:
    assert slug(text, "data") == name


def test_the_longest_name_leaves_room_for_what_is_added(tmp_path: Path) -> None:
    target = tmp_path / "shards" / ("字" * (LONGEST_NAME_BYTES // 3) + "xx")
    assert is_name(target.name)
    target.mkdir(parents=True)
    for path in (hidden_sibling(target), replaced_sibling(target), lock_path(target)):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        assert len(os.fsencode(path.name)) <= 255
