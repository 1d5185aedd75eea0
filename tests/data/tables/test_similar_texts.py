"""Tables of texts that belong together, in the layouts that people have them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.data.tables.similar_texts import SimilarColumns, read_similar, resolve_similar
from llmctl.errors import InputError, UsageError


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, **options: Any) -> list[tuple[str, str, tuple[str, ...], float | None]]:
    columns = resolve_similar(path, **options)
    return [(e.text, e.other, e.negatives, e.score) for e in read_similar(path, columns)]


def test_pairs_triples_and_scores(tmp_path: Path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("query,passage\na,b\n c ,d\n")
    assert read(pairs) == [("a", "b", (), None), ("c", "d", (), None)]
    triples = tmp_path / "triples.csv"
    triples.write_text("anchor,positive,negative_1,negative_2\na,b,x,y\nc,d,z,\n")
    assert read(triples) == [("a", "b", ("x", "y"), None), ("c", "d", ("z",), None)]
    scored = tmp_path / "scored.tsv"
    scored.write_text("sentence1\tsentence2\tscore\na\tb\t4.5\n")
    assert read(scored) == [("a", "b", (), 4.5)]
    simcse = tmp_path / "nli.csv"
    simcse.write_text("sent0,sent1,hard_neg\na,b,c\n")
    assert read(simcse) == [("a", "b", ("c",), None)]
    bare = tmp_path / "bare.csv"
    bare.write_text("what is it,a thing\nwho is she,a queen\n")
    assert read(bare, reading=_no_header())[0] == ("what is it", "a thing", (), None)


def _no_header() -> Any:
    from llmctl.data.text.decoding import ReadConfig

    return ReadConfig(header="no").read_options(lambda note: None)


def test_lists_of_positives_and_negatives(tmp_path: Path):
    """The layout of BGE's training data."""
    path = lines(tmp_path / "bge.jsonl", {"query": "q", "pos": ["p1", "p2"], "neg": ["n1", "n2"]})
    negatives = ("n1", "n2")
    assert read(path) == [("q", "p1", negatives, None), ("q", "p2", negatives, None)]


def test_inference_gives_entailed_texts_and_contradictions(tmp_path: Path):
    path = lines(
        tmp_path / "nli.jsonl",
        {"premise": "p", "hypothesis": "no", "label": "contradiction"},
        {"premise": "p", "hypothesis": "yes", "label": "entailment"},
        {"premise": "p", "hypothesis": "perhaps", "label": "neutral"},
        {"premise": "r", "hypothesis": "of course", "label": "entailment"},
    )
    assert resolve_similar(path).inference == "label"
    assert read(path) == [("p", "yes", ("no",), None), ("r", "of course", (), None)]


def test_labels_of_numbers_are_scores_and_others_are_refused(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", {"text1": "a", "text2": "b", "label": 1})
    assert read(path) == [("a", "b", (), 1.0)]
    path = lines(tmp_path / "b.jsonl", {"text1": "a", "text2": "b", "label": "sports"})
    with pytest.raises(UsageError, match=r"neither numbers nor entailment.*'sports'"):
        resolve_similar(path)


def test_named_columns_win(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("id,x,y,z,s\n1,a,b,c,0.5\n")
    with pytest.raises(UsageError, match="choose the two texts with --text-column"):
        resolve_similar(path)
    named = {"text_column": "x", "text_pair_column": "y"}
    assert read(path, **named, negative_column="z") == [("a", "b", ("c",), None)]
    assert read(path, **named, score_column="s") == [("a", "b", (), 0.5)]
    with pytest.raises(UsageError, match=r"has scores .* and negatives"):
        resolve_similar(path, **named, negative_column="z", score_column="s")
    with pytest.raises(UsageError, match="name two columns"):
        resolve_similar(path, text_column="x", text_pair_column="x")


def test_bad_input_names_its_place(tmp_path: Path):
    text = tmp_path / "plain.txt"
    text.write_text("a line\n")
    with pytest.raises(InputError, match=r"plain text, and pairs .* --task simcse"):
        resolve_similar(text)
    path = lines(tmp_path / "s.jsonl", {"text1": "a", "text2": "b", "score": "high"})
    with pytest.raises(InputError, match=r"s\.jsonl:1: score is 'high', and a score is a number"):
        read(path)
    path = lines(tmp_path / "n.jsonl", {"text1": "a", "text2": 7})
    with pytest.raises(InputError, match=r"n\.jsonl:1: text2 is int, and a text was expected"):
        read(path)
    path = lines(tmp_path / "l.jsonl", {"anchor": ["a", "b"], "positive": "c"})
    with pytest.raises(InputError, match="anchor holds several texts"):
        read(path)


def test_what_was_chosen_is_said():
    columns = SimilarColumns("q", "p", ("n",), None)
    assert columns.describe() == ("text from column q, what belongs to it from p, negatives from n")
