"""How a model's texts are meant to be chosen: Hugging Face's generation_config.json."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.config import Config, build
from llmctl.errors import ConfigError, InputError
from llmctl.formats.peft.folder import Peft
from llmctl.reporting.reporter import Reporter
from llmctl.tokenizers.hf_config import read_object
from llmctl.workspace.files import write_json

if TYPE_CHECKING:
    from llmctl.formats.base import Pretrained

FILE = "generation_config.json"
AUTO, NONE = "auto", "none"
"""The model's own file, and none."""
DRAWING: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
}
"""Fields that count where ``do_sample`` is true, and the values at which they do nothing."""
ALWAYS: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""Fields that always count, and such values of theirs."""
PASSED_OVER = {
    "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": None, "guidance_scale": 1.0,
    "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "bad_words_ids": None, "suppress_tokens": None, "sequence_bias": None,
    "begin_suppress_tokens": None, "watermarking_config": None, "top_h": None,
}  # fmt: skip
"""Fields that would choose other texts and are not taken, with the values at which they don't."""


def sampling_defaults(folder: Path) -> tuple[dict[str, float], tuple[str, ...]]:
    """What a folder says of how texts are chosen, by the names of ``GenerationConfig``'s fields,
    and the names of what it says besides that would choose others.

    Values that do nothing are left out. ``temperature`` is given wherever tokens are drawn. Raises
    InputError for a value that is no number, and a ``do_sample`` that is neither true nor false.
    """
    said: Mapping[str, Any] = read_object(folder / FILE) if folder.is_dir() else {}
    drawn = said.get("do_sample")
    if drawn is not None and not isinstance(drawn, bool):
        raise InputError(
            f"{folder / FILE}: do_sample is {drawn!r}, not true or false; mend the file"
        )
    found: dict[str, float] = {"temperature": 1.0} if drawn else {}
    for name, neutral in {**(DRAWING if drawn else {}), **ALWAYS}.items():
        value = said.get(name)
        if value is None or value == neutral:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value in (math.inf, -math.inf):  # JSON's 1e400
            raise InputError(f"{folder / FILE}: {name} is {value!r}, not a number; mend the file")
        found[name] = value
    others = (name for name, idle in PASSED_OVER.items() if said.get(name) not in (None, [], idle))
    return found, tuple(others)


def generation_config_folder(model: Pretrained) -> Path:
    """The folder whose file says it of a model: its own, or the base's of an adapter without."""
    folders = [file.parent for file in model.files] if Peft().recognises(model.path) else []
    return next((folder for folder in folders if (folder / FILE).is_file()), model.path)


def sampling_fields(model: Pretrained, ranges: type[Config] | None = None) -> dict[str, Any]:
    """What a model's file says of how texts are chosen and counts, as it stands there.

    ranges: a configuration that has the fields, and knows what they can be. Raises InputError as
    ``sampling_defaults``, and for a value that is in no range.
    """
    folder = generation_config_folder(model)
    if not folder.is_dir():
        return {}
    found, _ = sampling_defaults(folder)
    if ranges is not None:
        _check_ranges(folder / FILE, found, ranges, "mend the file")
    said = read_object(folder / FILE)
    drawn = DRAWING if said.get("do_sample") else {}
    return {name: said[name] for name in ("do_sample", *drawn, *ALWAYS) if name in said}


def _check_ranges(path: Path, said: Mapping[str, float], ranges: type[Config], remedy: str) -> None:
    for name, value in said.items():
        try:
            build(ranges, {name: value})
        except ConfigError as error:
            raise InputError(f"{path}: {error}; {remedy}") from None


def add_sampling(folder: Path, said: Mapping[str, Any]) -> None:
    """Write what ``sampling_fields`` gave of a model into the file of one that was made of it, if
    it writes."""
    path = folder / FILE
    if said and path.is_file():
        write_json(path, {**read_object(path), **said})


def taken_defaults(
    model: Pretrained,
    source: str,
    *,
    fields: type[Config],
    given: Collection[str],
    passed_over: Collection[str] = (),
    user: str,
    first: str = "options go before it",
    reporter: Reporter,
) -> dict[str, float]:
    """What counts of how texts are chosen, by ``sampling_defaults``; it is told, and so is what
    isn't followed.

    source: ``AUTO``, ``NONE`` or another folder. fields: the configuration that has them, and knows
    their ranges. given: those that were said otherwise. passed_over: those that the way of writing
    has no use for. user: who takes them. first: what goes before them. Raises InputError for a
    folder without the file, and for a value that can't be.
    """
    if source == NONE:
        return {}
    place = generation_config_folder(model) if source == AUTO else Path(source)
    if source != AUTO and not (place / FILE).is_file():
        raise InputError(
            f"--generation-config {source}: there is no {FILE} in it; give a model's folder, "
            f"{AUTO} or {NONE}"
        )
    said, others = sampling_defaults(place)
    remedy = f"mend the file, or leave it out with --generation-config {NONE}"
    _check_ranges(place / FILE, said, fields, remedy)
    left = tuple(name for name in said if name in passed_over and name not in given)
    taken = {n: value for n, value in said.items() if n not in given and n not in passed_over}
    if taken:
        values = ", ".join(f"{name} {value:g}" for name, value in taken.items())
        reporter.note(f"{FILE} has {values}; {first}")
    if left or others:
        reporter.note(
            f"{FILE} also has {', '.join((*left, *others))}, which {user} does not follow"
        )
    return taken
