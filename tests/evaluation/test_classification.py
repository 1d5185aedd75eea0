"""The metrics against scikit-learn, a table worked by hand, and what the bootstrap must cover."""

from __future__ import annotations

import json
import time
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.evaluation.classification import (
    accuracy,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    matthews_correlation,
    micro_f1,
    report,
)

CLASSES = 4
# Few classes and short lists: a class that is missing, in the truth, the predictions or both, and
# predictions of one class alone are common among the examples.
PAIRS = st.lists(
    st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=40
)


@pytest.mark.reference
@given(PAIRS)
def test_agrees_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    from sklearn import metrics

    true, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    ours = confusion_matrix(true, predicted, CLASSES)
    np.testing.assert_array_equal(
        ours, metrics.confusion_matrix(true, predicted, labels=range(CLASSES))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, on classes without predictions
        expected = {
            accuracy: metrics.accuracy_score(true, predicted),
            macro_f1: metrics.f1_score(true, predicted, average="macro"),
            micro_f1: metrics.f1_score(true, predicted, average="micro"),
            matthews_correlation: metrics.matthews_corrcoef(true, predicted),
        }
    for metric, value in expected.items():
        assert metric(ours) == pytest.approx(value, abs=1e-12), metric.__name__


@pytest.mark.reference
@given(PAIRS)
def test_each_class_agrees_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    from sklearn import metrics

    true, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    ours = report(np.eye(CLASSES)[predicted], true, list("abcd"), resamples=2)["classes"]
    expected = metrics.precision_recall_fscore_support(
        true, predicted, labels=range(CLASSES), zero_division=0
    )
    for key, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[key] for row in ours] == pytest.approx(list(values), abs=1e-12)


def test_matthews_of_a_large_set_does_not_overflow() -> None:
    # R_K doesn't change when each example counts a million times.
    confusion = np.array([[50, 3], [7, 40]])
    assert matthews_correlation(confusion * 1_000_000) == pytest.approx(
        matthews_correlation(confusion), rel=1e-12
    )


def test_a_stack_of_matrices_scores_each() -> None:
    stack = np.random.default_rng(0).integers(0, 5, (7, 3, 3))
    for metric in (accuracy, macro_f1, micro_f1, matthews_correlation):
        assert metric(stack) == pytest.approx([float(metric(one)) for one in stack])


def test_calibration_error_of_a_table() -> None:
    # Five bins.  confidence 0.55 right, 0.60 wrong (an upper edge): 1 - 0.55 + 0 - 0.60 = -0.15
    #             confidence 0.70 right, 0.75 right:                  2 - 1.45       = +0.55
    #             confidence 0.90 wrong, 1.00 right:                  1 - 1.90       = -0.90
    # (0.15 + 0.55 + 0.90) / 6
    probabilities = [[0.55, 0.45], [0.4, 0.6], [0.7, 0.3], [0.25, 0.75], [0.9, 0.1], [0, 1]]
    assert expected_calibration_error(probabilities, [0, 0, 0, 1, 1, 1], num_bins=5) == (
        pytest.approx(1.6 / 6, abs=1e-12)
    )


def test_calibration_error_at_its_ends() -> None:
    sure = np.eye(2)[[0, 1, 1, 0]]
    assert expected_calibration_error(sure, [0, 1, 1, 0]) == 0.0
    assert expected_calibration_error(sure, [1, 0, 0, 1]) == 1.0
    # Half sure and half right, all in one bin: no gap.
    assert expected_calibration_error(np.full((10, 2), 0.5), [0, 1] * 5) == pytest.approx(0.0)


def test_report_is_json_and_complete() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([1, 1, 1], 200).astype(np.float32)
    true = generator.integers(0, 2, 200)  # the third class never occurs in the truth
    found = report(probabilities, true, ["a", "b", "c"], resamples=200)
    assert json.loads(json.dumps(found)) == found
    for name in ("accuracy", "macro_f1", "mcc"):
        low, high = found["intervals"][name]
        assert low <= found[name] <= high
    assert [row["label"] for row in found["classes"]] == ["a", "b", "c"]
    assert [sum(row) for row in found["confusion_matrix"]] == [
        row["support"] for row in found["classes"]
    ]
    assert found == report(probabilities, true, ["a", "b", "c"], resamples=200)
    other = report(probabilities, true, ["a", "b", "c"], resamples=200, seed=1)
    assert other["intervals"] != found["intervals"]


def test_the_interval_of_accuracy_is_the_binomial_one() -> None:
    # 80 of 100 right: resampled accuracy is binomial(100, 0.8)/100, quantiles 0.72 and 0.87.
    true = np.zeros(100, dtype=int)
    predicted = np.array([0] * 80 + [1] * 20)
    found = report(np.eye(2)[predicted], true, ["a", "b"], resamples=20_000)
    # A quantile may fall one example aside from one draw of the resamples to another.
    assert found["intervals"]["accuracy"] == pytest.approx([0.72, 0.87], abs=0.0101)


@pytest.mark.reference
def test_intervals_are_those_of_resampling_examples_one_by_one() -> None:
    from sklearn import metrics

    generator = np.random.default_rng(5)
    true = generator.integers(0, 3, 150)
    predicted = np.where(generator.random(150) < 0.6, true, generator.integers(0, 3, 150))
    drawn = generator.integers(0, 150, (600, 150))
    found = report(np.eye(3)[predicted], true, ["a", "b", "c"], resamples=20_000)["intervals"]
    for name, metric in (
        ("macro_f1", lambda t, p: metrics.f1_score(t, p, average="macro")),
        ("mcc", metrics.matthews_corrcoef),
    ):
        slow = [metric(true[rows], predicted[rows]) for rows in drawn]
        # 600 draws place a 2.5 % quantile to about a tenth of the standard deviation.
        expected = np.quantile(slow, [0.025, 0.975])
        assert found[name] == pytest.approx(expected, abs=0.4 * float(np.std(slow)))


@pytest.mark.benchmark
def test_many_resamples_take_no_time() -> None:
    generator = np.random.default_rng(0)
    true = generator.integers(0, 14, 10_000)
    probabilities = generator.dirichlet(np.ones(14), 10_000)
    started = time.perf_counter()
    report(probabilities, true, [str(c) for c in range(14)], resamples=1000)
    assert time.perf_counter() - started < 2.0  # some 0.1 s; room for a busy machine


def test_many_classes_stay_within_memory() -> None:
    generator = np.random.default_rng(0)
    wide = report(
        np.eye(400)[generator.integers(0, 400, 500)],
        generator.integers(0, 400, 500),
        [str(c) for c in range(400)],
        resamples=50,  # two chunks of 25 matrices of 160,000 cells
    )
    assert len(wide["intervals"]["accuracy"]) == 2


@pytest.mark.parametrize(
    ("probabilities", "true", "names"),
    [
        (np.full((3, 2), 0.5), [0, 1], "ab"),  # another number of labels
        (np.full((2, 2), 0.5), [0, 1], "abc"),  # another number of names
        (np.full((2, 2), 0.5), [0, 2], "ab"),  # no such class
        (np.full((2, 2), 0.5), [0, -1], "ab"),
        (np.full((2, 2), 0.5), [0.0, 1.0], "ab"),
        (np.array([[2.0, -1.0], [0.5, 0.5]]), [0, 1], "ab"),  # logits
        (np.array([[np.nan, 0.5], [0.5, 0.5]]), [0, 1], "ab"),
        (np.zeros((0, 2)), [], "ab"),
        (np.array([0.5, 0.5]), [0, 1], "ab"),
    ],
)
def test_what_does_not_fit_is_refused(
    probabilities: np.ndarray, true: list[float], names: str
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        report(probabilities, true, names)


def test_labels_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        confusion_matrix([0, 1], [0], 2)
