"""The baselines: probabilities whatever the data, and a TF-IDF that is no straw man."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.errors import UsageError
from llmctl.evaluation.baselines import majority, tfidf_logistic_regression

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def test_majority_is_the_frequencies() -> None:
    found = majority([2, 0, 2, 1, 2], 4, 3)
    assert found.tolist() == [[0.2, 0.2, 0.6, 0.0]] * 3


@pytest.mark.parametrize("labels", [[], [0, 4], [-1, 0], [0.0, 1.0]])
def test_labels_outside_the_classes_are_refused(labels: list[float]) -> None:
    with pytest.raises(ValueError, match="labels"):
        majority(labels, 4, 1)


@pytest.mark.reference
@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(alphabet="ab c.好吃", max_size=8), st.integers(0, 3)),
        min_size=1,
        max_size=14,
    )
)
def test_any_training_set_gives_probabilities(examples: list[tuple[str, int]]) -> None:
    # Empty texts, one class, classes of one example: folds that don't work out are common here.
    texts, labels = zip(*examples, strict=True)
    tests = ["a b", "", "好"]
    found = tfidf_logistic_regression(texts, labels, tests, 5)
    assert found.shape == (3, 5)
    assert (found >= 0).all()
    assert found.sum(axis=1) == pytest.approx(1.0)
    absent = sorted(set(range(5)) - set(labels))
    assert not found[:, absent].any()
    assert (found == tfidf_logistic_regression(texts, labels, tests, 5)).all()


@pytest.mark.reference
def test_learns_a_class_with_fewer_examples_than_folds() -> None:
    texts = ["cats purr"] * 20 + ["dogs bark"] * 20 + ["zebras graze"] * 2
    found = tfidf_logistic_regression(texts, [0] * 20 + [1] * 20 + [2] * 2, ["zebras", "dogs"], 3)
    assert found.argmax(axis=1).tolist() == [2, 1]


@pytest.mark.reference
def test_chinese_is_read_by_characters() -> None:
    # Words between spaces would share nothing between training and test.
    train = ["房间很干净,服务好", "服务好早餐不错", "房间太脏,服务差", "早餐难吃服务差劲"] * 5
    found = tfidf_logistic_regression(
        train, [1, 1, 0, 0] * 5, ["这里的服务好极了", "这里的服务差极了"], 2
    )
    assert found.argmax(axis=1).tolist() == [1, 0]


@pytest.mark.reference
def test_no_texts_to_predict() -> None:
    assert tfidf_logistic_regression(["a", "b"], [0, 1], [], 2).shape == (0, 2)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("path", "delimiter", "label", "text", "header", "at_least"),
    [
        ("ag_news/news.csv", ",", 0, (1, 2), False, 0.75),
        ("chnsenticorp/reviews.csv", ",", 0, (1,), True, 0.80),
    ],
)
def test_as_strong_as_plain_settings_on_real_text(
    path: str, delimiter: str, label: int, text: tuple[int, ...], header: bool, at_least: float
) -> None:
    """300 labels, 1,000 held out: no worse than scikit-learn's defaults, and good by itself."""
    if not (DATA / path).exists():
        pytest.skip(f"the data folder has no {path}")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    with open(DATA / path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter=delimiter))[header:]
    order = np.random.default_rng(0).permutation(len(rows))[:1300]
    texts = [" ".join(rows[i][column] for column in text) for i in order]
    names = sorted({row[label] for row in rows})
    labels = np.array([names.index(rows[i][label]) for i in order])
    found = tfidf_logistic_regression(texts[:300], labels[:300], texts[300:], len(names))
    ours = float((found.argmax(axis=1) == labels[300:]).mean())
    plain = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts[:300], labels[:300])
    theirs = plain.score(texts[300:], labels[300:])
    print(f"{path}: {ours:.3f}, scikit-learn's defaults {theirs:.3f}")
    assert ours >= theirs - 0.01  # one standard error of 1,000 examples
    assert ours >= at_least


def test_without_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r"pip install 'llmctl\[eval\]'"):
        tfidf_logistic_regression(["a", "b"], [0, 1], ["a"], 2)


@pytest.mark.reference
def test_words_that_differ_by_a_mark_are_two() -> None:
    train = ["राम का घर", "राम की घर"] * 10
    found = tfidf_logistic_regression(train, [0, 1] * 10, ["का", "की"], 2)
    assert found.argmax(axis=1).tolist() == [0, 1]
    assert found.max(axis=1).min() > 0.6
