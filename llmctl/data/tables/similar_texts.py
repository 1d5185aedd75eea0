"""Texts that belong together: the rows of a table as pairs, with texts that don't belong to them,
or with a number that says how alike they are.

Columns are named, numbered from 1, or found among the names that such tables have: query and
passage, anchor, positive and negatives, two sentences and a score, premise, hypothesis and a label
of inference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llmctl.data.tables.rows import RowReader, TableRow
from llmctl.data.text.decoding import DEFAULT, ReadOptions
from llmctl.data.text.files import by_lower, is_table, split_columns
from llmctl.errors import InputError, UsageError

ALIKE_NAMES = (
    ("anchor", "positive"), ("query", "positive"), ("query", "pos"), ("query", "passage"),
    ("query", "document"), ("query", "answer"), ("question", "positive"), ("question", "answer"),
    ("question", "passage"), ("question", "context"), ("question", "sentence"),
    ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"),
    ("sent0", "sent1"), ("premise", "hypothesis"), ("question1", "question2"),
    ("text", "text_pair"), ("text1", "text2"), ("text_a", "text_b"), ("title", "abstract"),
    ("title", "body"), ("source", "target"),
)  # fmt: skip
NEGATIVE_NAME = re.compile(r"(hard_?)?neg(ative)?s?([_-]?\d+)?", re.IGNORECASE)
SCORE_NAMES = (
    "score", "similarity", "similarity_score", "relatedness_score", "relatedness", "sim", "cosine",
)  # fmt: skip
PAIR_LABEL_NAMES = ("label", "gold_label", "is_duplicate")
INFERENCE = ("entailment", "neutral", "contradiction")
"""Labels of natural language inference: an entailed text belongs to its premise, a contradicting
one is its hard negative (Gao et al. 2021, §4)."""
ALIKE_COLUMNS = frozenset(
    (*(name for pair in ALIKE_NAMES for name in pair), *SCORE_NAMES, *PAIR_LABEL_NAMES, "negative")
)
LABEL_ROWS = 1000
"""Rows whose labels are looked at to tell what they are."""


@dataclass(frozen=True, slots=True)
class SimilarTexts:
    """A text with another that belongs to it, or is as alike as the score says."""

    text: str
    other: str
    negatives: tuple[str, ...]
    score: float | None
    source: str
    """Its file and line, for messages."""


@dataclass(frozen=True)
class SimilarColumns:
    """Which columns hold what: names, or positions from 1 where there is no header."""

    text: str
    other: str
    negatives: tuple[str, ...] = ()
    score: str | None = None
    inference: str | None = None
    """The column of a label of inference."""

    def describe(self) -> str:
        """For the line that says what was chosen."""
        parts = [f"text from column {self.text}", f"what belongs to it from {self.other}"]
        if self.negatives:
            parts.append(f"negatives from {', '.join(self.negatives)}")
        if self.score:
            parts.append(f"scores from {self.score}")
        if self.inference:
            parts.append(
                f"entailed texts as positives and contradictions as negatives by {self.inference}"
            )
        return ", ".join(parts)

    @property
    def names(self) -> list[str]:
        """All of them."""
        more = (name for name in (self.score, self.inference) if name is not None)
        return [self.text, self.other, *self.negatives, *more]


def resolve_similar(
    path: Path,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    negative_column: str | tuple[str, ...] | None = None,
    score_column: str | None = None,
    reading: ReadOptions = DEFAULT,
) -> SimilarColumns:
    """Choose the columns of a table: those named, and the obvious ones.

    Raises InputError for a column that isn't there or a file that is no table, UsageError where
    several would do.
    """
    if not is_table(path):
        raise InputError(
            f"{path} is plain text, and pairs of texts are needed; give a CSV, TSV, JSONL or "
            "Parquet file, or learn from plain text with llmctl pretrain --task simcse"
        )
    negatives = split_columns(negative_column)
    named = (text_column, text_pair_column, *negatives, score_column)
    reader = RowReader(path, requested=named, known=ALIKE_COLUMNS, reading=reading)
    if not reader.columns:
        raise InputError(f"{path} has no rows; give a file with pairs of texts")
    # 1. What is named.
    text = text_column and reader.column("--text-column", text_column)
    other = text_pair_column and reader.column("--text-pair-column", text_pair_column)
    score = score_column and reader.column("--score-column", score_column)
    negatives = tuple(reader.column("--negative-column", name) for name in negatives)
    # 2. The two texts.
    taken = {name for name in (score, *negatives) if name}
    free = [name for name in reader.named if name not in taken]
    text, other = _pair(reader, free, text, other)
    # 3. What is beside them, where the file names its columns.
    rest = [name for name in free if name not in (text, other)]
    inference = None
    if reader.has_header:
        if not negatives:
            negatives = tuple(name for name in rest if NEGATIVE_NAME.fullmatch(name.strip()))
        if score is None and not negatives:
            score, inference = _score_or_label(reader, rest)
    if score is not None and negatives:
        raise UsageError(
            f"{path} has scores ({score}) and negatives ({', '.join(negatives)}), and examples "
            "have the one or the other; keep those columns apart in files of their own"
        )
    return SimilarColumns(text, other, negatives, score, inference)


def _pair(
    reader: RowReader, names: Sequence[str], text: str | None, other: str | None
) -> tuple[str, str]:
    """The columns of the two texts. Raises UsageError where they can't be told."""
    if text is not None and text == other:
        raise UsageError(
            f"--text-column and --text-pair-column are both {text!r}; name two columns"
        )
    if text is not None and other is not None:
        return text, other
    lower = by_lower(names)
    if reader.has_header:
        for first, second in ALIKE_NAMES:
            found = lower.get(first), lower.get(second)
            if None not in found and text in (None, found[0]) and other in (None, found[1]):
                return str(found[0]), str(found[1])
    if len(names) == 2:
        rest = [name for name in names if name not in (text, other)]
        return text or rest[0], other or rest[-1]
    if len(reader.columns) == 1:
        raise InputError(
            f"{reader.path} has one column, and a pair of texts needs two; learn from single texts "
            "with llmctl pretrain --task simcse"
        )
    which = "columns, numbered as it has no header," if not reader.has_header else "columns"
    raise UsageError(
        f"{reader.path} has the {which} {reader.listed()}: choose the two texts with --text-column "
        "and --text-pair-column"
    )


def _score_or_label(reader: RowReader, names: Sequence[str]) -> tuple[str | None, str | None]:
    """The column of scores, or of labels of inference. Raises UsageError for labels that are
    neither: what they mean for two texts can't be told."""
    lower = by_lower(names)
    score = next((lower[name] for name in SCORE_NAMES if name in lower), None)
    if score is not None:
        return score, None
    label = next((lower[name] for name in PAIR_LABEL_NAMES if name in lower), None)
    if label is None:
        return None, None
    seen = {
        str(row.values.get(label)).strip().lower()
        for row in islice(reader.rows([label]), LABEL_ROWS)
    }
    if seen <= {*INFERENCE, "-", ""} and "entailment" in seen:
        return None, label
    if all(_number(value) is not None for value in seen):
        return label, None
    raise UsageError(
        f"{reader.path}: {label} holds neither numbers nor {', '.join(INFERENCE)} (for example "
        f"{min(seen)!r}), so how its pairs belong together can't be told; remove the column if all "
        "of them do, or keep those that do"
    )


def read_similar(
    path: Path, columns: SimilarColumns, *, reading: ReadOptions = DEFAULT
) -> Iterator[SimilarTexts]:
    """The examples of a table; texts are without the space around them, and may be empty.

    A field that holds several texts that belong to the row's text gives an example each. Raises
    InputError naming the line for what is no text or no score, and at the end if there are no rows.
    """
    reader = RowReader(path, requested=columns.names, known=ALIKE_COLUMNS, reading=reading)
    rows = reader.rows(columns.names)
    row = None
    if columns.inference is not None:
        yield from _of_inference(rows, columns, columns.inference)
        return
    for row in rows:
        texts = _texts(row, columns.text, "--text-column")
        if len(texts) > 1:
            raise InputError(f"{row.source}: {columns.text} holds several texts; give it one")
        negatives = [
            text for name in columns.negatives for text in _texts(row, name, "--negative-column")
        ]
        score = None if columns.score is None else _score(row, columns.score)
        for other in _texts(row, columns.other, "--text-pair-column") or [""]:
            yield SimilarTexts(
                texts[0] if texts else "", other, tuple(filter(None, negatives)), score, row.source
            )
    if row is None:
        raise InputError(f"{path} has no rows; give a file with pairs of texts")


def _of_inference(
    rows: Iterator[TableRow], columns: SimilarColumns, label: str
) -> Iterator[SimilarTexts]:
    """Each entailed text with its premise, whose contradictions are the negatives."""
    contradictions: dict[str, list[str]] = {}
    entailed: list[tuple[str, str, str]] = []
    for row in rows:
        said = str(row.values.get(label)).strip().lower()
        first, second = (
            " ".join(_texts(row, name, option))
            for name, option in (
                (columns.text, "--text-column"),
                (columns.other, "--text-pair-column"),
            )
        )
        if said == "entailment":
            entailed.append((first, second, row.source))
        elif said == "contradiction" and second:
            contradictions.setdefault(first, []).append(second)
    for first, second, source in entailed:
        yield SimilarTexts(first, second, tuple(contradictions.get(first, ())), None, source)


def _texts(row: TableRow, column: str, option: str) -> list[str]:
    """The texts of a field, which is one or a list; none for null."""
    value = row.values.get(column)
    values = value if isinstance(value, list) else [] if value is None else [value]
    for entry in values:
        if not isinstance(entry, str):
            raise InputError(
                f"{row.source}: {column} is {type(entry).__name__}, and a text was expected; write "
                f"it as one, or choose another {option}"
            )
    return [entry.strip() for entry in values]


def _score(row: TableRow, column: str) -> float:
    score = _number(row.values.get(column))
    if score is None:
        raise InputError(
            f"{row.source}: {column} is {row.values.get(column)!r}, and a score is a number; mend "
            "it, or choose another --score-column"
        )
    return score


def _number(value: Any) -> float | None:
    """A finite number, as it is or as text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def similar_record(columns: SimilarColumns) -> dict[str, Any]:
    """The columns of a training, to be kept with the model."""
    return {
        "text": [columns.text],
        "text_pair": columns.other,
        "negatives": list(columns.negatives),
        "score": columns.score,
        "inference": columns.inference,
    }


def score_range(examples: Sequence[SimilarTexts]) -> tuple[float, float]:
    """The scores that stand for not alike at all and for the same: 0 and the highest, or the lowest
    where some are below 0."""
    scores = [example.score for example in examples if example.score is not None]
    return min(0.0, min(scores)), max(scores)
