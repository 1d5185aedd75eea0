"""What labels mean beside one another: rows that have none, and scales that are no classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MANY_NUMBERS = 20
"""More numbers than this are hardly classes that somebody chose from, if they are fractions."""
FEW_EACH = 10
"""So many numbers are hardly classes, either, if they have fewer examples than this each."""
RARE_SHARE = 0.1
"""Share of the rarest other class below which a class -1 beside 0 and 1 is asked about."""


def without_label(labels: Iterable[str]) -> str | None:
    """The label by which a file says that a row has none, if one does: -1 beside 0, 1, 2, … (as in
    SNLI and in the tests of GLUE), ``-`` beside words. Beside 0 and 1 alone -1 is a class, as of
    sentiments that are negative, neutral and positive."""
    labels_seen = set(labels)
    others = labels_seen - {"-1"}
    if "-1" in labels_seen and len(others) > 2 and others == {str(n) for n in range(len(others))}:
        return "-1"
    others = labels_seen - {"-"}
    worded = all(any(map(str.isalpha, label)) for label in others)
    return "-" if "-" in labels_seen and len(others) > 1 and worded else None


def doubts(counts: Mapping[str, int]) -> list[str]:
    """Sentences on classes that may be none, by how many examples each has."""
    notes = []
    if set(counts) == {"-1", "0", "1"} and counts["-1"] < RARE_SHARE * min(
        counts["0"], counts["1"]
    ):
        notes.append(
            f"-1 is a class of {counts['-1']:,} examples beside 0 and 1; if it means that a row "
            "has no label, remove those rows"
        )
    try:
        numbers = {label: float(label) for label in counts}
    except ValueError:
        return notes
    fractions = any(number % 1 for number in numbers.values())
    if len(numbers) > MANY_NUMBERS and (
        fractions or sum(counts.values()) < FEW_EACH * len(numbers)
    ):
        low, high = min(numbers, key=numbers.__getitem__), max(numbers, key=numbers.__getitem__)
        notes.append(
            f"the labels are {len(numbers):,} numbers from {low} to {high}, and each becomes a "
            "class of its own, none nearer to another: a classifier learns no scale. Write ranges "
            "of them as labels (low, middle, high), or choose another --label-column"
        )
    return notes
