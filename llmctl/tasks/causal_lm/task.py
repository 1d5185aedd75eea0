"""Causal pretraining: shards as rows of next tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from llmctl.data.shards.windows import TokenStream, WindowBatches
from llmctl.formats.base import Pretrained
from llmctl.formats.description import FIM
from llmctl.models.heads.causal_lm import CausalLM
from llmctl.models.spec import Backbone
from llmctl.tasks.causal_lm.batches import CausalBatch, CausalBatches
from llmctl.tasks.causal_lm.config import CausalData, CausalLMConfig
from llmctl.tasks.causal_lm.fim import FillInTheMiddle, fim_tokens
from llmctl.tasks.causal_lm.loss import causal_lm_loss
from llmctl.tasks.pretraining import PretrainConfig, Pretraining, sampled_batches
from llmctl.tokenizers import Tokenizer
from llmctl.training.batches import LossParts
from llmctl.workspace.artefacts import Artefact


class CausalPretraining(Pretraining[CausalLMConfig, CausalData]):
    """Next-token prediction over shards."""

    objective_config = CausalLMConfig
    data_config = CausalData
    defaults: ClassVar[Mapping[str, Any]] = {
        # What measured best at our small scale: tests/benchmarks/RESULTS.md.
        "training": {
            "optimiser": "muon",
            "schedule": "linear",
            "warmup": 0.02,
            "beta_1": 0.8,
            "beta_2": 0.95,
            "epsilon": 1e-10,
            "weight_decay": 0.1,
        }
    }
    roles = ("bos", "eos")
    described = (
        "which mark a document's start and end; learn one with `llmctl tokenize --tokenizer bpe`"
    )

    def __init__(
        self,
        shards: Artefact,
        config: PretrainConfig[Any, CausalLMConfig, CausalData],
        base: Pretrained | None = None,
    ) -> None:
        super().__init__(shards, config, base)
        if config.objective.fim:
            self._fim(config.seed)  # raises where the tokenizer has no tokens for it

    @staticmethod
    def peak_rate(width: int) -> float:
        """AdamW's, for what Muon leaves it: 4e-3 for a body up to 128 wide, then falling with the
        width's root, as in nanochat."""
        return 4e-3 * math.sqrt(128 / max(width, 128))

    def batches(self, split: str, *, seed: int) -> CausalBatches:
        special = self.tokenizer.special
        stream = TokenStream(self.reader(split), special["bos"], special["eos"])
        windows = WindowBatches(
            stream,
            sequence_length=self.config.data.sequence_length,
            batch_size=self.config.training.batch_size,
            seed=seed,
            repeat=split == "train",
        )
        # Validation is on text from left to right, whatever is learned beside it.
        fim = self._fim(seed) if split == "train" and self.config.objective.fim else None
        return CausalBatches(
            windows, self.tokenizer, document_mask=self.config.data.document_mask, fim=fim
        )

    def _fim(self, seed: int) -> FillInTheMiddle:
        return FillInTheMiddle(self.tokenizer, share=self.config.objective.fim, seed=seed)

    @property
    def learned_fields(self) -> dict[str, Any]:
        share = self.config.objective.fim
        if fim_tokens(self.exported_tokenizer) is None:
            return {}
        if self.base is None:
            return {FIM: share}
        if FIM in self.base.fields:
            return {FIM: max(share, self.base.fields[FIM])}
        return {FIM: share} if share else {}  # of a model of others nothing is known

    def conclude(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """What was learned, and what share of the parts of documents were laid out for
        fill-in-the-middle, over some of the batches that were trained on."""
        learned = super().conclude(summary)
        if not self.config.objective.fim:
            return learned
        numbers = sampled_batches(int(summary["steps"]))
        batches = self.batches("train", seed=self.config.seed)
        counts = np.sum([batches.fim_counts(number) for number in numbers], axis=0)
        parts, laid_out, suffix_first = counts.tolist()
        found = {"share": laid_out / parts, "spm_share": suffix_first / max(laid_out, 1)}
        return {**learned, "fim": {**found, "batches": len(numbers)}}

    def model(self, body: Backbone) -> CausalLM:
        return CausalLM(body)

    def pretrained(self, base: Pretrained) -> CausalLM:
        return base.owning().causal_lm()

    @property
    def exported_tokenizer(self) -> Tokenizer:
        # Every document has begun so.
        return super().exported_tokenizer.for_decoder()

    def loss(self, model: CausalLM, batch: CausalBatch) -> LossParts:
        return causal_lm_loss(model, batch, z_loss=self.config.objective.z_loss)

    def head_weights(self) -> float:
        return self.config.model.hidden_size * self.config.model.vocab_size
