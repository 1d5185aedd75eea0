"""Pretraining on both ways of reading: shards as rows, some from left to right, the others with
hidden tokens (Charpentier and Samuel 2024)."""

from __future__ import annotations

from llmctl.data.shards.windows import TokenStream, WindowBatches
from llmctl.formats.base import Pretrained
from llmctl.models.heads.gpt_bert import GptBertHead, MaskedNextTokenLM
from llmctl.models.spec import Backbone
from llmctl.tasks.causal_lm.task import CausalPretraining
from llmctl.tasks.gpt_bert.batches import GptBertBatch, GptBertBatches
from llmctl.tasks.gpt_bert.config import GptBertData, GptBertObjective
from llmctl.tasks.gpt_bert.loss import gpt_bert_loss
from llmctl.tasks.pretraining import Pretraining
from llmctl.tokenizers import Tokenizer
from llmctl.training.batches import LossParts


class GptBertPretraining(Pretraining[GptBertObjective, GptBertData]):
    """Next tokens and hidden ones over shards, by one network."""

    objective_config = GptBertObjective
    data_config = GptBertData
    defaults = CausalPretraining.defaults
    # The two kinds of rows are of sizes that change from step to step.
    compile_on_cpu = False
    roles = ("bos", "eos", "mask")
    described = (
        "which mark a document's start and end and a hidden token; learn one with `llmctl tokenize "
        "--tokenizer bpe`"
    )
    peak_rate = staticmethod(CausalPretraining.peak_rate)

    def batches(self, split: str, *, seed: int) -> GptBertBatches:
        special = self.tokenizer.special
        windows = WindowBatches(
            TokenStream(self.reader(split), special["bos"], special["eos"]),
            sequence_length=self.config.data.sequence_length,
            batch_size=self.config.training.batch_size,
            seed=seed,
            repeat=split == "train",
        )
        return GptBertBatches(
            windows,
            self.tokenizer,
            self.config.objective,
            seed=seed,
            evenly=split != "train",
        )

    def model(self, body: Backbone) -> MaskedNextTokenLM:
        return MaskedNextTokenLM(body)

    def pretrained(self, base: Pretrained) -> MaskedNextTokenLM:
        model: MaskedNextTokenLM = base.owning().with_head(GptBertHead.kind)
        return model

    @property
    def exported_tokenizer(self) -> Tokenizer:
        # Every document has begun so.
        return super().exported_tokenizer.for_decoder()

    def loss(self, model: MaskedNextTokenLM, batch: GptBertBatch) -> LossParts:
        return gpt_bert_loss(model, batch, z_loss=self.config.objective.z_loss)

    def head_weights(self) -> float:
        objective = self.config.objective
        scored = objective.causal_share + (1 - objective.causal_share) * objective.mask_rate
        return scored * float(self.config.model.hidden_size * self.config.model.vocab_size)
