"""Swapped terms: what becomes of a text, and figures of a classifier by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmctl.data.text.decoding import DEFAULT
from llmctl.errors import InputError, UsageError
from llmctl.evaluation.suites.bias.counterfactual import (
    BUNDLED,
    LANGUAGES,
    Terms,
    change_figures,
    rate_difference,
    read_terms,
    true_positive_gaps,
)
from llmctl.workspace.artefacts import Workspace
from tests.language_models import measure
from tests.run import llmctl

ENGLISH, CHINESE = (read_terms(BUNDLED / f"{name}.tsv", DEFAULT) for name in LANGUAGES)


@pytest.mark.parametrize(
    ("terms", "text", "swapped"),
    [
        (ENGLISH, "He asked HER brother, not the other man.",
         "She asked HIS sister, not the other woman."),
        (ENGLISH, "The history of his shell; Burger King rules", "The history of her shell; "
         "Burger King rules"),
        (ENGLISH, "A white man sat", "A black man sat"),
        (CHINESE, "他说其他先生和她们都会弹吉他", "她说其他女士和他们都会弹吉他"),
        (CHINESE, "男朋友的爸爸是本地人", "女朋友的妈妈是外地人"),
    ],
)  # fmt: skip
def test_a_text_with_its_terms_swapped(terms: Terms, text: str, swapped: str):
    assert terms.swap(text) == swapped


def test_a_kind_and_a_side_alone_are_swapped():
    terms = Terms([("he", "she", "gender"), ("young", "old", "age")])
    assert terms.swap("He is young and she is old", "gender") == "She is young and he is old"
    assert terms.swap("He is young and she is old", "gender", 0) == "He is young and he is old"
    assert terms.swap("He is young and she is old", "gender", 1) == "She is young and she is old"
    assert [(term.kind, term.side) for term in terms.found("Old he")] == [("age", 1), ("gender", 0)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_bundled_list_goes_back_and_forth(language: str):
    terms = read_terms(BUNDLED / f"{language}.tsv", DEFAULT)
    lines = (BUNDLED / f"{language}.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if "\t" in line and not line.startswith("#")]
    assert len(pairs) > 30
    for first, *_ in pairs:
        # Each is one term, with nothing shorter in it taken; what it becomes is a term again.
        (found,) = terms.found(first)
        assert terms.swap(first).lower() == found.counterpart.lower()
        assert len(terms.found(found.counterpart)) == 1


def test_bad_terms_are_named_by_line(tmp_path: Path):
    path = tmp_path / "terms.tsv"
    path.write_text("he\tshe\nman\tMan\n")
    with pytest.raises(InputError, match=r"terms\.tsv:2: both terms are 'man'"):
        read_terms(path, DEFAULT)
    path.write_text("he\tshe\ta\tb\n")
    with pytest.raises(InputError, match=r"terms\.tsv:1 has not two terms"):
        read_terms(path, DEFAULT)
    path.write_text("# nothing\nking\n")
    with pytest.raises(InputError, match="no pairs of terms"):
        read_terms(path, DEFAULT)


def test_changes_by_hand():
    before_NC = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    after_NC = np.array([[0.8, 0.2], [0.7, 0.3], [0.7, 0.3]])
    found = change_figures(before_NC, after_NC, before_NC.argmax(1), after_NC.argmax(1))
    shifts = np.array([0.1, 0.3, 0.0])
    assert found["changed"] == pytest.approx(1 / 3)
    assert found["shift"] == pytest.approx(shifts.mean())
    assert found["shift_interval"][1] == pytest.approx(
        shifts.mean() + 1.96 * shifts.std(ddof=1) / 3**0.5
    )


def test_rates_have_newcombes_interval():
    # Newcombe 1998, table II, column (a), method 10: 56/70 less 48/80.
    found = rate_difference(56, 70, 48, 80)
    assert found["difference"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    gaps = true_positive_gaps(
        np.array([0, 0, 0, 1, -1]), np.array([0, 1, 0, 1, 0]), np.array([0, 0, 1, 1, 0]), ["a", "b"]
    )
    assert gaps["a"]["rates"] == [0.5, 1.0]
    assert gaps["b"]["difference"] is None


def test_a_classifier_of_swapped_subjects(own_workspace: Path, labelled_file: Path, tmp_path: Path):
    terms = tmp_path / "terms.tsv"
    terms.write_text("ship\ttram\tthings\nhens\tcows\tanimals\n")
    place = Workspace(own_workspace)
    report = measure_terms(place, "subjects", labelled_file, terms)
    swaps, texts = read_terms(terms, DEFAULT), labelled_file.read_text().splitlines()[1:]
    rows = [line.partition(",")[::2] for line in texts]
    asked = [(label, text) for label, text in rows if swaps.found(text)]
    assert report["with_terms"] == len(asked)
    changes = report["results"]["model"]["changes"]

    def answers(texts: list[str]) -> list[str]:
        from llmctl.tasks.classify.predict import ClassPredictor
        from llmctl.tasks.opened import OpenedModel

        predictor = ClassPredictor(OpenedModel.open(place, "subjects"))
        return [one.label for one in predictor.answers(predictor.alone(texts))]

    given = answers([text for _, text in asked])
    now = answers([swaps.swap(text) for _, text in asked])
    assert changes["all"]["changed"] == np.mean([a != b for a, b in zip(given, now, strict=True)])
    rates = report["results"]["model"]["rates"]["things"]
    own = [(label, text) for label, text in asked if {"ship", "tram"} & {*words_of(text)}]
    for label, entry in rates.items():
        of_class = [text for true, text in own if true == label]
        assert entry["rewritten"] is None or of_class
        if of_class:
            first, second = (
                np.mean([one == label for one in answers([swaps.swap(t, "things", side)
                         for t in of_class])])
                for side in (0, 1)
            )  # fmt: skip
            assert entry["rewritten"]["difference"] == pytest.approx(first - second)
    shown = llmctl(own_workspace, "eval", "--from", "subjects", "--suite", "bias", "--data",
                   labelled_file, "--terms", terms).stdout  # fmt: skip
    assert "equal opportunity" in shown
    terms.write_text("zebra\tlion\n")
    with pytest.raises(InputError, match="has any of the terms"):
        measure_terms(place, "subjects", labelled_file, terms)
    with pytest.raises(UsageError, match="give texts whose terms are swapped"):
        measure(place, "subjects", suite="bias")


def words_of(text: str) -> list[str]:
    return text.lower().replace(".", " ").replace(",", " ").split()


def measure_terms(place: Workspace, start: str, data: Path, terms: Path) -> dict[str, Any]:
    from llmctl.config import build
    from llmctl.stages.evaluate import prepare_evaluation
    from llmctl.tasks.evaluation import EvaluateConfig, Files

    config = build(EvaluateConfig, {"suite": "bias"})
    files = Files(data, terms=terms)
    return prepare_evaluation(place, start, files, config, force=True).run()[0].document()
