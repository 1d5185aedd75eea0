"""Tags of words: entities as seqeval reads them, and tags as they are repaired."""

from __future__ import annotations

import warnings
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.tables.tags import (
    Entity,
    UnknownTags,
    entities,
    may_follow,
    repaired,
    scheme_of,
    spelt,
    strict_entities,
)

KINDS = ("PER", "LOC-1")


def tags_of(letters: str) -> st.SearchStrategy[list[str]]:
    tag = st.sampled_from(["O", *(f"{letter}-{kind}" for letter in letters for kind in KINDS)])
    return st.lists(tag, min_size=1, max_size=12)


@given(tags_of("BI") | tags_of("BIES"))
def test_entities_are_those_of_seqeval(tags: list[str]):
    labels = pytest.importorskip("seqeval.metrics.sequence_labeling")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = labels.get_entities(tags)
    assert [(kind, begin, end - 1) for begin, end, kind in entities(tags)] == theirs


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
def test_strict_entities_are_those_of_seqeval(scheme: str):
    schemes = pytest.importorskip("seqeval.scheme")
    kind = {"BIO": schemes.IOB2, "BIOES": schemes.IOBES}[scheme]

    @given(tags_of("BI" if scheme == "BIO" else "BIES"))
    def check(tags: list[str]):
        theirs = schemes.Entities([tags], kind).entities[0]
        found = [(e.start, e.end, e.tag) for e in theirs]
        assert [tuple(entity) for entity in strict_entities(tags, scheme)] == found  # type: ignore[arg-type]

    check()


@given(tags_of("BI") | tags_of("BIES") | tags_of("BILU"))
def test_what_is_repaired_is_well_spelt_and_has_the_same_entities(tags: list[str]):
    scheme = scheme_of(tags)
    mended = repaired(tags, scheme)
    assert list(entities(mended)) == list(entities(tags))
    assert repaired(mended, scheme) == mended
    if scheme != "plain":
        assert list(strict_entities(mended, scheme)) == list(entities(mended))
        edges = [None, *mended, None]
        assert all(may_follow(a, b, scheme) for a, b in pairwise(edges))


def test_an_entity_that_begins_with_i_is_repaired():
    assert repaired(["I-PER", "I-PER", "O", "I-LOC"], "BIO") == ["B-PER", "I-PER", "O", "B-LOC"]
    assert spelt([Entity(0, 1, "X"), Entity(1, 4, "Y")], 4, "BILOU") == ["U-X", "B-Y", "I-Y", "L-Y"]


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (["B-NP", "NN"], "'NN' is neither O nor"),
        (["S-X", "U-X"], "two schemes, BIOES and BILOU"),
        (["O", "B-"], "the tag 'B-' names no type"),
        (["B-X", "I-"], "the tag 'I-' names no type"),
    ],
)
def test_tags_that_no_scheme_allows_are_named(tags: list[str], said: str):
    with pytest.raises(UnknownTags, match=said):
        scheme_of(tags)


def test_parts_of_speech_spell_nothing():
    assert scheme_of(["NN", "O", "VBZ", "-LRB-"]) == "plain"
