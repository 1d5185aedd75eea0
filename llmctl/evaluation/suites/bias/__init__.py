"""Sets of tests for social bias, a file each, known by their files; and swapped terms for
classifiers."""

from __future__ import annotations

from pathlib import Path

from llmctl.data.text.decoding import DEFAULT, ReadOptions
from llmctl.errors import InputError
from llmctl.evaluation.suites.bias.base import BiasSet
from llmctl.evaluation.suites.bias.bbq import Bbq
from llmctl.evaluation.suites.bias.crows_pairs import CrowsPairs
from llmctl.evaluation.suites.bias.stereoset import StereoSet
from llmctl.evaluation.suites.bias.winobias import WinoBias

BIAS_SETS: dict[str, type[BiasSet]] = {
    kind.name: kind for kind in (CrowsPairs, StereoSet, WinoBias, Bbq)
}
"""By their names."""


def find_set(path: Path, reading: ReadOptions = DEFAULT) -> tuple[type[BiasSet], Path]:
    """The set whose layout a file or folder has, and where in it.

    Raises InputError if it has none, or several.
    """
    if not path.exists():
        raise InputError(f"{path} is not there; give the file or folder of a set of tests for bias")
    candidates = [path, *(sorted(path.iterdir()) if path.is_dir() else [])]
    found: list[tuple[type[BiasSet], Path]] = []
    for kind in BIAS_SETS.values():
        if kind.recognises(path, reading):
            found.append((kind, path))
            continue
        # A folder with the one file of a set, and what else came with it.
        inside = [one for one in candidates[1:] if one.is_file() and kind.recognises(one, reading)]
        found += [(kind, one) for one in inside]
    if not found:
        known = "; ".join(f"{kind.title}: {kind.files}" for kind in BIAS_SETS.values())
        raise InputError(f"{path} has none of the layouts that --suite bias knows ({known})")
    if len(found) > 1:
        names = ", ".join(f"{kind.title} in {place.name}" for kind, place in found)
        raise InputError(f"{path} has several sets of tests ({names}); give one of them")
    return found[0]
