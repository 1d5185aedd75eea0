"""BLEU, chrF and ROUGE: the packages' own scores, and intervals as if each resample were scored."""

from __future__ import annotations

import json
import logging
import random
import sys

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer, tokenizers

from llmctl.errors import UsageError
from llmctl.evaluation.bootstrap import paired_difference, percentile_interval, resample_counts
from llmctl.evaluation.overlap import (
    ROUGE_TYPES,
    UnicodeTokenizer,
    bleu_chrf,
    is_chinese,
    lead,
    length_in_words,
    paired_bleu_difference,
    rouge,
)

pytestmark = pytest.mark.reference

WORDS = [
    "the", "a", "cat", "dog", "sat", "lay", "on", "under", "mat", "rug", "today", "quietly", ",",
    "and", "then", "it", "slept", ".",
]  # fmt: skip


def corpus(texts: int = 150, changed: float = 0.3, seed: int = 0) -> tuple[list[str], list[str]]:
    """References, and the same with a share of their words drawn anew."""
    source = random.Random(seed)
    references = [source.choices(WORDS, k=source.randint(5, 25)) for _ in range(texts)]
    written = [
        [source.choice(WORDS) if source.random() < changed else word for word in reference]
        for reference in references
    ]
    return [" ".join(words) for words in written], [" ".join(words) for words in references]


CHINESE = ["今天的天气很好,我们去公园。", "他昨天买了一本GPT-2的书。", "这家酒店的服务不错。"]
CHINESE_WRITTEN = ["今天天气好,我们去了公园。", "昨天他买了GPT-2的书。", "酒店服务很不错。"]


def test_worked_by_hand() -> None:
    written, reference = "the cat is on the mat today", "the cat sat on the mat today"
    found = bleu_chrf([written], [reference], resamples=5, seed=0)
    # Of 7, 6, 5 and 4 n-grams "is" spoils 1, 2, 3 and 3; the lengths are equal.
    assert found["bleu"] == pytest.approx(100 * (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25)
    # "ab" for "abc": both letters and their pair are right, of 3 letters and 2 pairs; no triple
    # is written, so none counts. Precision 1, recall 7/12, and F with recall four times the weight.
    found = bleu_chrf(["a b"], ["abc"], resamples=5, seed=0)
    assert found["chrf"] == pytest.approx(100 * 5 * (7 / 12) / (4 + 7 / 12))
    scores = rouge([written], [reference], resamples=5, seed=0)
    assert [scores[name] for name in ROUGE_TYPES] == pytest.approx([6 / 7, 4 / 6, 6 / 7])


@pytest.mark.parametrize("chinese", [False, True])
def test_scores_and_signatures_are_sacrebleus(chinese: bool) -> None:
    written, references = (CHINESE_WRITTEN, CHINESE) if chinese else corpus()
    found = bleu_chrf(written, references, resamples=100, seed=0)
    tokenize = "zh" if chinese else "13a"
    bleu = sacrebleu.corpus_bleu(written, [references], tokenize=tokenize, force=True)
    assert found["bleu"] == bleu.score
    assert found["chrf"] == sacrebleu.corpus_chrf(written, [references]).score
    version = sacrebleu.__version__
    assert found["bleu_signature"] == (
        f"nrefs:1|case:mixed|eff:no|tok:{tokenize}|smooth:exp|version:{version}"
    )
    assert found["chrf_signature"] == (
        f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    )
    assert json.loads(json.dumps(found)) == found


def test_chinese_is_counted_in_characters() -> None:
    # As words between spaces nothing would be shared.
    by_words = bleu_chrf(CHINESE_WRITTEN, CHINESE, language="en", resamples=50, seed=0)
    by_characters = bleu_chrf(CHINESE_WRITTEN, CHINESE, resamples=50, seed=0)
    assert by_characters["bleu"] > 30 > by_words["bleu"]
    for language in ("zh", "zh-CN", "ZH_tw"):
        found = bleu_chrf(CHINESE_WRITTEN, CHINESE, language=language, resamples=50, seed=0)
        assert found == by_characters
    scores = rouge(["我们去了公园"], ["我们去公园"], resamples=5, seed=0)
    # 5 of 6 characters written and 5 of 5 wanted; of their pairs 3 of 5 and 3 of 4.
    assert scores["rouge1"] == pytest.approx(2 * 5 / 11)
    assert scores["rouge2"] == pytest.approx(2 * 3 / 9)
    assert scores["rougeL"] == pytest.approx(2 * 5 / 11)
    assert scores["tokenizer"] == "unicode"


TEXT = st.text(alphabet="ab cd.,-好吃\n", max_size=14)
PAIRS = st.lists(st.tuples(TEXT, TEXT.filter(str.strip)), min_size=1, max_size=5)


@given(pairs=PAIRS, seed=st.integers(0, 99))
def test_intervals_are_those_of_scoring_every_resample(
    pairs: list[tuple[str, str]], seed: int
) -> None:
    written, references = map(list, zip(*pairs, strict=True))
    found = bleu_chrf(written, references, resamples=12, seed=seed)
    tokenize = "zh" if is_chinese(references) else "13a"
    drawn = resample_counts(np.ones(len(pairs), dtype=np.int64), 12, np.random.default_rng(seed))
    bleu, chrf = [], []
    for counts in drawn:
        again = [pair for pair, count in zip(pairs, counts, strict=True) for _ in range(count)]
        a, b = map(list, zip(*again, strict=True))
        bleu.append(sacrebleu.corpus_bleu(a, [b], tokenize=tokenize).score)
        chrf.append(sacrebleu.corpus_chrf(a, [b]).score)
    assert found["intervals"]["bleu"] == pytest.approx(percentile_interval(bleu), abs=1e-9)
    assert found["intervals"]["chrf"] == pytest.approx(percentile_interval(chrf), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(pairs=PAIRS, seed=st.integers(0, 99))
def test_rouge_is_the_mean_of_rouge_scores(pairs: list[tuple[str, str]], seed: int) -> None:
    written, references = map(list, zip(*pairs, strict=True))
    found = rouge(written, references, resamples=12, seed=seed)
    own = found["tokenizer"] == "rouge-score"
    scorer = rouge_scorer.RougeScorer(
        list(ROUGE_TYPES), tokenizer=None if own else UnicodeTokenizer()
    )
    drawn = resample_counts(np.ones(len(pairs), dtype=np.int64), 12, np.random.default_rng(seed))
    for name in ROUGE_TYPES:
        f1 = np.array([scorer.score(b, a)[name].fmeasure for a, b in pairs])
        assert found[name] == pytest.approx(f1.mean())
        means = drawn @ f1 / len(pairs)
        assert found["intervals"][name] == pytest.approx(percentile_interval(means))
    assert json.loads(json.dumps(found)) == found


def test_intervals_contain_the_score_and_narrow_with_more_texts() -> None:
    widths = []
    for texts in (40, 640):
        written, references = corpus(texts)
        found = bleu_chrf(written, references, resamples=300, seed=1)
        found["rouge"] = rouge(written, references, resamples=300, seed=1)
        for scores in (found, found["rouge"]):
            for name, (low, high) in scores["intervals"].items():
                assert low < scores[name] < high
            assert (scores["texts"], scores["resamples"], scores["confidence"]) == (
                texts,
                300,
                0.95,
            )
        widths.append(np.diff(found["intervals"]["bleu"]).item())
    # Four times narrower; a width from 300 resamples is good to a tenth or so.
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.4)


def test_a_perfect_text_scores_all_there_is() -> None:
    _, references = corpus(20)
    found = bleu_chrf(references, references, resamples=20, seed=0)
    assert found["bleu"] == pytest.approx(100)
    assert found["chrf"] == pytest.approx(100)
    assert found["intervals"]["bleu"] == pytest.approx([100, 100])
    scores = rouge(references, references, resamples=20, seed=0)
    assert [scores[name] for name in ROUGE_TYPES] == [1, 1, 1]


def test_nothing_written_scores_nothing() -> None:
    _, references = corpus(5)
    found = bleu_chrf([""] * 5, references, resamples=20, seed=0)
    assert (found["bleu"], found["chrf"]) == (0, 0)
    assert found["intervals"] == {"bleu": [0, 0], "chrf": [0, 0]}
    assert rouge([""] * 5, references, resamples=20, seed=0)["rouge1"] == 0


def test_a_seed_gives_the_same_intervals_and_another_others() -> None:
    written, references = corpus(30)
    other, _ = corpus(30, changed=0.5)
    for score in (
        lambda seed: bleu_chrf(written, references, resamples=50, seed=seed),
        lambda seed: rouge(written, references, resamples=50, seed=seed),
        lambda seed: paired_bleu_difference(written, other, references, resamples=50, seed=seed),
    ):
        assert score(3) == score(3)
        assert score(3) != score(4)


def test_resamples_do_not_depend_on_how_many_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    written, references = corpus(30)
    whole = bleu_chrf(written, references, resamples=50, seed=0)
    monkeypatch.setattr("llmctl.evaluation.overlap.DRAWN_AT_ONCE", 100)
    assert bleu_chrf(written, references, resamples=50, seed=0) == whole


def test_paired_difference_is_that_of_the_scores_on_the_same_resamples() -> None:
    a, references = corpus(60, changed=0.2)
    generator = random.Random(5)
    b = [text if generator.random() < 0.7 else text.replace("the", "a") for text in a]
    found = paired_bleu_difference(a, b, references, resamples=40, seed=2)
    whole = [sacrebleu.corpus_bleu(x, [references], force=True).score for x in (a, b)]
    assert found["difference"] == pytest.approx(whole[0] - whole[1])
    drawn = resample_counts(np.ones(60, dtype=np.int64), 40, np.random.default_rng(2))
    differences = []
    for counts in drawn:
        rows = [n for n, count in enumerate(counts) for _ in range(count)]
        scores = [
            sacrebleu.corpus_bleu(
                [x[n] for n in rows], [[references[n] for n in rows]], force=True
            ).score
            for x in (a, b)
        ]
        differences.append(scores[0] - scores[1])
    low, high = percentile_interval(differences)
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found.keys() <= paired_difference([True], [False]).keys()
    assert json.loads(json.dumps(found)) == found


def test_pairing_is_narrower_than_two_intervals_and_antisymmetric() -> None:
    a, references = corpus(100, changed=0.2)
    b = [text.replace("cat", "dog") for text in a]
    found = paired_bleu_difference(a, b, references, resamples=300, seed=0)
    back = paired_bleu_difference(b, a, references, resamples=300, seed=0)
    assert found["difference"] == pytest.approx(-back["difference"])
    assert (found["low"], found["high"]) == pytest.approx((-back["high"], -back["low"]))
    assert found["low"] < found["difference"] < found["high"]
    alone = bleu_chrf(a, references, resamples=300, seed=0)["intervals"]["bleu"]
    assert found["high"] - found["low"] < alone[1] - alone[0]
    same = paired_bleu_difference(a, a, references, resamples=20, seed=0)
    assert same == {"difference": 0, "low": 0, "high": 0}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (CHINESE, True),
        (["他昨天买了GPT的书"], True),
        (["the cat", "le chat"], False),
        (["猫 the cat sat"], False),
        (["これはペンです。私は学生です。"], False),
        (["고양이가 매트 위에"], False),
        (["你好"] * 5 + ["hello there"], False),
        (["12 . 5"], False),
        ([""], False),
        ([], False),
    ],
)
def test_is_chinese(texts: list[str], expected: bool) -> None:
    assert is_chinese(texts) is expected


def test_lead_is_the_first_words_or_characters() -> None:
    assert lead("One two\n three  four.", 3) == "One two three"
    assert lead(" 今天的天气很好。", 3) == "今天的"
    assert lead("short", 9) == "short"
    assert lead("", 3) == lead("a b", 0) == ""
    with pytest.raises(ValueError, match="first -1 words"):
        lead("a", -1)


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_read_as_rouge_score_reads_it(text: str) -> None:
    assert UnicodeTokenizer().tokenize(text) == tokenizers.DefaultTokenizer(False).tokenize(text)


@pytest.mark.parametrize(
    ("reference", "tokenizer"),
    [
        ("The cat sat.", "rouge-score"),
        ("Über den Wolken muß die Freiheit wohl grenzenlos sein", "rouge-score"),
        ("Кошка сидит на ковре", "unicode"),
        ("12", "rouge-score"),
    ],
)
def test_letters_that_rouge_score_would_drop_are_kept(reference: str, tokenizer: str) -> None:
    found = rouge([reference], [reference], resamples=5, seed=0)
    assert found["tokenizer"] == tokenizer
    assert found["rouge1"] == 1


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    references = [f"{n} cats sat on the mat ." for n in range(120)]
    with caplog.at_level(logging.INFO):
        bleu_chrf(references, references, resamples=5, seed=0)
        rouge(references, references, resamples=5, seed=0)
    assert not caplog.records


@pytest.mark.parametrize(
    ("written", "references", "says"),
    [
        (["a"], ["a", "b"], "1 written texts for 2 references"),
        ([], [], "no texts"),
        (["a", "b"], ["a", " "], "reference 2 is empty"),
    ],
)
def test_texts_that_cannot_be_compared_are_refused(
    written: list[str], references: list[str], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        bleu_chrf(written, references, resamples=5, seed=0)
    with pytest.raises(ValueError, match=says):
        rouge(written, references, resamples=5, seed=0)
    with pytest.raises(ValueError, match=says):
        paired_bleu_difference(written, written, references, resamples=5, seed=0)


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)


def test_without_sacrebleu_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "sacrebleu")
    says = r"BLEU and chrF need sacrebleu; .*pip install sacrebleu$"
    with pytest.raises(UsageError, match=says):
        bleu_chrf(["a"], ["a"], resamples=5, seed=0)
    with pytest.raises(UsageError, match=says):
        paired_bleu_difference(["a"], ["a"], ["a"], resamples=5, seed=0)


def test_without_rouge_score_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "rouge_score")
    with pytest.raises(UsageError, match=r"ROUGE needs rouge-score; .*pip install rouge-score$"):
        rouge(["a"], ["a"], resamples=5, seed=0)


@pytest.mark.parametrize(
    ("reference", "written", "rouge1"),
    [
        ("राम का घर", "राम की घर", 2 / 3),
        ("राम का घर", "रमा की घर", 1 / 3),
        ("שָׁלוֹם עֲלֵיכֶם", "שָׁלוֹם עֲלֵיכֶן", 1 / 2),
        ("ที่นี่ มา", "ที่นั่น มา", 1 / 2),
    ],
)
def test_marks_belong_to_their_words(reference: str, written: str, rouge1: float) -> None:
    scores = rouge([written], [reference], resamples=2, seed=0)
    assert scores["rouge1"] == pytest.approx(rouge1)
    # As words between spaces are counted, which rouge-score can be told.
    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), tokenizer=Spaced())
    expected = scorer.score(reference, written)
    assert [scores[n] for n in ROUGE_TYPES] == [expected[n].fmeasure for n in ROUGE_TYPES]


class Spaced:
    def tokenize(self, text: str) -> list[str]:
        return text.split()


def test_nothing_is_better_than_its_reference() -> None:
    written, _ = corpus(40)
    found = bleu_chrf(written, written, resamples=200, seed=0)
    assert found["bleu"] == found["chrf"] == 100.0
    assert found["intervals"] == {"bleu": [100.0, 100.0], "chrf": [100.0, 100.0]}


def test_a_lead_is_counted_as_it_is_cut() -> None:
    for text in ("One two  three.", "今天的天气很好", " 今天 "):
        words = length_in_words(text)
        assert lead(text, words) == " ".join(text.split())
        assert length_in_words(lead(text, words - 1)) == words - 1
