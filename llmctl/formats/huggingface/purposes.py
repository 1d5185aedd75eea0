"""What the model of a folder does, as its config.json says: never guessed from names of tensors.

llmctl writes ``llmctl_task``; others say the class, ``architectures``, and what the numbers of a
classification's head stand for. A head that is none of those known here (of tokens, of answers to
choose from, of a regression) looks like one that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmctl.formats.description import MULTI_LABEL, TASK, Purpose, PurposeError
from llmctl.models.config_json import shown
from llmctl.models.heads import HEADS
from llmctl.models.spec import HUGGING_FACE, ModelSpec


def purpose_of(
    fields: Mapping[str, Any],
    spec: ModelSpec,
    shapes: Mapping[str, tuple[int, ...]],
) -> Purpose:
    """What a model does, from its config.json and the shapes of its tensors.

    Raises PurposeError where the fields can't be understood.
    """
    if TASK in fields:
        task = fields[TASK]
        anywhere = [kind for kind, head in HEADS.items() if not head.has_tensors]
        if task not in [*spec.weights[HUGGING_FACE].heads, *anywhere]:  # a list has no hash
            raise PurposeError(
                f"{TASK} is {shown(task)}, which is not known here; it is of another version of "
                "llmctl"
            )
        return Purpose(task)
    architectures = fields.get("architectures")
    if architectures is None or architectures == []:
        head = spec.class_layer
        if head not in shapes:
            return Purpose(spec.usual_head)
        return Purpose(
            None,
            f"config.json does not say what the model does (it has no architectures), and there is "
            f"a tensor {head}; write the class that it was saved from there",
        )
    if not isinstance(architectures, list) or not all(
        isinstance(name, str) for name in architectures
    ):
        raise PurposeError(
            f"architectures is {shown(architectures)}, not a list of names; copy it again"
        )
    return _of_class(architectures[0], fields, spec, shapes)


def _of_class(
    name: str,
    fields: Mapping[str, Any],
    spec: ModelSpec,
    shapes: Mapping[str, tuple[int, ...]],
) -> Purpose:
    beginning = spec.class_prefix
    # The text's classes of a family that sees pictures too are called so: Gemma3TextModel.
    ending = name.lower().removeprefix(beginning.lower()).removeprefix("text")
    if ending == "model":  # the body alone
        return Purpose(spec.usual_head)
    if spec.kind == "decoder" and ending == spec.lm_class.lower():
        return Purpose("causal_lm")
    kinds = [kind for kind in spec.weights[HUGGING_FACE].heads if kind in HEADS]
    kind = next((k for k in kinds if ending in map(str.lower, HEADS[k].endings)), None)
    if kind is None:
        return Purpose(None, f"it is a {name}, and what that answers is not supported")
    if kind == "classify":
        problem, labels = fields.get("problem_type"), fields.get("id2label")
        count = shapes.get(spec.class_layer or "", (0,))[0]
        single = count == 1 or (isinstance(labels, dict) and len(labels) == 1)
        if single and problem in (None, "regression"):  # as transformers takes one label
            return Purpose("regress")
        if problem not in (None, "single_label_classification", MULTI_LABEL):
            return Purpose(
                None,
                f"problem_type is {shown(problem)} of {count} labels; classifiers that give each "
                "text one label or several, and a regression of one number, are supported",
            )
        if single and problem != MULTI_LABEL:
            return Purpose(None, "it has one class, so it says the same of every text")
    return Purpose(kind)
