"""A model that is used: by its name, with its run, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Self

from llmctl.formats.columns import Finetuned
from llmctl.formats.description import CLOZE, MODEL_KINDS
from llmctl.formats.open import input_record, open_any_model
from llmctl.workspace.artefacts import Workspace
from llmctl.workspace.manifests import InputRecord


@dataclass(frozen=True)
class OpenedModel(Finetuned):
    """A model that is measured, predicts or writes."""

    read_record: Callable[[], InputRecord]
    """Makes ``record``."""

    @cached_property
    def record(self) -> InputRecord:
        """The model as an input of what is made with it. Where nothing is, its weights need not be
        read for their digest."""
        return self.read_record()

    @classmethod
    def open(cls, workspace: Workspace, name: str, *, owning: bool = False) -> Self:
        """The model of a run's name or of a folder. owning: see ``Pretrained.owning``. Raises
        InputError if there is none."""
        folder, run = open_any_model(workspace, name)
        record = partial(input_record, folder, run)
        return cls(name, folder.owning() if owning else folder, run, record)

    @property
    def kind(self) -> str:
        """``classify``, ``masked_lm``, ``causal_lm``, ``ngram``, or ``seq2seq``, whichever way it
        writes from sources; a masked language model with a template of its own is a ``cloze``."""
        if self.folder.kind == "masked_lm" and CLOZE in self.folder.fields:
            return "cloze"
        return "seq2seq" if self.folder.writes_from_source else self.folder.kind

    @property
    def described(self) -> str:
        """What it is, in words."""
        return MODEL_KINDS[self.kind]
