"""Finetune an embedder: texts that belong together to vectors near each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from llmctl.data.random import key_of, permute
from llmctl.data.tables.encoded import encode_examples, pad_token
from llmctl.data.tables.labelled import Example
from llmctl.data.tables.similar_texts import (
    SimilarTexts,
    read_similar,
    resolve_similar,
    score_range,
    similar_record,
)
from llmctl.data.text.hashing import is_held_out
from llmctl.errors import ConfigError, InputError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import COLUMNS, MAX_LENGTH
from llmctl.formats.sentence_transformers.folder import SentenceTransformers
from llmctl.models.heads.embed import Embedder, Pooling
from llmctl.reporting.reporter import Reporter
from llmctl.tasks.embed.batches import EncodedTexts, collate
from llmctl.tasks.embed.config import EmbedConfig, Loss
from llmctl.tasks.embed.loss import MOMENTS, EmbedLoss, correlation
from llmctl.tasks.embed.texts import new_embedder, pooling_for
from llmctl.tasks.finetuning import METHOD_FACTOR, FinetuningTask, Method, scale_lr_by_width
from llmctl.training.batches import TensorBatch

EVAL_BATCH_SIZE = 64
"""Held-out examples in a batch: the more there are, the harder is it to tell the right one."""


class EmbedTask(FinetuningTask):
    """Pairs, triples or scored pairs as batches, and an embedder to train on them."""

    config: EmbedConfig
    config_type = EmbedConfig
    peft_task: ClassVar[str] = "FEATURE_EXTRACTION"

    def __init__(
        self,
        data: Path,
        base: Pretrained,
        config: EmbedConfig,
        *,
        start: str,
        reporter: Reporter,
    ) -> None:
        super().__init__(data, base, config, start=start)
        options = config.data
        reading = options.read_options(reporter.note)
        self._columns = resolve_similar(
            data,
            text_column=options.text_column,
            text_pair_column=options.text_pair_column,
            negative_column=options.negative_column,
            score_column=options.score_column,
            reading=reading,
        )
        reporter.note(f"{data.name}: {self._columns.describe()}")
        examples = _whole(read_similar(data, self._columns, reading=reading), data, reporter)
        self._kind = self._loss_for(examples, reporter)
        self._widths = _widths(config, base.config.hidden_size)
        self._max_length = self.text_length(options.max_length)
        encoder = base.spec.kind != "decoder" and base.purpose.kind != "embed"
        self._tokenizer = base.tokenizer.for_encoder() if encoder else base.tokenizer
        self._pad = pad_token(base.tokenizer)
        encoded = self._encoded(examples, reporter)
        held = [is_held_out(example.text, options.validation) for example in examples]
        self._train = [e for e, out in zip(encoded, held, strict=True) if not out]
        self._held_out = [e for e, out in zip(encoded, held, strict=True) if out]
        self.train_examples, self.held_out_examples = len(self._train), len(self._held_out)
        if self.train_examples < 2:
            raise InputError(
                f"{data} has {self.train_examples} examples to train on beside those held out, and "
                "they are compared with one another; give more"
            )
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def _loss_for(self, examples: Sequence[SimilarTexts], reporter: Reporter) -> Loss:
        """The loss that suits the data. Raises InputError where that which is asked for needs
        what they don't have."""
        asked, columns = self.config.loss, self._columns
        scored = columns.score is not None
        if asked == "auto":
            reporter.note(f"loss {'cosent' if scored else 'infonce'}")
            return "cosent" if scored else "infonce"
        if asked in ("cosent", "mse") and not scored:
            raise InputError(
                f"{self.data} has no scores, which the loss {asked} needs; name their column with "
                "--score-column, or take the loss infonce"
            )
        if asked in ("infonce", "triplet") and scored:
            raise InputError(
                f"{self.data} has scores ({columns.score}), and the loss {asked} takes each pair "
                "for one that belongs together; take the loss cosent or mse, or remove the column "
                "and the pairs that don't"
            )
        missing = [example for example in examples if not example.negatives]
        if asked == "triplet" and missing:
            raise InputError(
                f"{missing[0].source} has no negative, which the loss triplet needs in each row; "
                "name their column with --negative-column, or take the loss infonce, which takes "
                "the other texts of a batch"
            )
        return asked

    def _encoded(self, examples: Sequence[SimilarTexts], reporter: Reporter) -> list[EncodedTexts]:
        """The examples as ids; each text is encoded once."""
        keys: dict[str, int] = {}
        for example in examples:
            for text in (example.text, example.other, *example.negatives):
                keys.setdefault(text, len(keys))
        texts = [Example(text, None, None, "") for text in keys]
        ids = encode_examples(self._tokenizer, texts, self._max_length)
        if cut := sum(text.cut for text in ids):
            reporter.note(
                f"{cut:,} of {len(ids):,} texts were longer than {self._max_length} tokens and "
                f"were cut; --set data.max_length=… reads up to {self.base.longest_text}"
            )
        scale = self._scale(examples, reporter)
        return [
            EncodedTexts(
                tuple(ids[keys[text]].ids for text in texts),
                tuple(keys[text] for text in texts),
                None if example.score is None else scale(example.score),
            )
            for example in examples
            for texts in [(example.text, example.other, *example.negatives)]
        ]

    def _scale(self, examples: Sequence[SimilarTexts], reporter: Reporter) -> Any:
        """What makes a cosine of a score; of one whose order alone counts nothing is made."""
        if self._kind != "mse":
            return float
        low, high = score_range(examples)
        if high <= low:
            raise InputError(f"{self.data}: all scores are {high:g}; give some that differ")
        reporter.note(f"scores from {low:g} to {high:g} are taken for cosines from 0 to 1")
        return lambda score: (score - low) / (high - low)

    @staticmethod
    def peak_rate(base: Pretrained, method: Method, *, scratch: bool) -> float:
        """The learning rate where none is given, as for classifiers: for a BERT 3e-4 up to 128
        wide, falling with the width to 5e-5 for BERT-base; 1e-3 for decoders and random weights."""
        low = base.spec.kind == "encoder" and not scratch
        return scale_lr_by_width(
            (3e-4 if low else 1e-3) * METHOD_FACTOR[method], base.config.hidden_size
        )

    @property
    def pooling(self) -> Pooling:
        """How a text's vector is made."""
        return pooling_for(self.base, self.config.pooling)

    @property
    def introduction(self) -> str:
        what = {"cosent": "scored pairs", "mse": "scored pairs", "triplet": "triples"}
        negatives = sum(len(example.texts) - 2 for example in (*self._train, *self._held_out))
        more = f", with {negatives:,} hard negatives" if negatives else ""
        return (
            f"{self.train_examples:,} {what.get(self._kind, 'pairs')} to train on, "
            f"{self.held_out_examples:,} held out{more}"
        )

    @property
    def facts(self) -> dict[str, Any]:
        return {COLUMNS: similar_record(self._columns), "loss_taken": self._kind}

    @property
    def new_parts(self) -> tuple[str, ...]:
        return ()

    @property
    def batches_per_epoch(self) -> int:
        # Evenly, so that none is so small that next to nothing is compared in it.
        return max(1, round(self.train_examples / self.config.training.batch_size))

    def network(self) -> Embedder:
        dropout = self.config.dropout
        return new_embedder(self.base, self.pooling, dropout=dropout, scratch=self.scratch)

    @property
    def loss(self) -> EmbedLoss:
        """What compares the vectors of a batch."""
        options = self.config
        return EmbedLoss(
            self._kind, options.temperature, options.margin, options.symmetric, self._widths
        )

    def batch(self, number: int) -> TensorBatch:
        """Batch ``number``: random examples, whatever their length."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return self._collated([self._train[row] for row in self._epoch(epoch)[place]])

    def _make_epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        count = len(self._train)
        order = permute(key_of(self.config.seed, "order", epoch), count, np.arange(count))
        return np.array_split(order, self.batches_per_epoch)

    def _collated(self, examples: Sequence[EncodedTexts]) -> TensorBatch:
        masked = self.config.mask_false_negatives
        return collate(examples, self._pad, mask_false_negatives=masked)

    def validation_batches(self) -> list[TensorBatch]:
        count = len(self._held_out)
        if count < 2:
            return []
        parts = np.array_split(np.arange(count), max(1, round(count / EVAL_BATCH_SIZE)))
        return [self._collated([self._held_out[row] for row in part]) for part in parts]

    def add_selection_metric(self, values: dict[str, float]) -> dict[str, float]:
        # CoSENT's loss rises again with few large errors while the order still gets better.
        if MOMENTS[0] not in values:
            return values
        kept = {name: value for name, value in values.items() if name not in MOMENTS}
        pearson = correlation(values)
        return {**kept, "pearson": pearson, "criterion": 1.0 - pearson}

    def write(self, folder: Path, model: nn.Module) -> None:
        assert isinstance(model, Embedder)
        extra = {
            MAX_LENGTH: self._max_length,
            COLUMNS: similar_record(self._columns),
            "pad_token_id": self._pad,
        }
        SentenceTransformers().save(folder, model, self._tokenizer, extra)

    def heads(self, model: nn.Module) -> dict[str, Tensor]:
        return {}


def _whole(examples: Any, data: Path, reporter: Reporter) -> list[SimilarTexts]:
    """The examples that have both texts; how many were left out is told. Raises InputError if none
    are left."""
    what, kept = Counter[str](), list[SimilarTexts]()
    first = ""
    for example in examples:
        if example.text and example.other:
            kept.append(example)
        else:
            what["empty"] += 1
            first = first or example.source
    if what["empty"]:
        reporter.note(
            f"left out {what['empty']:,} examples of which a text is empty (the first: {first})"
        )
    if not kept:
        raise InputError(f"{data} has no pair of two texts that are not empty")
    return kept


def _widths(config: EmbedConfig, hidden_size: int) -> tuple[int | None, ...]:
    """The widths that the loss is of. Raises ConfigError for one that the vectors don't have."""
    for width in config.matryoshka:
        if width >= hidden_size:
            raise ConfigError(
                f"matryoshka: {width} is no part of vectors {hidden_size} wide; give widths below "
                "that"
            )
    return (None, *config.matryoshka)
