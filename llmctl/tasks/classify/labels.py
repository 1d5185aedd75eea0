"""What a classifier's folder says of its labels: how many a text has, and whether they are in an
order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmctl.errors import InputError
from llmctl.evaluation.multilabel import DEFAULT_THRESHOLD
from llmctl.formats.base import Pretrained
from llmctl.formats.description import MULTI_LABEL, ORDINAL, PROBLEM, THRESHOLDS
from llmctl.models.config_json import shown


def gives_several(folder: Pretrained) -> bool:
    """Whether a classifier gives any number of labels."""
    return folder.fields.get(PROBLEM) == MULTI_LABEL


def is_ordinal(folder: Pretrained) -> bool:
    """Whether a classifier's classes are in an order."""
    return folder.fields.get(ORDINAL) is True


def thresholds_of(folder: Pretrained) -> NDArray[np.float64]:
    """The probability from which on each label is given: a half where the folder says nothing.

    Raises InputError where it says something else than one for each label.
    """
    count = len(folder.labels or [])
    given = folder.fields.get(THRESHOLDS, [DEFAULT_THRESHOLD] * count)
    if not (
        isinstance(given, list)
        and len(given) == count
        and all(isinstance(value, int | float) and 0 <= value <= 1 for value in given)
    ):
        raise InputError(
            f"{folder.files[0]}: {THRESHOLDS} is {shown(given)}, not a probability for each of "
            f"the {count} labels; copy it again"
        )
    return np.asarray(given, dtype=np.float64)
