"""The four scores by hand."""

from __future__ import annotations

import numpy as np
import pytest

from llmctl.evaluation.choices import SCORES, ChoiceScores, Question, is_right


def test_scores_by_hand():
    question = Question("Q:", (" yes", " 不是"), 0, "", "x:1")
    assert question.sizes.tolist() == [3, 6]
    outcome = ChoiceScores(
        np.array([-6.0, -8.0]), np.array([1, 4]), question.sizes, np.array([-2.0, -5.0])
    )
    found = {name: score(outcome) for name, score in SCORES.items()}
    assert found["plain"] == pytest.approx([-6.0, -8.0])
    assert found["tokens"] == pytest.approx([-6.0, -2.0])
    assert found["bytes"] == pytest.approx([-2.0, -8 / 6])
    assert found["pmi"] == pytest.approx([-4.0, -3.0])
    right = {name: is_right(scores, question.gold) for name, scores in found.items()}
    assert right == {"plain": True, "tokens": False, "bytes": False, "pmi": False}


def test_without_a_prior_there_is_no_pmi():
    assert SCORES["pmi"](ChoiceScores(np.zeros(2), np.ones(2), np.ones(2))) is None


def test_a_tie_is_not_right():
    assert not is_right(np.array([-1.0, -1.0]), 0)
    assert not is_right(np.array([-1.0, -1.0]), 1)
    assert is_right(np.array([-1.0, -2.0, -3.0]), 0)
    assert not is_right(np.array([-np.inf, -np.inf]), 0)
