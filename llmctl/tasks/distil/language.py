"""A student of a language model: at each place the tokens are as likely as its teacher finds them.

A masked one is asked for hidden tokens (DistilBERT, Sanh et al. 2019), a decoder for the next. With
``on_policy`` a decoder's student goes on with some texts itself and is told what its teacher would
have found likely there: it learns from the mistakes that it makes (GKD, Agarwal et al. 2023).

B texts, T tokens, M scored places, R of them at a time, D width, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from llmctl.data.shards.encoding import encode_text
from llmctl.data.tables.encoded import EncodedExample
from llmctl.data.text.documents import Corpus
from llmctl.data.text.hashing import is_held_out
from llmctl.errors import ConfigError, InputError, UsageError
from llmctl.formats.description import MAX_LENGTH
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.models.heads.cross_entropy import IGNORED, rows_at_a_time
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.distil.batches import TokenBatch, read
from llmctl.tasks.distil.config import LANGUAGE_LENGTH, DistilObjective
from llmctl.tasks.distil.losses import divergence
from llmctl.tasks.distil.task import DistilTask
from llmctl.training.batches import LossParts, SumAndCount

SHORTEST_ROW = 4
"""A row of fewer tokens of text tells next to nothing."""
Logits = Callable[[Tensor], Tensor]


def token_sums(
    logits: Logits,
    teacher_logits: Logits,
    hidden_MD: Tensor,
    teacher_hidden_ME: Tensor,
    target_M: Tensor,
    objective: DistilObjective,
) -> Tensor:
    """Sums over scored places: the divergence, the cross-entropy with the targets, how many of
    these are likeliest, and how often both find the same token likeliest, (4,).

    A few rows of logits are made at a time, and again on the way back, so that no table of all is
    kept."""

    def of(hidden_RD: Tensor, teacher_hidden_RE: Tensor, target_R: Tensor) -> Tensor:
        ours_RV = logits(hidden_RD).float()
        with torch.no_grad():
            theirs_RV = teacher_logits(teacher_hidden_RE).float()
        # One of them may have rows beside the vocabulary, which fill up a matrix.
        size = min(ours_RV.shape[-1], theirs_RV.shape[-1])
        ours_RV, theirs_RV = ours_RV[:, :size], theirs_RV[:, :size]
        apart_R = divergence(
            ours_RV,
            theirs_RV,
            kind=objective.divergence,
            temperature=objective.temperature,
            jsd_weight=objective.jsd_weight,
        )
        nll = F.cross_entropy(ours_RV, target_R, reduction="sum")
        likeliest_R = ours_RV.detach().argmax(-1)
        right = (likeliest_R == target_R).sum()
        agreed = (likeliest_R == theirs_RV.argmax(-1)).sum()
        return torch.stack([apart_R.sum(), nll, right.float(), agreed.float()])

    rows = rows_at_a_time(hidden_MD.device, 1 << 15)
    total = torch.zeros(4, device=hidden_MD.device)
    for parts in zip(
        hidden_MD.split(rows), teacher_hidden_ME.split(rows), target_M.split(rows), strict=True
    ):
        total = total + checkpoint(of, *parts, use_reentrant=False)
    return total


class LanguageDistilTask(DistilTask):
    """Text as rows, and a language model to train on them."""

    by_token = True
    lacks = "and the student predicts tokens as its teacher does; give a model of the same kind"

    def _read(self, reporter: Reporter) -> None:
        options, folder = self.config.data, self.teacher.folder
        for name in ("label_column", "text_pair_column"):
            if getattr(options, name) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')} is not for --teacher {self.teacher.name}, which "
                    f"is {folder.described} and reads plain text; leave it out"
                )
        most = min(self.base.longest_text, folder.longest_text)
        usual = min(LANGUAGE_LENGTH, self.base.max_length, folder.max_length)
        self._length = options.max_length or usual
        if self._length > most:
            raise ConfigError(
                f"data.max_length {self._length} is longer than what both models take; use at most "
                f"{most}"
            )
        self._longest = max(self._longest, self._length)
        corpus = Corpus([str(self.data)], text_column=options.text_column)
        for note in corpus.notes:
            reporter.note(note)
        documents = [
            encode_text(self.base.tokenizer, document.text).astype(np.int64) for document in corpus
        ]
        self._tokens = sum(map(len, documents))
        if self._tokens < self._length:
            raise InputError(
                f"{self.data} has {self._tokens:,} tokens, and a row takes {self._length}; give a "
                "longer text, or shorter rows with --set data.max_length=…"
            )
        # By rows: a text may be one document, and nothing is claimed by what is held out.
        for row in self._rows(documents):
            out = is_held_out(" ".join(map(str, row.ids.tolist())), options.validation)
            (self._held_out if out else self._train).append(row)

    @abstractmethod
    def _rows(self, documents: Sequence[NDArray[np.int64]]) -> list[EncodedExample]:
        """Documents as rows."""

    @property
    def introduction(self) -> str:
        return f"{super().introduction}; {self._tokens:,} tokens in rows of {self._length}"

    @property
    def facts(self) -> dict[str, Any]:
        return {**super().facts, "max_length": self._length}

    @property
    def losses(self) -> tuple[str, ...]:
        return ()

    def _open_teacher_network(self) -> nn.Module:
        network: nn.Module = self.teacher.folder.owning().network()
        return network

    def _compared(
        self, model: Any, batch: TokenBatch, logits: Logits, teacher_logits: Logits
    ) -> tuple[Tensor, dict[str, SumAndCount], int]:
        """The sums of ``token_sums`` over a batch, the losses of what is seen inside, and how many
        places are scored."""
        teacher = self.teacher_network(batch.input_ids_BT.device)
        with torch.no_grad(), self.inside.watching(teacher.body, teacher=True) as theirs:
            teacher_hidden_BTE = read(teacher.body, batch)
        with self.inside.watching(model.body, teacher=False) as ours:
            hidden_BTD = read(model.body, batch)
        scored_BT = batch.targets_BT != IGNORED
        sums = token_sums(
            logits,
            teacher_logits,
            hidden_BTD[scored_BT],
            teacher_hidden_BTE[scored_BT],
            batch.targets_BT[scored_BT],
            self.config.objective,
        )
        return sums, self.inside_losses(model, ours, batch, theirs), int(scored_BT.sum())

    def _parts(
        self, sums: Tensor, inside: dict[str, SumAndCount], count: int, name: str
    ) -> LossParts:
        """The loss of scored places, and figures. name: of the cross-entropy with the text."""
        share = self.config.objective.labels
        losses = {"distil_loss": SumAndCount(sums[0], count, weight=1 - share)}
        if share:
            losses[f"{name}_loss"] = SumAndCount(sums[1], count, weight=share)
        figures = {
            f"{name}_accuracy": SumAndCount(sums[2].detach(), count),
            "agreement": SumAndCount(sums[3].detach(), count),
        }
        if not share:
            figures[f"{name}_nll"] = SumAndCount(sums[1].detach(), count)
        return LossParts({**losses, **inside}, figures)

    def _counts(self, scored: int, rows: int, name: str) -> tuple[tuple[str, int], ...]:
        return (
            ("distil_loss", scored),
            (f"{name}_loss", scored),
            *((part, rows) for part in self.inside.names),
        )

    @property
    def _folder_fields(self) -> dict[str, Any]:
        return {MAX_LENGTH: max(self._length, min(self.base.max_length, self._longest))}

    def _write(self, folder: Path, model: nn.Module) -> None:
        write_model_folder(folder, model, self.base.tokenizer, self._folder_fields)
