"""Finetune a tagger: words and their tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from llmctl.data.tables.encoded import pad_token
from llmctl.data.tables.tagged import TaggedColumns, TaggedText, read_tagged
from llmctl.data.text import hashing
from llmctl.errors import InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import MAX_LENGTH, SCHEME
from llmctl.formats.huggingface.writing import write_model_folder
from llmctl.models.heads.classify import parts_on
from llmctl.models.heads.tag import Tagger
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.buckets import bucketed
from llmctl.tasks.examples import ExamplesTask
from llmctl.tasks.finetuning import FinetuneConfig, FinetuningTask
from llmctl.tasks.tag.batches import TagBatch, collate
from llmctl.tasks.tag.loss import tagging_loss
from llmctl.tasks.tag.windows import Ints, Window, windows_of
from llmctl.training.batches import LossParts
from llmctl.training.config import TrainingConfig

EVAL_BATCH_SIZE = 64
"""Held-out windows in a batch."""


class TagData(TaggedColumns):
    """Where words and tags are, and what is held out."""

    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the texts, chosen by their hash, for early stopping."""
    max_length: int = Field(0, ge=0)
    """Tokens of a window, special ones included; longer texts have several. 0: as pretrained."""


class TagConfig(FinetuneConfig):
    """Everything that decides the finetuning of a tagger."""

    task: Literal["tag"] = "tag"
    """What is learned."""
    data: TagData = TagData()
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in the body, where the architecture has any, and before the output layer."""
    training: TrainingConfig = TrainingConfig(
        epochs=20, batch_size=16, warmup=0.1, schedule="linear"
    )


class TagTask(FinetuningTask):
    """Tagged texts as batches of windows, and a tagger to train on them."""

    config: TagConfig
    config_type = TagConfig
    peft_task: ClassVar[str] = "TOKEN_CLS"
    peak_rate = staticmethod(ExamplesTask.peak_rate)

    def __init__(
        self,
        data: Path,
        base: Pretrained,
        config: TagConfig,
        *,
        start: str,
        reporter: Reporter,
    ) -> None:
        super().__init__(data, base, config, start=start)
        causal = base.spec.kind == "decoder"
        self._pad = pad_token(base.tokenizer)
        # What the folder says to transformers, texts are given here.
        self._tokenizer = (
            base.tokenizer.for_decoder(pairs=True) if causal else base.tokenizer.for_encoder()
        )
        self._max_length = self.text_length(config.data.max_length)
        texts, self.scheme = read_tagged(data, config.data, reporter)
        self._counts = Counter(tag for text in texts for tag in text.tags or ())
        self.labels = sorted(self._counts)
        held = [hashing.is_held_out(text.text, config.data.validation) for text in texts]
        self._train, self._held_out = (
            self._windows([text for text, out in zip(texts, held, strict=True) if out == part])
            for part in (False, True)
        )
        self._texts = len(texts) - sum(held), sum(held)
        if not self._train:
            raise InputError("every text fell to validation; give more texts")
        if len(self.labels) < 2:
            raise InputError(
                f"{data} has one tag only ({self.labels[0]!r}); a tagger needs two or more: check "
                "--label-column"
            )
        self._tell_words(texts, reporter)
        self.train_examples, self.held_out_examples = len(self._train), len(self._held_out)
        lengths = [len(window.ids) for window, _ in self._train]
        size, seed = config.training.batch_size, config.seed
        self._epoch = lru_cache(maxsize=2)(partial(bucketed, lengths, size, seed))

    def _windows(self, texts: Sequence[TaggedText]) -> list[tuple[Window, Ints]]:
        """The windows of some texts with the numbers of their words' tags."""
        number_of = {tag: number for number, tag in enumerate(self.labels)}
        found = []
        for text in texts:
            tags = np.asarray([number_of[tag] for tag in text.tags or ()])
            for window in windows_of(self._tokenizer, text, self._max_length):
                if len(window.words):
                    found.append((window, tags[window.words]))
        return found

    def _tell_words(self, texts: Sequence[TaggedText], reporter: Reporter) -> None:
        """Say how many words no piece begins with, and so train nothing."""
        told = sum(len(window.words) for window, _ in (*self._train, *self._held_out))
        words = sum(len(text.words) for text in texts)
        if missing := words - told:
            reporter.note(
                f"{missing:,} of {words:,} words have no piece of their own in the tokenizer's "
                "vocabulary: they are tagged by the word before them"
            )

    @property
    def new_parts(self) -> tuple[str, ...]:
        parts = parts_on(self.base.spec.build, self.base.config)
        return tuple(part for part in parts if part != "pooler")

    @property
    def introduction(self) -> str:
        common = [f"{tag} {count:,}" for tag, count in self._counts.most_common(8)]
        more = f", … ({len(self.labels)} tags)" if len(self.labels) > 8 else ""
        spelling = "" if self.scheme == "plain" else f" of the scheme {self.scheme}"
        return (
            f"{self._texts[0]:,} texts to train on, {self._texts[1]:,} held out; tags{spelling}: "
            f"{', '.join(common)}{more}"
        )

    @property
    def facts(self) -> dict[str, Any]:
        return {"tags": len(self.labels), SCHEME: self.scheme}

    def network(self) -> Tagger:
        dropout = self.config.dropout
        return self.base.with_new_layer(
            lambda body: Tagger(body, len(self.labels), dropout=dropout),
            dropout,
            scratch=self.scratch,
        )

    def loss(self, model: Tagger, batch: TagBatch) -> LossParts:
        return tagging_loss(model, batch, None if self.scheme == "plain" else self.labels)

    def batch(self, number: int) -> TagBatch:
        """Batch ``number``: random windows of like length."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return self._collated([self._train[i] for i in self._epoch(epoch)[place]])

    def validation_batches(self) -> list[TagBatch]:
        ordered = sorted(self._held_out, key=lambda pair: len(pair[0].ids))
        return [
            self._collated(ordered[i : i + EVAL_BATCH_SIZE])
            for i in range(0, len(ordered), EVAL_BATCH_SIZE)
        ]

    def _collated(self, pairs: Sequence[tuple[Window, Ints]]) -> TagBatch:
        windows, labels = zip(*pairs, strict=True)
        return collate(windows, labels, self._pad)

    def add_selection_metric(self, values: dict[str, float]) -> dict[str, float]:
        right = values.get("entity_f1", values["accuracy"])
        return {**values, "criterion": 1.0 - right + 1e-3 * values["loss"]}

    def write(self, folder: Path, model: nn.Module) -> None:
        extra = {
            "id2label": {str(number): label for number, label in enumerate(self.labels)},
            "label2id": {label: number for number, label in enumerate(self.labels)},
            "classifier_dropout": self.config.dropout,
            "pad_token_id": self._pad,
            MAX_LENGTH: self._max_length,
            SCHEME: self.scheme,
        }
        write_model_folder(folder, model, self._tokenizer, extra)

    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        assert isinstance(model, Tagger)
        return self.base.spec.export_head("tag", model)
