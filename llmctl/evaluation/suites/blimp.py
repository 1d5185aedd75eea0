"""BLiMP, the Benchmark of Linguistic Minimal Pairs (Warstadt et al. 2020, arXiv:1912.00582): 67
sets of 1,000 pairs of sentences, of which the grammatical one should be the likelier.

A tie is half a point. The accuracy of a phenomenon, of a field and of all is the mean over sets,
in which each weighs the same, as published.

S sets, N pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.data.tables.rows import RowReader, TableRow
from llmctl.data.text.decoding import DEFAULT, ReadOptions
from llmctl.data.text.files import is_table
from llmctl.errors import InputError
from llmctl.evaluation.benchmarks.base import text_of
from llmctl.evaluation.choices import Question
from llmctl.evaluation.wilson import wilson_interval

GOOD, BAD = "sentence_good", "sentence_bad"
PAIRS_IN_SET = 1000
Floats = NDArray[np.float64]

PHENOMENA: dict[str, tuple[str, ...]] = {
    "anaphor_agreement": (
        "anaphor_gender_agreement",
        "anaphor_number_agreement",
    ),
    "argument_structure": (
        "animate_subject_passive",
        "animate_subject_trans",
        "causative",
        "drop_argument",
        "inchoative",
        "intransitive",
        "passive_1",
        "passive_2",
        "transitive",
    ),
    "binding": (
        "principle_A_c_command",
        "principle_A_case_1",
        "principle_A_case_2",
        "principle_A_domain_1",
        "principle_A_domain_2",
        "principle_A_domain_3",
        "principle_A_reconstruction",
    ),
    "control_raising": (
        "existential_there_object_raising",
        "existential_there_subject_raising",
        "expletive_it_object_raising",
        "tough_vs_raising_1",
        "tough_vs_raising_2",
    ),
    "determiner_noun_agreement": (
        "determiner_noun_agreement_1",
        "determiner_noun_agreement_2",
        "determiner_noun_agreement_irregular_1",
        "determiner_noun_agreement_irregular_2",
        "determiner_noun_agreement_with_adj_2",
        "determiner_noun_agreement_with_adj_irregular_1",
        "determiner_noun_agreement_with_adj_irregular_2",
        "determiner_noun_agreement_with_adjective_1",
    ),
    "ellipsis": (
        "ellipsis_n_bar_1",
        "ellipsis_n_bar_2",
    ),
    "filler_gap_dependency": (
        "wh_questions_object_gap",
        "wh_questions_subject_gap",
        "wh_questions_subject_gap_long_distance",
        "wh_vs_that_no_gap",
        "wh_vs_that_no_gap_long_distance",
        "wh_vs_that_with_gap",
        "wh_vs_that_with_gap_long_distance",
    ),
    "irregular_forms": (
        "irregular_past_participle_adjectives",
        "irregular_past_participle_verbs",
    ),
    "island_effects": (
        "adjunct_island",
        "complex_NP_island",
        "coordinate_structure_constraint_complex_left_branch",
        "coordinate_structure_constraint_object_extraction",
        "left_branch_island_echo_question",
        "left_branch_island_simple_question",
        "sentential_subject_island",
        "wh_island",
    ),
    "npi_licensing": (
        "matrix_question_npi_licensor_present",
        "npi_present_1",
        "npi_present_2",
        "only_npi_licensor_present",
        "only_npi_scope",
        "sentential_negation_npi_licensor_present",
        "sentential_negation_npi_scope",
    ),
    "quantifiers": (
        "existential_there_quantifiers_1",
        "existential_there_quantifiers_2",
        "superlative_quantifiers_1",
        "superlative_quantifiers_2",
    ),
    "subject_verb_agreement": (
        "distractor_agreement_relational_noun",
        "distractor_agreement_relative_clause",
        "irregular_plural_subject_verb_agreement_1",
        "irregular_plural_subject_verb_agreement_2",
        "regular_plural_subject_verb_agreement_1",
        "regular_plural_subject_verb_agreement_2",
    ),
}
"""The sets of each phenomenon, by their UID. The paper counts the two on selection, which the files
call s-selection, to argument structure."""
OTHER = "other"
"""The phenomenon of a set that isn't BLiMP's and names none."""
_PHENOMENON_OF = {uid: name for name, uids in PHENOMENA.items() for uid in uids}

AVERAGE = "average"
PUBLISHED_BY = ("5-gram", "LSTM", "Transformer-XL", "GPT-2", "one person")
PUBLISHED: dict[str, tuple[float, ...]] = {
    "anaphor_agreement": (47.9, 91.7, 94.1, 99.3, 97.5),
    "argument_structure": (71.9, 73.2, 72.2, 81.8, 90.0),
    "binding": (64.4, 73.5, 74.7, 80.9, 87.3),
    "control_raising": (68.5, 67.0, 71.5, 81.9, 83.9),
    "determiner_noun_agreement": (70.1, 85.4, 83.0, 95.8, 92.2),
    "ellipsis": (36.9, 67.6, 77.2, 89.4, 85.0),
    "filler_gap_dependency": (60.2, 73.9, 66.6, 81.3, 86.9),
    "irregular_forms": (79.5, 89.1, 78.2, 91.9, 97.0),
    "island_effects": (57.2, 46.6, 48.3, 72.7, 84.9),
    "npi_licensing": (45.5, 51.7, 55.2, 76.8, 88.1),
    "quantifiers": (53.5, 64.5, 69.3, 79.0, 86.6),
    "subject_verb_agreement": (60.3, 80.1, 76.0, 86.4, 90.9),
    AVERAGE: (61.2, 69.8, 69.6, 83.0, 88.6),
}
"""Percent right, as the set's authors give them with it (models_summary.jsonl and
human_validation_summary.csv of their repository); GPT-2 is the large one. What most of twenty
people say is right in 96.4 %."""


@dataclass(frozen=True)
class PairSet:
    """The pairs of a file."""

    uid: str
    phenomenon: str
    field: str
    """``syntax``, ``morphology``, ``semantics`` or ``syntax_semantics``."""
    pairs: list[Question]


def read_sets(folder: Path, reading: ReadOptions = DEFAULT) -> list[PairSet]:
    """The sets of a folder, a file each, by their names.

    Raises InputError if there are none, if a row has no two sentences, or if two files have one
    set.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give that of BLiMP's files (*.jsonl, *.jsonl.gz)")
    files = sorted(path for path in folder.iterdir() if path.is_file() and is_table(path))
    if not files:
        raise InputError(f"{folder} has no files with pairs (.jsonl, .jsonl.gz); give BLiMP's data")
    sets: dict[str, PairSet] = {}
    for path in files:
        read = _read_set(path, reading)
        if read.uid in sets:
            raise InputError(
                f"{path} has the set {read.uid}, which another file of the folder has too; take "
                "one of them away"
            )
        sets[read.uid] = read
    return [sets[uid] for uid in sorted(sets)]


def _read_set(path: Path, reading: ReadOptions) -> PairSet:
    reader = RowReader(path, known=frozenset((GOOD, BAD)), reading=reading)
    if not {GOOD, BAD} <= set(reader.columns):
        raise InputError(
            f"{path} has the columns {reader.listed() or 'of no rows'}, and BLiMP's files have "
            f"{GOOD} and {BAD}; leave it out of the folder"
        )
    rows = list(reader)
    uid = str(rows[0].values.get("UID") or path.name.partition(".")[0])
    phenomenon = rows[0].values.get("linguistics_term") or OTHER
    field = str(rows[0].values.get("field") or OTHER)
    return PairSet(
        uid,
        _PHENOMENON_OF.get(uid, str(phenomenon)),
        field.replace("/", "_"),  # one file writes syntax/semantics
        [_pair(row) for row in rows],
    )


def _pair(row: TableRow) -> Question:
    return Question("", (text_of(row, GOOD), text_of(row, BAD)), 0, None, row.source)


def remarks(sets: Sequence[PairSet]) -> list[str]:
    """What a folder lacks of BLiMP: sets that are missing or not of 1,000 pairs."""
    there = {entry.uid for entry in sets}
    missing = [uid for uid in _PHENOMENON_OF if uid not in there]
    said = []
    if missing:
        said.append(
            f"{len(missing)} of BLiMP's {len(_PHENOMENON_OF)} sets are missing "
            f"({_listed(missing)}): the average is over the others"
        )
    sizes = [
        f"{entry.uid} has {len(entry.pairs):,}"
        for entry in sets
        if entry.uid in _PHENOMENON_OF and len(entry.pairs) != PAIRS_IN_SET
    ]
    if sizes:
        said.append(f"sets of another size than {PAIRS_IN_SET:,} pairs: {_listed(sizes)}")
    if strange := [uid for uid in sorted(there) if uid not in _PHENOMENON_OF]:
        said.append(f"sets that are not BLiMP's, averaged like the others: {_listed(strange)}")
    return said


def _listed(names: Sequence[str], shown: int = 8) -> str:
    more = f", … and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def points_of(good_N: Floats, bad_N: Floats) -> Floats:
    """1 where the good sentence is the likelier, half where they tie, else 0.

    Sums of the same numbers in another order differ in the last bits and are a tie.
    """
    tied_N = np.isclose(good_N, bad_N, rtol=1e-9, atol=1e-9)
    return np.where(tied_N, 0.5, (good_N > bad_N).astype(np.float64))


def figures(points: Mapping[str, Floats], sets: Sequence[PairSet]) -> dict[str, Any]:
    """Accuracy over all sets, by phenomenon, by field and of each set, with intervals.

    points: of each pair, by the sets' UIDs.
    """
    by_phenomenon: dict[str, list[Floats]] = {}
    by_field: dict[str, list[Floats]] = {}
    for entry in sets:
        by_phenomenon.setdefault(entry.phenomenon, []).append(points[entry.uid])
        by_field.setdefault(entry.field, []).append(points[entry.uid])
    return {
        **mean_of([points[entry.uid] for entry in sets]),
        "phenomena": {name: mean_of(by_phenomenon[name]) for name in sorted(by_phenomenon)},
        "fields": {name: mean_of(by_field[name]) for name in sorted(by_field)},
        "sets": {entry.uid: mean_of([points[entry.uid]]) for entry in sets},
    }


def mean_of(parts: Sequence[Floats]) -> dict[str, Any]:
    """The mean over sets of their shares, and its interval.

    Wilson's interval, of as many pairs as would give one share the variance of that mean were the
    sets alike: S² / Σ 1/Nₛ, which is all pairs where the sets are of one size.
    """
    share = float(np.mean([part.mean() for part in parts]))
    pairs = len(parts) ** 2 / sum(1 / len(part) for part in parts)
    return {
        "accuracy": share,
        "interval": list(wilson_interval(share * pairs, pairs)),
        "sets": len(parts),
        "pairs": sum(map(len, parts)),
        "ties": int(sum((part == 0.5).sum() for part in parts)),
    }


def gap_of(
    own: Mapping[str, Floats], other: Mapping[str, Floats], confidence_z: float = 1.96
) -> dict[str, float]:
    """How much higher the average of one model is than that of another, pair by pair, with the
    normal interval of a mean over sets."""
    gaps = [own[uid] - other[uid] for uid in own]
    gap = float(np.mean([part.mean() for part in gaps]))
    error = float(np.sqrt(sum(part.var() / len(part) for part in gaps))) / len(gaps)
    return {
        "difference": gap,
        "low": gap - confidence_z * error,
        "high": gap + confidence_z * error,
    }
