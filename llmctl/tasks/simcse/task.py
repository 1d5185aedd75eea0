"""Pretraining by SimCSE: shards as sentences, each read twice with other dropout (Gao et al. 2021,
"SimCSE: Simple Contrastive Learning of Sentence Embeddings", §3).

The two readings of a sentence are to be nearer to one another than to the other sentences of the
batch. It refines a model that knows the language already.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from llmctl.config import Config
from llmctl.data.tables.encoded import pad_token
from llmctl.errors import ConfigError, InputError, UsageError
from llmctl.formats.base import Pretrained
from llmctl.formats.description import MAX_LENGTH
from llmctl.formats.sentence_transformers.folder import SentenceTransformers
from llmctl.models.heads.embed import POOLING, Embedder, Pooling
from llmctl.models.spec import Backbone
from llmctl.tasks.embed.batches import EmbedBatch
from llmctl.tasks.embed.loss import EmbedLoss
from llmctl.tasks.embed.texts import new_embedder
from llmctl.tasks.pretraining import DataConfig, Pretraining
from llmctl.tasks.simcse.batches import Sentences, SimcseBatches, layout_of
from llmctl.training.batches import LossParts

SENTENCE_LENGTH = 64
"""Tokens of a sentence: twice the paper's 32, as pieces of a small vocabulary are shorter."""


class SimcseObjective(Config):
    """How a sentence's two readings differ, and how they are compared."""

    temperature: float = Field(0.05, gt=0)
    """What cosines are divided by, τ."""
    pooling: Pooling | Literal["auto"] = "auto"
    """What a text's vector is: mean, cls, max or last of its tokens' hidden states. auto: as the
    model has it, else the mean."""
    dropout: float = Field(0.1, gt=0, lt=1)
    """Dropout of the body, by which alone two readings of a sentence differ."""
    projection: bool = True
    """A tanh layer behind the pooling in training, which is left out afterwards."""


class SimcseData(DataConfig):
    """How documents become sentences."""

    sequence_length: int = Field(SENTENCE_LENGTH, ge=8)
    """Tokens of a sentence, special ones included; longer ones are cut."""


class ReadingsLoss(EmbedLoss):
    """The loss of two readings of each sentence. The share that is found is not told: without
    dropout both readings are the same, and it is all of them."""

    def compare(self, encoded: Tensor, batch: EmbedBatch) -> LossParts:
        return LossParts(super().compare(encoded, batch).losses)


class SimcsePretraining(Pretraining[SimcseObjective, SimcseData]):
    """Sentences of shards, and an embedder to train on them."""

    objective_config = SimcseObjective
    data_config = SimcseData
    defaults: ClassVar[Mapping[str, Any]] = {
        "training": {"epochs": 1.0, "batch_size": 64, "warmup": 0.1, "schedule": "linear"}
    }
    roles = ()
    described = ""

    def __init__(self, shards: Any, config: Any, base: Pretrained | None = None) -> None:
        """Raises UsageError without a model to start from, or where that has no dropout;
        ConfigError for a batch of one sentence."""
        if base is None:
            raise UsageError(
                "--task simcse refines a model that knows the language; give a pretrained one with "
                "--from"
            )
        if "dropout" not in type(base.config).model_fields:
            raise UsageError(
                f"--task simcse tells a text's two readings apart by dropout, which a "
                f"{base.spec.name} has none of; take a bert or a gpt"
            )
        if config.training.batch_size < 2:
            raise ConfigError(
                "training.batch_size 1: a sentence is compared with the others of its batch; use 2 "
                "or more, better 64"
            )
        super().__init__(shards, config, base)

    @classmethod
    def _length_for(cls, base: Pretrained) -> int:
        return min(SENTENCE_LENGTH, base.max_length)

    @staticmethod
    def peak_rate(width: int) -> float:
        """The paper's 3e-5 for BERT-base, 768 wide, and in inverse proportion to the width; the
        share that models are gone on with at (``REWARMED``) comes on top."""
        return 1e-4 * 768 / width

    @property
    def _base(self) -> Pretrained:
        assert self.base is not None
        return self.base

    def batches(self, split: str, *, seed: int) -> SimcseBatches:
        sentences, size = Sentences(self.reader(split)), self.config.training.batch_size
        if split == "train" and sentences.count < size:
            raise InputError(
                f"shards {self.shards.manifest.name} have {sentences.count} sentences, and a batch "
                f"wants {size}; tokenize more text, or lower training.batch_size"
            )
        encoder = self._base.spec.kind == "encoder" and self._base.purpose.kind != "embed"
        return SimcseBatches(
            sentences,
            layout_of(self._base.tokenizer, encoder=encoder),
            length=self.config.data.sequence_length,
            batch_size=size,
            pad=pad_token(self._base.tokenizer),
            seed=seed,
            training=split == "train",
        )

    @property
    def pooling(self) -> Pooling:
        """How a text's vector is made."""
        asked = self.config.objective.pooling
        if asked != "auto":
            return asked
        given = self._base.fields.get(POOLING) if self._base.purpose.kind == "embed" else None
        pooling: Pooling = given or "mean"
        return pooling

    def model(self, body: Backbone) -> Embedder:
        return Embedder(body, self.pooling, projection=self.config.objective.projection)

    def pretrained(self, base: Pretrained) -> Embedder:
        objective = self.config.objective
        return new_embedder(
            base, self.pooling, dropout=objective.dropout, projection=objective.projection
        )

    @property
    def loss(self) -> ReadingsLoss:
        """What compares the readings of a batch's sentences."""
        return ReadingsLoss("infonce", self.config.objective.temperature, 0.0, False, (None,))

    def compiles_on(self, device: torch.device) -> bool:
        # Rows are as many and as long as a batch's sentences need: each shape would be compiled.
        return False

    def head_weights(self) -> float:
        return 0.0

    def write(self, folder: Path, model: nn.Module) -> None:
        assert isinstance(model, Embedder)
        length = max(self.config.data.sequence_length, self._base.max_length)
        SentenceTransformers().save(folder, model, self.exported_tokenizer, {MAX_LENGTH: length})
