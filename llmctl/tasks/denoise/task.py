"""Denoising: shards as texts with noise, which an encoder–decoder restores."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from llmctl.data.shards.windows import TokenStream, WindowBatches
from llmctl.errors import ConfigError
from llmctl.formats.base import Pretrained
from llmctl.formats.frames import frame_of
from llmctl.models.heads.encoder_decoder import EncoderDecoderLM
from llmctl.models.spec import Backbone
from llmctl.tasks.denoise.batches import (
    DenoisingBatches,
    NoiseCounts,
    NoiseVocab,
    check_fits,
    lengths_of,
    text_length,
)
from llmctl.tasks.denoise.config import MASKS, DenoiseConfig
from llmctl.tasks.denoise.loss import denoising_loss
from llmctl.tasks.pretraining import (
    DataConfig,
    PretrainConfig,
    Pretraining,
    sampled_batches,
)
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.frames import Frame
from llmctl.training.batches import LossParts
from llmctl.workspace.artefacts import Artefact

NOISE = "noise"
"""The key of a run's summary."""


class DenoisingPretraining(Pretraining[DenoiseConfig, DataConfig]):
    """Texts with noise, over shards."""

    objective_config = DenoiseConfig
    data_config = DataConfig
    roles = ()  # what noise needs depends on which it is: see ``suits``

    def __init__(
        self,
        shards: Artefact,
        config: PretrainConfig[Any, DenoiseConfig, DataConfig],
        base: Pretrained | None = None,
    ) -> None:
        super().__init__(shards, config, base)
        objective, length = self.config.objective, self.config.data.sequence_length
        self._vocabulary = NoiseVocab.of(self.tokenizer, self._frame)
        self._length = text_length(objective, length, self._frame)
        check_fits(objective, self._vocabulary, self._length)

    @classmethod
    def suits(cls, tokenizer: Tokenizer, config: Any) -> bool:
        objective: DenoiseConfig = config.objective
        return (
            tokenizer.text_end is not None
            and (objective.noise != "spans" or bool(tokenizer.sentinels))
            and (objective.hiding not in MASKS or "mask" in tokenizer.special)
        )

    @classmethod
    def wanted(cls, config: Any) -> str:
        needs = "a token for a text's end"
        if config.objective.noise == "spans":
            needs = "sentinels: llmctl tokenize … --sentinels 100"
        elif config.objective.hiding in MASKS:
            needs = "a token for a mask"
        return f"--arch {config.arch} (their tokenizer needs {needs})"

    @staticmethod
    def peak_rate(width: int) -> float:
        """2e-3 for a body up to 128 wide, then in inverse proportion to the width, as for a BERT,
        whose norms a BART has."""
        return 2e-3 * 128 / max(width, 128)

    @cached_property
    def _frame(self) -> Frame:
        """What stands around sources and targets."""
        if self.base is not None:
            return self.base.frame
        body: Any = self.architecture.build
        return frame_of(self.tokenizer.for_texts(opens=body.opens_texts), body)

    @property
    def introduction(self) -> str:
        objective = self.config.objective
        source, target = lengths_of(objective, self._length, self._frame)
        if objective.noise == "prefix":
            return f"rows of {self._length} tokens, each divided into a source and a target"
        return (
            f"rows of {self._length} tokens with noise ({objective.noise}): sources of "
            f"{'up to ' if objective.hiding == 'infilling' else ''}{source} tokens, targets of "
            f"{target}"
        )

    def batches(self, split: str, *, seed: int) -> DenoisingBatches:
        end = self._vocabulary.end
        windows = WindowBatches(
            TokenStream(self.reader(split), end, end),
            sequence_length=self._length,
            batch_size=self.config.training.batch_size,
            seed=seed,
            repeat=split == "train",
        )
        objective = self.config.objective
        return DenoisingBatches(windows, self._vocabulary, objective, frame=self._frame, seed=seed)

    def model(self, body: Backbone) -> EncoderDecoderLM:
        return EncoderDecoderLM(body)  # type: ignore[arg-type]

    def pretrained(self, base: Pretrained) -> EncoderDecoderLM:
        model = base.seq2seq(dropout=self.config.model.dropout)
        if not isinstance(model, EncoderDecoderLM):
            raise ConfigError(
                f"{base.path} is a GPT with a decoder attached, which no noise is for"
            )
        return model

    def loss(self, model: EncoderDecoderLM, batch: Any) -> LossParts:
        return denoising_loss(model, batch)

    def head_weights(self) -> float:
        return self.config.model.hidden_size * self.config.model.vocab_size

    def flops_per_token(self) -> None:
        # A token goes through the encoder or the decoder, and attends in more than one way.
        return None

    def conclude(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """What was learned, and what noise came to: for each kind its share and mean span, over
        some of the batches that were trained on."""
        numbers = sampled_batches(int(summary["steps"]))
        batches = self.batches("train", seed=self.config.seed)
        counts = sum((batches(number).counts for number in numbers), NoiseCounts())
        found = counts.document(self.config.objective)
        return {**super().conclude(summary), NOISE: {**found, "batches": len(numbers)}}
