"""A student of a decoder, asked for the next token, and for its teacher's mind on what it writes
itself (GKD, Agarwal et al. 2023).

B texts, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from llmctl.data.random import key_of, uniform
from llmctl.data.tables.encoded import EncodedExample
from llmctl.errors import ConfigError, InputError
from llmctl.formats.description import CHAT
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.heads.cross_entropy import IGNORED
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.distil.batches import TokenBatch, padded
from llmctl.tasks.distil.config import DistilConfig
from llmctl.tasks.distil.language import SHORTEST_ROW, LanguageDistilTask
from llmctl.tasks.dpo.sampling import AnswerSampler
from llmctl.training.batches import LossParts, SumAndCount, TensorBatch

WRITTEN_AT_ONCE = 32
"""Texts that a student goes on with together."""


class CausalDistilTask(LanguageDistilTask):
    """Text as rows of next tokens, and a decoder to train on them."""

    peft_task = "CAUSAL_LM"
    fields_of_others: ClassVar[tuple[str, ...]] = ("mask_rate", "vectors")
    backbones: ClassVar[tuple[str, ...]] = ("decoder",)

    @classmethod
    def kinds(cls, config: DistilConfig) -> tuple[str, ...]:
        return ("causal_lm",)

    def _read(self, reporter: Reporter) -> None:
        super()._read(reporter)
        objective = self.config.objective
        longest = objective.prompt_tokens + objective.max_new_tokens
        most = min(self.base.longest_text, self.teacher.folder.longest_text)
        if objective.on_policy and (longest > most or objective.prompt_tokens >= self._length):
            raise ConfigError(
                f"objective.prompt_tokens {objective.prompt_tokens} and max_new_tokens "
                f"{objective.max_new_tokens}: beginnings are shorter than rows ({self._length}), "
                f"and both together at most {most} tokens"
            )
        self._writer = AnswerSampler(
            self.base.tokenizer,
            None,
            longest=longest,
            max_new_tokens=objective.max_new_tokens,
            at_once=WRITTEN_AT_ONCE,
            seed=self.config.seed,
        )

    def _rows(self, documents: Sequence[NDArray[np.int64]]) -> list[EncodedExample]:
        around = self.base.tokenizer.boundaries
        if around is None:
            raise InputError(
                "the tokenizer has no tokens for a text's start and end, between which documents "
                "lie; take another teacher"
            )
        start, end = around
        self._end = None if start == end else end
        stream = [part for ids in documents for part in ([start], ids, [end])]
        ids = np.concatenate(stream).astype(np.int64) if stream else np.zeros(0, dtype=np.int64)
        # A row's last token is its neighbour's first: each is told once.
        rows: list[EncodedExample] = []
        for begin in range(0, len(ids) - 1, self._length):
            piece = ids[begin : begin + self._length + 1]
            if len(piece) > SHORTEST_ROW:
                rows.append(EncodedExample(piece, len(piece), len(rows)))
        return rows

    def _student(self) -> CausalLM:
        if self.scratch:
            return CausalLM(self.base.spec.build(self.base.config_with(self.config.dropout)))
        return self.base.causal_lm(dropout=self.config.dropout)

    def _collated(self, examples: Sequence[EncodedExample], number: int | None) -> TensorBatch:
        objective = self.config.objective
        writes = (
            number is not None
            and objective.on_policy > 0
            and (uniform(key_of(self.config.seed, "on policy"), number) < objective.on_policy)
        )
        last = objective.prompt_tokens if writes else self._length + 1
        fields = padded(
            [EncodedExample(one.ids[:last], last, one.label) for one in examples],
            self._pad,
            self._length + 1,
        )
        ids_BT, mask_BT = fields["input_ids_BT"], fields["mask_BT"]
        targets_BT = torch.full_like(ids_BT, IGNORED)
        targets_BT[:, :-1] = torch.where(mask_BT[:, 1:], ids_BT[:, 1:], IGNORED)
        if self._end is not None:  # what follows a document's end is not its continuation
            targets_BT[ids_BT == self._end] = IGNORED
        if not writes:  # the last token of each row is a target alone
            fields |= {
                "input_ids_BT": ids_BT[:, : self._length],
                "segment_ids_BT": fields["segment_ids_BT"][:, : self._length],
                "mask_BT": mask_BT[:, : self._length],
                "tokens_B": np.minimum(fields["tokens_B"], self._length),
            }
            targets_BT = targets_BT[:, : self._length]
        scored = (
            len(examples) * objective.max_new_tokens
            if writes
            else int((targets_BT != IGNORED).sum())
        )
        counts = self._counts(scored, len(examples), "lm")
        return TokenBatch(
            **fields,
            counts=counts,
            targets_BT=targets_BT.contiguous(),
            place_B=torch.arange(len(examples)),
            batch_number=number or 0,
            on_policy=bool(writes),
        )

    def loss(self, model: CausalLM, batch: TokenBatch) -> LossParts:
        teacher: Any = self.teacher_network(batch.input_ids_BT.device)
        if not batch.on_policy:
            found = self._compared(model, batch, model.logits, teacher.logits)
            return self._parts(*found, "lm")
        written = self._written(model, batch)
        sums, inside, _ = self._compared(model, written, model.logits, teacher.logits)
        count = len(batch) * self.config.objective.max_new_tokens
        losses = {"distil_loss": SumAndCount(sums[0], count)}
        figures = {"on_policy_loss": SumAndCount(sums[0].detach(), count)}
        return LossParts({**losses, **inside}, figures)

    def _written(self, model: CausalLM, batch: TokenBatch) -> TokenBatch:
        """What the student makes of beginnings, its own tokens being scored."""
        lengths = batch.mask_BT.sum(1).tolist()
        prompts = [
            ids[:length].tolist() for ids, length in zip(batch.input_ids_BT, lengths, strict=True)
        ]
        completions = self._writer(
            model,
            prompts,
            first=int(batch.place_B[0]),
            rollout=batch.batch_number,
            count=1,
            temperature=1.0,
        )
        rows, width = [], 0
        for prompt, [completion] in zip(prompts, completions, strict=True):
            rows.append(np.asarray([*prompt, *completion.ids], dtype=np.int64))
            width = max(width, len(rows[-1]))
        fields = padded([EncodedExample(row, len(row), 0) for row in rows], self._pad, width)
        ids_BT, mask_BT = fields["input_ids_BT"], fields["mask_BT"]
        targets_BT = torch.full_like(ids_BT, IGNORED)
        targets_BT[:, :-1] = torch.where(mask_BT[:, 1:], ids_BT[:, 1:], IGNORED)
        for row, length in enumerate(lengths):
            targets_BT[row, : length - 1] = IGNORED
        written = TokenBatch(
            **fields, counts=batch.counts, targets_BT=targets_BT, place_B=batch.place_B
        )
        return written.to(batch.input_ids_BT.device)

    def add_selection_metric(self, values: dict[str, float]) -> dict[str, float]:
        nll = values.get("lm_loss", values.get("lm_nll"))
        return values if nll is None else {**values, "perplexity": math.exp(min(nll, 100.0))}

    @property
    def _folder_fields(self) -> dict[str, Any]:
        talks = {CHAT: True} if self.teacher.folder.fields.get(CHAT) else {}
        return {**super()._folder_fields, **talks}
