"""What a model is trained for: one folder each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmctl.errors import UsageError, did_you_mean
from llmctl.tasks.causal_lm import CausalLMEntry
from llmctl.tasks.classify import ClassifyEntry
from llmctl.tasks.cloze import ClozeEntry
from llmctl.tasks.denoise import DenoiseEntry
from llmctl.tasks.distil import DistilEntry
from llmctl.tasks.dpo import DpoEntry
from llmctl.tasks.electra import ElectraEntry
from llmctl.tasks.embed import EmbedEntry
from llmctl.tasks.entry import TaskEntry
from llmctl.tasks.gpt_bert import GptBertEntry
from llmctl.tasks.grpo import GrpoEntry
from llmctl.tasks.instruct import InstructEntry
from llmctl.tasks.kto import KtoEntry
from llmctl.tasks.masked_lm import MaskedLMEntry
from llmctl.tasks.ngram import NgramEntry
from llmctl.tasks.regress import RegressEntry
from llmctl.tasks.seq2seq import Seq2SeqEntry
from llmctl.tasks.setfit import SetfitEntry
from llmctl.tasks.simcse import SimcseEntry
from llmctl.tasks.tag import TagEntry

TASKS: dict[str, TaskEntry] = {
    entry.name: entry
    for entry in (
        ClassifyEntry(),
        ClozeEntry(),
        SetfitEntry(),
        TagEntry(),
        RegressEntry(),
        MaskedLMEntry(),
        CausalLMEntry(),
        DenoiseEntry(),
        ElectraEntry(),
        GptBertEntry(),
        NgramEntry(),
        InstructEntry(),
        DpoEntry(),
        KtoEntry(),
        GrpoEntry(),
        Seq2SeqEntry(),
        EmbedEntry(),
        SimcseEntry(),
        DistilEntry(),
    )
}
"""By their names."""
WITHOUT_NETWORK = tuple(name for name, entry in TASKS.items() if not entry.has_network)
"""Tasks that are architectures of their own."""
DEFAULT_TASK = "classify"
"""What finetuning teaches where nothing is said."""


def tasks_of(command: str) -> dict[str, TaskEntry]:
    """The tasks that go with a command, by their names."""
    return {name: entry for name, entry in TASKS.items() if entry.command == command}


def finetuning_task(name: object) -> Any:
    """A task of finetuning. Raises UsageError for one that is not known."""
    known = tasks_of("finetune")
    # A recipe may give any value: a list compares where a dictionary would want a hash.
    if name not in list(known):
        raise UsageError(
            f"--task {name!r} is not known{did_you_mean(str(name), known)}; choose one of "
            f"{', '.join(known)}"
        )
    return known[str(name)].task()


def task_of(arch: object, task: object = None) -> Any:
    """What an architecture is pretrained on: a task of its own, by default the first.

    Raises UsageError for an architecture or a task that is not known, or that don't go together.
    """
    suited = pretraining_tasks(arch)
    if task is None:
        return TASKS[suited[0]].task()
    if task in [*suited, *_for_any(arch)]:
        return TASKS[str(task)].task()
    choice = f"--arch {arch} is pretrained on {' or '.join(suited)}"
    if task in list(tasks_of("pretrain")):
        raise UsageError(f"--task {task} is not for --arch {arch}: {choice}; leave --task out")
    raise UsageError(f"--task {task!r} is not known{did_you_mean(str(task), suited)}; {choice}")


def _for_any(arch: object) -> list[str]:
    """What an architecture can be pretrained on by its kind, whether it names it or not."""
    from llmctl.models import ARCHITECTURES

    kind = ARCHITECTURES[str(arch)].kind if arch in list(ARCHITECTURES) else None
    return [name for name, entry in TASKS.items() if kind in entry.backbones]


def pretraining_tasks(arch: object) -> Sequence[str]:
    """What an architecture can be pretrained on, the first by default.

    Raises UsageError for one that is not known.
    """
    from llmctl.models import ARCHITECTURES

    if arch in list(WITHOUT_NETWORK):
        return [str(arch)]
    if arch not in list(ARCHITECTURES):
        known = [*ARCHITECTURES, *WITHOUT_NETWORK]
        raise UsageError(
            f"--arch {arch!r} is not known{did_you_mean(str(arch), known)}; choose one of "
            f"{', '.join(ARCHITECTURES)}, or {', '.join(WITHOUT_NETWORK)}, which counts"
        )
    return ARCHITECTURES[str(arch)].tasks
