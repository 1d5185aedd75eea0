"""Masked pretraining: shards as packed rows with hidden tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmctl.data.packing import PackedBatches
from llmctl.data.shards.chunks import Chunks
from llmctl.errors import ConfigError
from llmctl.formats.base import Pretrained
from llmctl.models import ARCHITECTURES
from llmctl.models.heads.masked_lm import MaskedLM
from llmctl.models.spec import Backbone
from llmctl.tasks.masked_lm.batches import MaskedBatch, MaskedBatches, masking_vocab
from llmctl.tasks.masked_lm.config import MaskedLMConfig
from llmctl.tasks.masked_lm.loss import masked_lm_loss
from llmctl.tasks.pretraining import DataConfig, PretrainConfig, Pretraining
from llmctl.training.batches import LossParts


class MaskedPretraining(Pretraining[MaskedLMConfig, DataConfig]):
    """Masked language modelling, with pairs or without, over shards."""

    objective_config = MaskedLMConfig
    data_config = DataConfig
    # See llmctl/tasks/embeddings.py for what it brings.
    embeddings = "cooccurrence"
    # 44 thousand tokens a second with them, 43 to 50 without, and half a minute to make them
    # (2 layers × 128, two cores): its blocks are few large operations as they are.
    compile_on_cpu = False
    roles = ("cls", "sep", "mask", "pad")
    described = "which BERT needs; learn one with `llmctl tokenize --tokenizer wordpiece`"

    @staticmethod
    def peak_rate(width: int) -> float:
        """2e-3 for a body up to 128 wide, then in inverse proportion to the width (Yang et al.
        2022, μP): a step changes each layer's output as much."""
        return 2e-3 * 128 / max(width, 128)

    @classmethod
    def resolve(
        cls,
        arch: str,
        preset: str | None,
        *layers: Mapping[str, Any],
        task: str | None = None,
        base: Pretrained | None = None,
    ) -> PretrainConfig[Any, Any, Any]:
        """Raises ConfigError where pairs are to be judged and the architecture has no head for
        it."""
        config = super().resolve(arch, preset, *layers, task=task, base=base)
        if config.objective.next_sentence and not ARCHITECTURES[arch].judges_pairs:
            raise ConfigError(
                f"objective.next_sentence: --arch {arch} has no head that judges pairs; leave it "
                "out, or take another architecture"
            )
        return config

    def batches(self, split: str, *, seed: int) -> MaskedBatches:
        length = self.config.data.sequence_length
        overhead = 3 if self.config.objective.next_sentence else 2
        training = split == "train"
        chunks = Chunks(self.reader(split), length - overhead, seed=seed, shuffle=training)
        packed = PackedBatches(
            chunks,
            sequence_length=length,
            batch_size=self.config.training.batch_size,
            overhead=overhead,
            seed=seed,
            repeat=training,
        )
        vocabulary = masking_vocab(self.tokenizer)
        return MaskedBatches(packed, vocabulary, self.config.objective, length, seed)

    def model(self, body: Backbone) -> MaskedLM:
        return MaskedLM(body, next_sentence=self.config.objective.next_sentence)

    @classmethod
    def objective_of(cls, base: Pretrained) -> dict[str, Any]:
        return {"next_sentence": base.masked_lm().next_sentence is not None}

    def pretrained(self, base: Pretrained) -> MaskedLM:
        model = base.owning().masked_lm()
        if not self.config.objective.next_sentence:
            model.pooler = model.next_sentence = None
        elif model.next_sentence is None:
            raise ConfigError(
                "objective.next_sentence: the model has no head for it; leave it out, or pretrain "
                "one from random weights"
            )
        return model

    def loss(self, model: MaskedLM, batch: MaskedBatch) -> LossParts:
        return masked_lm_loss(model, batch)

    def head_weights(self) -> float:
        width = self.config.model.hidden_size
        return self.config.objective.mask_rate * (width * self.config.model.vocab_size + width**2)
