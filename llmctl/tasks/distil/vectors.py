"""A student of an embedder: its texts' vectors are its teacher's, or as far from one another.

The teacher makes its vectors once, before the training, with its own tokenizer: any other will do
for the student. Only where the two are compared inside have they to read the same tokens.

N texts, B texts of a batch, D width of the student, F of the teacher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmctl.data.tables.encoded import EncodedExample, encode_examples
from llmctl.data.tables.labelled import Example, read_examples, resolve_columns
from llmctl.data.text.hashing import is_held_out
from llmctl.errors import ConfigError, InputError
from llmctl.formats.description import MAX_LENGTH
from llmctl.formats.sentence_transformers.folder import SentenceTransformers
from llmctl.models.heads.embed import POOLING, Embedder, Pooling, pooled
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.distil.batches import ComparedBatch, DistilBatch, padded, read
from llmctl.tasks.distil.losses import similarity_distance
from llmctl.tasks.distil.task import DistilTask
from llmctl.tasks.embed.texts import TextEmbedder, new_embedder, pooling_for
from llmctl.tasks.kept_tensors import kept_tensor
from llmctl.training.batches import LossParts, SumAndCount, TensorBatch
from llmctl.training.device import Machine
from llmctl.workspace.files import sha256_json

TAUGHT = "teacher"
"""The folder of a run that the teacher's vectors are kept in."""


class VectorDistilTask(DistilTask):
    """Texts with a teacher's vectors, and an embedder to train on them."""

    fields_of_others: ClassVar[tuple[str, ...]] = (
        "on_policy", "mask_rate", "labels", "temperature", "divergence",
    )  # fmt: skip
    _teacher_NF: Tensor | None = None

    def _read(self, reporter: Reporter) -> None:
        options = self.config.data
        reading = options.read_options(reporter.note)
        columns = resolve_columns(
            self.data,
            text_column=options.text_column,
            text_pair_column=options.text_pair_column,
            need_label=False,
            reading=reading,
        )
        reporter.note(f"{self.data.name}: {columns.describe()}")
        texts: dict[str, Example] = {}
        for row in read_examples(self.data, columns, reading=reading):
            for text in (row.text, row.text_pair):
                if text:
                    texts.setdefault(text, Example(text, None, None, row.source))
        self._examples = list(texts.values())
        if not self._examples:
            raise InputError(f"{self.data} has no texts")
        base = self.base
        encoder = base.spec.kind != "decoder" and base.purpose.kind != "embed"
        self._tokenizer = base.tokenizer.for_encoder() if encoder else base.tokenizer
        self._max_length = min(self.text_length(options.max_length), self._longest)
        encoded = encode_examples(self._tokenizer, self._examples, self._max_length)
        for number, (example, one) in enumerate(zip(self._examples, encoded, strict=True)):
            out = is_held_out(example.text, options.validation)
            (self._held_out if out else self._train).append(replace(one, label=number))
        if self._compared and self.config.training.batch_size < 2:
            raise ConfigError(
                "training.batch_size 1: objective.vectors similarities compares the texts of a "
                "batch; use 2 or more, better 64"
            )

    @property
    def _compared(self) -> bool:
        """Whether vectors are compared by how alike those of a batch are."""
        own, teachers = (int(one.config.hidden_size) for one in (self.base, self.teacher.folder))
        asked = self.config.objective.vectors
        if asked == "cosine" and own != teachers:
            raise ConfigError(
                f"objective.vectors cosine: the student's vectors are {own} wide and its teacher's "
                f"{teachers}; take similarities, or a student as wide"
            )
        return asked == "similarities" or own != teachers

    @property
    def pooling(self) -> Pooling:
        """How a text's vector is made: as asked for, as the student has it, or as its teacher."""
        asked = self.config.pooling
        if asked == "auto" and self.base.fields.get(POOLING) is None:
            return pooling_for(self.teacher.folder, asked)
        return pooling_for(self.base, asked)

    @property
    def losses(self) -> tuple[str, ...]:
        return ("distil_loss",)

    def _student(self) -> Embedder:
        dropout = self.config.dropout
        return new_embedder(self.base, self.pooling, dropout=dropout, scratch=self.scratch)

    def _collated(self, examples: Sequence[EncodedExample], number: int | None) -> TensorBatch:
        if not self._compared:
            return super()._collated(examples, number)
        counts = tuple((name, len(examples)) for name in (*self.losses, *self.inside.names))
        return ComparedBatch(**padded(examples, self._pad, self._longest), counts=counts)

    def before_training(self, folder: Path, machine: Machine, reporter: Reporter) -> None:
        hashed = hashlib.sha256()
        for example in self._examples:
            hashed.update(f"{len(example.text)}:{example.text}".encode())
        self._teacher_NF = kept_tensor(
            folder / TAUGHT,
            "vectors",
            sha256_json([self.teacher.folder.digest(), hashed.hexdigest()]),
            lambda: self._embedded(machine, reporter),
            machine,
            reporter,
            "the teacher's vectors",
        )

    def _embedded(self, machine: Machine, reporter: Reporter) -> Tensor:
        embedder = TextEmbedder(self.teacher, device=machine.device.type)
        found, done = [], 0
        for block, vectors in embedder.blocks(self._examples):
            done += len(block)
            found.append(torch.from_numpy(vectors))
            reporter.progress("texts embedded by the teacher", done, len(self._examples))
        return F.normalize(torch.cat(found), dim=-1)

    def loss(self, model: Embedder, batch: DistilBatch) -> LossParts:
        """1 − cos with the teacher's vector, or how far the cosines of a batch are from those of
        its teacher's; and how alike the two are by the first, where they are as wide."""
        assert self._teacher_NF is not None, "before_training computes it"
        teacher_BF = self._teacher_NF[batch.labels_B.cpu()].to(batch.input_ids_BT.device)
        with self.inside.watching(model.body, teacher=False) as ours:
            hidden_BTD = read(model.body, batch)
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            vector_BD = pooled(
                hidden_BTD.float()[batch.mask_BT], batch.mask_BT.sum(1), model.pooling
            )
            vector_BD = F.normalize(vector_BD, dim=-1)
            if self._compared:
                apart_B = similarity_distance(vector_BD, teacher_BF)
            else:
                apart_B = 1 - (vector_BD * teacher_BF).sum(-1)
        losses = {"distil_loss": SumAndCount(apart_B.sum(), len(batch))}
        return LossParts({**losses, **self.inside_losses(model, ours, batch)})

    def _write(self, folder: Path, model: nn.Module) -> None:
        assert isinstance(model, Embedder)
        extra = {MAX_LENGTH: self._max_length, "pad_token_id": self._pad}
        SentenceTransformers().save(folder, model, self._tokenizer, extra)
