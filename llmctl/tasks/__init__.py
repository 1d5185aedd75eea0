"""What a model is trained for: one folder each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmctl.errors import UsageError, did_you_mean


def _masked_lm() -> Any:
    from llmctl.tasks.masked_lm.task import MaskedPretraining

    return MaskedPretraining


def _causal_lm() -> Any:
    from llmctl.tasks.causal_lm.task import CausalPretraining

    return CausalPretraining


def _ngram() -> Any:
    from llmctl.tasks.ngram.task import NgramTask

    return NgramTask


def _classify() -> Any:
    from llmctl.tasks.classify.task import ClassifyTask

    return ClassifyTask


def _instruct() -> Any:
    from llmctl.tasks.instruct.task import InstructTask

    return InstructTask


def _seq2seq() -> Any:
    from llmctl.tasks.seq2seq.task import Seq2SeqTask

    return Seq2SeqTask


TASKS: dict[str, dict[str, Callable[[], Any]]] = {
    "pretrain": {"masked_lm": _masked_lm, "causal_lm": _causal_lm, "ngram": _ngram},
    "finetune": {"classify": _classify, "instruct": _instruct, "seq2seq": _seq2seq},
}
"""By the command that they go with and their names. Each is loaded when it is called for."""
WITHOUT_NETWORK = ("ngram",)
"""Tasks that are architectures of their own."""


def finetuning_task(name: object) -> Any:
    """A task of finetuning. Raises UsageError for one that is not known."""
    known = TASKS["finetune"]
    # A recipe may give any value: a list compares where a dictionary would want a hash.
    if name not in list(known):
        raise UsageError(
            f"--task {name!r} is not known{did_you_mean(str(name), known)}; choose one of "
            f"{', '.join(known)}"
        )
    return known[str(name)]()


def task_of(arch: object) -> Any:
    """What an architecture is pretrained on. Raises UsageError for one that is not known."""
    from llmctl.models import ARCHITECTURES

    if arch in list(WITHOUT_NETWORK):
        return TASKS["pretrain"][str(arch)]()
    if arch not in list(ARCHITECTURES):
        known = [*ARCHITECTURES, *WITHOUT_NETWORK]
        raise UsageError(
            f"--arch {arch!r} is not known{did_you_mean(str(arch), known)}; choose one of "
            f"{', '.join(ARCHITECTURES)}, or {', '.join(WITHOUT_NETWORK)}, which counts"
        )
    return TASKS["pretrain"][ARCHITECTURES[str(arch)].task]()
