"""How alike written texts and their references are: BLEU, chrF and ROUGE, with intervals.

The scores are those of sacrebleu and rouge-score, so that they compare with published ones. The
intervals are ours: a text's statistics (how many n-grams, how many of them shared) are taken once
and added up for each resample of the texts, so none is read again. What it leaves out: several
references to a text, and BLEU's tokenizers for languages other than Chinese that are written
without spaces; for those read chrF.
"""

# N texts, R resamples, S statistics of a text

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.text.words import marks, word_pattern
from llmctl.errors import UsageError
from llmctl.evaluation.bootstrap import percentile_interval, resample_counts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CONFIDENCE = 0.95
BLEU_ORDER = 4
CHRF_ORDER = 6
CHRF_BETA = 2
"""The defaults of sacrebleu, with which scores are published."""
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
ASCII_SHARE = 0.9
"""The share of the letters from which rouge-score's own tokenizer reads a text: it drops all that
aren't ASCII, which German and French survive, Russian and Chinese don't."""
DRAWN_AT_ONCE = 4_000_000
"""Counts of resampled texts held together: 32 MB, however many texts there are."""

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HAN_CHARACTER = re.compile(f"[{_HAN}]")


@cache
def _token() -> re.Pattern[str]:
    """A Chinese character with its marks, or another word."""
    return re.compile(rf"[{_HAN}][{marks()}]*|{word_pattern(without='_' + _HAN)}")


class UnicodeTokenizer:
    """For rouge-score: each Chinese character, and each other word with its marks, in lower case.

    Of ASCII text it makes what rouge-score's own tokenizer makes.
    """

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, in order.

        >>> UnicodeTokenizer().tokenize("用GPT-2写。")
        ['用', 'gpt', '2', '写']
        """
        return _token().findall(text.lower())


def is_chinese(texts: Sequence[str]) -> bool:
    """Whether most of the texts' letters are Chinese characters (in Japanese, kana are more)."""
    letters = sum(character.isalpha() for text in texts for character in text)
    return 2 * sum(len(_HAN_CHARACTER.findall(text)) for text in texts) > letters


def length_in_words(text: str) -> int:
    """How many words a text has, or characters a Chinese one, as ``lead`` counts them.

    >>> length_in_words("One two  three.")
    3
    """
    return len(text.strip()) if is_chinese([text]) else len(text.split())


def lead(text: str, words: int) -> str:
    """The first words of a text, or characters of a Chinese one: what a summary has to beat.

    Raises ValueError for a negative number.

    >>> lead("One two  three.", 2)
    'One two'
    """
    if words < 0:
        raise ValueError(f"the first {words} words")
    if is_chinese([text]):
        return text.strip()[:words].rstrip()
    return " ".join(text.split()[:words])


def bleu_chrf(
    written: Sequence[str],
    references: Sequence[str],
    *,
    language: str | None = None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """BLEU and chrF of all texts together, from 0 to 100, as JSON values.

    language: of the references, such as ``zh`` or ``de``: BLEU is counted in Chinese characters
    or in words (13a); None looks at the references. Returns the scores, sacrebleu's signatures
    and the intervals. Raises UsageError where sacrebleu isn't installed, ValueError if the numbers
    of texts differ, there are none, or a reference is empty.
    """
    BLEU, CHRF = _sacrebleu()
    _check(written, references)
    bleu = BLEU(tokenize=_tokenize(references, language), force=True)  # force: don't warn
    chrf = CHRF(char_order=CHRF_ORDER, word_order=0, beta=CHRF_BETA)
    # Rounding gives sacrebleu a BLEU of 100.00000000000004 for texts that are their references.
    bleu_score = min(bleu.corpus_score(written, [references]).score, 100.0)
    chrf_score = min(chrf.corpus_score(written, [references]).score, 100.0)
    bleu_NS = _bleu_statistics(written, references, language)
    statistics = np.hstack([bleu_NS, _chrf_statistics(written, references)])
    sums_RS = _resampled_sums(statistics, resamples, seed)
    bleu_RS, chrf_RS = np.split(sums_RS, [bleu_NS.shape[1]], axis=1)
    return {
        "texts": len(written),
        "bleu": float(bleu_score),
        "chrf": float(chrf_score),
        "intervals": {
            "bleu": list(percentile_interval(_bleu(bleu_RS), CONFIDENCE)),
            "chrf": list(percentile_interval(_chrf(chrf_RS), CONFIDENCE)),
        },
        "confidence": CONFIDENCE,
        "resamples": resamples,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }


def paired_bleu_difference(
    written_a: Sequence[str],
    written_b: Sequence[str],
    references: Sequence[str],
    *,
    language: str | None = None,
    resamples: int,
    seed: int,
) -> dict[str, float]:
    """BLEU of A less that of B, as JSON values: ``difference`` with its ``low`` and ``high``.

    Both are scored on the same resamples (Koehn 2004), so what both find hard cancels. Raises as
    ``bleu_chrf`` does.
    """
    _sacrebleu()
    _check(written_a, references)
    _check(written_b, references)
    a_NS = _bleu_statistics(written_a, references, language)
    b_NS = _bleu_statistics(written_b, references, language)
    sums_RS = _resampled_sums(np.hstack([a_NS, b_NS]), resamples, seed)
    a_RS, b_RS = np.split(sums_RS, 2, axis=1)
    low, high = percentile_interval(_bleu(a_RS) - _bleu(b_RS), CONFIDENCE)
    whole_a, whole_b = (_bleu(part_NS.sum(0, keepdims=True)) for part_NS in (a_NS, b_NS))
    return {"difference": float(whole_a[0] - whole_b[0]), "low": low, "high": high}


def rouge(
    written: Sequence[str], references: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Any]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, from 0 to 1, as JSON values.

    Without stemming; ROUGE-L over a whole text. ``tokenizer`` says what was counted: the words of
    rouge-score, or for references that aren't in ASCII letters those of ``UnicodeTokenizer``, so
    Chinese by characters. Raises UsageError where rouge-score isn't installed, ValueError as
    ``bleu_chrf`` does.
    """
    try:
        from rouge_score import rouge_scorer, tokenizers
    except ImportError:
        raise _missing("ROUGE needs", "rouge-score") from None
    _check(written, references)
    ascii_letters = _is_ascii(references)
    # Named although it is the default: left out, rouge-score logs that it took it.
    tokenizer = tokenizers.DefaultTokenizer(False) if ascii_letters else UnicodeTokenizer()
    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), tokenizer=tokenizer)
    scores = [
        scorer.score(reference, text) for text, reference in zip(written, references, strict=True)
    ]
    f1_NS = np.array([[score[name].fmeasure for name in ROUGE_TYPES] for score in scores])
    means_RS = _resampled_sums(f1_NS, resamples, seed) / len(written)
    return {
        "texts": len(written),
        **dict(zip(ROUGE_TYPES, f1_NS.mean(0).tolist(), strict=True)),
        "intervals": {
            name: list(percentile_interval(means_RS[:, column], CONFIDENCE))
            for column, name in enumerate(ROUGE_TYPES)
        },
        "confidence": CONFIDENCE,
        "resamples": resamples,
        "tokenizer": "rouge-score" if ascii_letters else "unicode",
    }


def _missing(what_needs: str, package: str) -> UsageError:
    return UsageError(f"{what_needs} {package}; install it with: pip install {package}")


def _sacrebleu() -> tuple[Any, Any]:
    """Its metrics, BLEU and CHRF."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise _missing("BLEU and chrF need", "sacrebleu") from None
    return BLEU, CHRF


def _check(written: Sequence[str], references: Sequence[str]) -> None:
    if len(written) != len(references):
        raise ValueError(f"{len(written)} written texts for {len(references)} references")
    if not references:
        raise ValueError("no texts to compare")
    for number, reference in enumerate(references, 1):
        if not reference.strip():
            raise ValueError(f"reference {number} is empty")


def _tokenize(references: Sequence[str], language: str | None) -> str:
    """The name of sacrebleu's tokenizer."""
    if language is None:
        return "zh" if is_chinese(references) else "13a"
    return "zh" if re.split("[-_]", language.lower())[0] == "zh" else "13a"


def _is_ascii(texts: Sequence[str]) -> bool:
    letters = [character for text in texts for character in text if character.isalpha()]
    return sum(map(str.isascii, letters)) >= ASCII_SHARE * len(letters)


def _bleu_statistics(
    written: Sequence[str], references: Sequence[str], language: str | None
) -> Ints:
    """Lengths of each text and its reference, n-grams shared, n-grams written: (N, 2 + 4 + 4)."""
    BLEU, _ = _sacrebleu()
    # The effective order only keeps sacrebleu from warning: the counts don't depend on it.
    bleu = BLEU(tokenize=_tokenize(references, language), effective_order=True)
    rows = []
    for text, reference in zip(written, references, strict=True):
        score = bleu.sentence_score(text, [reference])
        rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
    return np.array(rows, dtype=np.int64)


def _bleu(sums_RS: Ints) -> Floats:
    """BLEU from sums of texts' statistics: (R,)."""
    BLEU, _ = _sacrebleu()
    scores_R = np.array([
        BLEU.compute_bleu(
            correct=row[2 : 2 + BLEU_ORDER],
            total=row[2 + BLEU_ORDER :],
            sys_len=row[0],
            ref_len=row[1],
            smooth_method="exp",
        ).score
        for row in sums_RS.tolist()
    ])  # fmt: skip
    return np.minimum(scores_R, 100.0)


def _chrf_statistics(written: Sequence[str], references: Sequence[str]) -> Ints:
    """Counts of character n-grams written, in the reference, and shared, for each n: (N, 3 · 6).

    sacrebleu's score of a text doesn't give them away as that of BLEU does.
    """
    rows = []
    for text, reference in zip(written, references, strict=True):
        row: list[int] = []
        for order in range(1, CHRF_ORDER + 1):
            ours, theirs = _ngrams(text, order), _ngrams(reference, order)
            # What can't be matched isn't counted, as in sacrebleu.
            row += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
        rows.append(row)
    return np.array(rows, dtype=np.int64)


def _ngrams(text: str, order: int) -> Counter[str]:
    """The n-grams of a text's characters, space left out."""
    joined = "".join(text.split())
    return Counter(joined[place : place + order] for place in range(len(joined) - order + 1))


def _chrf(sums_RS: Ints) -> Floats:
    """The score chrF (Popović 2015) from sums of texts' statistics: (R,)."""
    ours, theirs, shared = (sums_RS[:, column::3].astype(np.float64) for column in range(3))
    counted = (ours > 0) & (theirs > 0)
    orders_R = counted.sum(1)
    precision_R = _ratio(_ratio(shared, ours, counted).sum(1), orders_R)
    recall_R = _ratio(_ratio(shared, theirs, counted).sum(1), orders_R)
    below_R = CHRF_BETA**2 * precision_R + recall_R
    shares_R = _ratio((1 + CHRF_BETA**2) * precision_R * recall_R, below_R)
    return np.minimum(100 * shares_R, 100.0)


def _ratio(
    above: NDArray[Any], below: NDArray[Any], where: NDArray[np.bool_] | None = None
) -> Floats:
    """The ratio above / below, and 0 where there is nothing below or it isn't asked for."""
    where = below > 0 if where is None else where
    return np.divide(above, below, out=np.zeros(above.shape), where=where)


def _resampled_sums(statistics_NS: NDArray[Any], resamples: int, seed: int) -> NDArray[Any]:
    """The sum of the statistics of each resample of the texts, of their type: (R, S)."""
    texts = len(statistics_NS)
    generator = np.random.default_rng(seed)
    once_N = np.ones(texts, dtype=np.int64)
    # In floats, whose product is fast, and exact for whole numbers below 2⁵³.
    floats_NS = statistics_NS.astype(np.float64)
    rows = max(1, DRAWN_AT_ONCE // texts)
    parts = [
        resample_counts(once_N, min(rows, resamples - start), generator) @ floats_NS
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts).astype(statistics_NS.dtype)
