"""What the model of a folder does, as its config.json says: never guessed from names of tensors.

llmctl writes ``llmctl_task``; others say the class, ``architectures``, and what the numbers of a
classification's head stand for. A head that is none of those known here (of tokens, of answers to
choose from, of a regression, of several labels at once) looks like one that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.errors import InputError
from llmctl.models.config_json import shown
from llmctl.models.spec import ModelSpec

TASK = "llmctl_task"
"""The field of config.json that says what a model of llmctl does."""
KINDS = ("classify", "masked_lm", "causal_lm", "seq2seq")

_ENDINGS = {
    "forsequenceclassification": "classify",
    "formaskedlm": "masked_lm",
    "forpretraining": "masked_lm",
    "forcausallm": "causal_lm",
}


class PurposeError(InputError):
    """What config.json says of a model's purpose can't be used; the message does not name the
    file."""


@dataclass(frozen=True)
class Purpose:
    """What a model does."""

    kind: str | None
    """One of ``KINDS``; None: nothing that is known here, and only its body is of use."""
    reason: str = ""
    """Why, then."""


def purpose_of(
    fields: Mapping[str, Any],
    architecture: ModelSpec,
    shapes: Mapping[str, tuple[int, ...]],
) -> Purpose:
    """What a model does, from its config.json and the shapes of its tensors.

    Raises PurposeError where the fields can't be understood.
    """
    if TASK in fields:
        task = fields[TASK]
        if task not in KINDS:
            raise PurposeError(
                f"{TASK} is {shown(task)}, which is not known here; it is of another version of "
                "llmctl"
            )
        return Purpose(task)
    given = fields.get("architectures")
    if given is None or given == []:
        head = architecture.class_layer
        if head not in shapes:
            return Purpose(architecture.task)
        return Purpose(
            None,
            f"config.json does not say what the model does (it has no architectures), and there is "
            f"a tensor {head}; write the class that it was saved from there",
        )
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise PurposeError(f"architectures is {shown(given)}, not a list of names; copy it again")
    return _of_class(given[0], fields, architecture, shapes)


def _of_class(
    name: str,
    fields: Mapping[str, Any],
    architecture: ModelSpec,
    shapes: Mapping[str, tuple[int, ...]],
) -> Purpose:
    beginning = architecture.class_prefix
    ending = name.lower().removeprefix(beginning.lower())
    if ending == "model":  # the body alone
        return Purpose(architecture.task)
    if architecture.kind == "decoder" and ending == architecture.lm_class.lower():
        return Purpose("causal_lm")
    kind = _ENDINGS.get(ending)
    if kind not in ("classify", architecture.task):
        return Purpose(None, f"it is a {name}, and what that answers is not supported")
    if kind == "classify":
        problem, labels = fields.get("problem_type"), fields.get("id2label")
        count = (shapes.get(architecture.class_layer) or (0,))[0]
        if problem not in (None, "single_label_classification"):
            return Purpose(
                None,
                f"problem_type is {shown(problem)}; a classifier that gives each text one label "
                "is supported",
            )
        if count == 1 or (isinstance(labels, dict) and len(labels) == 1):
            return Purpose(
                None, "it has one label, which makes it a regression; two or more are supported"
            )
    return Purpose(kind)


def names_of_labels(fields: Mapping[str, Any], count: int) -> list[str]:
    """The names of a classifier's classes, in order.

    Raises PurposeError if they are not those of so many.
    """
    given = fields.get("id2label")
    if given is None:
        return [f"LABEL_{number}" for number in range(count)]
    if (
        not isinstance(given, dict)
        or given.keys() != set(map(str, range(count)))
        or not all(isinstance(name, str | int | float) for name in given.values())
    ):
        raise PurposeError(
            f"id2label is {shown(given)}, not a name for each of the {count} classes that the "
            "weights have; copy it again"
        )
    names = [str(given[str(number)]) for number in range(count)]
    if len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise PurposeError(f"id2label has the name {twice!r} twice; give each class its own")
    return names
