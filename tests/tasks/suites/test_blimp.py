"""BLiMP: its folder as published, points by hand, and models of three kinds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmctl.errors import InputError, UsageError
from llmctl.evaluation.suites import blimp
from llmctl.evaluation.wilson import wilson_interval
from llmctl.workspace.artefacts import Workspace
from tests.language_models import PAIRS, measure, of_text
from tests.run import llmctl, one_sentence

TURNED = [(bad, good) for good, bad in PAIRS]


def write_set(
    folder: Path, uid: str, pairs: Sequence[tuple[str, str]], term: str, field: str = "syntax"
) -> None:
    """A set as BLiMP's repository has it, compressed."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"sentence_good": good, "sentence_bad": bad, "field": field, "linguistics_term": term,
         "UID": uid, "simple_LM_method": True, "pairID": str(number)}
        for number, (good, bad) in enumerate(pairs)
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{uid}.jsonl.gz").write_bytes(gzip.compress(text.encode()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "blimp"
    write_set(folder, "wh_island", PAIRS, "island_effects")
    write_set(folder, "adjunct_island", TURNED[:2], "island_effects")
    same = [("the ship sails", "the ship sails")]
    write_set(folder, "animate_subject_trans", [*PAIRS, *same], "s-selection")
    write_set(folder, "principle_A_case_1", PAIRS[:1], "binding", "syntax/semantics")
    return folder


def test_a_tie_is_half_a_point_and_rounding_is_a_tie():
    good_N = np.array([-3.0, -4.0, -5.0, 0.1 + 0.2 - 40])
    bad_N = np.array([-4.0, -3.0, -5.0, 0.3 - 40])
    assert blimp.points_of(good_N, bad_N).tolist() == [1.0, 0.0, 0.5, 0.5]


def test_means_weigh_sets_alike_and_have_wilsons_interval():
    parts = [np.array([1.0, 0.0, 1.0, 0.5]), np.array([1.0, 1.0])]
    found = blimp.mean_of(parts)
    assert found["accuracy"] == pytest.approx((2.5 / 4 + 1) / 2)
    # Of sets alike, the variance p(1-p)/4 · (1/4 + 1/2) is that of 16/3 pairs in one.
    pairs = 4 / (1 / 4 + 1 / 2)
    assert found["interval"] == pytest.approx(wilson_interval(found["accuracy"] * pairs, pairs))
    assert (found["sets"], found["pairs"], found["ties"]) == (2, 6, 1)
    alike = blimp.mean_of([np.ones(10), np.zeros(10)])
    assert alike["interval"] == pytest.approx(wilson_interval(10, 20))


def test_the_sets_are_the_published_67():
    assert len(blimp._PHENOMENON_OF) == 67
    assert len(blimp.PHENOMENA) == 12
    assert set(blimp.PUBLISHED) == {*blimp.PHENOMENA, "average"}
    # The published average is that of the sets: the means of phenomena, by their sizes.
    for place in range(len(blimp.PUBLISHED_BY)):
        sums = [blimp.PUBLISHED[name][place] * len(uids) for name, uids in blimp.PHENOMENA.items()]
        assert sum(sums) / 67 == pytest.approx(blimp.PUBLISHED["average"][place], abs=0.06)


def points(theirs: Any, pairs: Sequence[tuple[str, str]]) -> list[float]:
    values = [
        (sum(of_text(theirs, "", good)), sum(of_text(theirs, "", bad))) for good, bad in pairs
    ]
    return [0.5 if good == bad else float(good > bad) for good, bad in values]


@pytest.mark.reference
def test_a_language_model_by_hand(models: Workspace, theirs: Any, folder: Path):
    report = measure(models, "gpt", folder, suite="blimp", compare=["grams"])
    expected = {
        "wh_island": points(theirs, PAIRS),
        "adjunct_island": points(theirs, TURNED[:2]),
        "animate_subject_trans": [*points(theirs, PAIRS), 0.5],
        "principle_A_case_1": points(theirs, PAIRS[:1]),
    }
    own = report["results"]["model"]
    shares = {uid: np.mean(values) for uid, values in expected.items()}
    assert {uid: entry["accuracy"] for uid, entry in own["sets"].items()} == pytest.approx(shares)
    assert own["accuracy"] == pytest.approx(np.mean(list(shares.values())))
    assert own["ties"] == 1
    islands = np.mean([shares["wh_island"], shares["adjunct_island"]])
    assert own["phenomena"]["island_effects"]["accuracy"] == pytest.approx(islands)
    # Selection is counted to argument structure, as in the paper.
    assert set(own["phenomena"]) == {"argument_structure", "binding", "island_effects"}
    assert set(own["fields"]) == {"syntax", "syntax_semantics"}
    gap = report["differences"]["grams"]["difference"]
    assert gap == pytest.approx(own["accuracy"] - report["results"]["grams"]["accuracy"])
    notes = " ".join(report["notes"])
    assert "63 of BLiMP's 67 sets are missing (anaphor_gender_agreement, " in notes
    assert "wh_island has 3" in notes
    assert report["published"]["5-gram"]["average"] == pytest.approx(0.612)


def test_a_limit_is_of_each_set(models: Workspace, folder: Path):
    report = measure(models, "grams", folder, suite="blimp", limit=1)
    sizes = {uid: entry["pairs"] for uid, entry in report["results"]["model"]["sets"].items()}
    assert sizes == dict.fromkeys(sizes, 1)
    assert any("only the first 1 pairs" in note for note in report["notes"])


def test_a_set_that_is_not_theirs_is_said(models: Workspace, tmp_path: Path):
    folder = tmp_path / "more"
    folder.mkdir()
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in PAIRS]
    (folder / "hypernym.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = measure(models, "grams", folder, suite="blimp")
    assert list(report["results"]["model"]["phenomena"]) == ["other"]
    assert any("not BLiMP's, averaged like the others: hypernym" in n for n in report["notes"])


def test_an_encoder_by_pseudo_likelihood(own_workspace: Path, folder: Path):
    shares: dict[str, Mapping[str, Any]] = {}
    for scoring in ("masked", "within-word"):
        done = llmctl(own_workspace, "eval", "--from", "tiny", "--suite", "blimp", folder,
                      "--scoring", scoring, "--json")  # fmt: skip
        shares[scoring] = json.loads(done.stdout)["results"]["model"]
        assert shares[scoring]["scoring"] == scoring
    assert 0 <= shares["masked"]["accuracy"] <= 1
    shown = llmctl(own_workspace, "eval", "--from", "tiny", "--suite", "blimp", folder).stdout
    assert "island effects" in shown
    assert "pseudo-likelihood, each token hidden in turn; 1 ties" in shown


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--from", "tiny", "--suite", "blimp"], 2, "give the folder of its files"),
        (["--from", "tiny", "--suite", "blimp", "--data", "no"], 3, "no is no folder"),
        (["--from", "subjects", "--suite", "blimp", "."], 2, "is not for subjects"),
        (["--from", "tiny", "."], 2, "a folder goes with --suite"),
        (["--from", "tiny", "--limit", "2"], 2, "--limit goes with --suite"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    tiny_workspace: Path, words: list[str], code: int, said: str
):
    assert said in one_sentence(llmctl(tiny_workspace, "eval", *words, code=code))


def test_how_models_are_scored_is_refused_by_name(models: Workspace, folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="finds no hidden tokens"):
        measure(models, "gpt", folder, suite="blimp", scoring="masked")
    (folder / "notes.jsonl").write_text('{"a": 1, "b": 2}\n')
    with pytest.raises(InputError, match=r"notes\.jsonl has the columns a, b"):
        measure(models, "gpt", folder, suite="blimp")
    (folder / "notes.jsonl").unlink()
    (folder / "again.jsonl.gz").write_bytes((folder / "wh_island.jsonl.gz").read_bytes())
    with pytest.raises(InputError, match="the set wh_island, which another file"):
        measure(models, "gpt", folder, suite="blimp")
